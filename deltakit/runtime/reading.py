"""The inputs that a form asks for: x, h, the padding mask, the tokens' numbers and ids."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deltakit.core.delta import Reads, compute_dtype
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.passes import BLOCK, THREAD, Pass, current_pass


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs that can be read at one site in the running pass.

    Attributes:
        source: x or h, as the insertion says, ``(rows, tokens, d)``; some models run their
            feed-forward on ``(rows · tokens, d)``.
        x: the direct input of the sub-module.
        h: the representation.
        rows: the batch's rows that these are; None for all of them.
        stack: the stack of layers, whose mask it is.
        of_block: the module whose output for the block's stream is read; None where none is.
    """

    source: Tensor
    x: Tensor
    h: Tensor
    rows: Tensor | None
    stack: str
    of_block: nn.Module | None = None

    def all(self, reads: tuple[Reads, ...]) -> tuple[Tensor, ...]:
        """The inputs that the form asks for, in its order."""
        return tuple(self._one(each, by_token=_by_token(reads)) for each in reads)

    def _one(self, what: Reads, *, by_token: bool) -> Tensor:
        match what:
            case Reads.MASK:
                return self._mask()
            case Reads.POSITION_IDS:
                return self._position_ids()
            case Reads.INPUT_IDS:
                return self._input_ids()
            case Reads.TASKS:
                return self._tasks()
            case Reads.BLOCK:
                return self._block()
            case _:
                tensor = {Reads.INPUT: self.x, Reads.REPRESENTATION: self.h}.get(what, self.source)
                flat = by_token and tensor.ndim == 2
                return tensor.unflatten(0, self._shape()) if flat else tensor

    def _shape(self) -> tuple[int, int]:
        """How many rows there are, and how many tokens in each."""
        if self.source.ndim > 2:
            return self.source.shape[0], self.source.shape[-2]
        rows = current_pass().rows_given or self.source.shape[0]
        return rows, self.source.shape[0] // rows

    def _mask(self) -> Tensor:
        rows, tokens = self._shape()
        running = current_pass() if self.stack == "vision" else _running()
        mask = None if self.stack == "vision" else running.attention_mask(self.stack)
        if mask is None:
            _check_read(running.unread, "attention_mask")
            whole = tokens + running.past(self.stack)
            return torch.ones(rows, whole, dtype=torch.bool, device=self.source.device)
        mask = mask if self.rows is None else mask.index_select(0, self.rows.to(mask.device))
        if mask.shape[0] != rows or mask.shape[1] < tokens:
            raise IncompatibleDeltas(
                f"a delta reads the mask of {rows} rows of {tokens} tokens in the stack "
                f"{self.stack!r}, but the model was given one of shape {tuple(mask.shape)}. Use a "
                "method that reads no mask with this model."
            )
        return mask.to(self.source.device).ne(0)

    def _position_ids(self) -> Tensor:
        rows, tokens = self._shape()
        running = _running()
        given = running.position_ids(self.stack)
        if given is None:
            _check_read(running.unread, "position_ids")
            first = running.past(self.stack)
            numbers = torch.arange(first, first + tokens, device=self.source.device)
            return numbers.expand(rows, -1)
        if self.rows is not None and given.shape[0] > 1:
            given = given.index_select(0, self.rows.to(given.device))
        return given.to(self.source.device).expand(rows, -1)

    def _tasks(self) -> Tensor:
        rows, named = self._shape()[0], _running().tasks
        if named is None:
            raise IncompatibleDeltas(
                "a delta has several tasks, and it is not known which one these rows are of. Call "
                "the model inside `with deltakit.using_tasks(model, ...)`."
            )
        tasks = torch.tensor(named, device=self.source.device)
        if len(named) == 1:
            return tasks.expand(rows)
        if self.rows is not None:
            return tasks.index_select(0, self.rows.to(tasks.device))
        return tasks.repeat_interleave(_repetitions(len(named), rows))

    def _block(self) -> Tensor:
        assert self.of_block is not None, "the form is not a ReadsBlock"
        held = _running().held
        if BLOCK not in held:
            raise IncompatibleDeltas(
                "a delta reads the stream that enters its block, and a part of the block was "
                "called by itself. Call the model as a whole."
            )
        stream, made = held[BLOCK].stream, held[BLOCK].made
        if self.rows is not None:
            return self._fitting(_computed(self.of_block, stream.index_select(0, self.rows)))
        if self.of_block not in made:
            made[self.of_block] = _computed(self.of_block, stream)
        return self._fitting(made[self.of_block])

    def _fitting(self, by_token: Tensor) -> Tensor:
        if by_token.shape[:-1] != self._shape():
            rows, tokens = self._shape()
            raise IncompatibleDeltas(
                f"a delta at a module that is given {rows} rows of {tokens} tokens reads the "
                f"stream of its block, which has {tuple(by_token.shape[:-1])}. Use a method that "
                "reads no stream with this model."
            )
        return by_token

    def _input_ids(self) -> Tensor:
        shape, given = self._shape(), _running().input_ids(self.stack)
        if given is not None and self.rows is not None:
            given = given.index_select(0, self.rows.to(given.device))
        if given is None or given.shape != shape:
            what = "none" if given is None else f"some of shape {tuple(given.shape)}"
            raise IncompatibleDeltas(
                f"a delta reads the ids of {shape[0]} rows of {shape[1]} tokens in the stack "
                f"{self.stack!r}, but the model was given {what}. Call it with input_ids, and with "
                "no delta that adds tokens."
            )
        return given.to(self.source.device)


def _computed(module: nn.Module, stream: Tensor) -> Tensor:
    dtype = compute_dtype(module)
    made: Tensor = module(stream if dtype is None else stream.to(dtype))
    return made


def _repetitions(tasks: int, rows: int) -> int:
    """How often `generate` repeats each row for its beams. Raises `IncompatibleDeltas`."""
    generation = THREAD.generation
    repeated = generation is not None and generation.rows == tasks and rows % tasks == 0
    if rows != tasks and not repeated:
        raise IncompatibleDeltas(
            f"using_tasks names tasks for {tasks} rows, but a module of the model is given {rows}. "
            "Name one task, or one for each row of the batch."
        )
    return rows // tasks


def _running() -> Pass:
    """The running pass, whose arguments are read.

    torch runs the hooks of the module that it compiles outside the graph, and a graph does not see
    what they keep for this thread.
    """
    running = current_pass()
    if running.owner is None and torch.compiler.is_compiling():
        raise IncompatibleDeltas(
            "a delta reads the mask, the positions or the ids of the call, which the graph of this "
            "module does not see. Compile a model with a head as a whole, or leave out "
            "fullgraph=True, so that what cannot be in the graph runs without it."
        )
    return running


def _by_token(reads: tuple[Reads, ...]) -> bool:
    by_token = {Reads.MASK, Reads.POSITION_IDS, Reads.INPUT_IDS, Reads.TASKS, Reads.BLOCK}
    return not by_token.isdisjoint(reads)


def _check_read(unread: frozenset[str], name: str) -> None:
    """Raises `IncompatibleDeltas` where the call gave one of a shape that cannot be read."""
    if any(each.endswith(name) for each in unread):
        raise IncompatibleDeltas(
            f"a delta reads the {name}, and the model was given one that is not a tensor of shape "
            "(rows, tokens). Give one of that shape, and a cache that is not static."
        )
