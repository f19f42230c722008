r"""Mixtures: several experts of one form at each placement, and a combiner that weighs them.

    Δh = Σ_e p_e f_e(x),    p: (experts)

================  ==================================================================
`route`           p
================  ==================================================================
``"token"``       softmax(W_g x) of each token; with `top` only the largest, renormalised
``"sequence"``    softmax(W_g x̄) of each sequence, x̄ the mean of its real tokens' x
``"batch"``       in training one expert drawn for each batch, in use the experts' mean
================  ==================================================================

The form, its insertion and its placements are those of the method that is mixed. W_g has no bias
and starts from N(0, 0.02²); each placement has its own.

*AdaMix* (Wang et al. 2022, arXiv:2205.12410) is the route ``"batch"``. Each placement draws its own
index, and so does each part of the form (down and up). The experts start as copies of one. `deploy`
leaves the arithmetic mean of the experts' parameters, which is a delta of the plain method.
*MoLoRA* and *MoV* (Zadouri et al. 2023, arXiv:2309.05444) are soft routes by token over LoRA and
(IA)³. *MoLA* (Gao et al. 2024, arXiv:2402.08562) has other numbers of experts in each quarter of
the layers, and the two largest.

Where the sources differ. AdaMix's code shares one up-projection (``share=("up",)``), and no
gradient flows through the targets of its two divergences, of which the paper says nothing. MoV's
code gives the router of keys and values one head's slice at a time; here it reads the whole input.
UniPELT's and Lily's public code average their gates over padding too; here padding has no weight.
"""

import copy
from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.checks import check_choice, check_not_negative, check_whole
from deltakit.core.delta import (
    Attending,
    AuxiliaryLoss,
    BatchedRows,
    Delta,
    DrawnInTraining,
    Reads,
    ReadsEnd,
    Reparametrised,
    SparselyActive,
)
from deltakit.core.method import (
    CombiningMethod,
    Method,
    MethodWrapper,
    Paper,
    Placement,
    register_method,
)
from deltakit.core.site import Handle
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import SequentialAdapter
from deltakit.methods.ia3 import IA3
from deltakit.methods.lora import LoRA

Route = Literal["batch", "token", "sequence"]


