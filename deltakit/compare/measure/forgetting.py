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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltakit.compare.measure.pretrained_head import PretrainedHead, has_body
from deltakit.compare.measure.readings import (
    Drift,
    MaskedWithHead,
    NextWithHead,
    OwnHead,
    Row,
    SecondHalf,
    Way,
)
from deltakit.compare.tasks.general import GeneralText
from deltakit.compare.tasks.kinds.base import on_the_right
from deltakit.compare.tasks.kinds.causal import IGNORED
from deltakit.core.provider import AdaptedModel
from deltakit.errors import DeltakitError
from deltakit.models.heads import Head, LanguageHead, MaskedHead, Seq2SeqHead, WritingHead
from deltakit.models.loading import read_config
from deltakit.models.source import BaseChoice, ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 8
"""Passages of a batch."""


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
