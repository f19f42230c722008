"""The outputs of a model in a comparison: a number for each label, or the next token."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class Head(ABC):
    """The purpose that a model is loaded for.

    Class variables: `task` (of `deltakit.load_base`), `purpose` (what a model with it can do) and
    `reads` (what it is given, which decides the processor: "texts" or "images").

    Attributes:
        outputs: the number of its outputs; None where the model decides.
        problem: transformers' name for what they are trained on.
    """

    task: ClassVar[str]
    purpose: ClassVar[str]
    reads: ClassVar[str] = "texts"
    outputs: int | None = None
    problem: str | None = None

    def check(self, name: str, config: Any) -> None:
        """Raises `InvalidConfig` where the model `name` could be loaded and would not be right."""
        del name, config

    @abstractmethod
    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        """Sets what the checkpoint leaves open in the loaded model."""

    def labels_like(self, ids: "Tensor") -> "Tensor":
        """Labels of the shape and dtype that a training batch has, all zero: one for each token.

        Args:
            ids: tokens, ``(batch, length)``.
        """
        return ids.new_zeros(ids.shape)

    def example_inputs(
        self, config: Any, rows: int, length: int, device: "torch.device"
    ) -> "dict[str, Tensor]":
        """Inputs of the shapes that the model with the head takes, without labels.

        Args:
            config: of the model.
            rows: the size of the batch.
            length: tokens of a text; a head that reads no texts has no use for it.
            device: where they are put.
        """
        import torch

        del config
        ids = torch.zeros((rows, length), dtype=torch.long, device=device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def single_texts(self, batch: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """A batch of texts that do not belong together, as the model with the head takes it."""
        return batch

    def targets_like(self, ids: "Tensor") -> "dict[str, Tensor]":
        """Training targets as a batch has them; by default `labels_like` under ``labels``."""
        return {"labels": self.labels_like(ids)}

    def newly_initialised(
        self, missing: Iterable[str], model: "PreTrainedModel"
    ) -> tuple[str, ...]:
        """The parameters that the checkpoint should have values for and lacks."""
        del model
        return tuple(sorted(missing))


@dataclass(frozen=True, kw_only=True)
class FreshHead(Head):
    """A head that no checkpoint has values for."""

    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        if model.config.pad_token_id is None:
            model.config.pad_token_id = pad_token_id

    def newly_initialised(
        self, missing: Iterable[str], model: "PreTrainedModel"
    ) -> tuple[str, ...]:
        inside = f"{model.base_model_prefix}."
        return tuple(sorted(key for key in missing if key.startswith(inside)))


@dataclass(frozen=True, kw_only=True)
class SequenceHead(FreshHead):
    """A fresh linear over the whole text."""

    task: ClassVar[str] = "classify"
    purpose: ClassVar[str] = "classify sequences"
    outputs: int
    problem: str = "single_label_classification"

    def labels_like(self, ids: "Tensor") -> "Tensor":
        one = ids[:, 0]
        match self.problem:
            case "single_label_classification":
                return one.new_zeros(one.shape)
            case "regression":
                return one.float().zero_()
            case _:
                return one.new_zeros((len(ids), self.outputs)).float()


@dataclass(frozen=True, kw_only=True)
class TokenHead(FreshHead):
    """A fresh linear over each token."""

    task: ClassVar[str] = "classify_tokens"
    purpose: ClassVar[str] = "tag the tokens of a text"
    outputs: int


@dataclass(frozen=True, kw_only=True)
class SpanHead(FreshHead):
    """A fresh linear over each token: is it the first of an answer, is it the last?"""

    task: ClassVar[str] = "extract_spans"
    purpose: ClassVar[str] = "find an answer in a text"
    outputs: int = 2

    def targets_like(self, ids: "Tensor") -> "dict[str, Tensor]":
        zeros = ids.new_zeros(len(ids))
        return {"start_positions": zeros, "end_positions": zeros}

    def check(self, name: str, config: Any) -> None:
        from transformers import MODEL_FOR_QUESTION_ANSWERING_MAPPING, MODEL_MAPPING

        kind = MODEL_FOR_QUESTION_ANSWERING_MAPPING.get(type(config), None)
        body = MODEL_MAPPING.get(type(config), None)
        body = body[0] if isinstance(body, tuple) else body
        # transformers would load Llama, and draw all its weights: their names do not fit the class.
        if kind is None or body is None or kind.base_model_prefix != body.base_model_prefix:
            raise InvalidConfig(
                f"model {name!r} ({config.model_type}) cannot {self.purpose}: transformers has no "
                "class for that which reads the model's weights. Name an encoder with --model, "
                "such as minilm, or a task of another --kind."
            )


@dataclass(frozen=True, kw_only=True)
class ChoiceHead(FreshHead):
    """A fresh linear over each of several texts."""

    task: ClassVar[str] = "choose"
    purpose: ClassVar[str] = "choose between endings"
    choices: ClassVar[int] = 4

    def single_texts(self, batch: "dict[str, Tensor]") -> "dict[str, Tensor]":
        return {name: value.unsqueeze(1) for name, value in batch.items()}

    def labels_like(self, ids: "Tensor") -> "Tensor":
        return ids.new_zeros(len(ids))

    def example_inputs(
        self, config: Any, rows: int, length: int, device: "torch.device"
    ) -> "dict[str, Tensor]":
        each = super().example_inputs(config, rows * self.choices, length, device)
        return {name: value.view(rows, self.choices, length) for name, value in each.items()}


@dataclass(frozen=True, kw_only=True)
class ImageHead(SequenceHead):
    """A fresh linear over the whole picture."""

    task: ClassVar[str] = "classify_images"
    purpose: ClassVar[str] = "classify images"
    reads: ClassVar[str] = "images"

    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        del model, pad_token_id  # pictures of one size need no padding

    def example_inputs(
        self, config: Any, rows: int, length: int, device: "torch.device"
    ) -> "dict[str, Tensor]":
        import torch

        own = vars(config).get("vision_config", config)
        sizes = own.image_size
        height, width = (sizes, sizes) if isinstance(sizes, int) else sizes
        pixels = torch.zeros((rows, own.num_channels, height, width), device=device)
        return {"pixel_values": pixels}

    def newly_initialised(
        self, missing: Iterable[str], model: "PreTrainedModel"
    ) -> tuple[str, ...]:
        del model
        heads = ("classifier", "head", "cls_classifier", "distillation_classifier")
        return tuple(sorted(key for key in missing if key.partition(".")[0] not in heads))


@dataclass(frozen=True, kw_only=True)
class MaskedHead(Head):
    """The tokens behind masks, from the head that an encoder was pre-trained with."""

    task: ClassVar[str] = "masked"
    purpose: ClassVar[str] = "fill in a masked token"

    def check(self, name: str, config: Any) -> None:
        from transformers import MODEL_FOR_MASKED_LM_MAPPING

        if (
            type(config) not in MODEL_FOR_MASKED_LM_MAPPING
            or config.is_encoder_decoder
            or config.is_decoder
        ):
            raise InvalidConfig(
                f"model {name!r} ({config.model_type}) cannot {self.purpose}: it is not an encoder "
                "that transformers has such a head for. Name an encoder with --model."
            )

    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        del model, pad_token_id  # it is pre-trained, and every text has its mask


class WritingHead(Head):
    """A pre-trained head over the vocabulary, with which a model generates texts."""


@dataclass(frozen=True, kw_only=True)
class LanguageHead(WritingHead):
    """The next token, from the head that was pre-trained with the model."""

    task: ClassVar[str] = "causal"
    purpose: ClassVar[str] = "continue a text"

    def check(self, name: str, config: Any) -> None:
        from transformers import MODEL_FOR_MASKED_LM_MAPPING

        if config.is_encoder_decoder:
            why, kind = "it is an encoder-decoder, which writes one text for another", "generation"
        elif type(config) in MODEL_FOR_MASKED_LM_MAPPING and not config.is_decoder:
            # transformers would load it; but a token that sees the next one has no perplexity.
            why, kind = "it reads a text in both directions", "classification"
        else:
            return
        raise InvalidConfig(
            f"model {name!r} ({config.model_type}) cannot {self.purpose}: {why}. Name a decoder "
            f"with --model, such as smollm2, or a task of another kind, such as --kind {kind}."
        )

    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        from transformers import GenerationConfig

        # How a checkpoint likes to be sampled from is no part of a comparison.
        model.generation_config = GenerationConfig(pad_token_id=pad_token_id)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqHead(WritingHead):
    """The next token of a target, from the head that an encoder-decoder was pre-trained with."""

    task: ClassVar[str] = "seq2seq"
    purpose: ClassVar[str] = "write a text for another"

    def check(self, name: str, config: Any) -> None:
        if vars(config).get("decoder_start_token_id") is None:
            raise InvalidConfig(
                f"model {name!r} ({config.model_type}) cannot {self.purpose}: its config.json has "
                "no decoder_start_token_id, the token that a target begins with (of mBART the "
                "target's language). Set it and save the model again, or choose another --model."
            )

    def example_inputs(
        self, config: Any, rows: int, length: int, device: "torch.device"
    ) -> "dict[str, Tensor]":
        inputs = super().example_inputs(config, rows, length, device)
        return {**inputs, "decoder_input_ids": inputs["input_ids"]}

    def configure(self, model: "PreTrainedModel", pad_token_id: int | None) -> None:
        from transformers import GenerationConfig

        # What a target begins with is the model's; the rest of its settings is about sampling.
        kept = {name: vars(model.generation_config).get(name) for name in _STARTS}
        model.generation_config = GenerationConfig(pad_token_id=pad_token_id, **kept)


_STARTS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
