r"""LoReFT: a low-rank edit of the stream at some tokens (Wu et al. 2024, arXiv:2404.03592).

    Δh = Rᵀ (W h + b - R h),    R: (r, d) with orthonormal rows,  W: (r, d),  b: (r)

=================  ===============================================
axis               value
=================  ===============================================
functional form    low rank; inside R's subspace h becomes W h + b
insertion          sequential: it reads the stream that it changes
modified           the stream that leaves each block, at the first and the last tokens of each row
composition        h + Δh
=================  ===============================================

R is orthonormal all through training: it is the Q factor of a free matrix, which a QR decomposition
gives in each pass. 2 r d + r parameters a layer; first and last tokens share them.

The first and the last tokens are counted among a row's real ones, by the attention mask, so padding
on either side changes nothing. Where a cached sequence goes on, the tokens before count too, and no
token is one of the last: these belong to the call that began the sequence.

Where the sources differ. In the authors' library the positions are those of the prompt, given with
each batch; here they are those of the model's call. Where a prompt and its answer are trained on in
one row, the last tokens are the answer's, so take ``last=0`` there. Their dropout is on the edited
h, here on the edit.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.checks import check_fraction, check_whole
from deltakit.core.method import InitialOutput, Method, Paper, Placement, register_method
from deltakit.core.site import Handle, Insertion, Site
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from deltakit.core.delta import Delta


@register_method("loreft")
@dataclass(frozen=True, kw_only=True)
class LoReFT(Method):
    """A low-rank edit of the stream at the first and the last tokens (Wu et al. 2024).

    Args:
        rank: r.
        first: how many of each row's first real tokens are edited.
        last: how many of its last ones.
        layers: the layers that edit, of every stack; None for all.
        dropout: on the edit, in training.

    Raises:
        InvalidConfig: a value out of range, or no token at all.
    """

    rank: int = 4
    first: int = 7
    last: int = 7
    layers: tuple[int, ...] | None = None
    dropout: float = 0.0

    paper: ClassVar[Paper] = Paper(
        key="wu2024reft",
        title="ReFT: Representation Finetuning for Language Models",
        authors="Wu, Zhengxuan and Arora, Aryaman and Wang, Zheng and Geiger, Atticus and "
        "Jurafsky, Dan and Manning, Christopher D. and Potts, Christopher",
        year=2024,
        venue="Advances in Neural Information Processing Systems",
        arxiv="2404.03592",
    )
    learning_rate: ClassVar[float] = 1e-3
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        check_whole(self, rank=self.rank)
        check_fraction(self, dropout=self.dropout)
        for name, count in (("first", self.first), ("last", self.last)):
            if count != 0 or isinstance(count, bool):
                check_whole(self, **{name: count})
        if not self.first + self.last:
            raise InvalidConfig("LoReFT(first=0, last=0) edits no token. Set one of them.")
        object.__setattr__(self, "layers", _layers(self.layers))

    def placements(self) -> tuple[Placement, ...]:
        return (
            Placement(
                site=Site.BLOCK_OUT,
                make_delta=self.form,
                insertion=Insertion.SEQUENTIAL,
                layers=None if self.layers is None else frozenset(self.layers),
            ),
        )

    def form(self, handle: Handle) -> Delta:
        """The edit of one layer."""
        from deltakit.methods.forms.loreft import LowRankEdit, LowRankEditOfEnds

        if self.rank > handle.d_out:
            raise InvalidConfig(
                f"LoReFT(rank={self.rank}): the model is {handle.d_out} wide, and no more rows "
                "than that are orthonormal."
            )
        kind = LowRankEditOfEnds if self.last else LowRankEdit
        return kind(
            handle.d_out, rank=self.rank, first=self.first, last=self.last, dropout=self.dropout
        )

    def sized(self, width: int) -> Method:
        """Another rank."""
        return replace(self, rank=width)


def _layers(layers: object) -> tuple[int, ...] | None:
    """Layers, one or several. Raises `InvalidConfig`."""
    given = (layers,) if isinstance(layers, int) else layers
    if given is None:
        return None
    listed = tuple(given) if isinstance(given, tuple | list) else ()
    if not listed or not all(type(each) is int and each >= 0 for each in listed):
        raise InvalidConfig(f"LoReFT(layers={layers!r}): numbers of layers, for example (0, 4).")
    return tuple(sorted(set(listed)))
