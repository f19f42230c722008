"""Lists that were written as text."""

from typing import Any

import pytest

from deltakit.compare.tasks.data.listed import with_lists


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("['anger', 'joy']", ["anger", "joy"]),
        ('["anger", "joy"]', ["anger", "joy"]),
        ("['anger' 'joy']", ["anger", "joy"]),  # numpy; Python would join the two
        ("[1, 0, 1]", [1, 0, 1]),
        ("[1 0 1]", [1, 0, 1]),
        (" [joy] ", ["joy"]),
        ("[]", []),
        ("[\"it's\", 'b']", ["it's", "b"]),
    ],
)
def test_a_list_is_read(text: str, items: list[Any]) -> None:
    assert with_lists([text]) == [items]
    assert with_lists([text, "", None]) == [items, "", None]


@pytest.mark.parametrize(
    "values", [["[a", "b"], ["[1]", "plain"], ["a", "b"], ["[__import__('os')]"], [], ["", None]]
)
def test_other_texts_stay(values: list[Any]) -> None:
    assert with_lists(values) == values
