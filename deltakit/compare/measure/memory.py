"""Bytes of live tensors in a training step and in a forward pass, the same on every machine."""

import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from deltakit.models.quantised import stored_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedModel
from deltakit.compare.measure.timing import Batch, Step


@dataclass(frozen=True, kw_only=True)
class TrainingMemory:
    """Bytes of live tensors in one training step; `peak` is the most at any moment."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    peak: int


def training_memory(step: Step) -> TrainingMemory:
    """Makes one step and counts. Activations are what the forward pass keeps for the backward.

    It is a step in the middle of a training: the optimiser has its state already. So the optimiser
    steps once more, uncounted, where it makes that state.
    """
    weights = bytes_of(stored_tensors(step.model))
    saved, live = _SavedBytes(step.model), LiveBytes()
    with live:
        with torch.autograd.graph.saved_tensors_hooks(saved, _same):
            loss = step.forward()
        activations = saved.total
        loss.backward()
        del loss
    gradients = bytes_of(p.grad for p in step.model.parameters() if p.grad is not None)
    step.optimizer.step()
    state = [t for each in step.optimizer.state.values() for t in each.values()]
    optimizer = bytes_of(t for t in state if isinstance(t, Tensor))
    with live:
        step.optimizer.step()
        step.optimizer.zero_grad()
    return TrainingMemory(
        weights=weights,
        gradients=gradients,
        optimizer=optimizer,
        activations=activations,
        peak=weights + optimizer + live.peak,
    )


def inference_memory(model: "PreTrainedModel", batch: Batch) -> int:
    """Bytes of the weights and of the most activations alive at once in a forward pass."""
    model.eval()
    live = LiveBytes()
    with torch.no_grad(), live:
        model(**batch)
    return bytes_of(stored_tensors(model)) + live.peak


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made inside that are alive, and the most at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Storages that come in were there before, or are counted already.
        old = {storage._cdata for storage in _storages(tree_leaves((args, kwargs)))}
        out = func(*args, **(kwargs or {}))
        for storage in _storages(tree_leaves(out)):
            if storage._cdata not in old and storage not in self._known:
                self._add(storage)
        return out

    def _add(self, storage: Any) -> None:
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, size)

    def _drop(self, size: int) -> None:
        self.live -= size


class _SavedBytes:
    """A pack hook that counts each storage kept for the backward pass once, parameters apart.

    What a part of the graph kept that nothing leads back to is let go again, and not counted.
    """

    def __init__(self, model: nn.Module) -> None:
        self._seen = {storage._cdata for storage in _storages(stored_tensors(model))}
        self.total = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        for storage in _storages((tensor,)):
            place, size = storage._cdata, storage.nbytes()
            if place not in self._seen:
                self._seen.add(place)
                self.total += size
                weakref.finalize(storage, self._drop, place, size)
        return tensor

    def _drop(self, place: int, size: int) -> None:
        self._seen.discard(place)
        self.total -= size


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _storages(leaves: Iterable[Any]) -> Iterator[torch.UntypedStorage]:
    """The storages of those that are tensors; a sparse tensor has two."""
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            parts = (leaf._indices(), leaf._values()) if leaf.is_sparse else (leaf,)
            yield from (part.untyped_storage() for part in parts)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors' storages, each once."""
    return sum({each._cdata: each.nbytes() for each in _storages(tensors)}.values())