class Experts(nn.Module):
    """Forms of one kind whose parameters are stacked: ``(experts, ...)``, ``(1, ...)`` if shared.

    Attributes:
        count: how many.
        form: one of them, in which each parameter is the stacked one.
    """

    def __init__(self, forms: Sequence[Delta], share: tuple[str, ...]) -> None:
        super().__init__()
        self.count = len(forms)
        self.form = forms[0]
        rows = _computes_rows(self.form)
        shared = _shared(self.form, share)
        for name, parameter in list(self.form.named_parameters()):
            each = [parameter] if name in shared else [f.get_parameter(name) for f in forms]
            _put(self.form, name, torch.stack([value.detach() for value in each]))
        self._by_row = (rows,)

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters."""
        return dict(self.form.named_parameters())

    def all(self, x: Tensor) -> Tensor:
        """Each expert's change for every token: ``(tokens, d)`` to ``(experts, tokens, d_out)``."""
        stacked = {
            name: value.expand(self.count, *value.shape[1:])
            for name, value in self.parameters_by_name().items()
        }
        return self._change(stacked, x.expand(self.count, *x.shape))

    def one(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """The change of one expert with these parameters, ``(1, ...)`` each, for ``(..., d)``."""
        flat = x.reshape(1, -1, x.shape[-1])
        return self._change(parameters, flat).view(*x.shape[:-1], -1)

    def _change(self, parameters: Mapping[str, Tensor], x: Tensor) -> Tensor:
        ones = x.new_ones(len(x), 1, 1)
        return self._by_row[0].by_row(parameters, x, ones)

    def mean(self) -> dict[str, Tensor]:
        """The arithmetic mean of the experts' parameters, ``(1, ...)`` each."""
        return {n: p.mean(0, keepdim=True) for n, p in self.parameters_by_name().items()}

    def averaged(self) -> Delta:
        """A plain form with the experts' mean."""
        form = copy.deepcopy(self.form)
        for name, value in self.mean().items():
            _put(form, name, value.detach()[0])
        return form


def _computes_rows(form: Delta) -> BatchedRows:
    if isinstance(form, BatchedRows):
        return form
    raise InvalidConfig(
        f"Mixture: the form {type(form).__name__} cannot compute several experts in one product. "
        "Mix a method whose form can, such as an adapter, LoRA or (IA)³."
    )


def _shared(form: Delta, share: tuple[str, ...]) -> frozenset[str]:
    """The names of the parameters in the parts that the experts share."""
    parts = {part(name): name for name, _ in form.named_parameters()}
    for word in share:
        if word not in parts:
            raise InvalidConfig(
                f"Mixture(share={word!r}): the form {type(form).__name__} has no such part. It "
                f"has: {', '.join(sorted(parts))}."
            )
    return frozenset(name for name, _ in form.named_parameters() if part(name) in share)


def part(name: str) -> str:
    """The part of a form that a parameter belongs to: ``up`` of ``up.weight``."""
    return name.partition(".")[0]


def _put(form: nn.Module, name: str, value: Tensor) -> None:
    path, _, last = name.rpartition(".")
    form.get_submodule(path).register_parameter(last, nn.Parameter(value))


class Mixed(Delta, ABC):
    """Several experts at one site. Shapes: ``(..., d_in)`` to ``(..., d_out)``."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts


class DrawnByBatch(Mixed, Reparametrised, DrawnInTraining):
    """One expert for each batch in training, the experts' mean in use (AdaMix).

    The draw comes from torch's generator, so a layer that is computed again for its gradient draws
    the same expert.
    """

    def __init__(self, experts: Experts, *, consistency: float) -> None:
        super().__init__(experts)
        self.consistency = consistency

    def forward(self, x: Tensor) -> Tensor:
        return self.experts.one(self._drawn() if self.training else self.experts.mean(), x)

    def _drawn(self) -> dict[str, Tensor]:
        stacked = self.experts.parameters_by_name()
        device = next(iter(stacked.values())).device
        index = {
            each: torch.randint(self.experts.count, (1,), device=device)
            for each in dict.fromkeys(map(part, stacked))
        }
        return {
            name: value if len(value) == 1 else value.index_select(0, index[part(name)])
            for name, value in stacked.items()
        }

    def deployed(self) -> Delta:
        return self.experts.averaged()


class TopWeights(nn.Module):
    """softmax over the experts; of the largest `top`, renormalised, where that is set."""

    def __init__(self, top: int | None) -> None:
        super().__init__()
        self.top = top

    def forward(self, logits: Tensor) -> Tensor:
        weights = logits.softmax(-1)
        if self.top is None:
            return weights
        largest, index = weights.topk(self.top, dim=-1)
        largest = largest / largest.sum(-1, keepdim=True)
        return torch.zeros_like(weights).scatter(-1, index, largest)


class Routed(Mixed, Attending, SparselyActive):
    """Experts that a router weighs."""

    def __init__(self, experts: Experts, d: int, *, top: int | None) -> None:
        super().__init__(experts)
        self.router = nn.Linear(d, experts.count, bias=False)
        nn.init.normal_(self.router.weight, std=0.02)
        self.top = top
        self.attention = TopWeights(top)
        self.members = tuple(map(str, range(experts.count)))

    def active_parameters(self) -> int:
        """The router, what the experts share, and the experts with a weight that is not zero."""
        used = self.top or self.experts.count
        parameters = self.experts.parameters_by_name().values()
        numbers = sum(p[0].numel() * min(used, len(p)) for p in parameters)
        return numbers + self.router.weight.numel()

    def mixed(self, x: Tensor, weights: Tensor) -> Tensor:
        """Σ_e p_e f_e(x), with weights ``(..., experts)``."""
        changes = self.experts.all(x.reshape(-1, x.shape[-1]))
        weights = weights.reshape(-1, self.experts.count)
        return torch.einsum("te,etd->td", weights, changes).view(*x.shape[:-1], -1)


class RoutedByToken(Routed):
    """Experts weighed for each token by itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self.mixed(x, self.attention(self.router(x)))


class BalancedByToken(Routed, AuxiliaryLoss):
    """The same, with a loss that is smallest where all experts have equal work (Fedus et al. 2022).

    The loss is balance · E Σ_e f_e P_e, with f_e the share of real tokens whose largest weight is
    that of expert e, and P_e its mean probability.
    """

    reads = (Reads.SOURCE, Reads.MASK)

    def __init__(self, experts: Experts, d: int, *, top: int | None, balance: float) -> None:
        super().__init__(experts, d, top=top)
        self.balance = balance

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        del mask
        return self.mixed(x, self.attention(self.router(x)))

    def with_loss(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.router(x)
        real = mask[..., -x.shape[-2] :].unsqueeze(-1).to(logits.dtype)
        probabilities = logits.softmax(-1)
        chosen = F.one_hot(logits.argmax(-1), self.experts.count).to(logits.dtype)
        tokens = real.sum().clamp(min=1)
        shares, means = (
            (real * each).flatten(0, -2).sum(0) / tokens for each in (chosen, probabilities)
        )
        loss = self.balance * self.experts.count * (shares * means).sum()
        return self.mixed(x, self.attention(logits)), loss


class RoutedBySequence(Routed, ReadsEnd):
    """Experts weighed for each sequence, by the mean of its real tokens."""

    reads = (Reads.SOURCE, Reads.MASK)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = masked_mean(x, mask)
        weights = self.attention(self.router(mean)).unsqueeze(-2)
        return self.mixed(x, weights.expand(*x.shape[:-1], -1))


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x ``(..., tokens, d)`` over the real tokens of each sequence, ``(..., d)``."""
    real = mask[..., -x.shape[-2] :].unsqueeze(-1).to(x.dtype)
    return (x * real).sum(-2) / real.sum(-2).clamp(min=1)


@register_method("mixture")
@register_method("adamix", method=SequentialAdapter(placement="ffn"), route="batch", share=("up",))
@register_method("molora", method=LoRA(rank=4, targets=("all",)), experts=10)
@register_method("mov", method=IA3(), experts=10)
@register_method(
    "mola",
    method=LoRA(rank=8, targets=("all",), initialisation="kaiming"),
    experts=(2, 4, 6, 8),
    top=2,
)
@dataclass(frozen=True, kw_only=True, init=False)
class Mixture(MethodWrapper):
    """Several experts of a method's form at each of its placements.

    ``Mixture(LoRA(rank=4), experts=8, route="token", top=2)``. With one expert it is the method
    itself.

    Args:
        method: what is mixed: any method whose form computes many of its kind in one product, such
            as an adapter, LoRA or (IA)³.
        experts: how many, or several numbers for equal parts of the layers from the lowest on, such
            as ``(2, 4, 6, 8)`` for quarters (MoLA).
        route: "token", "sequence" or "batch".
        top: how many experts a token or a sequence has; None for all.
        share: parts of the form that the experts share, such as "up" or "lora_B".
        balance: the weight of the routers' balance loss, by token only.
        consistency: where experts are drawn by batch, the weight of the distance between the
            answers of two passes, which every training step then has (AdaMix).

    Raises:
        InvalidConfig: a value out of range, or settings that exclude each other.
    """

    method: Method
    experts: int | tuple[int, ...]
    route: Route
    top: int | None
    share: tuple[str, ...]
    balance: float
    consistency: float

    paper: ClassVar[Paper] = Paper(
        key="wang2022adamix",
        title="AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning",
        authors="Wang, Yaqing and Agarwal, Sahaj and Mukherjee, Subhabrata and Liu, Xiaodong and "
        "Gao, Jing and Awadallah, Ahmed Hassan and Gao, Jianfeng",
        year=2022,
        venue="Conference on Empirical Methods in Natural Language Processing",
        arxiv="2205.12410",
    )
    sums_parts: ClassVar[bool] = False

    def __init__(
        self,
        method: Method | None = None,
        *,
        experts: int | Sequence[int] = 4,
        route: Route = "token",
        top: int | None = None,
        share: str | Sequence[str] = (),
        balance: float = 0.0,
        consistency: float = 0.0,
    ) -> None:
        names = (share,) if isinstance(share, str) else tuple(share)
        counts = experts if isinstance(experts, int) else tuple(experts)
        object.__setattr__(self, "method", LoRA() if method is None else method)
        object.__setattr__(self, "experts", counts)
        object.__setattr__(self, "route", route)
        object.__setattr__(self, "top", top)
        object.__setattr__(self, "share", names)
        object.__setattr__(self, "balance", balance)
        object.__setattr__(self, "consistency", consistency)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.method, Method) or isinstance(self.method, CombiningMethod):
            raise InvalidConfig(
                f"Mixture(method={self.method!r}): a method that puts deltas into layers, for "
                "example LoRA()."
            )
        if not self._counts:
            raise InvalidConfig("Mixture(experts=()): give a number of experts, for example 4.")
        for count in self._counts:
            check_whole(self, experts=count)
        check_choice(self, ("batch", "token", "sequence"), route=self.route)
        check_not_negative(self, balance=self.balance, consistency=self.consistency)
        if self.top is not None:
            check_whole(self, top=self.top)
            self._check_top(self.top)
        if self.balance and self.route != "token":
            raise InvalidConfig(
                f"Mixture(balance={self.balance}, route={self.route!r}): only a router that reads "
                "tokens has a balance loss. Take route='token', or leave balance out."
            )

        if self.consistency and self.route != "batch":
            raise InvalidConfig(
                f"Mixture(consistency={self.consistency}, route={self.route!r}): two passes differ "
                "only where experts are drawn. Take route='batch', or leave consistency out."
            )

    def _check_top(self, top: int) -> None:
        if self.route == "batch":
            raise InvalidConfig(
                f"Mixture(top={top}, route='batch'): one expert is drawn for each batch. Leave "
                "top out, or take route='token'."
            )
        if top > min(self._counts):
            raise InvalidConfig(
                f"Mixture(top={top}): there are only {min(self._counts)} experts. Take fewer."
            )

    @property
    def _counts(self) -> tuple[int, ...]:
        return (self.experts,) if isinstance(self.experts, int) else self.experts

    @property
    def wrapped(self) -> tuple[Method, ...]:
        return (self.method,)

    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        (method,) = methods
        return replace(self, method=method)

    def placements(self) -> tuple[Placement, ...]:
        plain = super().placements()
        if self._counts == (1,):
            return plain
        return tuple(replace(each, make_delta=partial(self.form, each)) for each in plain)

    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The experts of one placement at one site, or the plain form where there is one alone."""
        count = self._counts[handle.layer * len(self._counts) // handle.depth]
        if count == 1:
            return placement.make_delta(handle)
        d = placement.insertion.width(handle)
        if self.route == "batch":
            one = placement.make_delta(handle)
            experts = Experts([one] * count, self.share)
            return DrawnByBatch(experts, consistency=self.consistency)
        experts = Experts([placement.make_delta(handle) for _ in range(count)], self.share)
        if self.route == "sequence":
            return RoutedBySequence(experts, d, top=self.top)
        if self.balance:
            return BalancedByToken(experts, d, top=self.top, balance=self.balance)
        return RoutedByToken(experts, d, top=self.top)

    def deployed(self) -> Method:
        """The plain method, where the experts are drawn by batch: their mean is one delta of it."""
        deployed = self.method.deployed()
        return deployed if self.route == "batch" else replace(self, method=deployed)
