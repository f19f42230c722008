"""The form of a text file: its encoding, what separates its cells, the names of its columns."""

import codecs
from dataclasses import dataclass, field, fields
from pathlib import Path

from deltakit.errors import InvalidConfig

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark is the beginning of it
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NAMED_DELIMITERS = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " "}


@dataclass(frozen=True, kw_only=True)
class FileForm:
    """The form of a file, as given. None is what the file shows.

    Attributes:
        columns: the names of the columns of a CSV or TSV file that has no header.
        encoding: the encoding of its text.
        delimiter: the one character between two cells; "tab" is one too.

    Raises:
        InvalidConfig: an encoding that Python does not know, or a delimiter of several characters.
    """

    columns: tuple[str, ...] | None = field(default=None, metadata={"option": "--columns"})
    encoding: str | None = field(default=None, metadata={"option": "--encoding"})
    delimiter: str | None = field(default=None, metadata={"option": "--delimiter"})

    def __post_init__(self) -> None:
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError:
            raise InvalidConfig(
                f"--encoding {self.encoding}: there is no such encoding. Usual ones are utf-8, "
                "utf-16, latin-1, cp1252, cp1251, gb18030 and shift_jis."
            ) from None
        if self.delimiter is not None and len(self.separator or "") != 1:
            raise InvalidConfig(
                f"--delimiter {self.delimiter!r} is not one character. Give one, such as ';', or "
                f"one of the words {', '.join(_NAMED_DELIMITERS)}."
            )

    @property
    def separator(self) -> str | None:
        """The delimiter as a character; None for the one that the file shows."""
        return _NAMED_DELIMITERS.get(self.delimiter or "", self.delimiter)

    def given(self) -> tuple[str, ...]:
        """The options that were given."""
        return tuple(
            each.metadata["option"] for each in fields(self) if vars(self)[each.name] is not None
        )


def text_of(path: Path, encoding: str | None) -> str:
    """The text of a file, in the given encoding, or that of its byte order mark, or UTF-8.

    UTF-16 without a mark is recognised by its zero bytes.

    Raises:
        UnicodeDecodeError: the bytes are not of the encoding.
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    return content.decode(encoding or _encoding_of(content)).removeprefix("\ufeff")


def _encoding_of(content: bytes) -> str:
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    return marked or _unmarked_utf16(content[:4096]) or "utf-8"


def _unmarked_utf16(head: bytes) -> str | None:
    """The UTF-16 that text has where every second byte, nearly, is zero."""
    half = len(head) // 2
    if half < 2:
        return None
    if head[1::2].count(0) > 0.9 * half and not head[0::2].count(0):
        return "utf-16-le"
    if head[0::2].count(0) > 0.9 * half and not head[1::2].count(0):
        return "utf-16-be"
    return None
