r"""Prompt tuning (Lester et al. 2021, arXiv:2104.08691).

    [P; x_1; ...; x_n]  in place of  [x_1; ...; x_n],    P learned, l rows of the embeddings' width

=================  ==========================================================
axis               value
=================  ==========================================================
functional form    l vectors that depend on no input
insertion          parallel: it is added to the tokens
modified           the sequence of input embeddings
composition        concatenation: l positions more
=================  ==========================================================

P starts as the embeddings of l tokens drawn from the vocabulary.

Where the sources differ. The paper puts P in front of everything (T5). In an encoder whose first
token is pooled, P comes after that token here, so that the token which is pooled stays the same;
PEFT puts it in front there too. P has positions like any tokens, so the model's context is shorter
by l: prefix tuning is the variant that costs no position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_whole
from deltakit.core.method import InitialOutput, Method, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site

if TYPE_CHECKING:
    from deltakit.core.delta import Delta


@register_method("prompt")
@dataclass(frozen=True, kw_only=True)
class PromptTuning(Summable):
    """Learned input embeddings in front of those of the tokens (Lester et al. 2021).

    Args:
        length: l, how many.

    Raises:
        InvalidConfig: a value out of range.
    """

    length: int = 20

    paper: ClassVar[Paper] = Paper(
        key="lester2021power",
        title="The Power of Scale for Parameter-Efficient Prompt Tuning",
        authors="Lester, Brian and Al-Rfou, Rami and Constant, Noah",
        year=2021,
        venue="Conference on Empirical Methods in Natural Language Processing",
        arxiv="2104.08691",
    )
    learning_rate: ClassVar[float] = 3e-2
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        check_whole(self, length=self.length)

    def placements(self) -> tuple[Placement, ...]:
        return (Placement(site=Site.TOKENS, make_delta=self.form, insertion=Insertion.PARALLEL),)

    def sized(self, width: int) -> Method:
        return replace(self, length=width)

    def form(self, handle: Handle) -> Delta:
        """The vectors, drawn from the model's vocabulary."""
        from deltakit.methods.forms.prompt import Prompt

        assert handle.embeddings is not None
        return Prompt(self.length, next(handle.embeddings.parameters()))
