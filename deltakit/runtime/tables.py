"""Tables: the nodes at a model's sites, and the data that passes need with them.

A pass takes the tables that are active when it begins, and keeps them. A switch in another thread
changes later passes alone.
"""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

from torch import nn

from deltakit.core.delta import Reparametrised, TaskConditioned
from deltakit.runtime.nodes import Node
from deltakit.runtime.own_values import Place, running_with
from deltakit.runtime.passes import (
    THREAD,
    LayerDrop,
    Owner,
    Pass,
    next_tables,
)
from deltakit.runtime.reached import Step, check_steps
from deltakit.runtime.row_counts import count_rows

RowHead = tuple[Mapping[str, Place], tuple[int, ...]]
"""Where a module of the task head has its parameters for some rows of the batch, and those rows."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Tables:
    """The compiled form of a composition on one model.

    Attributes:
        nodes: what it does at each site, by the handle's key.
        entries: how many rows a batch has, where it chooses by row.
        heads: by module of the task head, the parameters of each row, where it chooses by row.
        own: by module, the parameters that it uses there in place of those that are there.
        steps: the paths to the modules of the sites.
        owns: whether layers have parameters of a delta's own.
        placed: by module, the parameters that were there, once others may be; for layers that run
            again in a backward pass.
        flags: the base's parameters and their flags at that time.
        blocks: the layers in which it does something.
        gates: the draws of layers that training makes.
    """

    nodes: Mapping[str, Node] = field(default_factory=dict)
    entries: int | None = None
    heads: Mapping[nn.Module, tuple[RowHead, ...]] = field(default_factory=dict)
    own: dict[nn.Module, dict[str, nn.Parameter]] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    owns: bool = False
    placed: dict[nn.Module, dict[str, nn.Parameter]] = field(default_factory=dict)
    flags: dict[nn.Parameter, bool] = field(default_factory=dict)
    blocks: frozenset[nn.Module] = frozenset()
    gates: tuple[LayerDrop, ...] = field(init=False)

    def __post_init__(self) -> None:
        leaves = (leaf for node in self.nodes.values() for leaf in node.leaves)
        gates = dict.fromkeys(leaf.gate for leaf in leaves if leaf.gate is not None)
        object.__setattr__(self, "gates", tuple(gates))

    def check(self) -> None:
        """Raises `IncompatibleDeltas` if the module of a site was replaced."""
        check_steps(self.steps)

    def begin(self, begun: Pass, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Draws and counts what a pass that begins with these tables needs."""
        if module.training:
            for gate in self.gates:
                begun.dropped[gate] = gate.draw()
        if self.entries is not None:
            generation = THREAD.generation
            batch = None if generation is None else generation.rows
            begun.rows = count_rows(self.entries, args, kwargs, batch)

    @contextmanager
    def resumed(self) -> Iterator[None]:
        """Inside, modules have the parameters and flags that they had in passes with these."""
        with ExitStack() as stack:
            stack.enter_context(_flagged(self.flags))
            for module, values in self.placed.items():
                here = {name: value for name, value in values.items() if not value.is_meta}
                stack.enter_context(running_with(module, here))
            yield

    @property
    def acts(self) -> bool:
        """True if a pass with them differs from one of the plain base."""
        return bool(self.nodes or self.heads or self.own or self.owns) or self.entries is not None

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that run with other parameters than those that are there."""
        return (*self.heads, *self.own)

    @property
    def generates(self) -> bool:
        """True if it depends on the running call of `generate`."""
        leaves = (leaf for node in self.nodes.values() for leaf in node.leaves)
        kinds = (Reparametrised, TaskConditioned)
        return self.entries is not None or any(isinstance(x.delta, kinds) for x in leaves)


@contextmanager
def _flagged(flags: Mapping[nn.Parameter, bool]) -> Iterator[None]:
    """Inside, parameters have these flags."""
    changed = [each for each, flag in flags.items() if each.requires_grad is not flag]
    for each in changed:
        each.requires_grad_(flags[each])
    try:
        yield
    finally:
        for each in changed:
            each.requires_grad_(not flags[each])


def tables_of(owner: Owner) -> Tables:
    """The tables of the running pass of a model, or of this thread's next one."""
    passes = THREAD.passes
    tables = passes[-1].tables if passes and passes[-1].owner is owner else None
    return upcoming_tables(owner) if tables is None else cast("Tables", tables)


def upcoming_tables(owner: Owner) -> Tables:
    """The tables of this thread's next pass."""
    return cast("Tables", next_tables(owner))
