"""Users' files: a Python file or a module that registers methods, metrics, tasks, kinds, ..."""

import dataclasses
import hashlib
import importlib
import importlib.util
import pickle
import sys
import traceback
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from deltakit.errors import DeltakitError, InvalidConfig, first_line


@dataclass(frozen=True, kw_only=True)
class Extension:
    """A file or module that was imported for what it registers.

    Attributes:
        name: as the user typed it.
        path: its file, absolute.
        sha256: of the file's bytes, in hex.
        module: its name among Python's modules.
        source: the file's bytes, which another process runs; None for a module by its name, which
            every process imports by itself.
    """

    name: str
    path: str
    sha256: str
    module: str
    source: bytes | None = dataclasses.field(default=None, repr=False)

    def load(self) -> None:
        """Imports it, unless this process has done so.

        Raises:
            InvalidConfig: it cannot be imported. The message has the file and the line.
        """
        if self.module in _LOADED:
            return
        _make_findable(Path.cwd() if self.source is None else Path(self.path).parent)
        try:
            self._run()
        except (Exception, SystemExit) as error:  # any error of the user's code
            raise InvalidConfig(f"--import {self.name}: {_where(error, self.path)}") from None
        _LOADED[self.module] = self

    def _run(self) -> None:
        if self.source is None:
            importlib.import_module(self.module)
            return
        module = sys.modules[self.module] = ModuleType(self.module)
        module.__file__ = self.path
        try:
            exec(compile(self.source, self.path, "exec"), module.__dict__)
        except BaseException:
            del sys.modules[self.module]
            raise


_LOADED: dict[str, Extension] = {}
"""The extensions of this process, by module."""


def import_extension(name: str) -> Extension:
    """Imports a Python file or a module, once in a process.

    Args:
        name: a path that ends in ``.py``, or a module's dotted name. Modules are looked for in the
            current folder too.

    Raises:
        InvalidConfig: there is no such file or module, it cannot be imported, or it has changed
            since this process imported it.
    """
    extension = _of_file(name) if _is_file(name) else _of_module(name)
    earlier = _LOADED.get(extension.module, extension)
    if earlier.sha256 != extension.sha256:
        raise InvalidConfig(
            f"--import {name}: the file has changed since this process imported it. Start Python "
            "again, so that what it registers is the new code."
        )
    extension.load()
    return extension


def _is_file(name: str) -> bool:
    return name.endswith(".py") or "/" in name or "\\" in name


def _of_file(name: str) -> Extension:
    path = Path(name).expanduser().resolve()
    if path.suffix != ".py" or not path.is_file():
        raise InvalidConfig(
            f"--import {name}: there is no such Python file. Give a file that ends in .py, or a "
            "module's dotted name."
        )
    place = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    return _extension(name, path, f"deltakit_import_{place}_{path.stem}", path.read_bytes())


def _of_module(name: str) -> Extension:
    _make_findable(Path.cwd())
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        spec = None  # a package in front of the last dot is missing
    except (Exception, SystemExit) as error:  # the package in front of it fails
        raise InvalidConfig(f"--import {name}: {_where(error, '')}") from None
    if spec is None or not spec.origin or not Path(spec.origin).is_file():
        raise InvalidConfig(
            f"--import {name}: there is no such module. Give the path of a .py file, or a module "
            "that Python finds from here."
        )
    return _extension(name, Path(spec.origin), name)


def _extension(name: str, path: Path, module: str, source: bytes | None = None) -> Extension:
    digest = hashlib.sha256(path.read_bytes() if source is None else source).hexdigest()
    return Extension(name=name, path=str(path), sha256=digest, module=module, source=source)


def _make_findable(folder: Path) -> None:
    """Lets modules in a folder be imported, after all that is installed."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _where(error: BaseException, path: str) -> str:
    """The error on one line, with the last line of the user's file that led to it."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: {type(error).__name__}: {error.msg}."
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename == path] or [
        frame for frame in frames if not frame.filename.startswith("<")
    ]
    place = f"{own[-1].filename}:{own[-1].lineno}: " if own else ""
    kind = "" if isinstance(error, DeltakitError) else f"{type(error).__name__}: "
    return f"{place}{kind}{first_line(error)}"


# ------------------------------------------------------------------------------ what came from them


def code_of(*things: object) -> tuple[str, ...]:
    """The SHA-256 of every extension whose code decides what the things do, sorted.

    Args:
        things: methods, kinds of task, metrics: dataclasses, looked into with all their fields.
    """
    modules = {module for thing in things for module in _modules_of(thing)}
    return tuple(sorted(each.sha256 for name, each in _LOADED.items() if name in modules))


def _modules_of(thing: object) -> Iterator[str]:
    yield from (cls.__module__ for cls in type(thing).__mro__)
    match thing:
        case FunctionType():
            yield thing.__module__
        case tuple():
            for each in thing:
                yield from _modules_of(each)
        case _ if dataclasses.is_dataclass(thing):
            for field in dataclasses.fields(thing):
                yield from _modules_of(getattr(thing, field.name))


@dataclass(frozen=True)
class Parcel:
    """An object for another process, with the extensions that its classes come from."""

    extensions: tuple[Extension, ...]
    content: bytes

    @classmethod
    def pack(cls, thing: object, extensions: Iterable[Extension]) -> "Parcel":
        """`thing` and what has to be imported before it can be read."""
        return cls(tuple(extensions), pickle.dumps(thing))

    def unpack(self) -> Any:
        """The object, after the extensions were imported here."""
        for extension in self.extensions:
            extension.load()
        return pickle.loads(self.content)
