"""Images: which of several classes is a picture of?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.tasks.data.columns import CellType, ColumnNames, RawSplit
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.pictures import COLUMN, PICTURE, opened
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    ParsedLabels,
    mapped,
    register_kind,
)
from deltakit.compare.tasks.kinds.classification import Classification
from deltakit.errors import InvalidConfig, first_line
from deltakit.models.heads import Head, ImageHead
from deltakit.models.processor import Processor

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import BaseImageProcessor


@register_kind("images")
@dataclass(frozen=True, kw_only=True)
class Images(Classification):
    """One class for each picture.

    Pictures are kept as the bytes of their files. Each batch is opened in RGB and given to the
    model's own image processor, which resizes, crops and normalises every picture by itself.
    """

    options: ClassVar[frozenset[str]] = frozenset({"--label-column", "--image-column"})
    text_column: ClassVar[str | None] = None
    inputs: ClassVar[Mapping[str, CellType]] = {COLUMN: PICTURE}
    precedence: ClassVar[int] = 1

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        cells = columns.get(COLUMN, [])
        return bool(cells) and all(isinstance(cell, bytes) for cell in cells)

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        read = super().parse_labels(splits, classes)
        whole = {
            split: replace(examples, inputs=splits[split].inputs)
            for split, examples in read.splits.items()
        }
        return ParsedLabels(read.kind, whole, read.notes)

    @property
    def description(self) -> str:
        return f"pictures of {len(self.classes)} classes"

    @property
    def head(self) -> Head:
        return ImageHead(outputs=len(self.classes))

    def encode(self, data: "Dataset", processor: Processor, max_length: int) -> "Dataset":
        """As for every kind; pictures stay as they are stored until `collate`."""
        del processor, max_length

        def labelled(rows: dict[str, Any]) -> dict[str, Any]:
            return {COLUMN: rows[COLUMN], "labels": rows["label"], "truth": rows["label"]}

        return mapped(data, labelled)

    def size(self, example: EncodedExample) -> int:
        """One: pictures are not padded."""
        del example
        return 1

    def collate(self, rows: Sequence[EncodedExample], processor: "BaseImageProcessor") -> Batch:
        """Pixels of shape (rows, channels, height, width), and labels."""
        import torch

        try:
            pixels = processor([opened(row[COLUMN]) for row in rows], return_tensors="pt")
        except ValueError as error:
            raise InvalidConfig(
                f"the model's image processor makes no batch of these pictures: "
                f"{first_line(error)} Choose a model whose processor resizes, or give pictures of "
                "one size."
            ) from None
        labels = torch.tensor([row["labels"] for row in rows])
        return {"pixel_values": pixels["pixel_values"], "labels": labels}
