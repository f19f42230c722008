"""Pictures as the bytes of their files, in cells of a table."""

import io
import os
from collections.abc import Container, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.compare.tasks.data.columns import CellType, RawTable, short_list, short_repr
from deltakit.compare.tasks.data.files import SUFFIXES, Columns
from deltakit.errors import InvalidConfig, MissingExtra, first_line

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
"""The endings of files that are taken for pictures."""
_NOT_READ = "files that are not read:"
_WITHOUT_RANGE = ("I", "F")
"""Pillow's modes of 32-bit integers and floats."""
COLUMN = "image"
"""The usual name of a column of pictures."""


def _bytes(cell: Any) -> bytes | None:
    return cell if isinstance(cell, bytes) else None


PICTURE = CellType(name="a picture (a path of a file that there is, or its bytes)", read=_bytes)


def looks_like_pictures(columns: Columns, name: str | None = None) -> bool:
    """True if a column holds the bytes of pictures or the names of their files alone.

    Empty cells are left to `with_bytes`, which names them.
    """
    cells = [cell for cell in columns.get(name or COLUMN, []) if cell not in (None, "")]
    return bool(cells) and all(map(_is_picture, cells))


def _is_picture(cell: Any) -> bool:
    if isinstance(cell, str):
        return Path(cell).suffix.lower() in ENDINGS
    return isinstance(cell, bytes) or (isinstance(cell, dict) and {"bytes", "path"} == set(cell))


def with_bytes(table: RawTable, folder: Path, name: str | None = None) -> RawTable:
    """The table with the bytes of pictures in the column "image", each of which can be opened.

    Args:
        table: a split; its cells are paths, bytes, or both as the Hub has them.
        folder: what a relative path is relative to.
        name: the column; "image" by default.

    Raises:
        InvalidConfig: the column is missing, or a picture is missing or cannot be opened.
        MissingExtra: Pillow is not installed.
    """
    check_pillow()
    cells = table.column(name or COLUMN, "--image-column")
    read = [
        _checked(f"{table.where}, row {row}", content(cell, folder), cell)
        for row, cell in enumerate(cells, start=1)
    ]
    others = {key: values for key, values in table.columns.items() if key != (name or COLUMN)}
    return RawTable(where=table.where, columns={COLUMN: read, **others})


def content(cell: Any, folder: Path = Path()) -> bytes | None:
    """The bytes of a picture; None where there are none."""
    if isinstance(cell, dict):
        return content(cell.get("bytes") or cell.get("path"), folder)
    if isinstance(cell, str) and cell.strip():
        path = folder / cell
        return path.read_bytes() if path.is_file() else None
    return _bytes(cell)


def _checked(where: str, read: bytes | None, shown: Any) -> bytes:
    """The bytes, of which Pillow reads every pixel.

    Raises:
        InvalidConfig: it does not.
    """
    name = short_repr(shown) if isinstance(shown, str) else "the picture"
    if read is None:
        raise InvalidConfig(
            f"{where}: {name if isinstance(shown, str) else short_repr(shown)} is not a file. Give "
            "paths that are relative to the folder of the table, or the bytes of pictures."
        )
    from PIL import Image

    try:
        with Image.open(io.BytesIO(read)) as picture:
            picture.draft("RGB", (1, 1))  # a JPEG is read at an eighth of its size
            picture.load()
            mode = picture.mode
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidConfig(
            f"{where}: {name} cannot be opened as a picture: {_reason(error)} Correct the file, or "
            "remove it."
        ) from None
    if mode in _WITHOUT_RANGE:
        raise InvalidConfig(
            f"{where}: {name} has pixels of 32 bits (mode {mode!r}), of which it is not known what "
            "is white. Save it with 8 or 16 bits a channel."
        )
    return read


def _reason(error: Exception) -> str:
    known = type(error).__name__ == "UnidentifiedImageError"
    return "its format is not known." if known else first_line(error)


def check_pillow() -> None:
    """Raises `MissingExtra` where Pillow is not installed."""
    if find_spec("PIL") is None:
        raise MissingExtra(
            "pictures are opened by the package 'pillow', which is not installed. From a checkout: "
            'pip install -e ".[images]".'
        )


