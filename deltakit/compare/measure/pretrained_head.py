"""The last hidden states of a model, and the head of its pre-training put on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deltakit.models.heads import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class InPlaceOf(nn.Module):
    """A module in the place of a model's body: what it has not, the body has.

    Args:
        body: the model without its head.
    """

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("body"), name)


class Recorder(InPlaceOf):
    """The body, which keeps its last hidden states."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = self.body(*args, **kwargs)
        self.states = output[0]
        return output


class Given(InPlaceOf):
    """States in place of the body that gave them."""

    states: Tensor

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        from transformers.modeling_outputs import BaseModelOutputWithPast

        del args, kwargs
        return BaseModelOutputWithPast(last_hidden_state=self.states)


@contextmanager
def replaced(model: PreTrainedModel, stand_in: nn.Module) -> Iterator[None]:
    """Inside, another module is in the place of the model's body."""
    name = model.base_model_prefix
    body = model._modules[name]
    model._modules[name] = stand_in
    try:
        yield
    finally:
        model._modules[name] = body


def has_body(model: PreTrainedModel) -> bool:
    """True if the model is a body with a head on it."""
    return model.base_model_prefix in model._modules


def last_states(
    called: Any, inner: PreTrainedModel, head: Head, inputs: Mapping[str, Tensor]
) -> Tensor:
    """The last hidden states of a text's tokens: shape (rows, tokens, width)."""
    recorder = Recorder(inner.base_model)
    given = {name: value for name, value in inputs.items() if name != "labels"}
    with replaced(inner, recorder):
        called(**head.single_texts(given))
    return recorder.states[:, -inputs["input_ids"].shape[1] :]


class PretrainedHead:
    """The head of a checkpoint's language model, for the states of another model of it.

    Args:
        model: the language model. Its body is given up.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.eval()
        self.tied = _tied(model)
        del model._modules[model.base_model_prefix]

    def logits(
        self, inner: PreTrainedModel, states: Tensor, inputs: Mapping[str, Tensor]
    ) -> Tensor:
        """The logits of states that the body of `inner` gave.

        A head that shares the matrix of the embeddings has that of this body.
        """
        given = Given(inner.base_model)
        given.states = states
        if self.tied is not None:
            matrix = inner.get_input_embeddings().weight.detach()
            self.tied.weight = nn.Parameter(matrix, requires_grad=False)
        self.model._modules[self.model.base_model_prefix] = given
        read: Tensor = self.model(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
        ).logits
        return read


def _tied(model: PreTrainedModel) -> Any:
    """The output layer that shares the matrix of the embeddings; None where none does."""
    output = model.get_output_embeddings()
    tied = output is not None and output.weight is model.get_input_embeddings().weight
    return output if tied else None
