"""Metrics of tags of words: the F1 of spans, the share of right words.

An example is a sentence, and what a bootstrap draws. Its label and its prediction are tuples with
the id of a tag for each word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from deltakit.compare.records.result import Predictions, Value
from deltakit.compare.stats.metric import RatioMetric, register_metric

if TYPE_CHECKING:
    from deltakit.compare.stats.metric import Array

Span = tuple[str, int, int]
"""The type of a span, its first word and the word after its last."""

_SINGLE = ("S", "U")
"""Letters of a span of one word."""
_LAST = ("E", "L")
"""Letters of the last word of a span."""


def _ratio(sums: Array) -> Array:
    import numpy as np

    return sums[..., 0] / np.maximum(sums[..., 1], 1)


@register_metric("word_accuracy", RatioMetric, ratio=_ratio)
def _words(predictions: Predictions) -> Array:
    """For each sentence: the words with the right tag, and all words."""
    import numpy as np

    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    counts = [
        (sum(a == b for a, b in zip(_tags(true), _tags(made), strict=True)), len(_tags(true)))
        for true, made in pairs
    ]
    return np.array(counts, dtype=float)


@register_metric("span_f1", RatioMetric, title="F1 of spans", ratio=_ratio)
def _spans(predictions: Predictions) -> Array:
    """For each sentence: twice the spans that are found; the true ones plus the predicted ones."""
    import numpy as np

    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return np.array([_found(*pair, predictions.classes) for pair in pairs], dtype=float)


def _found(true: Value, made: Value, names: Sequence[str]) -> tuple[int, int]:
    there, said = (set(spans_of(_named(tags, names))) for tags in (true, made))
    return 2 * len(there & said), len(there) + len(said)


def spans_of(tags: Sequence[str]) -> Iterator[Span]:
    """The spans that tags mark, as conlleval and seqeval read them.

    A span goes on where a word has the letter of the inside or the end, and the word before it is
    in a span of the same type that has not ended. Everything else but ``O`` begins one.

    Args:
        tags: one for each word: ``O``, or a letter of ``BIESLU`` and a type, as in ``B-LOC``.
    """
    begun: Span | None = None
    before = ""
    for at, tag in enumerate((*tags, "O")):
        letter, _, type_ = tag.partition("-")
        if begun is not None and not _goes_on(before, begun[0], letter, type_):
            yield begun
            begun = None
        if letter != "O":
            begun = (type_, at if begun is None else begun[1], at + 1)
        before = letter


def _goes_on(before: str, begun: str, letter: str, type_: str) -> bool:
    """Whether a span of the type `begun`, whose last letter is `before`, has the next word too."""
    return letter in ("I", *_LAST) and type_ == begun and before not in (*_SINGLE, *_LAST)


def _named(tags: Value, names: Sequence[str]) -> list[str]:
    """The names of tags; a word without a prediction is in no span."""
    return [names[tag] if tag >= 0 else "O" for tag in map(int, _tags(tags))]


def _tags(value: Value) -> tuple[int | float | str, ...]:
    assert isinstance(value, tuple)
    return value
