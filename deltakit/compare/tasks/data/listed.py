"""Lists that were written as text: a column of labels in a CSV file that a data frame wrote."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

_ITEM = r"""(?:'[^']*'|"[^"]*"|[^\s,'"\[\]]+)"""
_ARRAY = re.compile(rf"\[\s*({_ITEM}(?:\s+{_ITEM})*)?\s*\]")
"""As numpy prints an array: items with spaces between."""


def with_lists(values: Sequence[Any]) -> list[Any]:
    """The values, as lists where each that is there is a list written as text.

    ``['a', 'b']`` (Python), ``["a", "b"]`` (JSON) and ``['a' 'b']`` (numpy) are read. Nothing is
    evaluated.
    """
    read = [_as_list(value) if isinstance(value, str) else None for value in values]
    filled = [value for value in values if value is not None and value != ""]
    lists = sum(each is not None for each in read)
    if not filled or lists < len(filled):
        return list(values)
    return [value if each is None else each for value, each in zip(values, read, strict=True)]


def _as_list(text: str) -> list[Any] | None:
    """The list that a text shows; None where it shows none."""
    text = text.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    array = _ARRAY.fullmatch(text)
    if array is not None:
        return [_item(each) for each in re.findall(_ITEM, array[1] or "")]
    return _parsed(text)


def _parsed(text: str) -> list[Any] | None:
    for parse in (json.loads, ast.literal_eval):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) else None
    return None


def _item(text: str) -> Any:
    if text[0] in "'\"":
        return text[1:-1]
    return int(text) if re.fullmatch(r"-?\d+", text) else text
