"""One split as it was read: texts that are texts, labels that no kind of task has read yet."""

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltakit.compare.tasks.data.files import Columns, Unusable
from deltakit.compare.tasks.data.form import FileForm
from deltakit.errors import InvalidConfig

_LONGEST_SHOWN = 60
_MOST_SHOWN = 10


@dataclass(frozen=True, kw_only=True)
class ColumnNames:
    """The columns of a data file, as given; None for the default.

    Attributes:
        text: the text, or the prompt.
        pair: the second text of a task about pairs.
        label: the label, or the answer.
        separator: the text between the labels of one example.
        image: the picture.
        file: the form of the files that hold the columns.
    """

    text: str | None = None
    pair: str | None = None
    label: str | None = None
    separator: str | None = None
    image: str | None = None
    file: FileForm = FileForm()

    def given(self) -> dict[str, str]:
        """The given columns, by their option."""
        options = {
            "--text-column": self.text,
            "--pair-column": self.pair,
            "--label-column": self.label,
            "--label-separator": self.separator,
            "--image-column": self.image,
        }
        return {option: name for option, name in options.items() if name is not None}


@dataclass(frozen=True, kw_only=True)
class CellType:
    """A type of the cells of an input column that is not a text.

    Attributes:
        name: the type in messages, as in "a list of numbers".
        read: gives the value of a cell; None for a cell of another type.
    """

    name: str
    read: Callable[[Any], Any]


def _number(cell: Any) -> float | None:
    """A finite number."""
    known = isinstance(cell, int | float) and not isinstance(cell, bool)
    return finite(cell) if known else None


def finite(cell: Any) -> float | None:
    """A number as a float; None for one that is not finite, or that a float cannot hold."""
    try:
        number = float(cell)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _list_of(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def of_list(cell: Any) -> Any:
        values = [read(each) for each in cell] if isinstance(cell, list) and cell else [None]
        return None if None in values else values

    return of_list


NUMBER = CellType(name="a number", read=_number)
NUMBERS = CellType(name="a list of numbers", read=_list_of(_number))
WORDS = CellType(
    name="a list of words", read=_list_of(lambda cell: cell if isinstance(cell, str) else None)
)


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """One split as it was read. `where` names it in messages."""

    where: str
    columns: Columns

    def column(self, name: str, option: str) -> list[Any]:
        """The values of a column. `option` is the flag that names another one.

        Raises:
            InvalidConfig: the column or the rows are missing.
        """
        if not self.columns or not all(self.columns.values()):
            raise InvalidConfig(f"{self.where} has no rows. Give it at least one example.")
        values = self.columns.get(name)
        if isinstance(values, Unusable):
            raise InvalidConfig(
                f"{self.where}: the column {name!r} {values.problem}. Correct the file (a column "
                f"that is used has a name of its own), or choose another column with {option}."
            )
        if values is not None:
            return values
        near = difflib.get_close_matches(name, self.columns, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        if seems_headless(self.columns):
            raise InvalidConfig(
                f"{self.where} has no column {name!r}, and its first line looks like an example: "
                f"{short_list(self.columns)}. If the file has no header, name its columns in their "
                "order, for example --columns text,label."
            )
        raise InvalidConfig(
            f"{self.where} has no column {name!r}.{hint} It has: "
            f"{short_list(self.columns)}. Choose one with {option}."
        )

    def cells(self, name: str, type: CellType) -> list[Any]:
        """The values of a column of cells of a type.

        Raises:
            InvalidConfig: it is missing, or a cell is of another type.
        """
        values = []
        for row, cell in enumerate(self.column(name, "another --kind"), start=1):
            value = type.read(cell)
            if value is None:
                raise InvalidConfig(
                    f"{self.where}, row {row}: the column {name!r} holds {short_repr(cell)}, not "
                    f"{type.name}. Correct the row, or choose another --kind; the columns are "
                    f"{short_list(self.columns)}."
                )
            values.append(value)
        return values

    def texts(self, name: str, option: str) -> list[str]:
        """The values of a column of texts.

        Raises:
            InvalidConfig: it is not there, or holds something else.
        """
        values = self.column(name, option)
        for row, value in enumerate(values, start=1):
            if not isinstance(value, str):
                problem = (
                    "has no text (null)"
                    if is_null(value)
                    else f"holds {short_repr(value)}, not a text"
                )
                raise InvalidConfig(
                    f"{self.where}, row {row}: the text column {name!r} {problem}. Correct the "
                    f"row, or choose a column of texts with {option}; the columns are "
                    f"{short_list(self.columns)}."
                )
        # A blank text among others is real data (a note counts them), a column of blanks is not.
        filled = [value for value in values if value.strip()]
        if all(is_number(value) for value in filled):
            problem = (
                f"only numbers, the first is {short_repr(filled[0])}" if filled else "only blanks"
            )
            raise InvalidConfig(
                f"{self.where}: the text column {name!r} holds {problem}. Choose a column of texts "
                f"with {option}; the columns are {short_list(self.columns)}."
            )
        return values


@dataclass(frozen=True, kw_only=True)
class RawSplit:
    """One split with its inputs checked; the kind of task reads the labels.

    Attributes:
        where: names the split in messages.
        texts: the texts; empty where the kind reads none.
        pairs: the second texts, where there are any.
        labels: the label column as it was read, empty where the kind of task has none.
        column: its name.
        present: the names of all columns, for messages.
        inputs: the inputs that are not texts, by column.
    """

    where: str
    texts: list[str] = field(default_factory=list)
    pairs: list[str] | None = None
    labels: list[Any] = field(default_factory=list)
    column: str = ""
    present: tuple[str, ...] = ()
    inputs: Mapping[str, list[Any]] = field(default_factory=dict)

    def wrong(self, row: int, problem: str, remedy: str) -> InvalidConfig:
        """The error for the label of a row; the first row is 1."""
        return InvalidConfig(
            f"{self.where}, row {row}: the label column {self.column!r} {problem}. {remedy}, or "
            "choose another column with --label-column; the columns are "
            f"{short_list(self.present)}."
        )


def seems_headless(columns: Columns) -> bool:
    """True if the names of columns look like an example: a number, or a value of their column."""
    return any(is_number(name) or (name and name in values) for name, values in columns.items())


def is_number(text: str) -> bool:
    """True if a text is a number, infinity and not-a-number included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def is_null(value: Any) -> bool:
    """True if a cell is empty: None, or the not-a-number that data frames write for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def no_label(value: Any) -> bool:
    """True if a label is missing: null or blank."""
    return is_null(value) or (isinstance(value, str) and not value.strip())


def short_repr(value: Any) -> str:
    """A value in one short line."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[: _LONGEST_SHOWN - 3]}..."


def short_list(names: Iterable[str]) -> str:
    """Names in one line, the first few if there are many."""
    shown = [short_repr(name) for name in names]
    if len(shown) <= _MOST_SHOWN:
        return ", ".join(shown)
    return f"{', '.join(shown[:_MOST_SHOWN])} and {len(shown) - _MOST_SHOWN} more"
