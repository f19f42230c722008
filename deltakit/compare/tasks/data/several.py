"""Several columns under one option: a pair of texts, or a nought or a one for each label."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from deltakit.compare.tasks.data.columns import ColumnNames, RawTable, short_repr
from deltakit.compare.tasks.data.files import Columns
from deltakit.errors import InvalidConfig

_FLAGS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}


def with_pair(names: ColumnNames, columns: Columns) -> ColumnNames:
    """The names, with the second of two text columns as the pair.

    Raises:
        InvalidConfig: more than two columns of texts.
    """
    texts = listed_columns(names.text, columns)
    if texts is None:
        return names
    if len(texts) > 2 or names.pair is not None:
        raise InvalidConfig(
            f"--text-column {names.text} names {len(texts)} columns"
            f"{'' if names.pair is None else f', and --pair-column {names.pair} another'}. A model "
            "reads one text or two. Name two, or join the others into one column of the file."
        )
    return replace(names, text=texts[0], pair=texts[1])


def listed_columns(asked: str | None, columns: Columns) -> tuple[str, ...] | None:
    """The columns that a name lists, separated by commas; None where it is one column's name."""
    if asked is None or asked in columns or "," not in asked:
        return None
    names = tuple(each.strip() for each in asked.split(","))
    return names if all(name in columns for name in names) else None


def with_one_label_column(
    tables: Mapping[str, RawTable], names: ColumnNames, kind: str | None
) -> dict[str, RawTable]:
    """The splits with one column of labels, where ``--label-column`` lists several of flags.

    Each row gets the names of the columns that hold a one: a name where every row of every split
    has exactly one of them, and lists otherwise, or where several labels are asked for.

    Raises:
        InvalidConfig: a cell that is neither a nought nor a one.
    """
    listed = listed_columns(names.label, tables["train"].columns)
    if listed is None or names.label is None:
        return dict(tables)
    sets = {split: _sets(table, listed) for split, table in tables.items()}
    single = kind != "multilabel" and all(len(row) == 1 for rows in sets.values() for row in rows)
    return {
        split: RawTable(
            where=table.where,
            columns={
                **table.columns,
                names.label: [row[0] for row in sets[split]] if single else sets[split],
            },
        )
        for split, table in tables.items()
    }


def _sets(table: RawTable, columns: Sequence[str]) -> list[list[str]]:
    flags = {name: _flags(table, name) for name in columns}
    rows = len(flags[columns[0]])
    return [[name for name in columns if flags[name][row]] for row in range(rows)]


def _flags(table: RawTable, name: str) -> list[int]:
    found = []
    for row, cell in enumerate(table.column(name, "--label-column"), start=1):
        flag = _FLAGS.get(str(cell).strip().lower())
        if flag is None:
            raise InvalidConfig(
                f"{table.where}, row {row}: the column {name!r} holds {short_repr(cell)}, neither "
                "0 nor 1. Several columns as --label-column hold a 1 where their label applies; "
                "name one column otherwise."
            )
        found.append(flag)
    return found


def with_multi_hot(tables: Mapping[str, RawTable], column: str) -> dict[str, RawTable]:
    """The splits with lists of positions, where all their labels are lists such as ``[0, 1, 1]``.

    They are noughts and ones where every list has the same length and one repeats a number, which
    a list of labels does not.
    """
    cells = [cell for table in tables.values() for cell in table.columns.get(column, ())]
    lists = [cell for cell in cells if isinstance(cell, list)]
    flags = bool(lists) and len(lists) == len(cells) and {len(each) for each in lists} != {0}
    same = len({len(each) for each in lists}) == 1
    if not flags or not same or not all(each in (0, 1) for cell in lists for each in cell):
        return dict(tables)
    if all(len(set(cell)) == len(cell) for cell in lists):
        return dict(tables)
    return {
        split: RawTable(
            where=table.where,
            columns={
                **table.columns,
                column: [
                    [place for place, flag in enumerate(cell) if flag]
                    for cell in table.columns[column]
                ],
            },
        )
        for split, table in tables.items()
    }


def without_hidden_test(
    tables: Mapping[str, RawTable], label: str | None
) -> tuple[dict[str, RawTable], list[str]]:
    """The splits that have labels, and a note where those of test are hidden.

    They are hidden where all are blank, or all are -1 and none of train is. Validation then is the
    test split.
    """
    if label is None or "test" not in tables or not _hidden(tables, label):
        return dict(tables), []
    left = {split: table for split, table in tables.items() if split != "test"}
    why = f"the labels of {tables['test'].where} are hidden (all blank, or all -1)"
    if "validation" not in left:
        return left, [f"{why}: a test split is cut from train."]
    left["test"] = left.pop("validation")
    return left, [f"{why}: the validation split is the test split."]


def _hidden(tables: Mapping[str, RawTable], label: str) -> bool:
    test, train = (tables[split].columns.get(label, ()) for split in ("test", "train"))
    if not test:
        return False
    if all(_blank(cell) for cell in test):
        return not all(_blank(cell) for cell in train)
    return all(_minus(cell) for cell in test) and not any(_minus(cell) for cell in train)


def _blank(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _minus(cell: Any) -> bool:
    return str(cell).strip() in ("-1", "-1.0")
