"""A task from local files: a folder with a file a split, or one file."""

import difflib
from pathlib import Path

from deltakit.compare.tasks.data.columns import ColumnNames, RawTable, short_list
from deltakit.compare.tasks.data.files import SUFFIXES, read_columns
from deltakit.compare.tasks.data.listed import with_lists
from deltakit.compare.tasks.data.pictures import (
    looks_like_pictures,
    picture_tables,
    with_bytes,
)
from deltakit.compare.tasks.data.several import (
    with_multi_hot,
    with_one_label_column,
    with_pair,
    without_hidden_test,
)
from deltakit.compare.tasks.kinds import MultiLabel, kind_of
from deltakit.compare.tasks.sources.assemble import build_task, select_columns
from deltakit.compare.tasks.task import TaskData
from deltakit.errors import InvalidConfig, UnknownName

_STEMS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_NOT_DATA = frozenset(
    (".py", ".ipynb", ".sh", ".md", ".rst", ".html", ".log", ".yaml", ".yml", ".toml", ".cfg")
    + (".ini", ".png", ".jpg", ".svg", ".pdf", ".bib", ".license", ".lock")
)
_ABOUT = ("README", "LICENSE", "LICENCE", "CITATION", "NOTICE", "MAKEFILE")


def load_folder(
    path: str | Path, names: ColumnNames | None = None, kind: str | None = None
) -> TaskData:
    """Reads a task from local files. Leaves nothing behind in the folder or in a cache.

    The classes are the labels of train, whole numbers by value and names by alphabet. Where
    validation or test is missing, 10 % or 20 % of train is cut off by a rule that does not depend
    on the order of the rows; `TaskData.notes` reports it.

    Args:
        path: a folder with ``train.*`` and optionally ``validation.*`` (or ``valid.*``,
            ``dev.*``) and ``test.*``, or one file; CSV, JSON lines, JSON or Parquet.
        names: the columns; by default those that the kind of task usually has.
        kind: the kind of task; by default what train looks like.

    Raises:
        UnknownName: there is nothing at `path`, or no such kind.
        InvalidConfig: a file, a column, a text or a label is missing or is not what it should be.
    """
    names, place = names or ColumnNames(), expanded(path)
    sources, said = _tables(place, names, kind)
    label = names.label or "label"
    sources, hidden = without_hidden_test(sources, label)
    sources = with_one_label_column(sources, names, kind)
    sources = {split: with_lists(source, label, kind) for split, source in sources.items()}
    names = with_pair(names, sources["train"].columns)
    chosen = kind_of(kind, sources["train"].columns, names)
    if issubclass(chosen, MultiLabel):
        sources = with_multi_hot(sources, label)
    splits = {split: select_columns(source, names, chosen) for split, source in sources.items()}
    full = place.resolve()
    name = full.stem if full.is_file() else full.name
    return build_task(name, splits, chosen, notes=[*hidden, *said])


def _tables(
    place: Path, names: ColumnNames, kind: str | None
) -> tuple[dict[str, RawTable], list[str]]:
    """The splits as they were read, and notes on what was not."""
    pictures = picture_tables(place)
    if pictures is not None:
        return pictures
    tables = {
        split: RawTable(where=f"{split} ({str(file)!r})", columns=read_columns(file, names.file))
        for split, file in _files(place).items()
    }
    folder = place.parent if place.is_file() else place
    read = {split: _with_pictures(table, folder, names, kind) for split, table in tables.items()}
    return read, _unread(place)


def _with_pictures(table: RawTable, folder: Path, names: ColumnNames, kind: str | None) -> RawTable:
    """The table with the bytes of its pictures, where they are asked for or nothing else is."""
    shown = kind is None and looks_like_pictures(table.columns, names.image)
    if kind == "images" or names.image is not None or shown:
        return with_bytes(table, folder, names.image)
    return table


def expanded(path: str | Path) -> Path:
    """The path with ``~`` filled in; a ``~name`` without a user of that name stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def _files(place: Path) -> dict[str, Path]:
    """The file of each split that there is; train is always there."""
    if place.is_file():
        return {"train": place}
    if not place.is_dir():
        raise _not_found(place)
    _check_readable(place)
    files = {split: file for split in _STEMS if (file := _file(place, split)) is not None}
    if "train" not in files:
        raise InvalidConfig(
            f"folder {str(place)!r} has no train file that can be read. It has: "
            f"{short_list(_names(place)) or 'nothing'}. Name the files train, validation and test, "
            f"ending in {', '.join(SUFFIXES)}, or give one file."
        )
    return files


def _check_readable(folder: Path) -> None:
    """Raises `InvalidConfig` for a split that is there in a form that cannot be read alone."""
    for name in _names(folder):
        split = _split_of(name.partition(".")[0])
        if split is None or _readable(name) or not _is_data(folder / name):
            continue
        if _file(folder, split) is None:
            raise InvalidConfig(
                f"{str(folder / name)!r} is called like a split, and deltakit does not read it. "
                f"Convert it to one file that ends in one of {', '.join(SUFFIXES)}, or move it out "
                "of the folder."
            )


def _split_of(stem: str) -> str | None:
    """The split that a file of this name is for."""
    return next((split for split, stems in _STEMS.items() if stem.lower() in stems), None)


def _readable(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES and _split_of(Path(name).stem) is not None


def _is_data(path: Path) -> bool:
    """True unless an entry of a folder is hidden, or is code, text or a picture."""
    return not path.name.startswith(".") and path.suffix.lower() not in _NOT_DATA


def _unread(place: Path) -> list[str]:
    """A note on files that may be the user's data and are not read."""
    if place.is_file():
        return _beside(place)
    left = [
        name
        for name in _names(place)
        if not _readable(name)
        and _is_data(place / name)
        and ((place / name).is_file() or _split_of(name))
        and Path(name).stem.upper() not in _ABOUT
    ]
    if not left:
        return []
    known = ", ".join(sorted(stem for stems in _STEMS.values() for stem in stems))
    return [f"files that are not read: {short_list(left)}. A split is called {known}."]


def _beside(file: Path) -> list[str]:
    """A note on files of other splits that are in the folder of a file given alone."""
    if _split_of(file.stem) != "train":
        return []
    left = [
        name
        for name in _names(file.parent)
        if _split_of(name.partition(".")[0]) not in (None, "train") and _is_data(file.parent / name)
    ]
    if not left:
        return []
    return [
        f"files that are not read, as {file.name!r} was given alone: {short_list(left)}. Give the "
        "folder to use them."
    ]


def _file(folder: Path, split: str) -> Path | None:
    found = [
        folder / name
        for name in _names(folder)
        if Path(name).stem.lower() in _STEMS[split] and Path(name).suffix.lower() in SUFFIXES
    ]
    if len(found) > 1:
        raise InvalidConfig(
            f"folder {str(folder)!r} has {len(found)} files for {split}: "
            f"{short_list(file.name for file in found)}. Keep one of them."
        )
    return found[0] if found else None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise InvalidConfig(
            f"folder {str(folder)!r} cannot be read: {error.strerror}. Check its permissions."
        ) from error


def _not_found(place: Path) -> UnknownName:
    nearby = _names(place.parent) if place.parent.is_dir() else []
    near = difflib.get_close_matches(place.name, nearby, n=1, cutoff=0.6)
    hint = f" Did you mean {str(place.parent / near[0])!r}?" if near else ""
    return UnknownName(
        f"no file or folder {str(place)!r}.{hint} Give a folder with train, validation and test "
        f"files, or one file; deltakit reads {', '.join(SUFFIXES)}."
    )
