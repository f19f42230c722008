"""Forgetting: a general text is read by a model with its delta and without it.

A model with the head that it was pre-trained with is judged by its loss. A fresh head predicts no
tokens, so the pre-trained one of the same checkpoint is put on the last hidden states; an encoder
fills in masked tokens then. Where the checkpoint has no such head, the states themselves are
compared (drift).

Both readings are of the same batches with the same masks. A delta without an effect has a
forgetting of exactly zero, and padding counts for nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from deltakit.compare.records.forgotten import DRIFT, MASKED_LOSS, TOKEN_LOSS
from deltakit.compare.tasks.general import GeneralText
from deltakit.compare.tasks.kinds.base import on_the_right
from deltakit.compare.tasks.kinds.causal import IGNORED
from deltakit.core.provider import AdaptedModel
from deltakit.errors import DeltakitError
from deltakit.models.heads import Head, LanguageHead, MaskedHead, Seq2SeqHead, WritingHead
from deltakit.models.source import BaseChoice, ModelSource
from deltakit.models.weights import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROWS = 8
"""Passages of a batch."""
EVERY = 7
"""One token of so many is masked, which is the usual share of 15 %."""

Encoded = dict[str, list[int]]
"""The tokens of a passage, with ``labels`` that are `IGNORED` where nothing is predicted."""


class Row(NamedTuple):
    """The sums of one passage: the change, the base's own loss, and the number of tokens."""

    change: float
    base: float
    tokens: int


@dataclass(frozen=True, kw_only=True)
class Forgotten:
    """The forgetting of a trained method: a mean over the tokens of all passages.

    Attributes:
        kind: a key of `deltakit.compare.records.forgotten.MEASURES`.
        value: higher is worse.
        low: lower end of the 95 % interval over passages; None for a single one.
        high: upper end.
        base: the loss of the base; None for a measure that is not a change of loss.
    """

    kind: str
    value: float
    low: float | None
    high: float | None
    base: float | None

    def columns(self) -> dict[str, Any]:
        """The columns of ``results.csv``."""
        return {
            "forgotten": self.value,
            "forgotten_low": self.low,
            "forgotten_high": self.high,
            "forgotten_kind": self.kind,
            "forgotten_base": self.base,
        }


# ------------------------------------------------------------------------------------- the ways


