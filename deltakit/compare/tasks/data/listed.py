"""Lists that were written as text: a column of labels in a CSV file that a data frame wrote."""

import ast
import json
import re
from collections.abc import Sequence
from typing import Any

from deltakit.compare.tasks.data.columns import RawTable, short_repr
from deltakit.compare.tasks.data.files import Unusable
from deltakit.errors import InvalidConfig

_QUOTED = r"""(?:'[^']*'|"[^"]*")"""
_NUMBER = r"[-+]?\d+(?:\.\d*)?"
_ARRAY = re.compile(rf"\[\s*(?:{_QUOTED}(?:\s+{_QUOTED})*|{_NUMBER}(?:\s+{_NUMBER})*)\s*\]")
"""An array as numpy prints it: items with spaces between."""
_SCALAR = re.compile(rf"\b(?:np|numpy)\.\w+\(({_QUOTED}|{_NUMBER}|True|False)\)")
"""A numpy scalar inside a list: ``np.str_('joy')``."""
_BARE = re.compile(r"\[([^\[\]{}'\"]*)\]|\{([^\[\]{}'\":]*)\}")
"""Words without quotes, as Spark and PostgreSQL write them: ``[anger, joy]``, ``{anger,joy}``."""


KINDS = (None, "multilabel")
"""The values of ``--kind`` with which lists written as text are lists of labels."""


def with_lists(table: RawTable, column: str, kind: str | None = None) -> RawTable:
    """The table with lists in `column`, where each cell of it is a list written as text.

    Python's lists, tuples and sets, JSON's lists, numpy's arrays and words in brackets are read.
    Nothing is evaluated. Blank cells stay.

    Args:
        table: a split.
        column: the labels.
        kind: the kind of task that was asked for; a cell is no list in other kinds than `KINDS`.

    Raises:
        InvalidConfig: some cells are lists and others are not.
    """
    values = table.columns.get(column, [])
    if kind not in KINDS or isinstance(values, Unusable):
        return table
    read = lists_of(values)
    if read is None:
        _check_none_is_a_list(table, column, values)
        return table
    return RawTable(where=table.where, columns={**table.columns, column: read})


def lists_of(values: Sequence[Any]) -> list[Any] | None:
    """The values as lists, blank ones as they are; None where a value shows no list.

    A single word in brackets is the name of a class, unless another cell has several words.
    """
    filled = [value for value in values if not _blank(value)]
    quoted = {n: _quoted(value) for n, value in enumerate(filled)}
    bare = {n: _bare(filled[n]) for n, found in quoted.items() if found is None}
    single = bool(bare) and not any(found and len(found) > 1 for found in bare.values())
    if not filled or single or any(found is None for found in bare.values()):
        return None
    found = iter([bare[n] if n in bare else quoted[n] for n in range(len(filled))])
    return [value if _blank(value) else next(found) for value in values]


def as_lists(values: Sequence[Any], separator: str | None = None) -> list[Any] | None:
    """The values, lists already or written as text, as lists; None where one shows no list.

    Args:
        values: of a column.
        separator: the text between the items of a cell that is neither; None where there is none.
    """
    texts = [value for value in values if isinstance(value, str)]
    if separator is not None:
        return [v.split(separator) if isinstance(v, str) else v for v in values]
    read = lists_of(texts) if texts else []
    if read is None:
        return None
    found = iter(read)
    return [next(found) if isinstance(value, str) else value for value in values]


def _check_none_is_a_list(table: RawTable, column: str, values: Sequence[Any]) -> None:
    texts = {row: value for row, value in enumerate(values, start=1) if isinstance(value, str)}
    lists = [row for row, value in texts.items() if _quoted(value) is not None]
    others = [row for row in texts if row not in set(lists) and not _blank(texts[row])]
    if lists and others:
        raise InvalidConfig(
            f"{table.where}: the label column {column!r} holds a list in row {lists[0]} "
            f"({short_repr(texts[lists[0]])}) and no list in row {others[0]} "
            f"({short_repr(texts[others[0]])}). Write a list in every row, or take each cell as "
            "the name of one class with --kind classification."
        )


def _blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _quoted(value: Any) -> list[Any] | None:
    """The list that a cell shows in quotes or numbers; None where it shows none."""
    text = value.strip() if isinstance(value, str) else ""
    if not text or text[0] + text[-1] not in ("[]", "()", "{}", "s)", "f)"):
        return None
    if _ARRAY.fullmatch(text):
        return [ast.literal_eval(each) for each in re.findall(f"{_QUOTED}|{_NUMBER}", text)]
    for parse in (json.loads, _literal):
        try:
            found = parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        if isinstance(found, list | tuple):
            return list(found)
        return sorted(found, key=str) if isinstance(found, set) else None
    return None


def _literal(text: str) -> Any:
    inner = text.removeprefix("frozenset(").removesuffix(")") if text[0] == "f" else text
    return ast.literal_eval(_SCALAR.sub(r"\1", inner))


def _bare(value: Any) -> list[str] | None:
    """The words in brackets; None where a cell has none."""
    match = _BARE.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        return None
    words = [word.strip() for word in (match[1] or match[2] or "").split(",")]
    if words == [""]:
        return []
    return words if all(words) else None
