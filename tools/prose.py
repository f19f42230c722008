"""Plain English in docstrings and pages: what the house does not write, counted.

    python tools/prose.py             # the counts beneath their limits; exit status 1 above one
    python tools/prose.py --list      # every finding as path:line: kind: text
    python tools/prose.py --by-room   # the counts of each package folder

Five kinds are counted. ``docstrings``, ``messages`` and ``pages`` are the archaic words and turns
of `WORDS`, and ``persons`` the verbs of `PERSONS` in docstrings, per 10,000 words of prose: code,
quoted names and links are left out. Messages are the strings of several words that are no
docstrings: errors, help, reports. ``summaries`` are first lines of public docstrings that begin
with a word of `OPENERS` and not with their subject.

`LIMITS` is a ratchet: no count may be above its limit. Who lowers a count sets its limit to the
number that this tool prints. The limits are final when they are those of `AIMS`.
"""

import argparse
import ast
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]

LIMITS = {"docstrings": 15.0, "messages": 5.0, "pages": 5.0, "persons": 15.0, "summaries": 0.0}
AIMS = {"docstrings": 15.0, "messages": 5.0, "pages": 5.0, "persons": 15.0, "summaries": 0.0}

# Regular expressions. Each is a turn that has a plain form: "nobody" is "no one", "beside" is "next
# to", "is no folder" is "is not a folder", "goes without" is "has no".
WORDS = (
    r"whoever|whosoever|whomever|whatsoever|nobody|somebody|anybody|everybody|anew|nought|besides?",
    r"stands?(?!-?alone)|stood|standing(?!-)|amid|amidst|amongst|upon|lest|till|shall|nigh|ere",
    r"hence|henceforth|thence|whence|thereby|therein|thereof|thereto|thereupon|therewith|albeit",
    r"whereof|whereby|wherein|whereupon|wherewith|hereby|herein|hereof|hereto|likewise",
    r"ours|theirs|hers|one's own|of (?:one's|its|their) own accord|of itself|of themselves",
    r"comes? to|came to|go(?:es)? without|going without|went without|so many|many an?",
    r"(?<!there )(?:is|are|was|were) no(?! (?:longer|more|less|fewer)\b)",
    r"(?:is|are) to be|save (?:for|that)",
    r"(?:says?|said|knows?|known|tells?|told) of|what is said|is said to|be it|if need be",
    r"for want of|by virtue of|in lieu of|at its word|keeps? (?:its|their) word",
    r"gives? (?:it|them) back",
)
# Verbs of people, said of a thing. An error tells and a user asks: that is why a few may stay.
PERSONS = (r"says|knows|asks|tells|sees|wants|speaks|thinks|believes|wishes|forgets|remembers",)


OPENERS = frozenset(
    ["What", "Whether", "How", "Where", "Wherever", "When", "Whenever", "Which", "Who", "Whose"]
    + ["Whoever", "Whatever", "Why", "That", "It", "This", "These", "Those", "There", "If"]
)

PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "docs/*.md")

# What is no prose, in this order: fenced blocks, quoted names, comments of a page, addresses.
_NOT_PROSE = (
    re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE),
    re.compile(r"``[^`]*``|`[^`\n]*`"),
    re.compile(r"<!--.*?-->", re.DOTALL),
    re.compile(r"\]\([^)\s]*\)|https?://\S+"),
)
_FORBIDDEN = {
    kind: re.compile(rf"\b(?:{'|'.join(words)})\b", re.IGNORECASE)
    for kind, words in {
        "docstrings": WORDS,
        "messages": WORDS,
        "pages": WORDS,
        "persons": PERSONS,
    }.items()
}
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


class Text(NamedTuple):
    """One docstring, one message, or one page."""

    kind: str
    path: str
    line: int
    text: str
    public: bool = False


class Finding(NamedTuple):
    """One word or one first line that has a plainer form."""

    kind: str
    path: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.kind}: {self.text}"


def prose(text: str) -> str:
    """The text with all that is not prose blanked out, each line in its place."""
    for pattern in _NOT_PROSE:
        text = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)
    return text


def count_words(text: str) -> int:
    """The number of words of prose."""
    return len(_WORD.findall(prose(text)))


def find_words(text: Text) -> Iterator[Finding]:
    """The forbidden words of a text, line by line."""
    kinds = ("docstrings", "persons") if text.kind == "docstrings" else (text.kind,)
    for number, line in enumerate(prose(text.text).splitlines(), text.line):
        for kind in kinds:
            for found in _FORBIDDEN[kind].finditer(line):
                yield Finding(kind, text.path, number, found[0])


