"""Nodes: a change at a site, and several changes made one.

Within a placement, ``h <- h + s Δh`` (He et al. 2022). Across deltas, what users compose by name
(`deltakit.core.composition`) is one `Node` at each site while the model runs: an object that turns
a `Signal` into Δh. Nodes are plain objects, not closures, so a model with deltas can be copied and
pickled.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from deltakit.core.delta import (
    AuxiliaryLoss,
    BatchedRows,
    Combiner,
    Delta,
    ExtraPositions,
    FusedAdd,
    Reads,
    ReadsBlock,
    compute_dtype,
    overrides_both,
)
from deltakit.core.factors import (
    CombinesFactors,
    Factored,
    Factors,
    StackedFactors,
    stack_factors,
)
from deltakit.core.site import Insertion
from deltakit.runtime.losses import run_part
from deltakit.runtime.passes import LayerDrop, current_pass
from deltakit.runtime.reading import Given


class Signal(NamedTuple):
    """The tensors that a site offers while the model runs.

    `x` is the direct input of the sub-module, `h` the representation as a delta reads it, and
    `stream` what a change is added to: h itself, except at a post-LN block's norm, where h is the
    normalised stream. `rows` are the batch's rows that these are, or None for all of them.
    """

    x: Tensor
    h: Tensor
    stream: Tensor
    rows: Tensor | None = None


class Port(ABC):
    """One way of reading a site and of writing it back (see `deltakit.runtime.hooks`)."""

    @abstractmethod
    def advance(self, signal: Signal, change: Tensor) -> Signal:
        """The signal after `change` has been made."""

    @abstractmethod
    def join(self, changes: Sequence[Tensor]) -> Tensor:
        """Several changes made at once, as one."""

    @abstractmethod
    def rows(self, node: "Node", signal: Signal) -> Tensor:
        """The change where each row has its own (`deltakit.runtime.batch_rows.PerRowNode`)."""

    def add_rows(self, node: "Node", signal: Signal) -> Tensor:
        """The stream with the change of `rows` added to it."""
        return signal.stream + self.rows(node, signal)


class Node(ABC):
    """An active composition at one site."""

    @abstractmethod
    def change(self, signal: Signal, port: Port) -> Tensor:
        """Δh at this site, in the dtype of ``signal.stream``."""

    def applied(self, signal: Signal, port: Port) -> Tensor:
        """The stream with Δh added to it."""
        return signal.stream + self.change(signal, port)

    @property
    @abstractmethod
    def leaves(self) -> "tuple[PlacedDelta, ...]":
        """The deltas that take part."""

    @property
    def length(self) -> int:
        """At a site of positions: how many it adds."""
        return sum(
            leaf.delta.length for leaf in self.leaves if isinstance(leaf.delta, ExtraPositions)
        )

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        """The combiners that take part. None by default."""
        return ()

    @property
    def weighs(self) -> bool:
        """True if it multiplies changes, so that it has no meaning for positions."""
        return False

    @property
    def present(self) -> bool:
        """True if any of the deltas takes part in this forward pass."""
        return any(leaf.present for leaf in self.leaves)

    def fitted(self, rows: int) -> "Node":
        """The node for a module that is given so many rows."""
        del rows
        return self

    def visible(self, device: torch.device) -> Tensor | None:
        """``(rows, l)``: which of its positions each row has, where they differ by row."""
        del device
        return None

    @property
    def depends(self) -> bool:
        """At a site of positions: true if any of those that it adds depends on x."""
        return any(Reads.INPUT in leaf.delta.reads for leaf in self.leaves)

    @property
    def reads_block(self) -> bool:
        """True if any of the deltas reads the stream that enters its block."""
        return any(isinstance(leaf.delta, ReadsBlock) for leaf in self.leaves)

    @property
    def reads_input(self) -> bool:
        """True if any of the deltas reads x."""
        return any(
            leaf.insertion is Insertion.PARALLEL or Reads.INPUT in leaf.delta.reads
            for leaf in self.leaves
        )


@dataclass(frozen=True, eq=False)
class PlacedDelta(Node):
    """One delta of one placement: ``s · f(h)`` if sequential, ``s · f(x)`` if parallel."""

    delta: Delta
    insertion: Insertion
    scale: float = 1.0
    gate: LayerDrop | None = None
    layer: int = 0
    stack: str = ""
    one_pass: FusedAdd | None = field(init=False)
    by_row: BatchedRows | None = field(init=False)
    factored: Factored | None = field(init=False)

    def __post_init__(self) -> None:
        delta, kind = self.delta, type(self.delta)
        plain = not isinstance(delta, AuxiliaryLoss) and delta.reads == (Reads.SOURCE,)
        quick = plain and isinstance(delta, FusedAdd) and overrides_both(kind, "added")
        rows = plain and isinstance(delta, BatchedRows) and overrides_both(kind, "by_row")
        parts = plain and isinstance(delta, Factored) and overrides_both(kind, "factors")
        object.__setattr__(self, "factored", delta if parts else None)
        object.__setattr__(self, "one_pass", delta if quick else None)
        object.__setattr__(self, "by_row", delta if rows else None)

    def change(self, signal: Signal, port: Port) -> Tensor:
        del port
        change = self.of(*self.inputs(signal))
        if not isinstance(self.delta, ExtraPositions) and self.delta.reads != (Reads.SOURCE,):
            # it may have been given a flat stream by tokens
            change = change.reshape(signal.stream.shape)
        return change.to(signal.stream.dtype)

    def of(self, *inputs: Tensor) -> Tensor:
        """``s · f(inputs)``, in the form's dtype."""
        change = run_part(self.delta, *inputs)
        return change if self.scale == 1.0 else change * self.scale

    def applied(self, signal: Signal, port: Port) -> Tensor:
        stream, source = signal.stream, self.source(signal)
        one_dtype = stream.dtype == source.dtype == compute_dtype(self.delta)
        # Autocast would compute the sum in its own dtype too.
        if self.one_pass is None or not one_dtype or _autocasts(stream):
            return stream + self.change(signal, port)
        return self.one_pass.added(stream, source, self.scale)

    def factors(self) -> Factors | None:
        """The factors of ``s · f``; None where it has none now."""
        found = None if self.factored is None else self.factored.factors()
        return found if found is None or self.scale == 1.0 else found.scaled(self.scale)

    def inputs(self, signal: Signal) -> tuple[Tensor, ...]:
        """The inputs that the form asks for, in its dtype."""
        dtype, source = compute_dtype(self.delta), self.source(signal)
        if self.delta.reads == (Reads.SOURCE,):
            return (cast(source, dtype),)
        given = Given(
            source=source,
            x=signal.x,
            h=signal.h,
            rows=signal.rows,
            stack=self.stack,
            of_block=self.delta.of_block if isinstance(self.delta, ReadsBlock) else None,
        )
        return tuple(cast(each, dtype) for each in given.all(self.delta.reads))

    def source(self, signal: Signal) -> Tensor:
        """The tensor that the insertion reads: h if sequential, x if parallel."""
        return signal.h if self.insertion is Insertion.SEQUENTIAL else signal.x

    @property
    def leaves(self) -> "tuple[PlacedDelta, ...]":
        return (self,)

    @property
    def present(self) -> bool:  # ends the recursion
        return self.gate is None or self.layer >= current_pass().dropped.get(self.gate, 0)


