"""Lists that were written as text."""

from typing import Any

import pytest

from deltakit.compare.tasks.data.columns import RawTable
from deltakit.compare.tasks.data.listed import lists_of, with_lists
from deltakit.errors import InvalidConfig


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['anger', 'joy']", ["anger", "joy"]),
        ('["anger", "joy"]', ["anger", "joy"]),
        ("['anger' 'joy']", ["anger", "joy"]),  # numpy; Python would join the two
        ("['anger'\n 'joy']", ["anger", "joy"]),
        ("[np.str_('anger'), np.str_('joy')]", ["anger", "joy"]),
        ("('anger', 'joy')", ["anger", "joy"]),
        ("('joy',)", ["joy"]),
        ("{'joy', 'anger'}", ["anger", "joy"]),
        ("frozenset({'joy', 'anger'})", ["anger", "joy"]),
        ("set()", []),
        ("[1, 0, 1]", [1, 0, 1]),
        ("[1 0 1]", [1, 0, 1]),
        ("[np.int64(1), np.int64(2)]", [1, 2]),
        (" [anger, joy] ", ["anger", "joy"]),  # Spark
        ("{anger,joy}", ["anger", "joy"]),  # PostgreSQL
        ("[]", []),
        ("[\"it's\", 'b']", ["it's", "b"]),
    ],
)
def test_a_list_is_read(text: str, items: list[Any]) -> None:
    assert lists_of([text]) == [items]
    assert lists_of([text, "", None]) == [items, "", None]


@pytest.mark.parametrize(
    "values",
    [
        ["[a", "b"],
        ["a", "b"],
        ["[__import__('os')]"],
        ["[urgent]", "[spam]"],  # names of classes
        ["(none)", "see (b)"],
        ["{'a': 1}"],
        [],
        ["", None],
    ],
)
def test_other_texts_stay(values: list[Any]) -> None:
    assert lists_of(values) is None
    table = RawTable(where="train", columns={"label": values})
    assert with_lists(table, "label") is table


def test_one_word_in_brackets_is_a_list_beside_several() -> None:
    assert lists_of(["[joy]", "[anger, joy]"]) == [["joy"], ["anger", "joy"]]


def test_lists_and_other_texts_are_refused_by_row() -> None:
    table = RawTable(where="train", columns={"label": ["plain", "", "['a', 'b']"]})
    with pytest.raises(InvalidConfig, match=r"a list in row 3 .* no list in row 1 \('plain'\)"):
        with_lists(table, "label")
    assert with_lists(table, "label", "classification") is table


def test_answers_may_look_like_lists() -> None:
    table = RawTable(where="train", columns={"answer": ["[1, 2]"]})
    assert with_lists(table, "answer", "answers") is table
