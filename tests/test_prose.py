"""Docstrings and pages are plain English, and the tool that counts them counts right."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
prose = SimpleNamespace(**runpy.run_path(str(ROOT / "tools" / "prose.py")))


def words(text: str, kind: str = "docstrings") -> list[str]:
    return [one.text for one in prose.find_words(prose.Text(kind, "a.py", 1, text))]


@pytest.fixture(scope="module")
def texts() -> list:
    return prose.texts(ROOT)


def test_no_count_is_above_its_limit(texts: list) -> None:
    counted = prose.counts(texts)
    assert set(counted) == set(prose.LIMITS) == set(prose.AIMS)
    above = {kind: value for kind, value in counted.items() if value > prose.LIMITS[kind]}
    assert not above, f"{above}: run `python tools/prose.py --list`"


def test_all_docstrings_and_pages_are_read(texts: list) -> None:
    paths = {text.path for text in texts}
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/index.md"} <= paths
    assert {"deltakit/__init__.py", "deltakit/methods/lora.py"} <= paths
    assert sum(text.kind == "docstrings" for text in texts) > 1000


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Whoever reads the row beside it.", ["Whoever", "beside"]),
        ("The file is no folder, and\nthere are no rows.", ["is no"]),
        ("It is no longer there; a stand-alone file.", []),
        ("A name ``beside`` and a field `stands`.", []),
        ("Understands hours; withstands.", []),
        ("The config says so.", ["says"]),
    ],
)
def test_words_are_found_in_prose_alone(text: str, found: list[str]) -> None:
    assert words(text) == found


def test_a_page_is_read_without_its_code_and_links() -> None:
    page = "Beside it\n\n```text\nnobody\n```\n[a](besides.md) <!-- anew -->\nhence `theirs`\n"
    found = list(prose.find_words(prose.Text("pages", "a.md", 1, page)))
    assert [(one.line, one.text) for one in found] == [(1, "Beside"), (7, "hence")]
    assert prose.count_words(page) == 4


def test_summaries_of_public_names_begin_with_their_subject(tmp_path: Path) -> None:
    (tmp_path / "room.py").write_text(
        '"""Whether."""\n'
        'def named():\n    """What it does."""\n    def inner():\n        """How."""\n'
        'def _hidden():\n    """Where."""\n'
        'class Thing:\n    """Whatsoever."""\n    def part(self):\n        """If so."""\n'
        'class _Own:\n    """The own."""\n    def part(self):\n        """Which."""\n'
    )
    read = list(prose.docstrings(tmp_path / "room.py", tmp_path))
    found = [one.line for text in read for one in prose.find_summary(text)]
    assert found == [1, 3, 11]


def test_counts_are_per_ten_thousand_words_of_their_kind() -> None:
    text = "one two three four five six seven eight nine beside"
    read = [prose.Text("docstrings", "a/b.py", 1, text), prose.Text("pages", "c.md", 1, "a page")]
    expected = dict.fromkeys(prose.LIMITS, 0.0) | {"docstrings": 1000.0}
    assert prose.counts(read) == expected
    assert [line.split()[-1] for line in prose.by_room(read)] == ["a", "c.md"]


def test_the_command_fails_above_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    limits = prose.main.__globals__["LIMITS"]
    before = dict(limits)
    try:
        limits.update(dict.fromkeys(limits, 1e9))
        assert prose.main(["--by-room"]) == 0
        limits["pages"] = -1.0
        assert prose.main([]) == 1
    finally:
        limits.update(before)
    assert "pages: " in (out := capsys.readouterr().out) and "ABOVE THE LIMIT" in out
