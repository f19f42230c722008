"""SQuAD's JSON files, and the forms in which answers to questions about a text are written."""

import ast
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

Columns = dict[str, list[Any]]


class Given(NamedTuple):
    """An answer as it was given. `start` is its first character's place in the context, or None."""

    text: str
    start: int | None


def read_squad(text: str) -> Columns | None:
    """The questions of a file in SQuAD's format, version 1 or 2; None for another file.

    The columns are ``id``, ``title``, ``question``, ``context`` and ``answers``.

    Raises:
        ValueError: a part of a question is missing.
    """
    if '"paragraphs"' not in text or not text.lstrip().startswith("{"):
        return None
    try:
        whole = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    data = whole.get("data")
    if not isinstance(data, list):
        return None
    try:
        rows = [
            (qa.get("id"), title, qa["question"], part["context"], qa.get("answers", []))
            for article in data
            for title in [article.get("title")]
            for part in article["paragraphs"]
            for qa in part["qas"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"it looks like SQuAD's format, and a question has no {error}") from None
    names = ("id", "title", "question", "context", "answers")
    return {name: [row[at] for row in rows] for at, name in enumerate(names)}


def answers_of(cell: Any) -> list[Given] | None:
    """The answers in a cell, none for a question without one; None where it holds something else.

    A cell is a text, a list of texts, SQuAD's list of ``text`` and ``answer_start``, or the
    `datasets` library's dictionary of two lists; the last three may be written as text.
    """
    if isinstance(cell, str):
        cell = _parsed(cell)
    if cell is None or cell == "":
        return []
    if isinstance(cell, Mapping):
        return _of_mapping(cell)
    if isinstance(cell, list):
        each = [_of_mapping(one) if isinstance(one, Mapping) else _plain(one) for one in cell]
        return None if None in each else [one for some in each if some for one in some]
    return _plain(cell)


def _plain(cell: Any) -> list[Given] | None:
    if isinstance(cell, bool) or not isinstance(cell, str | int | float) or cell != cell:
        return None
    text = str(cell).strip()
    return [Given(text, None)] if text else []


def _of_mapping(cell: Mapping[str, Any]) -> list[Given] | None:
    """The answers in a dictionary with ``text`` and, perhaps, ``answer_start``."""
    texts, starts = cell.get("text"), cell.get("answer_start")
    if isinstance(texts, str):
        texts, starts = [texts], [starts]
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return None
    if not isinstance(starts, list) or len(starts) != len(texts):
        starts = [None] * len(texts)
    known = [start if isinstance(start, int) else None for start in starts]
    return [Given(text, start) for text, start in zip(texts, known, strict=True)]


def _parsed(cell: str) -> Any:
    """A cell that shows a list or a dictionary, as one; else the text."""
    text = cell.strip()
    if text[:1] not in ("[", "{"):
        return text
    for parse in (json.loads, ast.literal_eval):
        try:
            return parse(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
    return text
