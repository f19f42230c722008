"""The functional form: Δh = f(x), as a module.

A form is abstract or final: every method's file defines its own final ones, and what else a form
can do is a small abstract class of its own (`Mergeable`, `Regularised`), never a flag.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn


class Reads(Enum):
    """An input of a form's `forward`."""

    SOURCE = "source"
    """The insertion's choice: h where it is sequential, x where it is parallel."""
    INPUT = "x"
    """x, the direct input of the sub-module, ``(..., d_in)``."""
    REPRESENTATION = "h"
    """h, the representation that is changed, ``(..., d_out)``."""
    MASK = "mask"
    """``(..., n)``, true for real tokens and false for padding.

    The last columns are those of the tokens of x and h; cached tokens come before them, so n is
    greater than the number of tokens where a cached sequence goes on. All true without a mask.
    """
    POSITION_IDS = "position_ids"
    """``(..., tokens)``, the number of each token in the sequence."""
    INPUT_IDS = "input_ids"
    """``(..., tokens)``, the ids that the model was given."""
    BLOCK = "block"
    """What a `ReadsBlock` form's module makes of the stream that enters the block."""
    TASKS = "tasks"
    """``(rows,)``, the index of each row's task among those of a `TaskConditioned` form."""


class Delta(nn.Module, ABC):
    """A change Δh to a representation h, computed from the inputs that it asks for.

    Shapes: in ``(..., d)``, out ``(..., d_out)`` of the handle it was made for. It computes in the
    dtype of its own parameters; the caller casts at the boundary. Where rows of a batch have deltas
    of their own, it may be called for one row, without the axis of rows.

    Attributes:
        reads: the inputs of `forward`, in its order. By default one, of the insertion's choice.
    """

    reads: ClassVar[tuple[Reads, ...]] = (Reads.SOURCE,)

    @abstractmethod
    def forward(self, *inputs: Any, **named: Any) -> Tensor:
        """Δh. A form has one parameter for each of `reads`: usually ``forward(self, x)``."""


def overrides_both(form: type, name: str) -> bool:
    """True if one class defines both `forward` and `name`, so that neither is older."""
    owners = [next((c for c in form.__mro__ if n in vars(c)), None) for n in ("forward", name)]
    return owners[0] is owners[1]


class FusedAdd(ABC):
    """A delta with a cheaper way to ``stream + scale · f(x)`` than one step after another.

    A subclass that defines `forward` alone does not use it.
    """

    @abstractmethod
    def added(self, stream: Tensor, x: Tensor, scale: float) -> Tensor:
        """``stream + scale · f(x)``, all of one dtype."""


class BatchedRows(ABC):
    """A delta that can compute many of its kind at once, one for each row of a batch.

    A subclass that defines `forward` alone does not use it.
    """

    @abstractmethod
    def by_row(self, parameters: Mapping[str, Tensor], x: Tensor, scale: Tensor) -> Tensor:
        """``scale · f(x)`` where every row has parameters of its own.

        Args:
            parameters: by name, ``(rows, ...)`` each.
            x: ``(rows, tokens, d)``.
            scale: ``(rows, 1, 1)``.
        """


class ExtraPositions(Delta, ABC):
    """A change that adds positions to those of the sequence: ``(..., length, d)``.

    It depends on no input; what it is given has no elements.

    Attributes:
        length: how many positions.
    """

    length: int


class ShiftsKeys(ABC):  # noqa: B024
    """Extra keys that relative positions count: those of the tokens' keys begin behind them.

    The queries' positions stay, so each key is farther from its own query by as many as they are.
    """


class Reparametrised(ABC):
    """A delta that is trained in a larger form; only the result is deployed."""

    @abstractmethod
    def deployed(self) -> Delta:
        """The delta without what only training needs; it gives the same change."""


class Combiner(nn.Module, ABC):
    """The combination of several deltas at one site, as a module with parameters of its own."""

    @abstractmethod
    def forward(self, query: Tensor, deltas: Sequence[Tensor]) -> Tensor:
        """One Δh from the members' `deltas`, each ``(..., d)``, given `query` ``(..., d)``."""


class Regularised(ABC):
    """A part of a delta that adds a term of its own to the training loss."""

    @abstractmethod
    def penalty(self) -> Tensor:
        """The term, a scalar that is already weighted."""


