"""Modules that a model no longer reaches: the hooks on them would act no more, without a word.

A user may put another module into the place of a hooked one, as ``resize_token_embeddings`` of some
models does. One that wraps the hooked module is followed.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from deltakit.errors import IncompatibleDeltas


@dataclass(kw_only=True, eq=False)
class Step:
    """One step on the path to a module.

    Attributes:
        path: where the step leads.
        parent: the module that it starts from.
        name: of the child in the parent.
        child: the module that it led to when the path was noted.
        found: the module that is there now, if the child is in it.
    """

    path: str
    parent: nn.Module
    name: str
    child: nn.Module
    found: nn.Module

    def leads_there(self) -> bool:
        """True if the child is still there, by itself or in a module that wraps it."""
        found = self.parent._modules.get(self.name)
        if found is not self.found and found is not None and _has(found, self.child):
            self.found = found
        return found is self.found


def _has(module: nn.Module, child: nn.Module) -> bool:
    return any(each is child for each in module.modules())


class Paths:
    """The paths from a model to modules in it, as they are when this is made.

    Args:
        model: the model.
        modules: by a key, the path and the module. One that is not there is left out.
    """

    def __init__(self, model: nn.Module, modules: Mapping[str, tuple[str, nn.Module]]) -> None:
        known: dict[str, Step] = {}
        self.steps: dict[str, tuple[Step, ...]] = {}
        for key, (path, module) in modules.items():
            steps = tuple(_steps(model, path, known))
            if steps and steps[-1].child is module:
                self.steps[key] = steps

    def to(self, keys: Iterable[str]) -> tuple[Step, ...]:
        """The steps to the modules of the keys, each once."""
        return tuple(dict.fromkeys(step for key in keys for step in self.steps.get(key, ())))


class ReachedPort:
    """Refuses a pass of a model whose modules were replaced."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        self.steps = steps

    def __call__(self, *_: Any) -> None:
        if not torch.compiler.is_compiling():
            check_steps(self.steps)


def install_reached(model: nn.Module, modules: Mapping[str, nn.Module]) -> RemovableHandle:
    """Lets passes of the model be refused once one of the modules, by path, is replaced."""
    steps = Paths(model, {path: (path, module) for path, module in modules.items()})
    return model.register_forward_pre_hook(ReachedPort(steps.to(modules)))


def check_steps(steps: Iterable[Step]) -> None:
    """Raises `IncompatibleDeltas` if a step leads to another module now."""
    for step in steps:
        there = step.parent._modules.get(step.name) is step.found
        if not there and not step.leads_there():
            raise IncompatibleDeltas(
                f"another module was put at {step.path!r} after deltas were attached, so they do "
                "not act there. Replace modules before you attach; to keep what is trained, save "
                "the deltas, `detach`, and load them on the model as it is now."
            )


def _steps(model: nn.Module, path: str, known: dict[str, Step]) -> Iterator[Step]:
    """The steps of a path, those before its end that are missing left out."""
    parent, at = model, ""
    for name in path.split(".") if path else ():
        child = parent._modules.get(name)
        if child is None:
            return
        at = f"{at}.{name}" if at else name
        if at not in known:
            known[at] = Step(path=at, parent=parent, name=name, child=child, found=child)
        yield known[at]
        parent = child
