"""Other people's files, read as if they were hostile: nothing is unpickled into code, nothing lost.

What is read is whole, finite and used exactly once, or the read fails with the file's name.
"""

import json
import pickle
from collections.abc import Iterator, Mapping, Set
from pathlib import Path, PureWindowsPath
from typing import Any

import torch
from torch import Tensor

from deltakit._files import atomic_path
from deltakit.core.checkpoint import first_few
from deltakit.errors import CheckpointError, nearest

COPY_AGAIN = "Copy the folder again, or save the delta again."
"""The way out where a file is damaged or missing."""
CONFIG_LIMIT = 16 << 20
"""Bytes that a config may have: a larger one is not a config."""
HEADER_LIMIT = 100 << 20
"""Bytes that the header of a safetensors file may have."""
METADATA = "deltakit"
"""The key of a file's metadata under which our own words travel through another library's file."""


class Tensors:
    """The tensors of one file, each to be taken exactly once."""

    def __init__(
        self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self.metadata = dict(metadata or {})
        self._all = dict(tensors)
        self._left = dict(tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._left

    def __iter__(self) -> Iterator[str]:
        return iter(tuple(self._left))

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that have not been taken yet, by name."""
        return iter(tuple(self._left.items()))

    def take(self, key: str) -> Tensor:
        """The tensor, which is then used up. Raises `CheckpointError` where there is none."""
        if key not in self._left:
            state = "is used twice" if key in self._all else "is missing"
            raise CheckpointError(f"{self.path}: {key!r} {state}.{nearest(key, self._left)}")
        return self._left.pop(key)

    def by(self, keys: Mapping[str, str]) -> "Tensors":
        """The same tensors under other keys, which must differ: old key to new key."""
        renamed = {keys.get(key, key): tensor for key, tensor in self._all.items()}
        if len(renamed) < len(self._all):
            raise CheckpointError(
                f"{self.path} has one tensor under two names. Save it again with one of them."
            )
        return Tensors(self.path, renamed, self.metadata)

    def finish(self) -> None:
        """Raises `CheckpointError` if any tensor was not taken."""
        if self._left:
            raise CheckpointError(
                f"{self.path} {first_few('holds', sorted(self._left))}, which belong to nothing "
                "that its config describes. Load it on a model of the architecture and size it was "
                "made for."
            )


def inside(folder: Path, name: object) -> Path:
    """The path of what a config calls `name`, which must lie in the folder.

    The name is judged, not where a link leads: the Hub's snapshots are links into its blobs.

    Raises:
        CheckpointError: it is not a name, is absolute, or leaves the folder.
    """
    path = PureWindowsPath(name) if isinstance(name, str) else PureWindowsPath()
    climbs = any(not part.strip(". ") for part in path.parts)  # Windows drops what is stripped
    if not path.parts or path.anchor or climbs or "\0" in str(name):
        raise CheckpointError(
            f"{folder}: {name!r} is not the name of a file in this folder, and nothing "
            "outside of it is read or written."
        )
    return folder / str(name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: the file is missing, too large, or no JSON object.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {COPY_AGAIN}")
    if path.stat().st_size > CONFIG_LIMIT:
        raise CheckpointError(
            f"{path} has {path.stat().st_size:,} bytes, which is too large for a config. "
            "Check that it is the file that was saved."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}. {COPY_AGAIN}") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path} must hold a JSON object, not a {type(content).__name__}. {COPY_AGAIN}"
        )
    return content


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_tensors(folder: Path, names: tuple[str, ...]) -> Tensors:
    """The tensors of the first of the files called `names` that the folder has.

    Raises:
        CheckpointError: none of them is there; it is torn, or holds more than tensors; a value is
            not finite.
    """
    path = next((folder / name for name in names if (folder / name).is_file()), None)
    if path is None:
        raise CheckpointError(f"{folder} has no weights: none of {', '.join(names)}. {COPY_AGAIN}")
    found = _safetensors(path) if path.suffix == ".safetensors" else _pickled(path)
    _check_finite(found)
    return found


def write_tensors(path: Path, tensors: Mapping[str, Tensor], words: Mapping[str, Any]) -> None:
    """Writes a safetensors file atomically, with our own `words` in its metadata."""
    from safetensors.torch import save_file

    plain = {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}
    metadata = {"format": "pt", METADATA: json.dumps(words)}
    with atomic_path(path) as temporary:
        save_file(plain, temporary, metadata=metadata)


def our_words(tensors: Tensors) -> dict[str, Any]:
    """The metadata that `write_tensors` wrote; empty for a file of another library.

    Raises:
        CheckpointError: they are not a JSON object.
    """
    try:
        words = json.loads(tensors.metadata.get(METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{tensors.path}: its metadata is not JSON: {error}. {COPY_AGAIN}"
        ) from None
    if not isinstance(words, dict):
        raise CheckpointError(f"{tensors.path}: its metadata must be a JSON object. {COPY_AGAIN}")
    return words


def tensor_keys(path: Path) -> tuple[str, ...]:
    """The keys of a file of tensors, without its weights; none for a file of another kind."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        try:
            return tuple(_pickled(path, mmap=True))
        except (CheckpointError, OSError):
            return ()
    try:
        with safe_open(path, framework="pt") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError):
        return ()


def some_tensors(path: Path, wanted: Set[str]) -> Tensors:
    """The `wanted` tensors of a file. Raises `CheckpointError` as `read_tensors`."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing. {COPY_AGAIN}")
    if path.suffix == ".safetensors":
        found = _safetensors(path, wanted)
    else:
        every = _pickled(path, mmap=True)
        found = Tensors(path, {key: t.clone() for key, t in every.items() if key in wanted})
    _check_finite(found)
    return found


def _check_finite(found: Tensors) -> None:
    for key, tensor in found.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{found.path} holds values in {key!r} that are not finite. Train it again "
                "at a lower rate."
            )


def _safetensors(path: Path, wanted: Set[str] | None = None) -> Tensors:
    """The tensors of a file, or those that are `wanted`."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(HEADER_LIMIT, path.stat().st_size - 8):
        raise CheckpointError(
            f"{path} says that its header has {header:,} bytes, and the file has "
            f"{path.stat().st_size:,}: it was cut short, or is not a safetensors file. "
            f"{COPY_AGAIN}"
        )
    try:
        with safe_open(path, framework="pt") as file:
            keys = [key for key in file.keys() if wanted is None or key in wanted]  # noqa: SIM118
            tensors = {key: file.get_tensor(key) for key in keys}
            return Tensors(path, tensors, file.metadata())
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {COPY_AGAIN}") from None


def _pickled(path: Path, *, mmap: bool = False) -> Tensors:
    """The tensors of a file of torch's. With `mmap` those that are not looked at are not read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, KeyError) as error:
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(
            f"{path} holds more than tensors, or is torn, and nothing in it was run: {first} "
            "Ask for a safetensors file."
        ) from None
    if not isinstance(content, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()
    ):
        raise CheckpointError(f"{path} is not a table of tensors by name.")
    return Tensors(path, content)