def find_summary(text: Text) -> Iterator[Finding]:
    """The first line of a public docstring, if it does not begin with its subject."""
    first = text.text.strip().split("\n", 1)[0]
    if text.public and (opener := _WORD.match(first)) and opener[0] in OPENERS:
        yield Finding("summaries", text.path, text.line, first)


def docstrings(path: Path, root: Path) -> Iterator[Text]:
    """The docstrings of a module. One is public if no name on the way to it has an underscore."""
    where = path.relative_to(root).as_posix()
    module = ast.parse(path.read_text(encoding="utf-8"))
    modules_name = path.parent.name if path.stem == "__init__" else path.stem
    yield from _docstrings_in(module, where, not modules_name.startswith("_"))


def _docstrings_in(node: ast.AST, where: str, public: bool) -> Iterator[Text]:
    documented = isinstance(
        node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    )
    if documented and (text := ast.get_docstring(node, clean=False)):
        yield Text("docstrings", where, node.body[0].lineno, text, public)
    public = public and isinstance(node, ast.Module | ast.ClassDef)  # what a function holds is not
    for child in ast.iter_child_nodes(node):
        name = str(getattr(child, "name", ""))
        yield from _docstrings_in(child, where, public and not name.startswith("_"))


def messages(path: Path, root: Path) -> Iterator[Text]:
    """The strings of several words in a module that are not statements of their own."""
    where = path.relative_to(root).as_posix()
    module = ast.parse(path.read_text(encoding="utf-8"))
    apart = {id(node.value) for node in ast.walk(module) if isinstance(node, ast.Expr)}
    for node in ast.walk(module):
        if isinstance(node, ast.Constant) and id(node) not in apart and " " in str(node.value):
            yield Text("messages", where, node.lineno, str(node.value))


def texts(root: Path) -> list[Text]:
    """All docstrings and messages of the package, then all pages."""
    modules = sorted((root / "deltakit").rglob("*.py"))
    pages = [path for pattern in PAGES for path in sorted(root.glob(pattern))]
    read = [text for path in modules for of in (docstrings, messages) for text in of(path, root)]
    return read + [
        Text("pages", path.relative_to(root).as_posix(), 1, path.read_text(encoding="utf-8"))
        for path in pages
    ]


def findings(found_in: Iterable[Text]) -> list[Finding]:
    """Every finding, in the order of the texts."""
    return [one for text in found_in for one in (*find_summary(text), *find_words(text))]


def counts(found_in: Iterable[Text]) -> dict[str, float]:
    """The number that each limit is for: findings per 10,000 words of their kind, and summaries."""
    found_in = list(found_in)
    found = Counter(one.kind for one in findings(found_in))
    words = {"docstrings": 0, "messages": 0, "pages": 0}
    for text in found_in:
        words[text.kind] += count_words(text.text)
    words["persons"] = words["docstrings"]
    rates = {kind: 1e4 * found[kind] / max(words[kind], 1) for kind in LIMITS if kind in words}
    return rates | {"summaries": float(found["summaries"])}


def room(text: Text) -> str:
    """The package folder of a docstring; a page is a room of its own."""
    return text.path if text.kind == "pages" else text.path.rpartition("/")[0]


def by_room(found_in: list[Text]) -> Iterator[str]:
    """One line for each room, with its counts."""
    for name in sorted({room(text) for text in found_in}):
        one = counts(text for text in found_in if room(text) == name)
        yield "  ".join(f"{kind} {value:6.1f}" for kind, value in one.items()) + f"  {name}"


def against_limits(counted: dict[str, float]) -> Iterator[str]:
    """One line for each kind: its count, its limit and its aim."""
    for kind, value in counted.items():
        above = "" if value <= LIMITS[kind] else "  ABOVE THE LIMIT; see --list"
        yield f"{kind}: {value:.1f}, limit {LIMITS[kind]:g}, aim {AIMS[kind]:g}{above}"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 1 if a count is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--list", action="store_true", help="print every finding")
    parser.add_argument("--by-room", action="store_true", help="print the counts of each folder")
    options = parser.parse_args(arguments)
    found_in = texts(ROOT)
    counted = counts(found_in)
    lines = [str(one) for one in findings(found_in)] if options.list else []
    lines += by_room(found_in) if options.by_room else []
    print("\n".join([*lines, *against_limits(counted)]))
    return int(any(value > LIMITS[kind] for kind, value in counted.items()))


if __name__ == "__main__":
    sys.exit(main())