class AuxiliaryLoss(ABC):
    """A form or a combiner with a loss that depends on the data, such as a router's balance loss.

    In training the runtime calls `with_loss` in place of `forward`, and adds the loss to what the
    model is trained on. That is right under activation checkpointing, a loss scale and gradient
    accumulation too.
    """

    @abstractmethod
    def with_loss(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        """The output of `forward` for these inputs, and the loss: a scalar, already weighted."""


class SharesModule(ABC):  # noqa: B024
    """A form that computes with a module which other forms of its delta compute with too.

    The first of them has it among its child modules; the others only refer to it. So its parameters
    are counted, saved and moved once. A form of another delta cannot stand in for this one, not
    even with this one's own parameters.
    """


class ReadsBlock(ABC):
    """A form that reads `Reads.BLOCK`, which is computed once a pass for all forms of a block."""

    @property
    @abstractmethod
    def of_block(self) -> nn.Module:
        """The module that is given the stream, ``(rows, tokens, d)``; forms of a block share it."""


class TaskConditioned(ABC):  # noqa: B024
    """A form that computes something else for each of several tasks, and reads `Reads.TASKS`.

    Attributes:
        tasks: the tasks' names.
    """

    tasks: tuple[str, ...]


class DrawnInTraining(ABC):
    """A form that draws in training, so that a second pass over a batch has another answer.

    The runtime then runs the model twice in training, and adds to its loss how far the two answers
    are apart. A model without logits has no such term.

    Attributes:
        consistency: the weight of that term; zero for one pass alone.
    """

    consistency: float


class Attending(ABC):
    """A module that weighs members token by token, and shows the weights.

    It is a combiner over deltas, or a router inside one form.

    Attributes:
        members: the members' names.
        attention: a child module whose output is the weights, ``(..., members)``.
    """

    members: tuple[str, ...]
    attention: nn.Module


class SparselyActive(ABC):
    """A form that uses only some parameters for a token, such as a mixture with a router."""

    @abstractmethod
    def active_parameters(self) -> int:
        """The number of its parameters that compute the change of one token."""


class HasExperts(ABC):
    """A form of several experts."""

    @property
    @abstractmethod
    def stacked(self) -> nn.Module:
        """One form, whose parameters have the experts as their first dimension."""


class Mergeable(ABC):
    """A parallel delta on one linear that is itself linear in x, so it folds into the weight."""

    @abstractmethod
    def weight_change(self) -> Tensor:
        """ΔW of shape ``(d_out, d_in)``, so that f(x) = x ΔWᵀ when dropout is off."""


class RewritesWeight(ABC):
    """A delta at one linear with which the linear is a linear again, of another weight."""

    @abstractmethod
    def rewritten(self, weight: Tensor) -> Tensor:
        """The weight W', ``(d_out, d_in)``, for which h + f = x W'ᵀ + b where h = x Wᵀ + b.

        Args:
            weight: W, of the same shape, in single precision at least.
        """


class ReadsEnd(ABC):  # noqa: B024
    """A form whose change depends on where the sequence ends.

    A token's change is another when further tokens follow. So generation with a cache, which
    changes a token once, is not generation without.
    """


class Scaling(ABC):
    """A sequential delta that rescales h, so it folds into the linear before or behind it."""

    @abstractmethod
    def factor(self) -> Tensor:
        """l of shape ``(d,)``, so that h + f(h) = h ⊙ l."""


class Inverse(ABC):  # noqa: B024
    """A delta that undoes what another delta of its method does elsewhere.

    Stacked ones act in the reverse order. A sum of several would undo none of them.
    """


def add_product(stream: Tensor, x: Tensor, weight: Tensor, scale: float) -> Tensor:
    """``stream + scale · x weightᵀ`` in one pass over the stream."""
    flat = torch.addmm(stream.flatten(0, -2), x.flatten(0, -2), weight.T, alpha=scale)
    return flat.view(stream.shape)


class FFNUnits(NamedTuple):
    """Hidden units of a feed-forward: f(x W_downᵀ + b_down) W_upᵀ + b_up.

    `down` is ``(units, d)`` and `up` ``(d_out, units)``, with a bias each; `activation` is f by
    transformers' name.
    """

    down: Tensor
    down_bias: Tensor
    up: Tensor
    up_bias: Tensor
    activation: str

    def scaled(self, scale: float | Tensor) -> "FFNUnits":
        """The units whose output is `scale` times this one's."""
        return self._replace(up=scale * self.up, up_bias=scale * self.up_bias)


class MergesAsFFN(ABC):
    """A parallel delta that is a feed-forward itself, so merging makes the model's one wider."""

    @abstractmethod
    def units(self) -> FFNUnits:
        """The units that compute what it does when dropout is off."""


class CustomSum(ABC):
    """A delta whose weighted sum with others is not that of their parameters."""

    @abstractmethod
    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        """The parameters with which this form computes Σ w f(x).

        Args:
            terms: a weight and the parameters by name, for each form f that is summed.
        """


def compute_dtype(module: nn.Module) -> torch.dtype | None:
    """The dtype of the module's floating parameters, or None where it has none."""
    for parameter in module._parameters.values():  # many times quicker than `parameters()`
        if parameter is not None and parameter.is_floating_point():
            return parameter.dtype
    found = (compute_dtype(child) for child in module._modules.values() if child is not None)
    return next((dtype for dtype in found if dtype is not None), None)


def precise(tensor: Tensor) -> Tensor:
    """The tensor in single precision at least, for sums that are rounded once."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
