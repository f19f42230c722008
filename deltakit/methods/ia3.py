r"""(IA)³: learned rescaling of inner activations (Liu et al. 2022, arXiv:2205.05638).

    k <- l_k ⊙ k,    v <- l_v ⊙ v,    γ(x W_1) <- l_ff ⊙ γ(x W_1)

In the unified view this is a plain case: Δ(h) = h ⊙ (l - 1), added to h.

=================  =========================================================
axis               value
=================  =========================================================
functional form    rescaling, d numbers
insertion          sequential
modified           keys, values, and the inner activation of the feed-forward
composition        h + Δh
=================  =========================================================

l starts at one, so Δh is zero at the start.

Where the sources differ. The paper and PEFT rescale the feed-forward *after* its nonlinearity (the
input of the second projection); the `adapters` library rescales the output of the first projection,
*before* it: ``feedforward="pre_activation"``. PEFT's defaults rescale other projections too on some
architectures: ``targets`` names any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_choice
from deltakit.core.method import Paper, Placement, Summable, register_method
from deltakit.core.site import LINEAR_SITES, Handle, Insertion, Site
from deltakit.errors import InvalidConfig, unknown

if TYPE_CHECKING:
    from deltakit.core.delta import Delta

SCALED_SITES = (*LINEAR_SITES, Site.ATTN_MID, Site.FFN_MID)
"""What can be rescaled: the outputs of linear projections, and the inputs of the last ones."""
_FEEDFORWARD = {"post_activation": Site.FFN_MID, "pre_activation": Site.FFN_UP}


@register_method("ia3")
@dataclass(frozen=True, kw_only=True)
class IA3(Summable):
    """Learned rescaling of keys, values and the feed-forward's inner activation (Liu et al. 2022).

    Args:
        feedforward: "post_activation" (the paper, PEFT) or "pre_activation" (`adapters`).
        targets: sites to rescale in place of those three, by full name, for example
            ``("attn.q", "attn.v", "ffn.mid")``.

    Raises:
        InvalidConfig: another value, or targets and a feed-forward of its own.
        UnknownName: a target that cannot be rescaled.
    """

    feedforward: str = "post_activation"
    targets: tuple[str, ...] | None = None

    paper: ClassVar[Paper] = Paper(
        key="liu2022ia3",
        title="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context "
        "Learning",
        authors="Liu, Haokun and Tam, Derek and Muqeeth, Mohammed and Mohta, Jay and Huang, "
        "Tenghao and Bansal, Mohit and Raffel, Colin",
        year=2022,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2205.05638",
    )
    learning_rate: ClassVar[float] = 3e-2

    def __post_init__(self) -> None:
        check_choice(self, tuple(_FEEDFORWARD), feedforward=self.feedforward)
        if self.targets is not None:
            object.__setattr__(self, "targets", self._names(self.targets))

    def _names(self, targets: object) -> tuple[str, ...]:
        names = (targets,) if isinstance(targets, str) else targets
        if not isinstance(names, tuple | list) or not names:
            raise InvalidConfig(f"IA3(targets={targets!r}): name sites, for example ('attn.k',).")
        if self.feedforward != "post_activation":
            raise InvalidConfig(
                f"IA3(targets={targets!r}, feedforward={self.feedforward!r}): the targets say "
                "which feed-forward site is rescaled; leave feedforward out."
            )
        for name in names:
            if name not in SCALED_SITES:
                raise unknown("IA3 target", str(name), SCALED_SITES)
        return tuple(names)

    def sites(self) -> tuple[Site, ...]:
        """The sites that are rescaled, each once, in the order of the vocabulary."""
        if self.targets is None:
            return Site.ATTN_K, Site.ATTN_V, _FEEDFORWARD[self.feedforward]
        return tuple(site for site in Site if site in self.targets)

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(site=site, make_delta=self.form, insertion=Insertion.SEQUENTIAL)
            for site in self.sites()
        )

    def form(self, handle: Handle) -> Delta:
        """The vector for one site."""
        from deltakit.methods.forms.ia3 import Rescale

        return Rescale(handle.d_out)
