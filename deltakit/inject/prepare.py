"""The pass over data before training, for deltas that take their start from it."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from deltakit.core.data_start import DataPass, StartsFromData, awaiting
from deltakit.core.delta import Delta
from deltakit.errors import InvalidConfig
from deltakit.inject.attachments import Attachments, need_attachments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def prepare(model: "PreTrainedModel", batches: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """Gives the active deltas the start that they take from data, before they are trained.

    ::

        dk.attach(model, dk.Sparse(dk.SequentialAdapter(), keep=0.25, score="snip"))
        dk.prepare(model, loader)

    Deltas that take nothing from data are left alone, and no batch is read for them. So a training
    loop may call it for every method.

    Args:
        model: a model with active deltas.
        batches: what the model is called with, labels among it. As many are read and held as the
            starts take: `Sparse` has a setting, and 8 is the default.

    Returns:
        The names of the deltas that were given a start.

    Raises:
        InvalidConfig: no batches, or batches without labels.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    names = () if attachments.active is None else attachments.active.names
    waiting = {name: found for name in names if (found := awaiting_data(attachments, name))}
    if waiting:
        _give(model, [form for found in waiting.values() for form in found], batches)
    return tuple(waiting)


def awaiting_data(attachments: Attachments, name: str) -> list[StartsFromData]:
    """The forms of a delta that wait for a start from data."""
    return awaiting(module for _, module in attachments.get(name).modules())


def check_started(attachments: Attachments, name: str) -> None:
    """Raises `InvalidConfig` for a delta that waits for its start from data."""
    if awaiting_data(attachments, name):
        raise InvalidConfig(
            f"{name!r} takes its start from data and does not have it yet, so it cannot be saved. "
            "Call deltakit.prepare(model, batches) first."
        )


def _give(
    model: "PreTrainedModel", forms: list[StartsFromData], batches: Iterable[Mapping[str, Any]]
) -> None:
    starts = dict.fromkeys(start for form in forms if (start := form.data_start) is not None)
    data = _Batches(model, islice(batches, max(start.batches for start in starts)))
    with _evaluating(model):
        for start in starts:
            alike = [form for form in forms if form.data_start == start]
            first = data.first(start.batches)
            start.give([form for form in alike if isinstance(form, Delta)], first)
    for form in forms:
        form.end_wait()


@contextmanager
def _evaluating(model: "PreTrainedModel") -> Iterator[None]:
    """Inside, the model and its deltas are in evaluation; afterwards each module is as it was."""
    before = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in before.items():
            module.training = training


class _Batches(DataPass):
    """The batches, on the model's device."""

    def __init__(self, model: "PreTrainedModel", batches: Iterable[Mapping[str, Any]]) -> None:
        self._model: Any = model
        self._batches = [_moved(batch, model.device) for batch in batches]
        if not self._batches:
            raise InvalidConfig(
                "prepare(model, batches): there are no batches, and a delta takes its start from "
                "them. Give some of the training data."
            )

    def first(self, count: int) -> "_Batches":
        """The first of them alone."""
        return _Batches(self._model, self._batches[:count])

    def forward(self) -> None:
        with torch.no_grad():
            for batch in self._batches:
                self._model(**batch)

    def gradients(self, tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return self._mean(tensors, lambda loss: _gradients(loss, tensors))

    def hessian_product(
        self, tensors: Sequence[Tensor], vectors: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        def product(loss: Tensor) -> tuple[Tensor, ...]:
            slopes = _gradients(loss, tensors, create_graph=True)
            pairs = zip(slopes, vectors, strict=True)
            return _gradients(sum(((g * v).sum() for g, v in pairs), loss.new_zeros(())), tensors)

        with sdpa_kernel(SDPBackend.MATH):  # the others have no second derivative
            return self._mean(tensors, product)

    def _mean(
        self, tensors: Sequence[Tensor], of: Callable[[Tensor], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        sums = tuple(torch.zeros_like(tensor) for tensor in tensors)
        for batch in self._batches:
            with torch.enable_grad():
                found = of(self._loss(batch))
            sums = tuple(total + each for total, each in zip(sums, found, strict=True))
        return tuple(total / len(self._batches) for total in sums)

    def _loss(self, batch: Mapping[str, Any]) -> Tensor:
        loss: Tensor | None = self._model(**batch).get("loss")
        if loss is None:
            raise InvalidConfig(
                f"prepare(model, batches): {type(self._model).__name__} gives no loss for a batch "
                f"with {', '.join(batch)}. Give batches with labels to a model with a head."
            )
        return loss


def _gradients(
    of: Tensor, tensors: Sequence[Tensor], *, create_graph: bool = False
) -> tuple[Tensor, ...]:
    """∂of/∂θ for each tensor, zero where it does not depend on it."""
    if not of.requires_grad:
        return tuple(torch.zeros_like(tensor) for tensor in tensors)
    return torch.autograd.grad(
        of, tensors, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        key: value.to(device) if isinstance(value, Tensor) else value
        for key, value in batch.items()
    }
