r"""Learned merge weights: a sum of frozen deltas whose weights are trained.

    Δh = Σ_n w_n u_n

u_n is the change that delta n proposes at a site, and w has one number for each of them, at each
site. The weights start at 1 / N. They do not depend on the input, which is the difference from
AdapterFusion: N numbers a site in place of 3d² + 2d.

Where the sources differ. LoraHub (Huang et al. 2023, arXiv:2307.13269) searches one number for each
LoRA without gradients, within ±1.5 and with a penalty on their sizes. Here gradients train one
number for each delta and site, without bounds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import CombiningMethod, InitialOutput, Method, Paper, register_method
from deltakit.core.site import Handle
from deltakit.errors import InvalidConfig
from deltakit.methods.adapter import SequentialAdapter

if TYPE_CHECKING:
    from deltakit.core.delta import Combiner


@register_method("learned_mean")
@dataclass(frozen=True, kw_only=True, init=False)
class LearnedMean(CombiningMethod):
    """A weighted sum of attached deltas, whose weights are trained (Huang et al. 2023, LoraHub).

    ``LearnedMean("imdb", "news")`` sums the deltas of these names. The members stay frozen.

    Args:
        names: the members. All of them must have placements at the same sites.
        member: what the first stage of a comparison trains.

    Raises:
        InvalidConfig: a name given twice, or a member that is no method.
    """

    names: tuple[str, ...] = ()
    member: Method = field(default_factory=SequentialAdapter)

    paper: ClassVar[Paper] = Paper(
        key="huang2023lorahub",
        title="LoraHub: Efficient Cross-Task Generalization via Dynamic LoRA Composition",
        authors="Huang, Chengsong and Liu, Qian and Lin, Bill Yuchen and Pang, Tianyu and Du, "
        "Chao and Lin, Min",
        year=2023,
        venue="Conference on Language Modeling",
        arxiv="2307.13269",
    )
    learning_rate: ClassVar[float] = 1e-2

    def __init__(
        self,
        *members: str,
        names: str | list[str] | tuple[str, ...] = (),
        member: Method | None = None,
    ) -> None:
        chosen = (*members, *(names if isinstance(names, list | tuple) else (names,)))
        if len(set(chosen)) != len(chosen):
            raise InvalidConfig(f"LearnedMean names a member twice: {', '.join(chosen)}.")
        if not all(isinstance(name, str) for name in chosen):
            raise InvalidConfig(f"LearnedMean{chosen!r}: the members are names of deltas.")
        if not isinstance(member, Method | None):
            raise InvalidConfig(
                f"LearnedMean(member={member!r}): a method, for example SequentialAdapter()."
            )
        object.__setattr__(self, "names", chosen)
        object.__setattr__(self, "member", member or SequentialAdapter())

    @property
    def starts(self) -> InitialOutput:
        """The members' start: it is their mean."""
        return self.member.starts

    def combiner(self, handle: Handle, members: tuple[str, ...]) -> Combiner:
        from deltakit.methods.forms.learned_mean import LearnedWeights

        del handle
        return LearnedWeights(len(members))