def opened(stored: bytes) -> "Image":
    """The picture in three channels, turned as its camera noted."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(stored)) as picture:
        turned: Image.Image = ImageOps.exif_transpose(picture)
        return _eight_bits(turned).convert("RGB")


def _eight_bits(picture: "Image") -> "Image":
    """The picture; of 16 bits the upper eight. Pillow would cut values off at 255."""
    if not picture.mode.startswith("I;16"):
        return picture
    import numpy as np
    from PIL.Image import fromarray

    return fromarray((np.asarray(picture).astype(np.uint16) >> 8).astype(np.uint8))


# ----------------------------------------------------------------------- a folder for each class


def picture_tables(place: Path) -> "tuple[dict[str, RawTable], list[str]] | None":
    """The splits of a folder of pictures, and notes; None where it is none.

    It has a folder for each class, or a folder for each split with these in it.

    Raises:
        InvalidConfig: the folder of a class has no picture.
    """
    if not place.is_dir() or not os.access(place, os.R_OK | os.X_OK):
        return None
    found = _splits_of(place)
    splits = "train" in dict(found)
    folders = {split: place / name for split, name in found} if splits else {"train": place}
    if not any(_pictures(each) for each in _classes(folders["train"])):
        _check_classes(folders["train"])
        return None
    notes: list[str] = []
    if splits:
        _check_once(place, found)
        left = _stray(place, {folder.name for folder in folders.values()})
        notes += [f"{_NOT_READ} {short_list(left)}."] if left else []
    return {split: _table(split, folder, notes) for split, folder in folders.items()}, notes


def _check_classes(folder: Path) -> None:
    """Raises `InvalidConfig` for a folder of pictures alone: their classes are not known."""
    found = _pictures(folder)
    if not found or any(each.suffix.lower() in SUFFIXES for each in folder.iterdir()):
        return
    raise InvalidConfig(
        f"folder {str(folder)!r} has pictures ({found[0].name!r}, ...) and no folder for each "
        "class. Put the pictures of a class into a folder of its name, or give a table with the "
        f"columns {COLUMN!r} and 'label'."
    )


def _check_once(place: Path, found: Sequence[tuple[str, str]]) -> None:
    """Raises `InvalidConfig` where two folders are of one split."""
    for split in SPLITS:
        names = [name for of, name in found if of == split]
        if len(names) > 1:
            raise InvalidConfig(
                f"folder {str(place)!r} has {len(names)} folders for {split}: "
                f"{short_list(names)}. Keep one of them."
            )


def _stray(folder: Path, used: Container[str]) -> list[str]:
    """The entries that may be a user's data and are in no class: folders, pictures, tables."""
    return sorted(
        each.name
        for each in folder.iterdir()
        if each.name not in used
        and each.name[0] != "."
        and (each.is_dir() or each.suffix.lower() in (*ENDINGS, *SUFFIXES))
    )


SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def _splits_of(place: Path) -> "list[tuple[str, str]]":
    return [
        (split, each.name)
        for split, names in SPLITS.items()
        for each in sorted(place.iterdir())
        if each.is_dir() and each.name.lower() in names
    ]


def _classes(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir() and each.name[0] != ".")


def _pictures(folder: Path) -> list[Path]:
    found = (each for each in folder.iterdir() if each.suffix.lower() in ENDINGS)
    return sorted(each for each in found if not each.is_dir())


def _table(split: str, folder: Path, notes: list[str]) -> RawTable:
    images: list[str] = []
    labels: list[str] = []
    classes = _classes(folder)
    unread = _stray(folder, {each.name for each in classes})
    for each in classes:
        found = _pictures(each)
        if not found:
            raise InvalidConfig(
                f"the class folder {str(each)!r} has no picture. Add some "
                f"({', '.join(ENDINGS[:3])}, ...), or remove the folder."
            )
        images += [str(file.relative_to(folder)) for file in found]
        labels += [each.name] * len(found)
        left = {file.name for file in each.iterdir() if file.name[0] != "."}
        unread += [f"{each.name}/{name}" for name in sorted(left - {file.name for file in found})]
    if unread:
        notes.append(f"{split}: {_NOT_READ} {short_list(unread)}.")
    where = f"{split} ({str(folder)!r})"
    table = RawTable(where=where, columns={COLUMN: list(images), "label": list(labels)})
    return with_bytes(table, folder)
