"""Files that are whole or not there."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path


def weights_bytes(folder: Path) -> int:
    """Bytes on disk of the weights in the folder of a delta."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """A path to write to; it becomes `target` when the block ends, and vanishes if it raises."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(
        dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix
    )
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp gives 0600; a result is for everybody that the folder is for.
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(target)
    except Exception as error:
        full = unwritable(error)
        if full is None or full.filename not in (None, name):
            raise
        # The system names no file, or the temporary one.
        raise OSError(full.errno, full.strerror, str(target)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_paths(*targets: Path) -> Iterator[list[Path]]:
    """Paths to write to, for files that belong together; all become `targets` when the block ends.

    None does if it raises. JSON, which describes the others, is away while those are replaced:
    what is read meanwhile, or after an interrupt, is never a description next to other files.
    """
    described = sorted(targets, key=lambda target: target.suffix != ".json")
    with contextlib.ExitStack() as stack:
        # What is entered first is replaced last.
        temporary = {target: stack.enter_context(atomic_path(target)) for target in described}
        yield [temporary[target] for target in targets]
        for target in targets:
            if target.suffix == ".json":
                target.unlink(missing_ok=True)


_UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def unwritable(error: BaseException | None) -> OSError | None:
    """The error of a disk that is full or read-only, which another error is or came from.

    Libraries in other languages have errors of their own for it, with the system's words.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _UNWRITABLE:
            return error
        for number in _UNWRITABLE:
            if os.strerror(number) in str(error):
                return OSError(number, os.strerror(number))
        error = error.__cause__ or error.__context__
    return None


def write_text(target: Path, text: str) -> None:
    """Writes `text` to `target` atomically, in UTF-8."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def cache_folder() -> Path:
    """What is kept between runs lies here: ``$DELTAKIT_CACHE``, or in the user's cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "deltakit"
    return Path(os.environ.get("DELTAKIT_CACHE", default))


_TEMPORARY = re.compile(r"\..+?(\.\w+)\.\w{8}\1")
"""What `atomic_path` calls its files."""


def sweep(folder: Path, of: str = "") -> None:
    """Removes what writers left in `folder` that were killed.

    Args:
        folder: where they wrote; it need not exist.
        of: how the names begin of the files that they meant to write. No writer may be active.
    """
    for path in folder.glob(f".{of}*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
