"""Short answers: does a model that is given a prompt generate exactly what it should?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from deltakit.compare.tasks.data.columns import ColumnNames, RawSplit, short_repr
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import ParsedLabels, register_kind
from deltakit.compare.tasks.kinds.written import WrittenKind, targets


@register_kind("answers")
@dataclass(frozen=True, kw_only=True)
class Answers(WrittenKind):
    """A text to continue or to read, and the one line that should follow.

    For a decoder a space separates the two, unless the prompt ends in a line break. The first line
    that is generated, without the spaces around it, is the answer.
    """

    precedence: ClassVar[int] = -1
    text_column: ClassVar[str] = "prompt"
    label_column: ClassVar[str | None] = "answer"
    separator: ClassVar[str] = " "

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        return not asked.given() and {cls.text_column, "answer"} <= set(columns)

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {
            split: Examples(texts=rows.texts, labels=_lines(rows)) for split, rows in splits.items()
        }
        return ParsedLabels(cls(), read)

    @property
    def description(self) -> str:
        return "short answers"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match",)

    def cleaned(self, text: str) -> str:
        return text.strip().partition("\n")[0].strip()


def _lines(rows: RawSplit) -> list[str]:
    lines = targets(rows)
    for row, text in enumerate(lines, start=1):
        if "\n" in text:
            raise rows.wrong(
                row,
                f"holds {short_repr(text)}, of several lines",
                "Give an answer of one line, or take several with --kind generation",
            )
    return lines
