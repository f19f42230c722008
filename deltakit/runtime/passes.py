"""One forward pass: what its parts need from each other, and what recomputation needs again.

`deltakit.runtime.pass_ports` opens a `Pass` when the first of a model's hooked modules is called,
and closes it when that returns. Ports ask `current_pass` for it. Passes are kept on a stack of the
calling thread, so two threads, or a model that calls itself, share nothing. A module that is called
inside a pass belongs to it, unless it is called inside a further `using`.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from deltakit.runtime.row_counts import RowCounts
from deltakit.runtime.uses import Use, current_uses, entered

NOTHING: Mapping[str, Any] = MappingProxyType({})
"""No arguments by name: of a hook whose flag another thread has not set yet."""

DECODER = ("decoder", "cross")
"""The stacks whose tokens are those of an encoder-decoder's ``decoder_`` arguments."""

INPUTS = (
    "input_ids",
    "decoder_input_ids",
    "attention_mask",
    "position_ids",
    "decoder_attention_mask",
    "decoder_position_ids",
)
"""The arguments that a pass notes."""


BLOCK = "block"
"""The key under which a pass holds the `Stream` of the block that runs."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The stream that enters a block, and what modules have made of it in this pass."""

    stream: Tensor
    made: dict[nn.Module, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayerDrop:
    """The number of the lowest layers that run without their deltas in one forward pass.

    AdapterDrop draws the number for each batch that is trained on (Rücklé et al. 2021).
    """

    up_to: int

    def draw(self) -> int:
        """A number from 0 to `up_to`, each equally often."""
        return int(torch.randint(self.up_to + 1, ()))


@dataclass(kw_only=True, eq=False)
class Pass:
    """The arguments and random draws of one call of a model. Only the thread of the call uses it.

    Attributes:
        owner: what the model runs by; a pass of another model has another. None outside any call.
        tables: what the pass runs with.
        inputs: by name, those of `INPUTS` that the call's module can be given. None for one that
            was not given, and for a mask that is not ``(rows, tokens)``.
        tasks: the index of the task of all rows, or of each; None where none is named.
        unread: the names of those that were given in another shape.
        rows_given: the rows of the call.
        cached: how many tokens the call's cache held before it.
        dropped: how many of the lowest layers run without their deltas, by the drop that drew it.
        losses: the values of the losses that deltas add in this pass. A recomputed layer adds
            none.
        loss_weight: the weight of these losses, once the backward pass has begun. Recomputed
            layers share it.
        rows: the numbers of rows, where a `PerRow` is active.
        recomputed: whether a checkpointed layer runs again in the backward pass.
        held: what one port keeps for another, by a key; empty again when the pass is over.
        cast: the latest input that was cast for a delta, and the result.
        inside: the paths of the hooked modules that are running, the outermost first.
        alone: whether other threads' passes of offloaded bases wait for this one.
        uses: how many uses inside one another the call was made in; None where a layer runs again.
    """

    owner: "Owner | None" = None
    tables: "PassTables | None" = None
    inputs: dict[str, Tensor | None] = field(default_factory=dict)
    tasks: tuple[int, ...] | None = None
    unread: frozenset[str] = frozenset()
    rows_given: int | None = None
    cached: int = 0
    dropped: dict[LayerDrop, int] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    loss_weight: list[Tensor] = field(default_factory=list)
    rows: RowCounts | None = None
    recomputed: bool = False
    held: dict[str, Any] = field(default_factory=dict)
    cast: tuple[Tensor, Tensor] | None = None
    inside: list[str] = field(default_factory=list)
    alone: bool = False
    uses: int | None = None

    def attention_mask(self, stack: str) -> Tensor | None:
        """The padding mask ``(rows, tokens)`` of the tokens in a stack of layers, or None.

        A model of two towers has one mask, the text's: see that its shape fits.
        """
        return self._input("attention_mask", stack)

    def position_ids(self, stack: str) -> Tensor | None:
        """The numbers ``(rows, tokens)`` that the call gave the stack's tokens, or None."""
        return self._input("position_ids", stack)

    def input_ids(self, stack: str) -> Tensor | None:
        """The ids ``(rows, tokens)`` that the call gave as the stack's tokens, or None."""
        return self._input("input_ids", stack)

    def past(self, stack: str) -> int:
        """The number of a stack's tokens that are cached, and not given again in this call."""
        two_stacks = "decoder_attention_mask" in self.inputs
        return self.cached if stack in DECODER or not two_stacks else 0

    def _input(self, name: str, stack: str) -> Tensor | None:
        decoders = stack in DECODER and "decoder_attention_mask" in self.inputs
        return self.inputs.get(f"decoder_{name}" if decoders else name)

    def again(self) -> "Pass":
        """The same pass, for a layer that runs again in the backward pass."""
        return Pass(
            owner=self.owner,
            tables=self.tables,
            inputs=self.inputs,
            tasks=self.tasks,
            unread=self.unread,
            rows_given=self.rows_given,
            cached=self.cached,
            dropped=self.dropped,
            losses=self.losses,
            loss_weight=self.loss_weight,
            rows=self.rows,
            recomputed=True,
            inside=["recomputed"],
        )


class PassTables(Protocol):
    """The tables of a pass: see `deltakit.runtime.tables.Tables`."""

    @property
    def blocks(self) -> frozenset[nn.Module]:
        """The layers in which they do something."""

    @property
    def own(self) -> dict[nn.Module, dict[str, nn.Parameter]]:
        """Parameters that modules use in place of their own."""

    def check(self) -> None:
        """Refuses a base whose modules were replaced."""

    def begin(self, begun: Pass, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Draws and counts what a pass that begins needs."""

    def resumed(self) -> AbstractContextManager[None]:
        """Inside, a part of a pass with them runs again as it ran."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """A call of `generate` that is running.

    Attributes:
        model: the model that generates.
        rows: the rows that it was given; None where it was given none.
        kept: what does not change until it returns, by the object that keeps it.
    """

    model: nn.Module
    rows: int | None
    kept: dict[Any, Tensor] = field(default_factory=dict)


class Owner(Protocol):
    """The program of a model: see `deltakit.runtime.program.Program`."""

    active: Any


class _Thread(threading.local):
    """The passes of one thread."""

    def __init__(self) -> None:
        self.passes: tuple[Pass, ...] = ()
        self.outside = Pass()
        self.generation: Generation | None = None


THREAD = _Thread()
"""The state of the calling thread."""


def current_pass() -> Pass:
    """The innermost pass of this thread.

    A part of a model that is called by itself, below every hooked module, has a pass that
    knows of no call.
    """
    passes = THREAD.passes
    return passes[-1] if passes else THREAD.outside


def next_tables(owner: Owner) -> "PassTables":
    """The tables of this thread's next pass: those it uses, or those active for all threads."""
    for use in reversed(current_uses()):
        if use.owner is owner and use.tables is not None:
            used: PassTables = use.tables
            return used
    active: PassTables = owner.active
    return active


def with_tasks(owner: Owner, tasks: tuple[int, ...]) -> AbstractContextManager[None]:
    """Inside, the passes of this thread are of a task, or of one for each row."""
    return entered(Use(owner=owner, tasks=tasks))


@contextmanager
def running(entered: Pass) -> Iterator[None]:
    """Inside, `entered` is this thread's current pass."""
    before = THREAD.passes
    THREAD.passes = (*before, entered)
    try:
        yield
    finally:
        THREAD.passes = before
