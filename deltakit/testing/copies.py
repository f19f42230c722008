"""Copies of a tiny model, made faster than `copy.deepcopy` makes them.

A law needs a new model each time, and to copy one takes longer than to run it. Here the structure
is pickled once, by C code, and the tensors are cloned. A model that cannot be pickled is copied by
`copy.deepcopy`.
"""

import copy
import io
import pickle
from typing import Any

from torch import Tensor, nn


class _Pickler(pickle.Pickler):
    """Leaves the tensors out and keeps them in a list."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.places: dict[int, int] = {}
        self.tensors: list[Tensor] = []

    def persistent_id(self, obj: Any) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        if id(obj) not in self.places:
            self.places[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self.places[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Puts a clone where a tensor was, the same one where it was the same."""

    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self.tensors = tensors
        self.clones: dict[int, Tensor] = {}

    def persistent_load(self, pid: Any) -> Tensor:
        if pid not in self.clones:
            self.clones[pid] = _clone(self.tensors[pid])
        return self.clones[pid]


def _clone(tensor: Tensor) -> Tensor:
    """A leaf of the same class, with the same values, flag and attributes."""
    values = tensor.detach().clone()
    if type(tensor) is nn.Parameter:
        values = nn.Parameter(values, requires_grad=tensor.requires_grad)
    vars(values).update(vars(tensor))
    return values.requires_grad_(tensor.requires_grad)


def _is_plain(tensor: Tensor) -> bool:
    """True if `_clone` makes all of it."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.is_leaf
        and not tensor._is_view()
        and tensor.grad is None
        and all(type(value) is bool for value in vars(tensor).values())  # a buffer's marks
    )


class Template:
    """A module from which equal ones are made.

    The module must not be changed while it is used: its tensors are cloned when a copy is made.

    Args:
        module: the module to be copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        file = io.BytesIO()
        pickler = _Pickler(file)
        try:
            pickler.dump(module)
            fits = all(map(_is_plain, pickler.tensors))
        except (pickle.PicklingError, AttributeError, TypeError):
            fits = False
        self.structure = file.getvalue() if fits else None
        self.tensors = pickler.tensors

    def copy(self) -> Any:
        """A new module, equal to the template's."""
        if self.structure is None:
            return copy.deepcopy(self.module)
        return _Unpickler(io.BytesIO(self.structure), self.tensors).load()
