"""Metrics of short answers by the rules of SQuAD (Rajpurkar et al. 2016, 2018).

A label is a tuple of all answers that are right, or of one empty text where the question has none.
The prediction is a text. The score of an example is the best over its answers.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metric import MeanMetric, ProportionMetric, register_metric

if TYPE_CHECKING:
    from deltakit.compare.stats.metric import Array

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """The text in lower case, without ASCII punctuation, English articles and double spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_f1(predicted: str, answer: str) -> float:
    """The F1 of the words that two answers share; an empty answer is like an empty one alone."""
    said, known = normalised(predicted).split(), normalised(answer).split()
    if not said or not known:
        return float(said == known)
    shared = sum((Counter(said) & Counter(known)).values())
    return 2 * shared / (len(said) + len(known))


def _same(predicted: str, answer: str) -> float:
    return float(normalised(predicted) == normalised(answer))


def _best(predictions: Predictions, score: Callable[[str, str], float]) -> Array:
    import numpy as np

    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return np.array(
        [
            max(score(str(made), str(each)) for each in (true if isinstance(true, tuple) else ()))
            for true, made in pairs
        ]
    )


@register_metric("answer_f1", MeanMetric, title="F1 of answers")
def _f1(predictions: Predictions) -> Array:
    return _best(predictions, answer_f1)


@register_metric("answer_exact", ProportionMetric, title="exact answers")
def _exact(predictions: Predictions) -> Array:
    return _best(predictions, _same)
