"""The hooks that open and close a model's passes."""

import inspect
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.checkpointing import (
    ResumingCheckpoint,
    can_checkpoint,
    resume_anywhere,
    resume_in_own_pass,
)
from deltakit.runtime.passes import INPUTS, NOTHING, THREAD, Owner, Pass, current_pass, next_tables
from deltakit.runtime.twins import is_offloaded
from deltakit.runtime.uses import current_uses


def _tasks_of(owner: Owner) -> tuple[int, ...] | None:
    uses = reversed(current_uses())
    return next((use.tasks for use in uses if use.owner is owner and use.tasks is not None), None)


class PassPort:
    """Opens a pass before a module runs, unless the module is called inside one."""

    def __init__(self, module: nn.Module, path: str, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        names = [*inspect.signature(module.forward).parameters]
        self.places = {name: names.index(name) for name in INPUTS if name in names}

    def open(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        """Before the module."""
        current, uses = current_pass(), len(current_uses())
        inside = current.owner is self.owner and self.path not in current.inside
        if inside and current.uses in (None, uses):
            current.inside.append(self.path)
            return
        tables = next_tables(self.owner)
        begun = Pass(owner=self.owner, tables=tables, inside=[self.path], uses=uses)
        begun.tasks = _tasks_of(self.owner)
        THREAD.passes = (*THREAD.passes, begun)
        if _has_offloaded(module):
            _BRINGING.acquire()
            begun.alone = True
        self._read(begun, args, kwargs)
        tables.begin(begun, module, args, kwargs)

    def close(self, module: nn.Module, args: Any, *output: Any) -> None:
        """Behind the module, after an error too."""
        current = current_pass()
        if current.owner is not self.owner or current.inside[-1:] != [self.path]:
            return  # an earlier hook has failed, so `open` has not run
        current.inside.pop()
        if not current.inside:
            THREAD.passes = THREAD.passes[:-1]
            if current.alone:
                _BRINGING.release()

    def _read(self, begun: Pass, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Notes the call's masks and positions."""
        for name, place in self.places.items():
            value = args[place] if place < len(args) else kwargs.get(name)
            fits = isinstance(value, Tensor) and value.ndim == 2
            begun.inputs[name] = value if fits else None
            if value is not None and not fits:
                begun.unread |= {name}
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        begun.rows_given = next((value.shape[0] for value in given if value.ndim > 1), None)
        begun.cached = _cached(kwargs)


_BRINGING = threading.RLock()
"""Held by a pass of an offloaded base: accelerate takes weights away behind each module, whatever
other threads compute with them."""


def _has_offloaded(module: nn.Module) -> bool:
    """True if accelerate brings weights for a part of the module; it marks the whole, too."""
    return "_hf_hook" in vars(module) and any(map(is_offloaded, module.modules()))


def _cached(kwargs: Mapping[str, Any]) -> int:
    """How many tokens a call's cache holds."""
    cache: Any = kwargs.get("past_key_values")
    known = callable(getattr(type(cache), "get_seq_length", None))
    length = cache.get_seq_length() if known else 0
    return length if isinstance(length, int) else 0


class RootPort(PassPort):
    """Opens the pass of a whole model, and refuses a replica."""

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        super().__init__(model, "", owner)

    def open(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        if "_is_replica" in vars(module):
            raise IncompatibleDeltas(
                "DataParallel's replicas would all run the deltas of the first device. Use "
                "DistributedDataParallel, one process for each device."
            )
        super().open(module, args, kwargs)


class BeforePass:
    """Prepares what a graph cannot: the base is checked, and recomputation resumes its pass.

    It is a hook of its own, and changes nothing of its thread. torch compiles a hook that asks
    whether it is compiled, and loses what that hook notes for its thread.
    """

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        self.owner = owner
        self.layers = tuple(m for m in model.modules() if can_checkpoint(m))

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Before the module, and before its pass is opened.

        Raises:
            IncompatibleDeltas: the module of a site was replaced.
        """
        if torch.compiler.is_compiling():
            return
        next_tables(self.owner).check()
        if module.training:
            for layer in self.layers:
                resume_in_own_pass(layer)


def entries(model: nn.Module, handles: Iterable[Handle]) -> dict[str, nn.Module]:
    """The models inside the model that have sites, by path: those that are called alone too."""
    from transformers import PreTrainedModel

    paths = {id(module): path for path, module in model.named_modules()}
    inside = [paths.get(id(handle.module), "") for handle in handles if handle.in_a_layer]
    return {
        path: module
        for path, module in model.named_modules()
        if path and isinstance(module, PreTrainedModel)
        if any(each.startswith(f"{path}.") for each in inside)
    }


class PassPorts:
    """The hooks that open and close the passes of one model."""

    def __init__(self, model: nn.Module, handles: Iterable[Handle], owner: Owner) -> None:
        self.before = BeforePass(model, owner)
        inner = {m: PassPort(m, path, owner) for path, m in entries(model, handles).items()}
        self.ports: dict[nn.Module, PassPort] = {model: RootPort(model, owner), **inner}
        self.hooks: list[RemovableHandle] = []
        self.ends: dict[nn.Module, RemovableHandle] = {}

    def install(self) -> None:
        """Makes each call of the model, or of a part of it, a pass, if it is none."""
        if self.hooks:
            return
        for module, port in self.ports.items():
            end = module.register_forward_hook(port.close, with_kwargs=True, always_call=True)
            begin = module.register_forward_pre_hook(port.open, with_kwargs=True, prepend=True)
            before = module.register_forward_pre_hook(self.before, prepend=True)
            self.ends[module] = end
            self.hooks += [end, begin, before]

    def are_resumed(self) -> bool:
        """True if layers may be run again after a pass, in a backward pass."""
        functions = (vars(x).get("_gradient_checkpointing_func") for x in self.before.layers)
        return any(isinstance(function, ResumingCheckpoint) for function in functions)

    def come_last(self) -> None:
        """Makes passes end behind all other hooks."""
        for module, end in self.ends.items():
            hooks: Any = module._forward_hooks
            hooks.move_to_end(end.id)

    def remove(self) -> None:
        """Makes calls no passes, and gives layers their own checkpointing functions back."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.ends.clear()
        for layer in self.before.layers:
            resume_anywhere(layer)
