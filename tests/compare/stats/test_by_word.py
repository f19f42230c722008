"""Spans and their F1, beside seqeval's; the share of right words."""

import random
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.by_word import spans_of
from deltakit.compare.stats.metrics import METRICS

NAMES = ("O", *(f"{letter}-{type}" for letter in "BIES" for type in ("LOC", "A-B")), "B", "I")


@pytest.fixture
def seqeval() -> Iterator[Any]:
    module = pytest.importorskip("seqeval.metrics")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns where there is no span
        yield module


def drawn(draw: random.Random, sentences: int) -> list[list[int]]:
    return [
        [draw.randrange(len(NAMES)) for _ in range(draw.randrange(1, 9))] * 1
        for _ in range(sentences)
    ]


def made(labels: Sequence[Sequence[int]], predicted: Sequence[Sequence[int]]) -> Predictions:
    return Predictions(
        labels=tuple(map(tuple, labels)), predicted=tuple(map(tuple, predicted)), classes=NAMES
    )


def ids(*tags: str) -> list[int]:
    return [NAMES.index(tag) for tag in tags]


def named(rows: Sequence[Sequence[int]]) -> list[list[str]]:
    return [[NAMES[tag] for tag in row] for row in rows]


def test_spans_are_those_of_seqeval(seqeval: Any) -> None:
    from seqeval.metrics.sequence_labeling import get_entities

    draw = random.Random(0)
    for (tags,) in (named(drawn(draw, 1)) for _ in range(500)):
        known = sorted(
            (type.strip("_"), first, last + 1) for type, first, last in get_entities(tags)
        )
        assert sorted(spans_of(tags)) == known, tags


def test_f1_is_that_of_seqeval(seqeval: Any) -> None:
    draw = random.Random(1)
    for _ in range(50):
        labels = drawn(draw, 5)
        guesses = [
            [tag if draw.random() < 0.7 else draw.randrange(len(NAMES)) for tag in row]
            for row in labels
        ]
        known = seqeval.f1_score(named(labels), named(guesses))
        assert METRICS.get("span_f1").value(made(labels, guesses)) == pytest.approx(known)
        right = seqeval.accuracy_score(named(labels), named(guesses))
        assert METRICS.get("word_accuracy").value(made(labels, guesses)) == pytest.approx(right)


@pytest.mark.parametrize(
    ("tags", "spans"),
    [
        ("B-LOC I-LOC O B-LOC", [("LOC", 0, 2), ("LOC", 3, 4)]),
        ("I-LOC I-LOC B-LOC", [("LOC", 0, 2), ("LOC", 2, 3)]),
        ("B-LOC I-PER", [("LOC", 0, 1), ("PER", 1, 2)]),
        ("U-LOC U-LOC B-LOC L-LOC", [("LOC", 0, 1), ("LOC", 1, 2), ("LOC", 2, 4)]),
        ("O O", []),
    ],
)
def test_spans_by_hand(tags: str, spans: list[Any]) -> None:
    assert [*spans_of(tags.split())] == spans


def test_a_word_that_is_not_read_is_wrong_and_in_no_span() -> None:
    found = made([ids("B-LOC", "I-LOC", "O"), ids("O")], [[*ids("B-LOC", "I-LOC"), -1], [-1]])
    assert METRICS.get("span_f1").value(found) == 1
    assert METRICS.get("word_accuracy").value(found) == 0.5
    cut = made([ids("B-LOC", "I-LOC")], [[*ids("B-LOC"), -1]])
    assert METRICS.get("span_f1").value(cut) == 0


def test_no_span_anywhere_is_an_f1_of_zero() -> None:
    assert METRICS.get("span_f1").value(made([ids("O", "O")], [ids("O", "O")])) == 0


def test_a_bootstrap_draws_sentences() -> None:
    """Two of three sentences are right, whatever their lengths."""
    labels = [ids("B-LOC", "O"), ids("B-LOC", "I-LOC", "O", "O", "O"), ids("B-LOC")] * 20
    guesses = [labels[0], ids("O", "O", "O", "O", "O"), labels[2]] * 20
    metric, found = METRICS.get("span_f1"), made(labels, guesses)
    low, high = metric.interval(found)
    assert metric.value(found) == pytest.approx(0.8) and low < 0.8 < high
    evidence = metric.evidence([found])
    assert np.sqrt((evidence.moves**2).sum()) == pytest.approx((high - low) / 3.92, rel=0.2)
    assert metric.difference([found], [found]).points == 0
