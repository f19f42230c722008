"""README and the pages of docs keep their word: their Python runs, their command lines parse.

Each page's Python runs from top to bottom in one namespace, in an empty folder, with ``model``: a
tiny BERT that classifies. A block

- under a line like "`shift.py`:" is a module of that name;
- with tests in it is run by pytest;
- under ``<!-- not run: why -->`` is left out.

A block of text under ``<!-- output -->`` is what the block before it prints.
"""

import contextlib
import importlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import click
import pytest
import torch

import deltakit as dk
from deltakit import _imports
from deltakit.arch.family import FAMILIES
from deltakit.cli.main import cli
from deltakit.compare.run.judges import JUDGES
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import TASKS
from deltakit.compare.tasks.kinds import KINDS
from deltakit.core.method import CLASSES, METHODS
from deltakit.core.spec import split_outside_brackets

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")

BLOCK = re.compile(
    r"(?:<!-- *(?P<mark>.*?) *-->\s*)?(?:^`(?:\S*/)?(?P<file>\w+\.py)`:\s*)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
TESTS = re.compile(r"^(?:def test_|class Test)", re.MULTILINE)


class Block(NamedTuple):
    """A block of code in a page."""

    line: int
    language: str
    code: str
    mark: str
    file: str | None

    @property
    def left_out(self) -> bool:
        return self.mark.startswith("not run: ")


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of code of a page."""
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code")) + 1
        mark = found["mark"] or ""
        yield Block(line, found["language"], found["code"], mark, found["file"])


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def pages_with(language: str) -> list[Any]:
    """The pages with a block in a language, as parameters of a test."""
    found = [page for page in PAGES if any(one.language == language for one in blocks(page))]
    return [pytest.param(page, id=name_of(page)) for page in found]


# ------------------------------------------------------------------------------------- Python


def save_as(format: str, method: dk.Method, folder: str) -> Callable[[Any], None]:
    """Puts a folder of another library where a page loads one."""

    def save(model: Any) -> None:
        dk.attach(model, method, name=format)
        dk.save(model, folder, name=format, format=format)
        dk.detach(model)

    return save


MY_BERT = """
from transformers import BertConfig, BertModel

class MyBertConfig(BertConfig):
    model_type = "my-bert"

class MyBertModel(BertModel):
    config_class = MyBertConfig
"""


def write_my_bert(model: Any) -> None:
    """The module that the page on models takes for granted, and a model that no family is for."""
    Path("my_bert.py").write_text(MY_BERT, encoding="utf-8")
    model.config.model_type = "nothing-known"


SETUPS: dict[str, list[Callable[[Any], object]]] = {
    "docs/add-a-model.md": [write_my_bert],
    "docs/save-and-load.md": [
        save_as("peft", dk.LoRA(), "a-folder-of-peft"),
        save_as("adapterhub", dk.SequentialAdapter(), "their-adapter"),
        lambda model: dk.attach(model, dk.LoRA()),
    ],
}
"""What a page takes for granted: done before its first block."""

LAWS = "start or acts"
"""Those of the suite that are run for a page's class: the others take long."""


def run(page: Path, block: Block, namespace: dict[str, Any]) -> None:
    """Runs a block as Python, as a module or as tests."""
    code = "\n" * (block.line - 1) + block.code  # so that a traceback shows the page's line
    if TESTS.search(block.code):
        tests = Path(block.file or f"test_line_{block.line}.py")
        tests.write_text(block.code, encoding="utf-8")
        laws = ["-k", f"({LAWS}) and not embed"] if "Conformance" in block.code else []
        quiet = ["-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", "."]
        assert pytest.main([*quiet, *laws, str(tests)]) == 0, f"{name_of(page)}:{block.line}"
    elif block.file:
        Path(block.file).write_text(block.code, encoding="utf-8")
        __import__(block.file.removesuffix(".py"))
    else:
        exec(compile(code, str(page), "exec"), namespace)


@pytest.fixture
def own_registries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a page registers or imports is forgotten after it."""
    importlib.import_module("deltakit.methods")
    importlib.import_module("deltakit.arch.families")
    for registry in (METHODS, CLASSES, FAMILIES, METRICS, KINDS, TASKS, JUDGES):
        monkeypatch.setattr(registry, "_things", dict(registry._things))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("page", pages_with("python"))
@pytest.mark.usefixtures("own_registries")
def test_the_python_of_a_page_runs(page: Path, kit: SimpleNamespace, tmp_path: Path) -> None:
    modules = set(sys.modules)
    namespace = {"__name__": "page", "dk": dk, "model": kit.make_model("bert", "classify")}
    for setup in SETUPS.get(name_of(page), []):
        setup(namespace["model"])
    try:
        for block, following in pairwise([*blocks(page), None]):
            if block.language == "python" and not block.left_out:
                printed = io.StringIO()
                with contextlib.redirect_stdout(printed):
                    run(page, block, namespace)
                if following is not None and following.mark == "output":
                    assert printed.getvalue() == following.code, f"{page.name}:{following.line}"
    finally:
        for name in set(sys.modules) - modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_a_block_that_is_left_out_says_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    marks = re.findall(r"^<!-- *not run\b(.*?)-->", text, re.DOTALL | re.MULTILINE)
    assert all(re.fullmatch(r": \S.{8,}", mark.strip()) for mark in marks)
    assert len(marks) == sum(block.left_out for block in blocks(page)), "a mark is before no block"
    languages = {block.language for block in blocks(page)}
    assert languages <= {"python", "bash", "text", "json", "toml", "yaml"}


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_the_api_runs_and_leaves_the_model_as_it_was(
    family: str, kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = kit.make_model(family, "classify")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    exec(compile(marked("api"), "README.md", "exec"), {"model": model})
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert kit.hook_count(model) == 0


# ------------------------------------------------------------------------------ command lines


def commands(page: Path) -> Iterator[list[str]]:
    """The words of each command line in a page's shell blocks and in its text."""
    text = page.read_text(encoding="utf-8")
    shell = [one.code for one in blocks(page) if one.language == "bash" and not one.left_out]
    lines = "\n".join(shell).replace("\\\n", " ").splitlines()
    spoken = re.findall(
        r"`((?:deltakit|python) [^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    )
    for line in [*lines, *(" ".join(words.split()) for words in spoken)]:
        line = re.sub(r"\[(--[^\]]*)\]", r"\1", line)  # what is optional
        for part in line.split("&&"):
            words = shlex.split(part, comments=True)
            if words:
                yield words


def after(words: list[str], command: str) -> list[str] | None:
    """The words after a command, whatever runs it or where it is; None if it is not there."""
    places = [at for at, word in enumerate(words) if word.rpartition("/")[2] == command]
    return words[places[0] + 1 :] if places else None


def placeholders(words: list[str], page: Path) -> list[str]:
    """Words that click can check: an alternative's first, an existing folder for a CAPITAL."""
    return [
        str(page.parent) if re.fullmatch("[A-Z]+|…", word) else word.split("|")[0] for word in words
    ]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_command_lines_of_a_page_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_imports, "import_extension", lambda name: None)  # files that pages make up
    for words in commands(page):
        given = after(words, "deltakit")
        if not given or given[0].startswith("-"):
            continue
        assert given[0] in cli.commands, words
        command = cli.commands[given[0]]
        try:
            command.make_context(given[0], placeholders(given[1:], page))
        except click.exceptions.Exit:
            pass  # --help
        except (click.MissingParameter, click.BadOptionUsage):
            # `deltakit sites`, `deltakit compare --config`: a name, not a call
            assert len(given) == 1 or given[1:][-1].startswith("--"), words


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_scripts_and_modules_of_a_page_exist(page: Path) -> None:
    for words in commands(page):
        for word in words:
            if re.fullmatch(r"[\w/]+\.py", word) and "/" in word:
                assert (ROOT / word).is_file(), words
        module = words[words.index("-m") + 1] if "-m" in words[1:] else ""
        if module.startswith("deltakit."):
            assert find_spec(module) is not None, words


def options() -> set[str]:
    """Every option of every command."""
    found = {name for each in cli.commands.values() for one in each.params for name in one.opts}
    return (
        found
        | {
            name
            for each in cli.commands.values()
            for one in each.params
            for name in one.secondary_opts
        }
        | {"--help", "--version"}
    )


OWN = {"narrow", "shift"}
"""Methods that a page adds."""

ELSEWHERE = {"--no-deps", "--list"}
"""Options of other programs that the pages name."""


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_option_that_is_mentioned_exists(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    named = {
        word for code in re.findall(r"`(--[^`]+)`", text) for word in re.findall(r"--[a-z-]+", code)
    }
    assert named - ELSEWHERE <= options()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_method_that_is_mentioned_parses(page: Path) -> None:
    for words in commands(page):
        given = after(words, "deltakit") or []
        if given[:1] == ["compare"] and "--methods" in given:
            for spec in split_outside_brackets(given[given.index("--methods") + 1], ","):
                name = re.split(r"[\[:]", spec.strip())[0]
                if name not in OWN and (name != "peft" or find_spec("peft")):
                    assert dk.parse_method(spec.strip()) is not None


# ------------------------------------------------------------------------------------- README


def marked(mark: str) -> str:
    """README's block under ``<!-- mark -->``."""
    found = [block.code for block in blocks(PAGES[0]) if block.mark == mark]
    assert found, f"README.md has no code block under <!-- {mark} -->"
    return found[0]


def test_the_two_commands_install_what_they_run() -> None:
    main, tests = marked("main"), marked("tests")
    assert "deltakit compare --methods adapter,lora,fusion" in main
    assert "pytest" in tests
    for command in (main, tests):
        assert len(command.strip().splitlines()) == 1
        assert "python3 -m venv" in command and "[demo" in command
        assert "pip install deltakit" not in command


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_page_installs_the_unrelated_package(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"pip install (-\S+ )*deltakit(?!-peft)\b", text)


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_no_page_has_two_versions_of_a_line(page: Path) -> None:
    """A merge that was not finished leaves lines that begin with seven signs."""
    marks = re.findall(r"^(?:<{7}|>{7}|={7})(?: |$)", page.read_text("utf-8"), flags=re.MULTILINE)
    assert not marks


def test_the_api_is_short() -> None:
    lines = [
        line for line in marked("api").splitlines() if line.startswith("dk.") or "(dk." in line
    ]
    assert 5 <= len(lines) <= 10


def test_links_to_files_of_the_project_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
