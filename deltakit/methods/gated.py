r"""Gated sums: each part of a sum has a gate that says how much of it is used.

    Δh = g(x) · f(x),    g(x) = σ(x wᵀ + b)

===============  ======================================================================
`gate`           g
===============  ======================================================================
``"token"``      of each token by itself
``"sequence"``   the mean over a sequence's real tokens, one number for all of them
===============  ======================================================================

Every placement has a gate of its own, which reads what the form reads: x where it is parallel, h
where it is sequential, and for keys and values what the attention is given. w starts from
N(0, 0.02²) and b at zero, so a gate starts near one half.

*UniPELT* (Mao et al. 2022, arXiv:2110.07577) is the sum of a prefix, a Pfeiffer adapter and LoRA
with a gate for each sequence. A prefix has one gate for its keys and values.

Where the sources differ. The public code of UniPELT and `adapters` average a gate over padding too,
so a row's output depends on the longest row of its batch; here padding has no weight. Their
results and these are equal where no row is padded. `adapters` trains the prefix through a network
(``bottleneck=512``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deltakit.core.checks import check_choice
from deltakit.core.method import (
    FormWrapper,
    Method,
    Paper,
    Placement,
    register_method,
)
from deltakit.core.site import INPUT_SITES, Handle
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import SequentialAdapter
from deltakit.methods.lora import LoRA
from deltakit.methods.prefix import PrefixTuning

if TYPE_CHECKING:
    from deltakit.core.delta import Delta

UNIPELT = PrefixTuning(length=10, bottleneck=None) + SequentialAdapter() + LoRA(rank=8, alpha=2)


@register_method("gated")
@register_method("unipelt", "A prefix, adapters and LoRA, each behind a gate.", method=UNIPELT)
@dataclass(frozen=True, kw_only=True, init=False)
class Gated(FormWrapper):
    """A method, usually a sum, with a gate at each of its placements (Mao et al. 2022, UniPELT).

    ``Gated(LoRA() + ParallelAdapter(), gate="token")``.

    Args:
        method: what is gated: adapters, LoRA, (IA)³ and, for each sequence, prefixes.
        gate: "sequence" or "token".

    Raises:
        InvalidConfig: another gate, or a method that adds tokens to the model's input.
    """

    method: Method
    gate: Literal["sequence", "token"]

    paper: ClassVar[Paper] = Paper(
        key="mao2022unipelt",
        title="UniPELT: A Unified Framework for Parameter-Efficient Language Model Tuning",
        authors="Mao, Yuning and Mathias, Lambert and Hou, Rui and Almahairi, Amjad and Ma, Hao "
        "and Han, Jiawei and Yih, Wen-tau and Khabsa, Madian",
        year=2022,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2110.07577",
    )

    def __init__(
        self, method: Method | None = None, *, gate: Literal["sequence", "token"] = "sequence"
    ) -> None:
        object.__setattr__(self, "method", UNIPELT if method is None else method)
        object.__setattr__(self, "gate", gate)
        self.check_method()
        check_choice(self, ("sequence", "token"), gate=gate)
        outside = [p.site for p in self.method.placements() if p.site in INPUT_SITES]
        if outside:
            raise InvalidConfig(
                f"Gated: {type(self.method).__name__} acts at {outside[0].value!r}, before all "
                "layers, where no gate can read a representation. Gate what acts in layers."
            )

    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The method's form at one site, and its gate."""
        from deltakit.methods.forms.gated import gated

        form, width = placement.make_delta(handle), placement.insertion.width(handle)
        return gated(form, width, by_sequence=self.gate == "sequence")
