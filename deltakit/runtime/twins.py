"""A module that runs with other parameters, while other threads run it with its own.

`torch.func.functional_call` puts the other parameters into the module for the time of the call, so
another thread would compute with them. A twin shares all but the parameters, and is written to in
place of the module.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
        module: the module, which is not written to.
        function: the forward; the one of the module's class by default.
    """

    def __init__(self, module: nn.Module, function: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.module = module
        self.function = type(module).forward if function is None else function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.module, *args, **kwargs)

    def run(self, values: Mapping[str, Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The forward's output with `values`, by name in the module, in the module's dtypes.

        Parameters of an offloaded module that `values` does not name are fetched for it.
        """
        if torch.compiler.is_compiling():  # compiled code cannot fetch them
            return self.run_loaded(values, args, kwargs)
        with loaded(self.module):
            # A value without data is the base's own, which has been fetched to its place.
            given = {n: v for n, v in values.items() if not v.is_meta or _is_meta(self.module, n)}
            return self.run_loaded(given, args, kwargs)

    def run_loaded(self, values: Mapping[str, Tensor], args: Any, kwargs: Mapping[str, Any]) -> Any:
        """The same output, where an offloaded module's parameters have been fetched already."""
        cast = {n: v.to(_dtype_there(self.module, n, v.dtype)) for n, v in values.items()}
        if torch.compiler.is_compiling():
            inner = {f"module.{name}": value for name, value in cast.items()}
            return functional_call(self, inner, args, dict(kwargs))
        return self.function(twin(self.module, cast), *args, **kwargs)


def _there(module: nn.Module, name: str) -> Tensor | None:
    path, _, last = name.rpartition(".")
    return module.get_submodule(path)._parameters.get(last)


def _dtype_there(module: nn.Module, name: str, default: torch.dtype) -> torch.dtype:
    there = _there(module, name)
    return default if there is None else there.dtype


def _is_meta(module: nn.Module, name: str) -> bool:
    there = _there(module, name)
    return there is None or there.is_meta


def is_offloaded(module: nn.Module) -> bool:
    """True if accelerate keeps the module's weights elsewhere until it runs."""
    hook = vars(module).get("_hf_hook")
    return hook is not None and bool(vars(hook).get("offload"))


@contextmanager
def loaded(module: nn.Module) -> Iterator[None]:
    """Inside, an offloaded module and those in it have their parameters where they run."""
    with ExitStack() as stack:
        for each in filter(is_offloaded, module.modules()):
            from accelerate.utils import align_module_device

            stack.enter_context(align_module_device(each, execution_device(each)))
        yield


def execution_device(module: nn.Module) -> torch.device:
    """The device to which accelerate moves an offloaded module's weights when it runs."""
    return torch.device(vars(vars(module)["_hf_hook"])["execution_device"])
