"""Files of rows, read whole into columns: CSV, TSV, JSON lines, a JSON list, Parquet, CoNLL.

Readers here are strict where data frames guess: a row that is too long, a quote that is never
closed or a word after a closing quote is an error, and "NA" is a text. Nothing is cached on disk.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from deltakit.compare.tasks.data.conll import looks_like_conll, read_conll
from deltakit.compare.tasks.data.delimited import header_and_rows
from deltakit.compare.tasks.data.form import FileForm, text_of
from deltakit.compare.tasks.data.squad import read_squad
from deltakit.errors import InvalidConfig

Columns = dict[str, list[Any]]
"""Values by column name; all columns are equally long, a null is None."""


def read_columns(path: Path, form: FileForm | None = None) -> Columns:
    """The columns of one file. All cells of a CSV file are text, an empty one too.

    Args:
        path: a file that ends in one of `SUFFIXES`.
        form: what its encoding, its delimiter and its columns are, where it does not show them.

    Raises:
        InvalidConfig: the file has another ending, or cannot be read.
    """
    form = form or FileForm()
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidConfig(
            f"file {str(path)!r} ends in {path.suffix!r}; deltakit reads {', '.join(SUFFIXES)}. "
            "Convert it to one of these."
        )
    try:
        return reader(path, form)
    except UnicodeDecodeError as error:
        raise InvalidConfig(
            f"file {str(path)!r} cannot be read: byte {error.object[error.start]:#04x} at "
            f"{error.start} is not in {error.encoding.upper()}. Name its encoding, for example "
            "--encoding cp1252, or latin-1."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        # json's, pyarrow's and the decoder's errors are all OSError or ValueError; brackets that
        # are nested too deeply for json are a RecursionError.
        reason = (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())
        raise InvalidConfig(
            f"file {str(path)!r} cannot be read: {reason[:200].rstrip('.')}. Check that it is "
            f"whole, and that it is what its ending {path.suffix!r} says."
        ) from error


def _read_csv(path: Path, form: FileForm, delimiter: str = ",") -> Columns:
    text = text_of(path, form.encoding)
    header, rows = header_and_rows(text, form.separator, delimiter, form.columns)
    return _by_name(header, [[row[column] for row in rows] for column in range(len(header))])


def _read_tsv(path: Path, form: FileForm) -> Columns:
    own = form.columns is None and form.delimiter is None
    conll = own and looks_like_conll(text_of(path, form.encoding))
    return _read_conll(path, form) if conll else _read_csv(path, form, "\t")


def _read_conll(path: Path, form: FileForm) -> Columns:
    _check_unused(form, "--columns", "--delimiter")
    return dict(read_conll(text_of(path, form.encoding)))


def _read_parquet(path: Path, form: FileForm) -> Columns:
    from pyarrow import parquet

    _check_unused(form, "--columns", "--encoding", "--delimiter")
    # Opened here, so that a file stays a file: a path would be searched for partitions.
    with path.open("rb") as file:
        table = parquet.read_table(file)
    return _by_name(table.column_names, [_values(column) for column in table.columns])


def _check_unused(form: FileForm, *options: str) -> None:
    """Raises ValueError for an option that files of this ending have no use for."""
    unused = [option for option in form.given() if option in options]
    if unused:
        raise ValueError(f"{unused[0]} is for CSV and TSV files, leave it out for this one")


def _values(column: Any) -> list[Any]:
    """The values of a Parquet column; where Python has no such values, an unusable column."""
    try:
        return list(column.to_pylist())
    except (ValueError, NotImplementedError, ImportError, OverflowError) as error:
        return Unusable([None] * len(column), f"holds {column.type} ({error})")


def _read_json(path: Path, form: FileForm) -> Columns:
    _check_unused(form, "--columns", "--delimiter")
    text = text_of(path, form.encoding)
    squad = read_squad(text)
    if squad is not None:
        return squad
    whole = text.lstrip().startswith("[")
    records = json.loads(text, object_pairs_hook=_record) if whole else list(_lines(text))
    for row, record in enumerate(records, start=1):
        if not isinstance(record, dict):
            raise ValueError(f"row {row} is not an object with named fields")
    # In the order of appearance; a field that a row leaves out is null there.
    names = dict.fromkeys(name for record in records for name in record)
    columns = {name: _once([record.get(name) for record in records]) for name in names}
    if "\\ud" not in text.lower():
        return columns
    return {name: _encodable(values) for name, values in columns.items()}


class _Several:
    """The value of a field that an object has several times."""

    def __repr__(self) -> str:
        return "several values"


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object, whose repeated fields have no value."""
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                record[name] = _Several()
            seen.add(name)
    return record


def _once(values: list[Any]) -> list[Any]:
    """The values. A row that has the field several times makes them unusable."""
    rows = (row for row, value in enumerate(values, start=1) if isinstance(value, _Several))
    row = next(rows, None)
    return values if row is None else Unusable(values, f"occurs several times in row {row}")


def _encodable(values: list[Any]) -> list[Any]:
    """The values. Half of a surrogate pair, which JSON can escape, makes them unusable."""
    if isinstance(values, Unusable):
        return values
    try:
        json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return Unusable(values, "holds half of a surrogate pair (\\ud800 to \\udfff)")
    return values


def _lines(text: str) -> Iterator[Any]:
    # Not splitlines(): a JSON string may hold U+2028 and its kin.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield json.loads(line, object_pairs_hook=_record)
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not valid JSON ({error.msg})") from error


class Unusable(list[Any]):
    """The values of a column that cannot be chosen.

    Attributes:
        problem: the reason, as the predicate of a sentence.
    """

    def __init__(self, values: Iterable[Any], problem: str) -> None:
        super().__init__(values)
        self.problem = problem


def _by_name(names: Sequence[str], columns: Sequence[list[Any]]) -> Columns:
    return {
        name: Unusable(values, "occurs several times") if names.count(name) > 1 else values
        for name, values in zip(names, columns, strict=True)
    }


_READERS: dict[str, Callable[[Path, FileForm], Columns]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_json,
    ".json": _read_json,
    ".parquet": _read_parquet,
    ".conll": _read_conll,
    ".txt": _read_conll,
}

SUFFIXES = tuple(_READERS)
"""The endings that `read_columns` knows."""
