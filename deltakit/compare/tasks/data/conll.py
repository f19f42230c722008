"""CoNLL files: a word a line, its tag in the last column, a blank line after each sentence."""

import re
from collections.abc import Iterator, Sequence

_DOCUMENT = "-DOCSTART-"
_SPAN_TAG = re.compile(r"O|[BIESLU]-\S+")

Columns = dict[str, list[list[str]]]
"""A list of words for each sentence, by column."""


def read_conll(text: str) -> Columns:
    """The sentences of a CoNLL file: the columns ``tokens``, ``tags`` and what lies between.

    Cells are separated by tabs, or by spaces in a line without a tab. The columns between the word
    and the tag are ``column2``, ``column3`` and so on. Lines of document boundaries are left out,
    and so are comments before a sentence: lines with ``#`` that have other cells than the rest.

    Raises:
        ValueError: a line has no tag, or not as many cells as the first one.
    """
    sentences = list(_sentences(text))
    width = len(sentences[0][0]) if sentences else 2
    names = ["tokens", *(f"column{at}" for at in range(2, width)), "tags"]
    return {
        name: [[cells[at] for cells in sentence] for sentence in sentences]
        for at, name in enumerate(names)
    }


def looks_like_conll(text: str) -> bool:
    """True if lines in blocks end in tags of spans after a tab: no table of rows looks like that.

    Args:
        text: of a file that could be a table with cells separated by tabs.
    """
    blocks = [block for block in re.split(r"\n[ \t\r]*\n", text.strip("\r\n")) if block.strip()]
    lines = [line.rstrip("\r") for block in blocks for line in block.split("\n")]
    tags = [line.rpartition("\t")[2] for line in lines if not line.startswith((_DOCUMENT, "# "))]
    return len(blocks) > 1 and "O" in tags and all(map(_SPAN_TAG.fullmatch, tags))


def _sentences(text: str) -> Iterator[list[list[str]]]:
    width, sentence = 0, list[list[str]]()
    # Not splitlines(): a word may hold U+2028 and its kin.
    for number, line in enumerate((*text.split("\n"), ""), start=1):
        cells = _cells(line.rstrip("\r"))
        if not cells or cells[0] == _DOCUMENT:
            if sentence:
                yield sentence
            sentence = []
        elif sentence or not _is_comment(line, cells, width):
            width = width or len(cells)
            _check(cells, width, number)
            sentence.append(cells)


def _cells(line: str) -> list[str]:
    if not line.strip(" \t"):
        return []
    return line.split("\t") if "\t" in line else line.split(" ")


def _is_comment(line: str, cells: Sequence[str], width: int) -> bool:
    return line.startswith("# ") and (len(cells) != width or " = " in line)


def _check(cells: Sequence[str], width: int, number: int) -> None:
    problem = ""
    if width < 2 or not cells[-1].strip():
        problem = f"line {number} ({cells[0][:40]!r}) has no tag"
    elif len(cells) != width:
        problem = f"line {number} has {len(cells)} cells where the first word has {width}"
    if problem:
        raise ValueError(
            f"{problem}. A line holds a word and, after a space or a tab, its tag; a blank line "
            "ends a sentence. Save a table of another form as .csv or .tsv"
        )