def cast(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """`x` in `dtype`, made once for deltas in a row that read the same x (query, key, value)."""
    if dtype is None or x.dtype == dtype or not x.is_floating_point():  # ids stay ids
        return x
    if torch.compiler.is_compiling():
        return x.to(dtype)
    running = current_pass()
    if running.owner is None:
        return x.to(dtype)
    if running.cast is None or running.cast[0] is not x or running.cast[1].dtype != dtype:
        running.cast = x, x.to(dtype)
    return running.cast[1]


def _autocasts(tensor: Tensor) -> bool:
    return torch.is_autocast_enabled(tensor.device.type)


@dataclass(frozen=True, eq=False)
class Group(Node):
    """Several nodes that act together at one site; how is its subclasses' to say."""

    parts: tuple[Node, ...]

    @property
    def leaves(self) -> tuple[PlacedDelta, ...]:
        return tuple(leaf for part in self.parts for leaf in part.leaves)

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return tuple(c for part in self.parts for c in part.combiners)


@dataclass(frozen=True, eq=False)
class SumNode(Group):
    """Several deltas that all read the same signal: the changes are made at once."""

    weights: tuple[float, ...] | None = None

    def change(self, signal: Signal, port: Port) -> Tensor:
        weights = self.weights or (1.0,) * len(self.parts)
        present = [(w, part) for w, part in zip(weights, self.parts, strict=True) if part.present]
        changes = [(w, part.change(signal, port)) for w, part in present]
        return port.join([c if w == 1.0 else w * c for w, c in changes])

    @property
    def weighs(self) -> bool:
        return self.weights is not None or any(part.weighs for part in self.parts)


@dataclass(frozen=True, eq=False)
class SequentialNode(Group):
    """Deltas one after the other: each reads the signal as the one before has left it."""

    def change(self, signal: Signal, port: Port) -> Tensor:
        first, *rest = [part for part in self.parts if part.present]
        change = total = first.change(signal, port)
        for part in rest:
            signal = port.advance(signal, change)._replace(rows=signal.rows)
            change = part.change(signal, port)
            total = port.join([total, change])
        return total

    @property
    def weighs(self) -> bool:
        return any(part.weighs for part in self.parts)


@dataclass(frozen=True, eq=False)
class CombinerNode(Node):
    """Deltas whose changes a combiner makes into one; the query is h."""

    combiner: Combiner
    members: tuple[Node, ...]
    by_code: CombinesFactors | None = field(init=False)

    def __post_init__(self) -> None:
        combiner = self.combiner
        able = isinstance(combiner, CombinesFactors) and not isinstance(combiner, AuxiliaryLoss)
        able = able and overrides_both(type(combiner), "combined")
        object.__setattr__(self, "by_code", combiner if able else None)

    def change(self, signal: Signal, port: Port) -> Tensor:
        stacked = None if _autocasts(signal.stream) else self.stacked()
        if self.by_code is not None and stacked is not None:
            query, x = self.read(signal)
            combined = self.by_code.combined(query, stacked.code(x), stacked)
            return combined.to(signal.stream.dtype)
        changes = [member.change(signal, port) for member in self.members]
        dtype = compute_dtype(self.combiner)
        if dtype is None:
            return run_part(self.combiner, signal.h, changes)
        cast = [change.to(dtype) for change in changes]
        return run_part(self.combiner, signal.h.to(dtype), cast).to(signal.stream.dtype)

    def read(self, signal: Signal) -> tuple[Tensor, Tensor]:
        """The query and the input of members that read the same, in the combiner's dtype."""
        dtype, source = compute_dtype(self.combiner), self.leaves[0].source(signal)
        query = signal.h.to(dtype)
        return query, query if source is signal.h else source.to(dtype)

    def stacked(self) -> StackedFactors | None:
        """The members' factors; None where one has none now, or they read different inputs."""
        members = [member for member in self.members if isinstance(member, PlacedDelta)]
        alike = len({member.insertion for member in members}) == 1
        if self.by_code is None or len(members) < len(self.members) or not alike:
            return None
        dtype, parts = compute_dtype(self.combiner), []
        for member in members:
            factors = member.factors()
            if factors is None or factors.dtypes != {dtype}:
                return None
            parts.append(factors)
        return stack_factors(parts)

    @property
    def leaves(self) -> tuple[PlacedDelta, ...]:
        return tuple(leaf for member in self.members for leaf in member.leaves)

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return (self.combiner, *(c for member in self.members for c in member.combiners))

    @property
    def weighs(self) -> bool:
        return True


@dataclass(frozen=True, eq=False)
class FoldedNode(Node):
    """A combiner and its members as one module for inference (`deltakit.core.factors.Foldable`).

    Attributes:
        origin: the node that was multiplied out.
        module: what it runs, given the query and the members' input.
    """

    origin: CombinerNode
    module: nn.Module

    def change(self, signal: Signal, port: Port) -> Tensor:
        del port
        change: Tensor = self.module(*self.origin.read(signal))
        return change.to(signal.stream.dtype)

    @property
    def leaves(self) -> tuple[PlacedDelta, ...]:
        return self.origin.leaves

    @property
    def combiners(self) -> tuple[Combiner, ...]:
        return self.origin.combiners

    @property
    def weighs(self) -> bool:
        return True
