"""Texts that occur several times, with one label or with several."""

import random

import pytest

from deltakit.compare.tasks.data.splits import Examples, agreed, disputed, distinct


@pytest.mark.parametrize(
    ("labels", "label"),
    [
        ([1, 1, 0], 1),
        ([0, 1], None),
        ([2, 0, 2], 2),
        ([(1, 0), (1, 0), (0, 1)], (1, 0)),
        ([1.0, 2.0, 6.0], 3.0),
        ([2, 2, 0, 1, 3], None),  # the most frequent, and most rows contradict it
        (["yes", "no"], None),
        (["yes", "no", "yes"], "yes"),
    ],
)
def test_the_label_of_a_text_is_what_most_of_its_rows_say(labels: list, label: object) -> None:
    for seed in range(5):
        mixed = random.Random(seed).sample(labels, len(labels))
        assert agreed(mixed) == label


def test_a_text_without_a_majority_is_left_out() -> None:
    examples = Examples(texts=["a", "b", "a", "b", "c"], labels=[0, 1, 1, 1, 0])
    once = distinct(examples)
    assert sorted(zip(once.texts, once.labels or (), strict=True)) == [("b", 1), ("c", 0)]
    assert disputed(examples) == [[0, 2]] and disputed(once) == []


def test_pairs_are_one_text() -> None:
    examples = Examples(texts=["a", "a"], pairs=["x", "y"], labels=[0, 1])
    assert len(distinct(examples)) == 2 and disputed(examples) == []
