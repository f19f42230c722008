"""Generation: a model writes a text for a source, such as a summary or a translation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from deltakit.compare.tasks.data.columns import ColumnNames, RawSplit
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import Outputs, ParsedLabels, register_kind
from deltakit.compare.tasks.kinds.written import WrittenKind, targets
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

PAIRS = (("source", "target"), ("document", "summary"), ("text", "summary"), ("input", "output"))
"""The usual names of the two columns."""
_MORE = {"input": "instruction"}
"""A column with which a source is only a part of what the target answers."""


@register_kind("generation")
@dataclass(frozen=True, kw_only=True)
class Generation(WrittenKind):
    """A source, and the text of any number of lines that should be written for it.

    For a decoder a line break separates the two. The whole text that is generated, without the
    spaces around it, is the prediction.
    """

    precedence: ClassVar[int] = -1
    text_column: ClassVar[str] = "source"
    label_column: ClassVar[str | None] = "target"
    separator: ClassVar[str] = "\n"

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        others = {"--pair-column", "--label-separator"} & set(asked.given())
        return not others and "label" not in columns and bool(_pairs(columns, asked))

    @classmethod
    def columns_in(cls, columns: Columns, asked: ColumnNames) -> tuple[str | None, str | None]:
        pairs = _pairs(columns, asked)
        if len(pairs) > 1:
            shown = ", ".join(f"{text!r} with {label!r}" for text, label in pairs)
            raise InvalidConfig(
                f"the columns have several sources and targets: {shown}. Choose one with "
                "--text-column and --label-column."
            )
        return pairs[0] if pairs else super().columns_in(columns, asked)

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {
            split: Examples(texts=rows.texts, labels=targets(rows))
            for split, rows in splits.items()
        }
        return ParsedLabels(cls(), read)

    @property
    def description(self) -> str:
        return "texts to write" if self.beams == 1 else f"texts to write, {self.beams} beams"

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("rougeL", "rouge1", "rouge2", "rougeLsum", "bleu", "chrf", "exact_match")

    def cleaned(self, text: str) -> str:
        return text.strip()

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The copy baseline: each source as it is."""
        del train, tokenizer
        return Outputs([source.strip() for source in test["source"]])


def _pairs(columns: Columns, asked: ColumnNames) -> list[tuple[str, str]]:
    """The usual pairs that are there, of those that the asked names leave."""
    return [
        (text, label)
        for text, label in PAIRS
        if {text, label} <= set(columns)
        and asked.text in (None, text)
        and asked.label in (None, label)
        and _MORE.get(text) not in columns
    ]
