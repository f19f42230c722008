"""Parameters of a delta's own, used at the place of the base's while the delta is active.

Where it can be, the delta's parameter is put into the place itself. Where that cannot be (another
dtype, sharded or offloaded weights), the module that has the place runs its forward on a copy of
itself, which shares all but these parameters. So nothing is written that two passes share.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MethodType
from typing import Any, NamedTuple

from torch import nn

from deltakit.runtime.twins import Forward

_BY_ACCELERATE = "_old_forward"


class Place(NamedTuple):
    """A parameter's place: the module that has it, and its name there."""

    module: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that is there now."""
        found = self.module._parameters[self.name]
        assert found is not None, f"{self.name} is None"
        return found

    def put(self, parameter: nn.Parameter) -> None:
        """Puts a parameter there, in the order of the others."""
        self.module._parameters[self.name] = parameter


def parameter_places(module: nn.Module) -> dict[str, Place]:
    """The places of the module's parameters, and of those in it, by dotted name."""
    names = (name for name, _ in module.named_parameters())
    split = ((name, *name.rpartition(".")[::2]) for name in names)
    return {name: Place(module.get_submodule(path), last) for name, path, last in split}


class ParameterTree(nn.Module):
    """Parameters by the dotted names that they have in a model, as modules of the same names."""

    def __init__(self) -> None:
        super().__init__()
        self.places: dict[str, Place] = {}

    def node(self) -> nn.Module:
        """A module of the tree, without parameters."""
        return nn.Module()

    def put(self, name: str, parameter: nn.Parameter) -> None:
        """Adds a parameter, or replaces the one of that name."""
        path, _, last = name.rpartition(".")
        module: nn.Module = self
        for word in path.split(".") if path else ():
            if word not in module._modules:
                module.add_module(word, self.node().train(self.training))
            module = module.get_submodule(word)
        module.register_parameter(last, parameter)
        self.places[name] = Place(module, last)

    def take(self, name: str) -> nn.Parameter:
        """Removes a parameter and returns it."""
        place = self.places.pop(name)
        parameter = place.parameter
        del place.module._parameters[place.name]
        return parameter

    def tensors(self) -> dict[str, nn.Parameter]:
        """The parameters by their dotted names."""
        return {name: place.parameter for name, place in self.places.items()}


class UnsavedTree(ParameterTree):
    """Parameters that move with the model and are part of no state dict under these names."""

    def node(self) -> nn.Module:
        return UnsavedTree()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        return kwargs.get("destination", args[0] if args else {})

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs


class OwnForward:
    """A module's forward with other parameters than those that it has.

    Args:
        module: the module.
        places: by the parameter's name in the module, where the other one is.
    """

    def __init__(self, module: nn.Module, places: Mapping[str, Place]) -> None:
        self.module = module
        self.places = dict(places)
        self.slot = _BY_ACCELERATE if _BY_ACCELERATE in vars(module) else "forward"
        self.before: Callable[..., Any] | None = vars(module).get(self.slot)
        self.forward = Forward(module, _function(module, self.before))
        self.__signature__ = inspect.signature(module.forward)
        vars(module)[self.slot] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        values = {name: place.parameter for name, place in self.places.items()}
        return self.forward.run_loaded(values, args, kwargs)

    def remove(self) -> None:
        """Gives the module its own forward back."""
        own = vars(self.module)
        if self.before is None:
            own.pop(self.slot, None)
        else:
            own[self.slot] = self.before


@contextmanager
def running_with(module: nn.Module, values: Mapping[str, nn.Parameter]) -> Iterator[None]:
    """Inside, a module computes with the given parameters, by their names in it."""
    own = vars(module)
    slot = _BY_ACCELERATE if _BY_ACCELERATE in own else "forward"
    had, before = slot in own, own.get(slot)
    forward = (
        before.forward
        if isinstance(before, OwnForward)
        else Forward(module, _function(module, before))
    )
    own[slot] = lambda *args, **kwargs: forward.run_loaded(values, args, kwargs)
    try:
        yield
    finally:
        if had:
            own[slot] = before
        else:
            del own[slot]


def _function(module: nn.Module, before: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """The forward as a function of the module: the class's, or what is bound in its place."""
    own = before is None or (isinstance(before, MethodType) and before.__self__ is module)
    assert own, f"the forward of {type(module).__name__} was replaced by {before!r}"
    return before.__func__ if isinstance(before, MethodType) else None


def can_run_with(module: nn.Module) -> bool:
    """True if `OwnForward` works: the module's forward is its class's, or bound to it."""
    forward = vars(module).get(_BY_ACCELERATE, vars(module).get("forward"))
    return forward is None or (isinstance(forward, MethodType) and forward.__self__ is module)


def install_own_values(places: Mapping[Place, Place]) -> Iterator[OwnForward]:
    """Makes each module use, for the parameters of the given places, those of other places."""
    by_module: dict[nn.Module, dict[str, Place]] = {}
    for there, own in places.items():
        by_module.setdefault(there.module, {})[there.name] = own
    for module, values in by_module.items():
        yield OwnForward(module, values)
