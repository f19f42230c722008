"""A general text: passages about many things, on which what was forgotten is measured."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from deltakit.compare.records.forgotten import SHIPPED
from deltakit.errors import InvalidConfig

MAX_LENGTH = 128
"""Tokens of a passage, at most."""

FILE = Path(__file__).with_name("general.txt")
"""The shipped text: 64 passages of plain English prose, which were written for this purpose."""


@dataclass(frozen=True, kw_only=True)
class GeneralText:
    """Passages that no task is about.

    Attributes:
        name: "shipped", or the file as the user typed it.
        passages: the texts, each read by itself.
        max_length: tokens of a passage, at most. What is longer is cut.
    """

    name: str
    passages: tuple[str, ...]
    max_length: int = MAX_LENGTH

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the passages, in hex."""
        return hashlib.sha256("\n\n".join(self.passages).encode()).hexdigest()

    def cut(self, limit: int) -> GeneralText:
        """The text for a model that reads `limit` tokens."""
        return replace(self, max_length=min(self.max_length, limit))


def identity_of(text: GeneralText | None) -> str:
    """The part of a cell's identity: nothing for the shipped text, which the version decides."""
    return "" if text is None or text.name == SHIPPED else text.fingerprint


def general_text(file: str | None, most: int) -> GeneralText:
    """The first passages of a file, or of the shipped text.

    A blank line ends a passage. Line breaks and spaces in a row count as one space.

    Args:
        file: a text file in UTF-8; None for the shipped text.
        most: the number of passages, at most.

    Raises:
        InvalidConfig: the file cannot be read, or holds nothing.
    """
    text = _read(FILE if file is None else Path(file))
    blocks = (" ".join(block.split()) for block in "\n".join(_stripped(text)).split("\n\n"))
    passages = tuple(block for block in blocks if block)[:most]
    if not passages:
        raise InvalidConfig(f"--general {file} has no text. {_FORM}")
    return GeneralText(name=SHIPPED if file is None else file, passages=passages)


_FORM = "Name a text file in UTF-8 with a blank line between passages."


def _stripped(text: str) -> list[str]:
    """The lines; one of spaces alone is blank."""
    return [line.strip() for line in text.splitlines()]


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidConfig(f"--general {file} cannot be read: {error.strerror}. {_FORM}") from None
    except UnicodeDecodeError:
        raise InvalidConfig(f"--general {file} is not a text in UTF-8. {_FORM}") from None
