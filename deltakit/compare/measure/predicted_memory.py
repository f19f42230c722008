"""Memory of a method on a model, from the model's config alone: nothing is downloaded or loaded.

The step that `training_memory` would measure runs on fake tensors, which have shapes and no values.
So the bytes are those of the same operations, at any size of the model.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
)

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure.memory import (
    TrainingMemory,
    bytes_of,
    inference_memory,
    training_memory,
)
from deltakit.compare.measure.timing import Batch, Step
from deltakit.core.checks import check_whole
from deltakit.core.data_start import take_as_started
from deltakit.core.method import Method
from deltakit.core.provider import AdaptedModel
from deltakit.core.spec import format_method
from deltakit.errors import InvalidConfig
from deltakit.models.fake import on_fake_tensors
from deltakit.models.heads import Head
from deltakit.models.quantised import stored_tensors
from deltakit.models.source import BaseChoice, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_MEMBERS: Mapping[str, Method] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True)
class Load:
    """The size of a step.

    Raises:
        InvalidConfig: a size that is not positive.

    Attributes:
        batch_size: texts in a batch, in training and in inference.
        max_length: tokens of each text.
        gradient_checkpointing: whether a layer's activations are computed again in the backward
            pass, by transformers' gradient checkpointing.
    """

    batch_size: int
    max_length: int
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        check_whole(self, batch_size=self.batch_size, max_length=self.max_length)


@dataclass(frozen=True, kw_only=True)
class PredictedMemory:
    """Bytes by kind, as `TrainingMemory` and `inference_memory` measure them.

    Attributes:
        base: the base's parameters and buffers, with the statistics of quantised ones.
        delta: what the method adds in training, its own copy of the task head among it.
        gradients: of all trained parameters.
        optimizer: AdamW's state.
        activations: what the forward pass keeps for the backward pass.
        training_peak: the most that is alive at any moment of a training step. Some gradients are
            made when some activations are gone already, and it has room for what an operation
            needs for a moment, such as a weight that is dequantised.
        inference_peak: the most that is alive in a forward pass of the deployed method.
        deployed: the tensors that are saved for deployment, the task head among them.
    """

    base: int
    delta: int
    gradients: int
    optimizer: int
    activations: int
    training_peak: int
    inference_peak: int
    deployed: int


def predicted_memory(
    model: ModelSource,
    method: Method,
    base: BaseChoice,
    head: Head,
    load: Load,
    *,
    members: Mapping[str, Method] = _NO_MEMBERS,
    device: torch.device | None = None,
) -> PredictedMemory:
    """Predicts the memory of training and of running a method, from the model's config.

    Args:
        model: as `find_model` finds it; a config is enough.
        method: deltakit's, or another library's.
        base: how the model's weights are held.
        head: what the model is loaded for.
        load: the size of a step.
        members: the deltas that the method combines, by the names that it has for them.
        device: the device that it would run on; the CPU by default.

    Raises:
        DeltakitError: the method does not fit the model or the base.
        InvalidConfig: the sizes of some of its tensors depend on their values.
    """
    place = device or torch.device("cpu")
    with _refused_by_values(method, model.name):
        plain = model.skeleton_in(base, head)
        head.configure(plain, pad_token_id=0)
        plain.config.use_cache = False
        weights = bytes_of(stored_tensors(plain))
        adapted = _attached(plain, method, members)
        training = _training(adapted.model, head, load, place)
        adapted.deploy()
        return PredictedMemory(
            base=weights,
            delta=training.weights - weights,
            gradients=training.gradients,
            optimizer=training.optimizer,
            activations=training.activations,
            training_peak=training.peak,
            inference_peak=_inference_peak(adapted.model, head, load, place),
            deployed=_deployed(adapted),
        )


@contextlib.contextmanager
def _refused_by_values(method: Method, model: str) -> Iterator[None]:
    """Raises `InvalidConfig` where the size of a tensor depends on the values of another."""
    try:
        yield
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise InvalidConfig(
            f"the memory of {format_method(method)} on {model!r} cannot be predicted: the sizes of "
            f"its tensors depend on their values ({error.func}). Measure it with `deltakit "
            "compare`."
        ) from None


def _attached(model: Any, method: Method, members: Mapping[str, Method]) -> AdaptedModel:
    for name, member in members.items():
        dk.attach(model, member, name)
    adapted = adapted_model(model, method)
    adapted.attach()
    take_as_started([adapted.model])  # there are no data here
    return adapted


def _training(
    model: "PreTrainedModel", head: Head, load: Load, device: torch.device
) -> TrainingMemory:
    """A step on fake tensors. The weights are counted on the model, where they are shared."""
    weights = bytes_of(stored_tensors(model))
    fake, mode = on_fake_tensors(model, device)
    if load.gradient_checkpointing:
        fake.gradient_checkpointing_enable()
    with mode:
        found = training_memory(Step(fake, _batch(head, model.config, load, device)))
    return dataclasses.replace(found, weights=weights, peak=found.peak - found.weights + weights)


def _inference_peak(model: "PreTrainedModel", head: Head, load: Load, device: torch.device) -> int:
    weights = bytes_of(stored_tensors(model))
    fake, mode = on_fake_tensors(model, device)
    with mode:
        inputs = head.example_inputs(model.config, load.batch_size, load.max_length, device)
        peak = inference_memory(fake, inputs)
        return weights + peak - bytes_of(stored_tensors(fake))


def _batch(head: Head, config: Any, load: Load, device: torch.device) -> Batch:
    """A batch of zeros, with labels. A head that reads no texts has one label for each row."""
    inputs = head.example_inputs(config, load.batch_size, load.max_length, device)
    tokens = torch.zeros((load.batch_size, load.max_length), dtype=torch.long, device=device)
    return {**inputs, **head.targets_like(tokens)}


def _deployed(adapted: AdaptedModel) -> int:
    """Bytes of what is saved, in the dtype of what is trained."""
    counts = adapted.counts()
    trained = next((p for p in adapted.model.parameters() if p.requires_grad), None)
    size = 0 if trained is None else trained.element_size()
    return (counts.deployed_params + counts.head_params) * size
