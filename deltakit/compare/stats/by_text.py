"""Metrics of texts that a model writes: ROUGE, BLEU and chrF, and those of a chat's answers."""

from __future__ import annotations

from functools import cache, partial
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.result import Predictions, Value
from deltakit.compare.stats.metric import (
    Direction,
    ProportionMetric,
    RatioMetric,
    Unit,
    register_metric,
)

if TYPE_CHECKING:
    from deltakit.compare.stats.metric import Array

EXTRA = "generation"
"""The extra that installs the packages."""


# ----------------------------------------------------------------------------------------- ROUGE


@cache
def _rouge(form: str) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer([form], use_stemmer=True)


def _rouge_f1(predictions: Predictions, *, form: str) -> Array:
    """The F1 of one form of ROUGE for each example, of stemmed words (Lin 2004), and a one."""
    import numpy as np

    scorer = _rouge(form)
    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return np.array([(scorer.score(str(t), str(m))[form].fmeasure, 1.0) for t, m in pairs])


def _mean(sums: Array) -> Array:
    """A mean, whose bootstrap stays between 0 and 1 as Student's interval does not."""
    return sums[..., 0] / sums[..., 1]


_TITLES = {"rouge1": "ROUGE-1", "rouge2": "ROUGE-2", "rougeL": "ROUGE-L", "rougeLsum": "ROUGE-Lsum"}
for _form, _title in _TITLES.items():
    register_metric(
        _form, RatioMetric, title=_title, package="rouge_score", extra=EXTRA, ratio=_mean
    )(partial(_rouge_f1, form=_form))


# ----------------------------------------------------------------------------- BLEU, chrF: corpus


@cache
def _corpus(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return BLEU(force=True) if name == "bleu" else CHRF()


def _statistics(predictions: Predictions, *, name: str) -> Array:
    """The counts of n-grams of each example, that a score of the corpus is made of their sums."""
    import numpy as np

    made, true = (list(map(str, each)) for each in (predictions.predicted, predictions.labels))
    # The step that all of sacrebleu's metrics have in common, as its own bootstrap takes it.
    return np.array(_corpus(name)._extract_corpus_statistics(made, [true]), dtype=float)


def _corpus_score(sums: Array, *, name: str) -> Array:
    """The score of sums of counts, between 0 and 1."""
    import numpy as np

    rows = sums.reshape(-1, sums.shape[-1]).astype(int).tolist()
    scores = [_corpus(name)._compute_score_from_stats(row).score / 100 for row in rows]
    return np.array(scores).reshape(sums.shape[:-1])


for _form, _title in {"bleu": "BLEU", "chrf": "chrF"}.items():
    register_metric(
        _form,
        RatioMetric,
        title=_title,
        package="sacrebleu",
        extra=EXTRA,
        ratio=partial(_corpus_score, name=_form),
    )(partial(_statistics, name=_form))


# ---------------------------------------------------------------------------- answers of a chat


def _exponent(sums: Array) -> Array:
    import numpy as np

    with np.errstate(over="ignore"):
        return np.exp(sums[..., 0] / sums[..., 1])


@register_metric(
    "answer_perplexity",
    RatioMetric,
    title="perplexity of the answers",
    unit=Unit.PLAIN,
    direction=Direction.LOWER,
    ratio=_exponent,
)
def _nats_and_tokens(predictions: Predictions) -> Array:
    """The negative log-likelihood of a chat's answers in nats, and the number of their tokens."""
    import numpy as np

    return np.array([_parts(made)[:2] for made in predictions.predicted], dtype=float)


@register_metric("answer_match", ProportionMetric, title="exact match of the last answer")
def _matches(predictions: Predictions) -> Array:
    """Whether the last answer is generated as it is."""
    import numpy as np

    pairs = zip(predictions.labels, predictions.predicted, strict=True)
    return np.array([float(true == _parts(made)[2]) for true, made in pairs])


def _parts(made: Value) -> tuple[int | float | str, ...]:
    """Nats, tokens and the last answer."""
    assert isinstance(made, tuple)
    return made
