"""Who may know whom: read from the source, so that a name in a string counts too."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import deltakit as dk
from deltakit.core.method import CLASSES, METHODS
from deltakit.core.provider import ExternalMethod

PACKAGE = Path(dk.__file__).parent
FORBIDDEN = {
    "core": ("transformers", "deltakit.arch", "deltakit.inject", "deltakit.methods",
             "deltakit.compare", "deltakit.interop", "deltakit.testing", "deltakit.cli"),
    "methods": ("transformers", "deltakit.arch", "deltakit.inject", "deltakit.compare",
                "deltakit.interop", "deltakit.testing", "deltakit.cli"),
    "arch": ("deltakit.inject", "deltakit.methods", "deltakit.compare", "deltakit.interop",
             "deltakit.testing", "deltakit.cli"),
    "inject": ("deltakit.methods", "deltakit.compare", "deltakit.interop", "deltakit.testing",
               "deltakit.cli"),
    "choose": ("deltakit.methods", "deltakit.testing", "deltakit.cli"),
    "compare": ("deltakit.methods", "deltakit.choose", "deltakit.testing", "deltakit.cli"),
    "testing": ("deltakit.methods", "deltakit.compare", "deltakit.cli"),
}  # fmt: skip


def sources(*packages: str) -> list[Path]:
    return [path for package in packages for path in sorted((PACKAGE / package).rglob("*.py"))]


def relative(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def imported(tree: ast.Module) -> Iterator[str]:
    """Modules that are imported when the code runs; not those for type checkers alone."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from (f"{module}.{alias.name}" for alias in names)


def without_type_checking(tree: ast.Module) -> ast.Module:
    class Strip(ast.NodeTransformer):
        def visit_If(self, node: ast.If) -> ast.AST | None:
            test = ast.unparse(node.test)
            return None if test == "TYPE_CHECKING" else self.generic_visit(node)

    stripped = Strip().visit(tree)
    assert isinstance(stripped, ast.Module)
    return stripped


@pytest.mark.parametrize("package", list(FORBIDDEN))
def test_imports_point_down(package: str) -> None:
    files = sources(package)
    assert files
    for path in files:
        tree = without_type_checking(ast.parse(path.read_text(encoding="utf-8")))
        for module in imported(tree):
            for banned in FORBIDDEN[package]:
                assert not f"{module}.".startswith(f"{banned}."), f"{relative(path)}: {module}"


def test_what_decides_a_choice_imports_records_and_statistics_alone() -> None:
    allowed = ("choose.decide.", "compare.records.", "compare.stats.", "errors.")
    files = sources("choose/decide")
    assert len(files) > 3
    for path in files:
        for module in imported(ast.parse(path.read_text(encoding="utf-8"))):
            name = module.removeprefix("deltakit.")
            assert name == module or name.startswith(allowed), f"{relative(path)}: {module}"


def test_only_the_suite_needs_pytest() -> None:
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ("pytest" in imported(tree)) is (relative(path) == "testing/suite.py"), path


def docstrings(tree: ast.Module) -> set[int]:
    """Ids of the string constants that are statements of their own: docstrings."""
    return {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }


def help_texts(tree: ast.Module) -> set[int]:
    """Ids of the string constants inside a `help=` or `epilog=` argument."""
    return {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg in ("help", "epilog")
        for inner in ast.walk(node.value)
    }


ENGLISH = {"full", "head", "partial", "prefix", "prompt"}
"""Short names that are plain words too: a variable may have them, a string may not."""


def words(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string that is no prose, and of every identifier."""
    yield from ((line, text) for line, text in identifiers(tree) if text not in ENGLISH)
    prose = docstrings(tree) | help_texts(tree)
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in prose:
                yield node.lineno, text


def identifiers(tree: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.alias(name=name):
                yield node.lineno, name.rpartition(".")[2]


COLUMNS = {"compare/tasks/kinds/answers.py": {"prompt"}}
"""Strings that name a column of people's data."""


@pytest.mark.parametrize("path", sources("compare", "inject", "cli"), ids=relative)
def test_the_harness_names_no_method(path: Path) -> None:
    names = set(METHODS) | set(CLASSES) - {"Sum"}
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names -= COLUMNS.get(relative(path), set())
    found = [f"line {line}: {word}" for line, word in words(tree) if word in names]
    assert found == []


def test_all_methods_are_one_file_each() -> None:
    classes = [CLASSES.get(name) for name in CLASSES if name != "Sum"]
    homes = [cls.__module__ for cls in classes if not issubclass(cls, ExternalMethod)]
    assert all(home.startswith("deltakit.methods.") for home in homes)


def test_only_the_runtime_registers_forward_hooks() -> None:
    """The laws in `testing` look at models from outside, with hooks of their own."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if not relative(path).startswith(("runtime/", "testing/")):
            text = path.read_text(encoding="utf-8")
            assert "register_forward" not in text and "register_full" not in text, relative(path)
