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

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deltakit.core.checks import check_choice, check_not_negative, check_whole
from deltakit.core.method import (
    FormWrapper,
    Method,
    Paper,
    Placement,
    register_method,
)
from deltakit.core.site import Handle
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import SequentialAdapter
from deltakit.methods.ia3 import IA3
from deltakit.methods.lora import LoRA

if TYPE_CHECKING:
    from deltakit.core.delta import Delta

Route = Literal["batch", "token", "sequence"]


ADAMIX = Paper(
    key="wang2022adamix",
    title="AdaMix: Mixture-of-Adaptations for Parameter-efficient Model Tuning",
    authors="Wang, Yaqing and Agarwal, Sahaj and Mukherjee, Subhabrata and Liu, Xiaodong and "
    "Gao, Jing and Awadallah, Ahmed Hassan and Gao, Jianfeng",
    year=2022,
    venue="Conference on Empirical Methods in Natural Language Processing",
    arxiv="2205.12410",
)
MOLORA = Paper(
    key="zadouri2024pushing",
    title="Pushing Mixture of Experts to the Limit: Extremely Parameter Efficient MoE for "
    "Instruction Tuning",
    authors="Zadouri, Ted and Üstün, Ahmet and Ahmadian, Arash and Ermiş, Beyza and Locatelli, "
    "Acyr and Hooker, Sara",
    year=2024,
    venue="International Conference on Learning Representations",
    arxiv="2309.05444",
)
MOLA = Paper(
    key="gao2024higher",
    title="Higher Layers Need More LoRA Experts",
    authors="Gao, Chongyang and Chen, Kezhen and Rao, Jinmeng and Sun, Baochen and Liu, Ruibo "
    "and Peng, Daiyi and Zhang, Yawen and Guo, Xiaoyuan and Yang, Jie and Subrahmanian, V. S.",
    year=2024,
    venue="arXiv preprint",
    arxiv="2402.08562",
)


@register_method("mixture")
@register_method(
    "adamix",
    "Adapters of which each training batch draws one, and of which the mean is kept.",
    method=SequentialAdapter(placement="ffn"),
    route="batch",
    share=("up",),
    consistency=1.0,
)
@register_method(
    "molora",
    "Ten LoRAs, weighed for each token by a router.",
    method=LoRA(rank=4, targets=("all",)),
    experts=10,
)
@register_method("mov", "Ten (IA)³, weighed for each token by a router.", method=IA3(), experts=10)
@register_method(
    "mola",
    "LoRAs, from 2 in the lowest layers to 8 in the highest; a router takes two for each token.",
    method=LoRA(rank=8, targets=("all",), initialisation="kaiming"),
    experts=(2, 4, 6, 8),
    top=2,
)
@dataclass(frozen=True, kw_only=True, init=False)
class Mixture(FormWrapper):
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

    plain: ClassVar[Mapping[str, Any]] = MappingProxyType({"experts": 1, "top": None})

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
        self.check_method()
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
    def paper(self) -> Paper:
        """AdaMix's for the route by batch, MoLA's for numbers by layer, else MoLoRA's and MoV's."""
        if self.route == "batch":
            return ADAMIX
        return MOLORA if isinstance(self.experts, int) else MOLA

    @property
    def is_plain(self) -> bool:
        return self._counts == (1,)

    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The experts of one placement at one site, or the plain form where there is one alone."""
        from deltakit.methods.forms import mixture

        count = self._counts[handle.layer * len(self._counts) // handle.depth]
        if count == 1:
            return placement.make_delta(handle)
        d = placement.insertion.width(handle)
        if self.route == "batch":
            one = placement.make_delta(handle)
            experts = mixture.Experts([one] * count, self.share)
            return mixture.DrawnByBatch(experts, consistency=self.consistency)
        experts = mixture.Experts([placement.make_delta(handle) for _ in range(count)], self.share)
        if self.route == "sequence":
            return mixture.RoutedBySequence(experts, d, top=self.top)
        if self.balance:
            return mixture.BalancedByToken(experts, d, top=self.top, balance=self.balance)
        return mixture.RoutedByToken(experts, d, top=self.top)

    def deployed(self) -> Method:
        """The plain method, where the experts are drawn by batch: their mean is one delta of it."""
        deployed = self.method.deployed()
        return deployed if self.route == "batch" else replace(self, method=deployed)
