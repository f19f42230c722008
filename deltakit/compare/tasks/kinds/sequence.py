"""Tasks that ask for one or more numbers about a text, or about a pair of texts."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.kinds.base import Batch, EncodedExample, Kind, Outputs, mapped

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


PROBABILISTIC = ("roc_auc", "average_precision", "log_loss", "brier", "ece")
"""Metrics of the probabilities of classes or labels."""


@dataclass(frozen=True, kw_only=True)
class SequenceKind(Kind):
    """A kind whose model reads the whole text and gives numbers."""

    options: ClassVar[frozenset[str]] = Kind.options | {"--pair-column"}

    @abstractmethod
    def target(self, label: Any) -> Any:
        """The training target of a label."""

    @abstractmethod
    def decode(self, logits: "Tensor") -> list[Value]:
        """The predictions from a model's outputs of shape (rows, outputs)."""

    def probabilities(self, logits: "Tensor") -> "Tensor | None":
        """The probability of each output, shape (rows, outputs); None where they have none."""
        del logits
        return None

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            encoded = tokenizer(
                rows["text"], rows.get("text_pair"), truncation=True, max_length=max_length
            )
            targets = [self.target(label) for label in rows["label"]]
            return {**encoded, "labels": targets, "truth": rows["label"]}

        return mapped(data, tokens)

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        inputs = [{key: row[key] for key in row if key != "truth"} for row in rows]
        # On the right: a model with absolute positions would count padding on the left.
        padded = tokenizer.pad(inputs, padding_side="right", return_tensors="pt")
        return dict(padded)

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        batch = self.collate(rows, tokenizer)
        del batch["labels"]
        logits = model(**{key: each.to(model.device) for key, each in batch.items()}).logits
        logits = logits.float().cpu()
        scores = self.probabilities(logits.double())
        return Outputs(self.decode(logits), None if scores is None else scores.numpy())
