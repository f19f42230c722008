"""Changes of the base's weights in a merge, one layer at a time."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.arch.base_weight import bias_vector, weight_matrix
from deltakit.core.delta import FFNUnits, RewritesWeight, precise
from deltakit.core.site import Handle
from deltakit.inject.merge_report import MergedLinear
from deltakit.inject.places import set_weight
from deltakit.models.quantised import codec_of, dequantised_linear


@dataclass(kw_only=True, eq=False)
class Stage:
    """The weights of one layer while changes are made to them, in single precision at least."""

    model: nn.Module
    handles: dict[str, Handle] = field(default_factory=dict)
    originals: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, handle: Handle) -> Tensor:
        """As ``(out, in)``."""
        if handle.path not in self.originals:
            self.handles[handle.path] = handle
            self.originals[handle.path] = weight_matrix(self.module(handle.path))
        return self.weights.get(handle.path, self.originals[handle.path])

    def bias(self, handle: Handle) -> Tensor | None:
        bias = self.biases.get(handle.path)
        return bias_vector(self.module(handle.path)) if bias is None else bias

    def module(self, path: str) -> nn.Module:
        """The module that is there now."""
        return self.model.get_submodule(path)

    def write(
        self, merged: dict[str, nn.Parameter | nn.Module], *, dequantise: bool
    ) -> Iterator[MergedLinear]:
        """Puts the new values into the model, and the originals into `merged`."""
        for path, weight in self.weights.items():
            before, dtype = self.originals[path], self.handles[path].dtype
            effect = float(torch.linalg.norm(weight - F.pad(before, _growth(before, weight))))
            name, value = _placed(path, self.module(path), weight, dtype if dequantise else None)
            if isinstance(value, nn.Module) and not effect:
                value = self.module(path)  # quantising again would change what no delta does
            merged.setdefault(name, set_weight(self.model, name, _frozen(value)))
            found = weight_matrix(self.module(path))
            error = float(torch.linalg.norm(found - weight)) if effect else 0.0
            yield MergedLinear(path=path, effect=effect, error=error)
        for path, bias in self.biases.items():
            name = f"{path}.bias"
            merged.setdefault(name, set_weight(self.model, name, _frozen(bias)))


def _frozen(value: Tensor | nn.Module) -> nn.Parameter | nn.Module:
    return value if isinstance(value, nn.Module) else nn.Parameter(value, requires_grad=False)


def _growth(before: Tensor, after: Tensor) -> tuple[int, int, int, int]:
    """How much wider and higher a weight has become, as `pad` takes it."""
    return 0, after.shape[1] - before.shape[1], 0, after.shape[0] - before.shape[0]


def _placed(
    path: str, module: nn.Module, weight: Tensor, dtype: torch.dtype | None
) -> tuple[str, Tensor | nn.Module]:
    """What holds the new weight, and its name: a parameter's value, or another module.

    Args:
        path: the module's name.
        module: what is in the model there now.
        weight: as ``(out, in)``.
        dtype: of a plain linear in place of a quantised one; None quantises the weight again.
    """
    codec = codec_of(module)
    if codec is None:
        value = weight if isinstance(module, nn.Linear) else weight.T
        return f"{path}.weight", value.contiguous()
    if dtype is None:
        return path, codec.like(module, weight)
    return path, dequantised_linear(module, weight.to(dtype))


def staged(model: nn.Module, changes: list["Change"]) -> Iterator[Stage]:
    """The changes, layer by layer, so that one layer is held in full precision at a time."""
    layers: dict[tuple[str, int], list[Change]] = {}
    for change in changes:
        layers.setdefault(change.layer, []).append(change)
    for layer in layers.values():
        stage = Stage(model=model)
        for change in sorted(layer, key=lambda change: change.order):
            change.make(stage)
        yield stage


class Change(ABC):
    """A change of some parameters of the base."""

    order: ClassVar[int]
    """Its place among the changes: a later one reaches what an earlier one has added, too."""
    handle: Handle

    @property
    def layer(self) -> tuple[str, int]:
        """The stack and the layer that it is in."""
        return self.handle.stack, self.handle.layer

    @abstractmethod
    def make(self, stage: Stage) -> None:
        """Makes it to the staged values."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Fold(Change):
    """One linear, or some columns of it: W <- diag(factor) W + change, b <- factor b."""

    order: ClassVar[int] = 0
    handle: Handle
    factor: Tensor | None
    change: Tensor | None
    rewrites: tuple[tuple[float, RewritesWeight], ...] = ()

    def make(self, stage: Stage) -> None:
        weight, bias, path = stage.weight(self.handle), stage.bias(self.handle), self.handle.path
        rows = before = self._rows(weight)
        rows = rows if self.factor is None else rows * self.factor[:, None]
        rows = rows if self.change is None else rows + self.change
        for scale, delta in self.rewrites:
            rows = rows + scale * (precise(delta.rewritten(before)) - before)
        stage.weights[path] = self._with_rows(weight, rows)
        if self.factor is not None and bias is not None:
            stage.biases[path] = self._with_rows(bias, self._rows(bias) * self.factor)

    def _rows(self, whole: Tensor) -> Tensor:
        columns = self.handle.columns
        return whole if columns is None else _swap(columns.read(_swap(whole)))

    def _with_rows(self, whole: Tensor, rows: Tensor) -> Tensor:
        columns = self.handle.columns
        return rows if columns is None else _swap(columns.write(_swap(whole), _swap(rows)))


@dataclass(frozen=True, kw_only=True, eq=False)
class RescaledInput(Change):
    """The input of one linear: W <- W diag(factor)."""

    order: ClassVar[int] = 1
    handle: Handle
    factor: Tensor

    def make(self, stage: Stage) -> None:
        stage.weights[self.handle.path] = stage.weight(self.handle) * self.factor


@dataclass(frozen=True, kw_only=True, eq=False)
class Wider(Change):
    """A feed-forward with more units: they read what it reads and add to what it returns."""

    order: ClassVar[int] = 2
    handle: Handle
    up: Handle
    down: Handle
    units: tuple[FFNUnits, ...]

    def make(self, stage: Stage) -> None:
        inner, outer, units = stage.weight(self.up), stage.weight(self.down), self.units
        stage.weights[self.up.path] = torch.cat([inner, *(u.down for u in units)])
        stage.weights[self.down.path] = torch.cat([outer, *(u.up for u in units)], dim=1)
        bias = stage.bias(self.up)
        if bias is not None:
            stage.biases[self.up.path] = torch.cat([bias, *(u.down_bias for u in units)])
        bias = stage.bias(self.down)
        if bias is not None:
            stage.biases[self.down.path] = sum((u.up_bias for u in units), bias)


def _swap(tensor: Tensor) -> Tensor:
    """The first axis last, and back; a bias has only one."""
    return tensor.transpose(0, -1)
