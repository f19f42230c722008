"""The torch modules of `deltakit.methods.mixture`: experts, draws and routers."""

import copy
from abc import ABC
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import (
    Attending,
    AuxiliaryLoss,
    BatchedRows,
    Delta,
    DrawnInTraining,
    HasExperts,
    Reads,
    ReadsEnd,
    Reparametrised,
    SparselyActive,
    overrides_both,
)
from deltakit.core.factors import Factored, Factors
from deltakit.errors import InvalidConfig


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
        self.names = tuple(name for name, _ in self.form.named_parameters())
        self._by_row = (rows,)
        self._is_factored = isinstance(self.form, Factored) and overrides_both(
            type(self.form), "factors"
        )

    def parameters_by_name(self) -> dict[str, Tensor]:
        """The stacked parameters."""
        form: Any = self.form
        return {name: reduce(getattr, name.split("."), form) for name in self.names}

    def all(self, x: Tensor) -> Tensor:
        """Each expert's change for every token: ``(tokens, d)`` to ``(experts, tokens, d_out)``."""
        stacked = {
            name: value.expand(self.count, *value.shape[1:])
            for name, value in self.parameters_by_name().items()
        }
        return self._change(stacked, x.expand(self.count, *x.shape))

    def weighed(self, x: Tensor, weights: Tensor) -> Tensor:
        """Σ_e p_e f_e(x): ``(tokens, d)`` and ``(tokens, experts)`` to ``(tokens, d_out)``.

        Where the form has factors, its few units are weighed, and no change of the model's width is
        made for each expert.
        """
        factors = self._factors()
        if factors is None:
            return torch.einsum("te,etd->td", weights, self.all(x))
        return _by_units(factors, x, weights)

    def _factors(self) -> Factors | None:
        form: Delta = self.form
        return form.factors() if self._is_factored and isinstance(form, Factored) else None

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


def _by_units(stacked: Factors, x: Tensor, weights: Tensor) -> Tensor:
    """As `Experts.weighed`, with every expert's factors stacked, ``(1, ...)`` where they share."""
    bias = None if stacked.down_bias is None else stacked.down_bias.flatten()
    units = stacked.activation(F.linear(x, stacked.down.flatten(0, 1), bias))
    code = weights.unsqueeze(-1) * units.unflatten(-1, (len(stacked.down), -1))
    if len(stacked.up) == 1:
        change = F.linear(code.sum(1), stacked.up[0])
    else:
        change = code.flatten(1) @ stacked.up.mT.flatten(0, 1)
    if stacked.up_bias is None:
        return change
    if len(stacked.up_bias) == 1:
        return change + weights.sum(-1, keepdim=True) * stacked.up_bias
    return change + weights @ stacked.up_bias


def _computes_rows(form: Delta) -> BatchedRows:
    if isinstance(form, BatchedRows) and overrides_both(type(form), "by_row"):
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


class Mixed(Delta, HasExperts, ABC):
    """Several experts at one site. Shapes: ``(..., d_in)`` to ``(..., d_out)``."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    @property
    def stacked(self) -> nn.Module:
        return self.experts.form


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
        weights = weights.reshape(-1, self.experts.count)
        changes = self.experts.weighed(x.reshape(-1, x.shape[-1]), weights)
        return changes.view(*x.shape[:-1], -1)


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
