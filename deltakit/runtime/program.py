"""The program of one model: the active tables, and the hooks that read them.

A switch installs the hooks that its tables need, and then makes the tables active in one step.
Hooks that are no longer needed are removed where nothing can be using them: no other thread is
running, and `torch.compile` has made no graph. Until then they find nothing in the tables and do
nothing.

A graph guards the tables that it was made with, but not hooks that it has not seen; where the hooks
change, compiled graphs are forgotten.
"""

import copy
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.generation import NotedGenerate, install_generation
from deltakit.runtime.hooks import Removable, install, install_block, install_reader
from deltakit.runtime.own_parameters import install_parameters
from deltakit.runtime.pass_ports import PassPorts
from deltakit.runtime.passes import THREAD
from deltakit.runtime.reached import Paths
from deltakit.runtime.tables import Tables
from deltakit.runtime.uses import Use, entered

_LOCK = threading.RLock()


class _Idle:
    """What a part of a model that was copied alone runs by: no deltas."""

    def __init__(self) -> None:
        self.active = Tables()


class Program:
    """The program of one model.

    Attributes:
        active: what passes run with, in threads that use nothing else.
        used: what threads use at the moment.
    """

    def __init__(self, model: nn.Module, handles: Mapping[str, Handle]) -> None:
        self.model = model
        self.handles = handles
        self.paths = Paths(model, {k: (h.path, h.module) for k, h in handles.items()})
        self.passes = PassPorts(model, handles.values(), self)
        self.active = Tables()
        self.used: list[Tables] = []
        self.sites: dict[str, list[Removable]] = {}
        self.readers: dict[str, list[Removable]] = {}
        self.blocks: dict[nn.Module, Removable] = {}
        self.modules: dict[nn.Module, Removable] = {}
        self.generation: list[NotedGenerate] = []

    def __deepcopy__(self, memo: dict[int, Any]) -> "Program | _Idle":
        """A copy of the whole model has one of its own; a part that is copied alone has no deltas.

        Raises:
            IncompatibleDeltas: a part is copied while deltas act.
        """
        whole = id(self.model) in memo
        if not whole and self.active.acts:
            raise IncompatibleDeltas(
                f"a part of a {type(self.model).__name__} was copied alone, and the deltas that "
                "act in it belong to the whole. Copy the model, or copy the part inside `disabled`."
            )
        copied = memo[id(self)] = object.__new__(Program) if whole else _Idle()
        if whole:
            vars(copied).update({n: copy.deepcopy(each, memo) for n, each in vars(self).items()})
        return copied

    def switch(self, model: nn.Module, tables: Tables) -> None:
        """Makes tables active: passes that begin from now on run with them."""
        with _LOCK:
            changed = self._install(model, tables)
            self.active = tables
            changed |= self._remove_unneeded()
            self.passes.come_last()
        if changed:
            _forget_graphs()

    def keep_own(self, own: dict[nn.Module, dict[str, nn.Parameter]]) -> None:
        """Lets running passes keep the parameters that they began with."""
        with _LOCK:
            for module in own:
                if module not in self.modules:
                    self.modules[module] = install_parameters(self, module)
            if not self.active.own:
                self.active.own.update(own)

    def keep_placed(
        self,
        placed: dict[nn.Module, dict[str, nn.Parameter]],
        base: Iterable[nn.Parameter],
    ) -> None:
        """Lets layers that run again in a backward pass have the parameters that they had."""
        self.active.placed.update(placed)
        self.active.flags.update({each: each.requires_grad for each in base})

    @contextmanager
    def using(self, model: nn.Module, tables: Tables) -> Iterator[None]:
        """Inside, passes of this thread run with tables of its own."""
        with _LOCK:
            self.used.append(tables)
            changed = self._install(model, tables)
            self.passes.come_last()
        if changed:
            _forget_graphs()
        try:
            with entered(Use(owner=self, tables=tables)):
                yield
        finally:
            with _LOCK:
                self.used.remove(tables)
                changed = self._remove_unneeded()
            if changed:
                _forget_graphs()

    def remove(self) -> None:
        """Takes all hooks off."""
        with _LOCK:
            self.active = Tables()
            changed = bool(self.passes.hooks)
            self._keep(())
        if changed:
            _forget_graphs()

    def _install(self, model: nn.Module, tables: Tables) -> bool:
        """Puts the hooks on that tables need; whether any was missing."""
        before = self._count()
        if tables.acts:
            self.passes.install()
        for key, node in tables.nodes.items():
            if key not in self.sites:
                self.sites[key] = [*install(self, self.handles[key])]
            if key not in self.readers and node.reads_input:
                self.readers[key] = [*install_reader(self, self.handles[key])]
        for block in self._blocks(tables):
            if block not in self.blocks:
                self.blocks[block] = install_block(self, block)
        for module in tables.modules:
            if module not in self.modules:
                self.modules[module] = install_parameters(self, module)
        if tables.generates and not self.generation:
            self.generation.extend(install_generation(model))
        return self._count() != before

    def _blocks(self, tables: Tables) -> set[nn.Module]:
        """The blocks whose stream is read."""
        reading = (key for key, node in tables.nodes.items() if node.reads_block)
        return {block for key in reading if (block := self.handles[key].block) is not None}

    def _count(self) -> int:
        """How many places have hooks."""
        places = (self.passes.hooks, self.sites, self.readers, self.blocks, self.modules)
        return sum(map(len, places))

    def _remove_unneeded(self) -> bool:
        """Removes the hooks that no tables need, where that is safe; whether there were any."""
        if not self._is_quiet():
            return False
        return self._keep((self.active, *self.used))

    def _keep(self, needed: Iterable[Tables]) -> bool:
        """Removes all hooks but those that the tables need; whether there were any."""
        before, needed = self._count(), [each for each in needed if each.acts]
        nodes = [item for each in needed for item in each.nodes.items()]
        _remove_others(self.sites, {key for key, _ in nodes})
        _remove_others(self.readers, {key for key, node in nodes if node.reads_input})
        for block in self.blocks.keys() - {b for each in needed for b in self._blocks(each)}:
            self.blocks.pop(block).remove()
        for module in self.modules.keys() - {m for each in needed for m in each.modules}:
            self.modules.pop(module).remove()
        if not any(each.generates for each in needed):
            while self.generation:
                self.generation.pop().remove()
        if not needed:
            self.passes.remove()
        return self._count() != before

    def _is_quiet(self) -> bool:
        """Whether no pass can be running or run again, and no graph was compiled."""
        running = any(entered.owner is self for entered in THREAD.passes)
        return not (running or has_threads() or self.passes.are_resumed() or _has_graphs())


def has_threads() -> bool:
    """True if other threads are running, which may be inside a pass."""
    return sum(not _watches_progress(thread) for thread in threading.enumerate()) > 1


def _watches_progress(thread: threading.Thread) -> bool:
    """Whether the thread is that of tqdm, which any progress bar starts and which runs no model."""
    return type(thread).__module__.partition(".")[0] == "tqdm"


def _remove_others(hooks: dict[str, list[Removable]], needed: set[str]) -> None:
    for key in hooks.keys() - needed:
        for hook in reversed(hooks.pop(key)):
            hook.remove()


def _has_graphs() -> bool:
    """Whether `torch.compile` has traced any code since graphs were last forgotten."""
    frames = sys.modules.get("torch._dynamo.convert_frame")
    return frames is not None and bool(frames.input_codes.seen)


def _forget_graphs() -> None:
    """Makes compiled graphs, which do not know of hooks that appear later, be made again."""
    if _has_graphs():
        torch.compiler.reset()
