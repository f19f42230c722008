"""Rows of cells out of the text of a CSV or TSV file."""

import csv
from collections.abc import Iterator, Sequence
from io import StringIO

# The csv module refuses cells above 128 KiB; documents are longer.
_LONGEST_CELL = 2**31 - 1
_OTHERS = (";", "\t", "|")
"""Delimiters that files which end in .csv have too."""
_HEADINGS = frozenset({"text", "sentence", "label", "labels", "target", "class", "id"})

Rows = list[list[str]]


def header_and_rows(
    text: str, delimiter: str | None, usual: str, names: Sequence[str] | None
) -> tuple[list[str], Rows]:
    """The header and the rows that are not blank, all of one length.

    Quotes are read as CSV has them. Where tabs separate cells and every line has as many of them,
    while quotes do not fit or would join lines, quotes are plain characters.

    Args:
        text: of the file.
        delimiter: what separates cells; None for `usual`, or another where the header shows it.
        usual: what a file of this ending has.
        names: the names of the columns of a file without a header.

    Raises:
        ValueError: a row that is torn, or has another length; names that do not fit.
    """
    limit = csv.field_size_limit(_LONGEST_CELL)
    try:
        rows = _rows(text, delimiter or _shown(text, usual), names) or [[]]
    finally:
        csv.field_size_limit(limit)
    if names is None:
        return rows[0], rows[1:]
    _check_names(rows[0], names)
    return list(names), rows


def _shown(text: str, usual: str) -> str:
    """The delimiter of a file: another than the usual one where that gives the table its shape."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if usual in first:
        return usual
    fitting = [other for other in _OTHERS if other in first and _is_table(text, other)]
    return fitting[0] if len(fitting) == 1 else usual


def _is_table(text: str, delimiter: str) -> bool:
    try:
        return len({len(row) for row in _parsed(text, delimiter)}) == 1
    except csv.Error:
        return False


def _rows(text: str, delimiter: str, names: Sequence[str] | None) -> Rows:
    plain = _unquoted(text, delimiter) if delimiter == "\t" and '"' in text else None
    try:
        rows = list(_fitting(text, delimiter, names))
    except ValueError:
        if plain is None:
            raise
        return plain
    return rows if plain is None or len(plain) == len(rows) else plain


def _unquoted(text: str, delimiter: str) -> Rows | None:
    """The rows with quotes as plain characters; None where they have different lengths."""
    rows = [line.rstrip("\r").split(delimiter) for line in text.split("\n") if line.strip()]
    return rows if len({len(row) for row in rows}) == 1 else None


def _parsed(text: str, delimiter: str) -> Iterator[list[str]]:
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    return (row for row in reader if row)


def _fitting(text: str, delimiter: str, names: Sequence[str] | None) -> Iterator[list[str]]:
    """The rows that are not blank. Raises ValueError where one is torn or has another length."""
    reader = csv.reader(StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: Sequence[str] = names or []
    try:
        for row in reader:
            header = header or row
            if row:
                yield _fitted(row, header, reader.line_num)
    except csv.Error as error:
        raise ValueError(
            f"line {reader.line_num}: {error}. A cell that holds a quote or the delimiter is "
            "written in quotes, each quote in it twice"
        ) from error


def _fitted(row: list[str], header: Sequence[str], line: int) -> list[str]:
    """The row as long as the header. Empty cells after it are cut, unnamed ones are filled up."""
    width = len(header)
    if len(row) > width and not any(row[width:]):
        return row[:width]
    if len(row) < width and not any(header[len(row) :]):
        return [*row, *[""] * (width - len(row))]
    if len(row) == width:
        return row
    other = next((each for each in _OTHERS if width == 1 and each in header[0]), None)
    if other is not None:
        raise ValueError(
            f"line {line} has {len(row)} cells and the header {header[0]!r} one; the cells may be "
            f"separated by {other!r}. Say so with --delimiter {_option(other)}"
        )
    raise ValueError(
        f"line {line} has {len(row)} cells where the header has {width}. A cell that holds the "
        "delimiter is written in quotes"
    )


def _option(delimiter: str) -> str:
    return "tab" if delimiter == "\t" else f"'{delimiter}'"


def _check_names(first: Sequence[str], names: Sequence[str]) -> None:
    lowered = {cell.strip().lower() for cell in first}
    if lowered & _HEADINGS or lowered & {name.lower() for name in names}:
        raise ValueError(
            f"its first line {', '.join(first)[:80]!r} is a header. --columns is for a file "
            "without one; leave it out, and choose columns with --text-column and --label-column"
        )
