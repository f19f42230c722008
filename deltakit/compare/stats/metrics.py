"""The shipped metrics, and `register_metric` for your own."""

from deltakit.compare.stats import by_answer, by_label, by_score, by_text, by_word
from deltakit.compare.stats.metric import (
    METRICS,
    CorpusMetric,
    Direction,
    MeanMetric,
    Metric,
    ProportionMetric,
    RatioMetric,
    Takes,
    Unit,
    as_array,
    probabilities,
    register_metric,
)

SHIPPED = (by_answer, by_label, by_score, by_text, by_word)
"""The modules that register the shipped metrics."""

__all__ = [
    "METRICS",
    "SHIPPED",
    "CorpusMetric",
    "Direction",
    "MeanMetric",
    "Metric",
    "ProportionMetric",
    "RatioMetric",
    "Takes",
    "Unit",
    "as_array",
    "probabilities",
    "register_metric",
]
