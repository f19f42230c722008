"""The ways in which a model reads a general text, and how two readings are compared."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from torch import Tensor, nn

from deltakit.compare.measure.pretrained_head import PretrainedHead, last_states
from deltakit.compare.records.forgotten import DRIFT, MASKED_LOSS, TOKEN_LOSS
from deltakit.compare.tasks.kinds.causal import IGNORED
from deltakit.models.heads import Head

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

EVERY = 7
"""One token of so many is masked, which is the usual share of 15 %."""


Encoded = dict[str, list[int]]
"""The tokens of a passage, with ``labels`` that are `IGNORED` where nothing is predicted."""


class Row(NamedTuple):
    """The sums of one passage: the change, the base's own loss, and the number of tokens."""

    change: float
    base: float
    tokens: int


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
