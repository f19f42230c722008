r"""Invertible adapters of the embeddings (MAD-X, Pfeiffer et al. 2020, arXiv:2005.00052).

    e <- A(e) behind the embeddings,    h <- A⁻¹(h) before the projection to the vocabulary

=================  ===============================================
axis               value
=================  ===============================================
functional form    a coupling of two halves, which has an exact inverse
insertion          sequential
modified           what the first layer is given; what a language-modelling head projects
composition        e + (A(e) - e),  h + (A⁻¹(h) - h)
=================  ===============================================

Each vector is cut into halves e₁ and e₂. NICE (Dinh et al. 2015) adds, GLOW (Kingma & Dhariwal
2018) scales too; F, G, S and T are bottlenecks of two linear layers:

    nice   e₁' = e₁ + F(e₂)                   e₂' = e₂ + G(e₁')
    glow   e₁' = exp(c(S₂(e₂))) e₁ + T₂(e₂)   e₂' = exp(c(S₁(e₁'))) e₂ + T₁(e₁')

with c(s) = 5 · 0.636 atan(s / 5), so that no factor is beyond exp(±5). Both directions have one set
of parameters. A model without a language-modelling head has the first direction alone, so a
language's adapter trained with one can go under a classifier. A MAD-X language adapter is
``invertible + adapter``; with a task's adapter on top, ``Stack("language", "task")`` runs through
the language's inverse.

Where the sources differ. The paper uses NICE, and leaves the width of the bottleneck open; the
`adapters` library halves it (``reduction=2``). The library's GLOW slices the tokens' axis where it
means the vectors', and fails on every batch; this is what its design says. The library has the
inverse in its own heads alone; here it is in transformers' heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from deltakit.core.checks import check_choice, check_positive
from deltakit.core.method import InitialOutput, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import ACTIVATION_NAMES

if TYPE_CHECKING:
    from deltakit.core.delta import Delta
    from deltakit.methods.forms.invertible import Coupling

BLOCKS = ("nice", "glow")


@register_method("invertible")
@dataclass(frozen=True, kw_only=True)
class InvertibleAdapter(Summable):
    """An invertible change of the embeddings, undone before the vocabulary (Pfeiffer et al. 2020).

    Args:
        block: "nice" adds to the halves of a vector; "glow" also scales them.
        reduction: the width of half a vector over that of its bottleneck.
        activation: the nonlinearity of the bottlenecks.

    Raises:
        InvalidConfig: a value out of range.
    """

    block: Literal["nice", "glow"] = "nice"
    reduction: float = 2
    activation: str = "relu"

    paper: ClassVar[Paper] = Paper(
        key="pfeiffer2020madx",
        title="MAD-X: An Adapter-Based Framework for Multi-Task Cross-Lingual Transfer",
        authors="Pfeiffer, Jonas and Vulić, Ivan and Gurevych, Iryna and Ruder, Sebastian",
        year=2020,
        venue="Conference on Empirical Methods in Natural Language Processing",
        arxiv="2005.00052",
    )
    learning_rate: ClassVar[float] = 1e-4
    starts: ClassVar[InitialOutput] = InitialOutput.NEAR

    def __post_init__(self) -> None:
        check_choice(self, BLOCKS, block=self.block)
        check_positive(self, reduction=self.reduction)
        check_choice(self, ACTIVATION_NAMES, activation=self.activation)

    def placements(self) -> tuple[Placement, ...]:
        pair = _Pair(self)
        return (
            Placement(site=Site.EMBED_OUT, make_delta=pair.form, insertion=Insertion.SEQUENTIAL),
            Placement(
                site=Site.UNEMBED,
                make_delta=pair.inverse,
                insertion=Insertion.SEQUENTIAL,
                optional=True,
            ),
        )


@dataclass
class _Pair:
    """Makes the two directions; the first one has the parameters."""

    method: InvertibleAdapter
    coupling: Coupling | None = None

    def form(self, handle: Handle) -> Delta:
        from deltakit.methods.forms.invertible import BLOCKS as FORMS

        method = self.method
        self.coupling = FORMS[method.block](
            handle.d_out, reduction=method.reduction, activation=method.activation
        )
        return self.coupling

    def inverse(self, handle: Handle) -> Delta:
        from deltakit.methods.forms.invertible import Uncoupling

        coupling = self.coupling
        if coupling is None:
            raise InvalidConfig("InvertibleAdapter without the stack 'input' has nothing to undo.")
        width = coupling.cut + coupling.second.up.out_features // coupling.outputs
        if handle.d_out != width:
            raise InvalidConfig(
                f"InvertibleAdapter: the embeddings are {width} wide and the head's projection "
                f"{handle.path!r} reads {handle.d_out}, so nothing undoes the change there."
            )
        return Uncoupling(coupling)
