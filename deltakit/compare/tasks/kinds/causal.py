"""Causal language modelling: how likely is a text, token by token?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.tasks.data.columns import RawSplit
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    Kind,
    Outputs,
    ParsedLabels,
    mapped,
    padded,
    register_kind,
)
from deltakit.models.heads import Head, LanguageHead

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IGNORED = -100
"""A label that no loss is taken of."""


@register_kind("causal")
@dataclass(frozen=True, kw_only=True)
class Causal(Kind):
    """Every token of a text but the first is predicted from those before it.

    Tokens, special ones among them, are as the model's tokenizer writes a text. The truth of a row
    is how many tokens are predicted, the prediction is the sum of their negative log-likelihoods.
    """

    precedence: ClassVar[int] = -5
    options: ClassVar[frozenset[str]] = frozenset({"--text-column"})
    label_column: ClassVar[str | None] = None
    least_tokens: ClassVar[int] = 2  # the first is not predicted
    batch_size: ClassVar[int] = 8  # a vocabulary of logits for every token takes its room

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        written = {split: [t for t in rows.texts if t.strip()] for split, rows in splits.items()}
        notes = tuple(
            f"{split}: {blank:,} blank texts were left out."
            for split, rows in splits.items()
            if (blank := len(rows.texts) - len(written[split]))
        )
        return ParsedLabels(
            cls(), {split: Examples(texts=t) for split, t in written.items()}, notes
        )

    @property
    def description(self) -> str:
        return "language modelling"

    @property
    def head(self) -> Head:
        return LanguageHead()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("perplexity",)

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            ids = tokenizer(rows["text"], truncation=True, max_length=max_length)["input_ids"]
            return {"input_ids": ids, "labels": ids, "truth": [max(len(row) - 1, 0) for row in ids]}

        return mapped(data, tokens)

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return language_batch(rows, tokenizer)

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        return Outputs(surprise(model, self.collate(rows, tokenizer)))

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The frequency of each token in train plus one, for any text before the token."""
        import numpy as np

        followers = np.concatenate([np.asarray(row[1:], dtype=int) for row in train["labels"]])
        counts = 1.0 + np.bincount(followers, minlength=len(tokenizer))
        surprise = np.log(counts.sum()) - np.log(counts)
        return Outputs([float(surprise[row[1:]].sum()) for row in test["labels"]])


def surprise(model: "PreTrainedModel", batch: Batch) -> list[float]:
    """The negative log-likelihood of each row's labels, in nats, summed; a first token has none."""
    from torch.nn.functional import cross_entropy

    batch = {key: each.to(model.device) for key, each in batch.items()}
    labels = batch.pop("labels")[:, 1:]
    # From the end: a method may put positions of its own before the text.
    logits = model(**batch).logits[:, -labels.shape[1] - 1 : -1].float()
    nats = cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return [float(row) for row in nats.view_as(labels).double().sum(1)]


def language_batch(rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase") -> Batch:
    """Rows of tokens padded on the right, without attention to the padding and without its loss."""
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": padded(ids, tokenizer.pad_token_id),
        "attention_mask": padded([[1] * len(row) for row in ids], 0),
        "labels": padded([row["labels"] for row in rows], IGNORED),
    }