@dataclass(frozen=True, kw_only=True, eq=False)
class Way(ABC):
    """A way to read a passage, and to compare two readings.

    Attributes:
        head: what the model was loaded for.
    """

    kind: ClassVar[str]
    head: Head

    @abstractmethod
    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        """A passage as tokens with labels. `place` is its number in the text."""

    @abstractmethod
    def read(self, called: Any, inner: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        """One reading of a batch: what `compare` takes.

        Args:
            called: the model as it is called; another library may have wrapped it.
            inner: the plain model in it.
            inputs: the batch, with labels.
        """

    def compare(self, own: Tensor, plain: Tensor, inputs: Mapping[str, Tensor]) -> Iterator[Row]:
        """The rows of a batch, from the readings with the delta and without it."""
        tokens = (inputs["labels"] != IGNORED).sum(1)
        for mine, base, number in zip(own.tolist(), plain.tolist(), tokens.tolist(), strict=True):
            yield Row(mine - base, base, number)


def nats(logits: Tensor, labels: Tensor) -> Tensor:
    """The negative log-likelihood of each row's labels, summed: shape (rows,)."""
    # From the end: a library may leave positions of its own before the text.
    logits = logits[:, -labels.shape[1] :].float()
    each = nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return each.view_as(labels).double().sum(1)


def next_tokens(encoded: Encoded) -> Encoded:
    """The passage with the next token of each as its label."""
    return {**encoded, "labels": [*encoded["input_ids"][1:], IGNORED]}


@dataclass(frozen=True, kw_only=True, eq=False)
class OwnHead(Way):
    """A decoder's loss of each next token, by the head that it has."""

    kind: ClassVar[str] = TOKEN_LOSS

    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        return next_tokens(_tokens(passage, tokenizer, length))

    def read(self, called: Any, inner: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
        return nats(called(**given).logits, inputs["labels"])


class SecondHalf(OwnHead):
    """An encoder-decoder's loss of the second half of a passage, of which it reads the first."""

    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        words = passage.split(" ")
        first, second = (" ".join(part) for part in halves(words))
        aim = tokenizer(text_target=second, truncation=True, max_length=length)["input_ids"]
        return {**_tokens(first, tokenizer, length), "labels": list(aim)}

    def read(self, called: Any, inner: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        given = {name: inputs[name] for name in ("input_ids", "attention_mask", "labels")}
        return nats(called(**given).logits, inputs["labels"])


def halves(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The first and the second half."""
    middle = len(words) // 2
    return words[:middle], words[middle:]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drift(Way):
    """The turn of the last hidden states."""

    kind: ClassVar[str] = DRIFT

    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        encoded = _tokens(passage, tokenizer, length)
        return {**encoded, "labels": list(encoded["input_ids"])}

    def read(self, called: Any, inner: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        return last_states(called, inner, self.head, inputs)

    def compare(self, own: Tensor, plain: Tensor, inputs: Mapping[str, Tensor]) -> Iterator[Row]:
        seen = inputs["labels"] != IGNORED
        angles = (turned(own, plain) * seen).sum(1)
        for change, number in zip(angles.tolist(), seen.sum(1).tolist(), strict=True):
            yield Row(change, math.nan, number)


def turned(own: Tensor, plain: Tensor) -> Tensor:
    """One minus the cosine of vectors; exactly zero for equal ones."""
    first, second = (nn.functional.normalize(each.double(), dim=-1) for each in (own, plain))
    return (first - second).square().sum(-1) / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class NextWithHead(Way):
    """The loss of each next token, by the pre-trained head on a decoder that has another."""

    kind: ClassVar[str] = TOKEN_LOSS
    language: PretrainedHead

    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        return next_tokens(_tokens(passage, tokenizer, length))

    def read(self, called: Any, inner: PreTrainedModel, inputs: Mapping[str, Tensor]) -> Tensor:
        states = last_states(called, inner, self.head, inputs)
        return nats(self.language.logits(inner, states, inputs), inputs["labels"])


class MaskedWithHead(NextWithHead):
    """The loss of masked tokens, by the pre-trained head on an encoder that has another."""

    kind: ClassVar[str] = MASKED_LOSS

    def encode(
        self, passage: str, place: int, tokenizer: PreTrainedTokenizerBase, length: int
    ) -> Encoded:
        encoded = _tokens(passage, tokenizer, length, return_special_tokens_mask=True)
        special, ids = encoded.pop("special_tokens_mask"), encoded["input_ids"]
        hidden = masked(special, place)
        labels = [each if at in hidden else IGNORED for at, each in enumerate(ids)]
        mask = tokenizer.mask_token_id
        ids = [mask if at in hidden else each for at, each in enumerate(ids)]
        return {**encoded, "input_ids": ids, "labels": labels}


def masked(special: Sequence[int], place: int) -> frozenset[int]:
    """The positions that are masked: each seventh token of the text, from another one each time.

    Args:
        special: one for a token that the tokenizer adds, and zero for a token of the text.
        place: the passage's number.
    """
    free = [at for at, each in enumerate(special) if not each]
    return frozenset(free[place % EVERY :: EVERY] or free[:1])


def _tokens(
    passage: str, tokenizer: PreTrainedTokenizerBase, length: int, **options: bool
) -> Encoded:
    encoded = tokenizer(passage, truncation=True, max_length=length, **options)
    return {name: list(values) for name, values in encoded.items()}


# ------------------------------------------------------------------------- states, and the head


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


# --------------------------------------------------------------------------------- the measuring


def way_for(
    head: Head, source: ModelSource, base: BaseChoice, tokenizer: PreTrainedTokenizerBase
) -> Way:
    """The way to read a general text, for a model of a checkpoint that was loaded with a head.

    Args:
        head: of texts.
        source: the checkpoint.
        base: how its weights are held.
        tokenizer: of the model.
    """
    if isinstance(head, WritingHead):
        return (SecondHalf if isinstance(head, Seq2SeqHead) else OwnHead)(head=head)
    ways: dict[Head, type[NextWithHead]] = {LanguageHead(): NextWithHead}
    if tokenizer.mask_token_id is not None:
        ways[MaskedHead()] = MaskedWithHead
    for pretrained, way in ways.items():
        language = pretrained_head(source, base, pretrained, tokenizer.pad_token_id)
        if language is not None:
            return way(head=head, language=language)
    return Drift(head=head)


def pretrained_head(
    source: ModelSource, base: BaseChoice, head: Head, pad_token_id: int | None
) -> PretrainedHead | None:
    """A pre-trained head; None where the checkpoint has no values for it."""
    config = read_config(source.location, local_files_only=source.local_only)
    try:
        head.check(source.name, config)
        loaded = source.load(base, head, pad_token_id)
    except DeltakitError:
        return None
    whole = not loaded.fresh and has_body(loaded.model)
    return PretrainedHead(loaded.model) if whole else None


def batches_of(
    way: Way, text: GeneralText, tokenizer: PreTrainedTokenizerBase, device: torch.device
) -> list[dict[str, Tensor]]:
    """The passages in batches of like lengths, padded on the right."""
    encoded = [
        way.encode(passage, place, tokenizer, text.max_length)
        for place, passage in enumerate(text.passages)
    ]
    encoded.sort(key=lambda each: len(each["input_ids"]))
    groups = (encoded[first : first + ROWS] for first in range(0, len(encoded), ROWS))
    return [
        {name: value.to(device) for name, value in batch.items()}
        for batch in (on_the_right(g, tokenizer, padding={"labels": IGNORED}) for g in groups)
    ]


def forgetting(
    adapted: AdaptedModel, way: Way, batches: Sequence[Mapping[str, Tensor]]
) -> Forgotten | None:
    """The forgetting of a trained method, against the base as it was before.

    None where the model has no body to take states from, or nothing is predicted. The model is left
    as it was, in evaluation mode.
    """
    adapted.model.eval()
    with adapted.disabled() as inner:
        if not isinstance(way, OwnHead) and not has_body(inner):
            return None
        plain = [_read(way, inner, inner, batch) for batch in batches]
    own = [_read(way, adapted.model, inner, batch) for batch in batches]
    rows = [row for each in zip(own, plain, batches, strict=True) for row in way.compare(*each)]
    return mean_of(way.kind, [row for row in rows if row.tokens])


@torch.inference_mode()
def _read(way: Way, called: Any, inner: Any, batch: Mapping[str, Tensor]) -> Tensor:
    return way.read(called, inner, batch)


def mean_of(kind: str, rows: Sequence[Row]) -> Forgotten | None:
    """The mean over tokens, and its interval: Student's t of a ratio of sums over passages."""
    tokens = sum(row.tokens for row in rows)
    if not tokens:
        return None
    value = sum(row.change for row in rows) / tokens
    base = sum(row.base for row in rows) / tokens
    half = _half_width([row.change - value * row.tokens for row in rows], tokens)
    return Forgotten(
        kind=kind,
        value=value,
        low=None if half is None else value - half,
        high=None if half is None else value + half,
        base=None if math.isnan(base) else base,
    )


def _half_width(residuals: Sequence[float], tokens: int) -> float | None:
    """Half of the interval of a ratio of sums; None for a single passage."""
    from scipy.stats import t

    number = len(residuals)
    if number < 2:
        return None
    variance = sum(each**2 for each in residuals) * number / (number - 1)
    return float(t.ppf(0.975, number - 1)) * math.sqrt(variance) / tokens
