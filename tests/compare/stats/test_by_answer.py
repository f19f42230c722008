"""Answers by SQuAD's rules: cases that were worked by hand."""

import pytest

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.by_answer import answer_f1, normalised
from deltakit.compare.stats.metrics import METRICS


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("The Eiffel Tower!", "eiffel tower"),
        ("  a   man,  an  ox and the  end. ", "man ox and end"),
        ("U.S.A.", "usa"),
        ("theatre", "theatre"),
        ("The-A", "thea"),
        ("a", ""),
        ("Łódź", "łódź"),
    ],
)
def test_what_is_left_of_an_answer(text: str, plain: str) -> None:
    assert normalised(text) == plain


@pytest.mark.parametrize(
    ("predicted", "answer", "f1"),
    [
        ("the tower", "Eiffel tower", 2 * 1 * 0.5 / 1.5),  # precision 1, recall 1/2
        ("tower tower", "tower", 2 * 0.5 * 1 / 1.5),  # a word counts as often as both have it
        ("tower", "river", 0.0),
        ("", "", 1.0),
        ("", "tower", 0.0),
        ("tower", "", 0.0),
        ("the", "", 1.0),
    ],
)
def test_f1_by_hand(predicted: str, answer: str, f1: float) -> None:
    assert answer_f1(predicted, answer) == pytest.approx(f1)


def test_an_example_has_the_score_of_its_best_answer() -> None:
    found = Predictions(
        labels=(("Paris", "the city of Paris"), ("",), ("",), ("two",)),
        predicted=("city of paris", "", "Rome", ""),
    )
    assert METRICS.get("answer_exact").value(found) == 0.5
    assert METRICS.get("answer_f1").value(found) == 0.5
    partly = Predictions(labels=(("Paris", "city of Paris"),), predicted=("in city",))
    assert METRICS.get("answer_f1").value(partly) == pytest.approx(2 * 1 / (2 + 3))


def test_scores_are_those_of_torchmetrics() -> None:
    squad = pytest.importorskip("torchmetrics.text").SQuAD()
    golds = [("Paris", "the city of Paris"), ("an old map",), ("two books",)]
    said = ("city Paris", "The old map.", "books of two")
    known = squad(
        [{"prediction_text": text, "id": str(n)} for n, text in enumerate(said)],
        [
            {"answers": {"text": list(gold), "answer_start": [0] * len(gold)}, "id": str(n)}
            for n, gold in enumerate(golds)
        ],
    )
    found = Predictions(labels=tuple(golds), predicted=said)
    assert 100 * METRICS.get("answer_f1").value(found) == pytest.approx(known["f1"].item())
    assert 100 * METRICS.get("answer_exact").value(found) == pytest.approx(
        known["exact_match"].item()
    )
