"""A module that runs with other parameters, while other threads run it with its own.

`torch.func.functional_call` puts the other parameters into the module for the time of the call, so
another thread would compute with them. A twin shares all but the parameters, and is written to in
place of the module.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

_BOUND = ("forward", "_old_forward", "_hf_hook")
"""Attributes that are bound to one module: a replaced forward, and what accelerate adds."""


def twin(module: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """A copy of a module that shares all that it has but the parameters named.

    Args:
        module: the module, which is not written to.
        values: by dotted name in the module.
    """
    own = {name: value for name, value in values.items() if "." not in name}
    inner: dict[str, dict[str, Tensor]] = {}
    for name, value in values.items():
        child, _, rest = name.partition(".")
        if rest:
            inner.setdefault(child, {})[rest] = value
    found = object.__new__(type(module))
    vars(found).update(vars(module))
    for name in _BOUND if inner or own else ():
        vars(found).pop(name, None)
    vars(found)["_parameters"] = {**module._parameters, **own}
    children = {child: twin(module.get_submodule(child), named) for child, named in inner.items()}
    vars(found)["_modules"] = {**module._modules, **children}
    return found


class Forward(nn.Module):
    """A module's forward without the hooks on it, with other parameters.

    Args:
        module: the module.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)

    def run(self, values: Mapping[str, Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The forward's output with `values`, by name in the module, in the module's dtypes."""
        cast = {n: value.to(_there(self.module, n).dtype) for n, value in values.items()}
        if torch.compiler.is_compiling():
            inner = {f"module.{name}": value for name, value in cast.items()}
            return functional_call(self, inner, args, dict(kwargs))
        return type(self.module).forward(twin(self.module, cast), *args, **kwargs)


def _there(module: nn.Module, name: str) -> Tensor:
    path, _, last = name.rpartition(".")
    there = module.get_submodule(path)._parameters[last]
    assert there is not None, f"{name} is None"
    return there
