"""Tasks whose model writes a text for another: by a decoder, or by an encoder-decoder."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Self

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import RawSplit, is_null, no_label, short_repr
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    Kind,
    Outputs,
    mapped,
)
from deltakit.compare.tasks.kinds.causal import IGNORED, language_batch
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, LanguageHead, Seq2SeqHead

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# --------------------------------------------------------------- two architectures that write


@dataclass(frozen=True, kw_only=True)
class Writer(ABC):
    """The way in which an architecture is given a source and asked for its target.

    Class variables: `head` (that the model is loaded with) and `cut` (the part that a long source
    loses, in words).
    """

    head: ClassVar[Head]
    cut: ClassVar[str]

    @abstractmethod
    def prompt(self, source: str, separator: str) -> str:
        """The text that the model reads for a source."""

    @abstractmethod
    def encode(
        self, prompt: str, target: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> dict[str, Any]:
        """One row.

        Columns: `input_ids` and `labels` (training), ``before`` (what generation starts from),
        ``answer`` (the tokens of the target) and ``lost`` (tokens that the source was cut by).

        Raises:
            InvalidConfig: the target does not fit.
        """

    @abstractmethod
    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        """Rows as one padded training batch."""

    @abstractmethod
    def written(self, whole: Any, before: int) -> Any:
        """The new tokens in what `generate` gives for inputs of `before` tokens."""

    def without_labels(self, batch: Batch) -> Batch:
        """The batch for a forward pass alone."""
        return {name: each for name, each in batch.items() if name != "labels"}


@dataclass(frozen=True, kw_only=True)
class Decoder(Writer):
    """The target continues the source in one text. A long source loses its beginning."""

    head: ClassVar[Head] = LanguageHead()
    cut: ClassVar[str] = "beginning"

    def prompt(self, source: str, separator: str) -> str:
        text = source.rstrip(" ")
        return text if text[-1:].isspace() else text + separator

    def encode(
        self, prompt: str, target: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> dict[str, Any]:
        # The two are tokenised together, because a space may belong to the next token.
        alone = prompt if prompt[-1:] != " " else prompt[:-1]
        first = tokenizer(alone, add_special_tokens=False, verbose=False)["input_ids"]
        whole = tokenizer(prompt + target, add_special_tokens=False, verbose=False)["input_ids"]
        pairs = zip(first, whole, strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        begin, end = ends(tokenizer)
        aim = [*whole[same:], end]
        room = max_length - len(begin) - len(aim)
        if room < 1:
            raise too_long(target, aim, max_length)
        before = [*begin, *whole[:same][-room:]]
        return {
            "input_ids": [*before, *aim],
            "labels": [*([IGNORED] * len(before)), *aim],
            "before": [*begin, *first[-room:]],
            "answer": aim,
            "lost": max(0, same - room),
        }

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return language_batch(rows, tokenizer)

    def written(self, whole: Any, before: int) -> Any:
        return whole[:, before:]


@dataclass(frozen=True, kw_only=True)
class EncoderDecoder(Writer):
    """The encoder reads the source, the decoder writes the target. A long source loses its end.

    Both have the special tokens that the tokenizer gives them. The model shifts the labels to
    make the decoder's inputs.
    """

    head: ClassVar[Head] = Seq2SeqHead()
    cut: ClassVar[str] = "end"

    def prompt(self, source: str, separator: str) -> str:
        del separator
        return source

    def encode(
        self, prompt: str, target: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> dict[str, Any]:
        whole = tokenizer(prompt, verbose=False)["input_ids"]
        kept = tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"]
        aim = tokenizer(text_target=target, verbose=False)["input_ids"]
        end = ends(tokenizer)[1]
        aim = aim if end in aim else [*aim, end]
        if len(aim) > max_length:
            raise too_long(target, aim, max_length)
        lost = len(whole) - len(kept)
        return {"input_ids": kept, "labels": aim, "before": kept, "answer": aim, "lost": lost}

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return language_batch(rows, tokenizer)

    def written(self, whole: Any, before: int) -> Any:
        del before
        return whole[:, 1:]  # behind the token that the decoder starts with

    def without_labels(self, batch: Batch) -> Batch:
        # Padding is on the right, where a decoder does not look.
        return {**super().without_labels(batch), "decoder_input_ids": batch["labels"].clamp(min=0)}


def ends(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    """The tokens that the tokenizer puts before a text, and the token that ends one."""
    end = tokenizer.eos_token_id
    if end is None:
        raise InvalidConfig(
            "the model's tokenizer has no end-of-text token, so that no answer would ever end. "
            "Set tokenizer.eos_token to one of its tokens and save it again, or choose another "
            "--model."
        )
    begin = tokenizer.bos_token_id
    starts = begin is not None and tokenizer("a")["input_ids"][:1] == [begin]
    return ([begin] if starts else []), end


def too_long(target: str, tokens: Sequence[int], max_length: int) -> InvalidConfig:
    """The error for a target that leaves no room."""
    return InvalidConfig(
        f"the answer {short_repr(target)} has {len(tokens)} tokens and leaves no room for its "
        f"prompt in {max_length}. Raise --max-length, or shorten the answer."
    )


# ----------------------------------------------------------------------------------- the kinds


@dataclass(frozen=True, kw_only=True)
class WrittenKind(Kind):
    """A kind whose model reads a text and writes another.

    An end-of-text token follows the target, and the loss is taken of the target alone. Generation
    is greedy, or a beam search without a penalty of its own.

    Attributes:
        writer: how the model's architecture is asked.
        beams: of the search; 1 is greedy.
    """

    separator: ClassVar[str]
    batch_size: ClassVar[int] = 32
    writer: Writer = Decoder()
    beams: int = 1

    @abstractmethod
    def cleaned(self, text: str) -> str:
        """The prediction in a text that the model wrote."""

    def for_model(self, config: Any) -> Self:
        return replace(self, writer=EncoderDecoder() if config.is_encoder_decoder else Decoder())

    @property
    def identity(self) -> tuple[str, ...]:
        return () if self.beams == 1 else (f"{self.beams} beams",)

    @property
    def head(self) -> Head:
        return self.writer.head

    @property
    def cut(self) -> str:
        return self.writer.cut

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        """As for every kind; ``most`` is how many tokens to generate, ``source`` the text."""

        def row(source: str, target: str) -> dict[str, Any]:
            prompt = self.writer.prompt(source, self.separator)
            encoded = self.writer.encode(prompt, target, tokenizer, max_length)
            if not encoded["before"]:
                raise InvalidConfig(
                    f"the text {short_repr(source)} has no token for this model, so that there is "
                    "nothing to write behind. Remove such rows, or choose another --model, whose "
                    "tokenizer begins a text with a token."
                )
            return {**encoded, "truth": target, "source": source}

        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            encoded = [row(*pair) for pair in zip(rows["text"], rows["label"], strict=True)]
            return {key: [each[key] for each in encoded] for key in encoded[0]}

        encoded = mapped(data, tokens)
        # The same for every row: what a row is given must not depend on the rest of its batch.
        most = max(len(answer) for answer in encoded["answer"])
        return encoded.add_column("most", [most] * len(encoded))

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return self.writer.collate(rows, tokenizer)

    def without_labels(self, batch: Batch) -> Batch:
        return self.writer.without_labels(batch)

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        texts = generated(model, rows, tokenizer, self.writer, num_beams=self.beams)
        said: list[Value] = [self.cleaned(text) for text in texts]
        return Outputs(said)


def generated(
    model: "PreTrainedModel",
    rows: Sequence[EncodedExample],
    tokenizer: "PreTrainedTokenizerBase",
    writer: Writer,
    **settings: Any,
) -> list[str]:
    """The texts that a model writes, without sampling, for encoded rows in their order.

    Rows of one length are given at a time: not every method is right about a padded prompt.

    Args:
        model: with its deltas.
        rows: with ``before`` and ``most``.
        tokenizer: decodes.
        writer: of the model's architecture.
        settings: others of `generate`.
    """
    lengths: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        lengths.setdefault(len(row["before"]), []).append(at)
    said: dict[int, str] = {}
    for alike in lengths.values():
        texts = _written(model, [rows[at] for at in alike], tokenizer, writer, settings)
        said.update(zip(alike, texts, strict=True))
    return [said[at] for at in range(len(rows))]


def _written(
    model: "PreTrainedModel",
    rows: Sequence[EncodedExample],
    tokenizer: "PreTrainedTokenizerBase",
    writer: Writer,
    settings: dict[str, Any],
) -> list[str]:
    """The texts for rows whose prompts have as many tokens each."""
    import torch

    ids = torch.tensor([row["before"] for row in rows], device=model.device)
    whole = model.generate(
        **{
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "max_new_tokens": rows[0]["most"],
            "eos_token_id": tokenizer.eos_token_id,
            "do_sample": False,
            **settings,
        }
    )
    new = writer.written(whole, ids.shape[1])
    return [str(text) for text in tokenizer.batch_decode(new, skip_special_tokens=True)]


def targets(rows: RawSplit) -> list[str]:
    """The label column as texts, without the spaces around them; numbers are written out.

    Raises:
        InvalidConfig: a cell that is no text, or blank.
    """
    texts = []
    for row, value in enumerate(rows.labels, start=1):
        if no_label(value) or not isinstance(value, str | int | float):
            problem = "has no answer" if is_null(value) else f"holds {short_repr(value)}, no answer"
            raise rows.wrong(row, problem, "Give every prompt an answer")
        texts.append(str(value).strip())
    return texts
