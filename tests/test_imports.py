"""Users' files: what ``--import`` registers is known to every command and to every worker."""

import json
import pickle
import sys
from pathlib import Path

import pytest

import deltakit as dk
from deltakit import _imports
from deltakit._imports import Parcel, code_of, import_extension
from deltakit.core.method import CLASSES, METHODS
from deltakit.errors import InvalidConfig

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

import deltakit as dk


@dk.register_method("{name}", rank={rank})
@dataclass(frozen=True, kw_only=True)
class {cls}(dk.LoRA):
    """Low rank, by another name."""

    learning_rate: ClassVar[float] = 1e-3
'''


pytestmark = pytest.mark.usefixtures("forgets_imports")


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(name: str, /, **fields: object) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(METHOD.format(**{"name": "narrow", "cls": "Narrow", "rank": 1, **fields}))
    return path


def test_a_file_registers_once() -> None:
    path = written("mine.py")
    first, second = import_extension("mine.py"), import_extension(str(path.resolve()))
    assert first.sha256 == second.sha256 and first.path == str(path.resolve())
    assert dk.parse_method("narrow").rank == 1


def test_a_module_is_found_from_the_current_folder() -> None:
    written("users_package/methods.py", name="narrower", cls="Narrower")
    Path("users_package/__init__.py").write_text("")
    found = import_extension("users_package.methods")
    assert dk.parse_method("narrower").rank == 1 and found.path.endswith("methods.py")


def test_a_file_imports_its_neighbours() -> None:
    Path("users").mkdir()
    Path("users/users_helper.py").write_text("RANK = 3\n")
    path = written("users/mine.py", rank="users_helper.RANK")
    path.write_text("import users_helper\n" + path.read_text())
    import_extension(str(path))
    assert dk.parse_method("narrow").rank == 3


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = 1\ny = x.no_such\n", r"bad\.py:2: AttributeError: 'int' object has no"),
        ("def f():\n    raise KeyError('here')\n\nf()\n", r"bad\.py:2: KeyError: 'here'"),
        ("def broken(:\n    pass\n", r"bad\.py:1: SyntaxError: invalid syntax"),
        ("\nimport no_such_module_anywhere\n", r"bad\.py:2: ModuleNotFoundError: No module"),
        ("import sys\nsys.exit('enough')\n", r"bad\.py:2: SystemExit: enough"),
        (METHOD.format(name="lora", cls="X", rank=1), r"bad\.py:8: method 'lora' is already"),
        ("raise ValueError('one\\ntwo')\n", r"bad\.py:1: ValueError: one\."),
    ],
)
def test_an_error_names_the_file_and_the_line(source: str, said: str) -> None:
    Path("bad.py").write_text(source)
    for _ in range(2):  # nothing of the first attempt is left
        with pytest.raises(InvalidConfig, match=f"--import bad.py: .*{said}") as caught:
            import_extension("bad.py")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["gone.py", "gone.txt", ".", "./gone", "no.such.module", "a b"])
def test_what_is_not_there_is_said(name: str) -> None:
    with pytest.raises(InvalidConfig, match="there is no such (Python file|module)"):
        import_extension(name)


def test_a_file_that_changed_is_refused() -> None:
    written("mine.py")
    import_extension("mine.py")
    written("mine.py", rank=2)
    with pytest.raises(InvalidConfig, match="changed since this process imported it"):
        import_extension("mine.py")


def test_the_code_of_a_method_is_that_of_its_file() -> None:
    written("mine.py")
    found = import_extension("mine.py")
    narrow, plain = dk.parse_method("narrow"), dk.parse_method("lora")
    assert code_of(narrow) == code_of(plain + narrow) == (found.sha256,)
    assert code_of(dk.AdapterDrop(narrow, first=1)) == (found.sha256,)
    assert code_of(plain) == ()


def test_a_parcel_carries_the_file_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("mine.py")
    found = import_extension("mine.py")
    sent = pickle.dumps(Parcel.pack(dk.parse_method("narrow"), [found]))
    # As in a new process; and the file is edited meanwhile.
    del sys.modules[found.module]
    monkeypatch.setattr(_imports, "_LOADED", {})
    METHODS.remove("narrow")
    CLASSES.remove("Narrow")
    path.write_text("raise AssertionError\n")
    assert repr(pickle.loads(sent).unpack()) == repr(dk.parse_method("narrow"))
    assert json.dumps(dk.core.method.method_to_dict(dk.parse_method("narrow")))
