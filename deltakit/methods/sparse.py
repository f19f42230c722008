r"""Sparse deltas: a part of each matrix is trained (He et al. 2022, arXiv:2210.04284).

    Δh = f(x; θ ⊙ m),    m a mask with the share `keep` of ones, chosen before training

A modifier of any method. Each matrix of its forms keeps its numbers with the highest scores;
vectors, such as biases, are whole. What is not kept is zero, has no gradient and no optimiser
state, and is not saved: a file has the kept numbers, and one bit for each number of the mask.

===============  ===================================================================
`score`          the score of a number θ
===============  ===================================================================
``"magnitude"``  \|θ\|
``"random"``     drawn from N(0, 1)
``"synflow"``    \|θ ∂R/∂θ\|, R the form's mean output for an input of ones, with \|θ\| for θ
``"snip"``       \|θ ∂L/∂θ\|, L the loss on the batches given to `deltakit.prepare`
``"grasp"``      θ (Hg), g the gradient of L and H its Hessian
===============  ===================================================================

The last two start from data: `deltakit.prepare` chooses the mask before training, from the first
`batches` batches that it is given (8). The authors' code takes all of its loader. A matrix that
starts at zero, such as LoRA's B, has no such score, and no gradient passes it. So while scores are
taken it is a step against its gradient, of root mean square 0.01; then it is zero again.

Where all scores of a matrix are equal, its mask is random: by magnitude LoRA's B is an example.
*Large-Sparse* is a wider form of as many numbers: four times the bottleneck with ``keep=0.25``.

Where the sources differ. The authors' code counts its threshold over all matrices or for each one;
here it is for each. Its flag ``--sparsity`` is the share that is *kept*, as `keep` is here; the
paper's sparse ratio is the share that is removed. It scores the dense form once or at each epoch,
here it is once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from deltakit.core.checks import check_choice, check_whole
from deltakit.core.data_start import BATCHES
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

if TYPE_CHECKING:
    from deltakit.core.delta import Delta

Score = Literal["magnitude", "random", "synflow", "snip", "grasp"]

FROM_DATA = ("snip", "grasp")
"""Scores that need a pass over data."""


@register_method("sparse")
@dataclass(frozen=True, kw_only=True, init=False)
class Sparse(FormWrapper):
    """A method of whose matrices only a part is trained (He et al. 2022, SparseAdapter).

    ``Sparse(LoRA(rank=16), keep=0.25)``. With ``keep=1`` it is the method itself.

    Args:
        method: what is pruned; a SequentialAdapter by default.
        keep: the share of each matrix that is kept, above 0 and at most 1.
        score: how the numbers that are kept are chosen: "magnitude", "random" or "synflow"; by data
            "snip" or "grasp", which need `deltakit.prepare`.
        batches: how many batches of data "snip" and "grasp" take at most, the first ones.

    Raises:
        InvalidConfig: a value out of range, or a method that puts no deltas into layers.
    """

    method: Method
    keep: float
    score: Score
    batches: int

    plain: ClassVar[Mapping[str, Any]] = MappingProxyType({"keep": 1})
    paper: ClassVar[Paper] = Paper(
        key="he2022sparseadapter",
        title="SparseAdapter: An Easy Approach for Improving the Parameter-Efficiency of Adapters",
        authors="He, Shwai and Ding, Liang and Dong, Daize and Zhang, Miao and Tao, Dacheng",
        year=2022,
        venue="Findings of the Association for Computational Linguistics: EMNLP",
        arxiv="2210.04284",
    )

    def __init__(
        self,
        method: Method | None = None,
        *,
        keep: float = 0.25,
        score: Score = "magnitude",
        batches: int = BATCHES,
    ) -> None:
        object.__setattr__(self, "method", SequentialAdapter() if method is None else method)
        object.__setattr__(self, "keep", keep)
        object.__setattr__(self, "score", score)
        object.__setattr__(self, "batches", batches)
        self.check_method()
        if not isinstance(keep, int | float) or isinstance(keep, bool) or not 0 < keep <= 1:
            raise InvalidConfig(f"Sparse(keep={keep!r}): a share above 0 and at most 1.")
        check_choice(self, ("magnitude", "random", "synflow", *FROM_DATA), score=score)
        check_whole(self, batches=batches)

    @property
    def is_plain(self) -> bool:
        return self.keep == 1

    def form(self, placement: Placement, handle: Handle) -> Delta:
        """The method's form at one site, pruned."""
        from deltakit.methods.forms import sparse

        if self.score == "snip" or self.score == "grasp":
            start = sparse.PrunedByData(self.score, self.batches)
            return sparse.awaiting(placement.make_delta(handle), self.keep, start)
        scores: dict[str, sparse.Scores] = {
            "magnitude": sparse.by_magnitude,
            "random": sparse.at_random,
            "synflow": partial(sparse.by_flow, d=placement.insertion.width(handle)),
        }
        return sparse.pruned(placement.make_delta(handle), self.keep, scores[self.score])

    def deployed(self) -> Method:
        """The deployed method, whole where training needed a larger form; else the same."""
        deployed = self.method.deployed()
        return self if deployed == self.method else deployed
