"""Multiple choice: which of several endings fits a question or a beginning?"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import (
    WORDS,
    CellType,
    ColumnNames,
    RawSplit,
    RawTable,
    no_label,
    short_list,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.listed import as_lists
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    Kind,
    Outputs,
    ParsedLabels,
    mapped,
    references,
    register_kind,
)
from deltakit.compare.tasks.kinds.causal import IGNORED, language_batch, surprise
from deltakit.compare.tasks.kinds.classification import class_name
from deltakit.compare.tasks.kinds.written import Decoder
from deltakit.models.heads import ChoiceHead, Head, LanguageHead

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ENDINGS = tuple(f"ending{at}" for at in range(10))
"""The columns of endings, where each has one of its own."""
LISTS = ("choices", "endings")
"""The columns of lists of endings."""
LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, kw_only=True)
class Chooser(ABC):
    """The way in which an architecture is asked for an ending. `head` is what it is loaded with."""

    head: ClassVar[Head]

    @abstractmethod
    def encode(
        self,
        question: str,
        choices: Sequence[str],
        right: int,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> dict[str, Any]:
        """One row. ``choices`` are the model's inputs for each ending."""

    @abstractmethod
    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase", most: int
    ) -> Batch:
        """Rows as one padded training batch; `most` is the number of endings of the longest."""

    @abstractmethod
    def scores(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
        most: int,
    ) -> "tuple[Tensor, Tensor]":
        """Two scores for each ending, of shape (rows, most): plain, and for its length."""


@dataclass(frozen=True, kw_only=True)
class ByLikelihood(Chooser):
    """A decoder, by the log-likelihood that it gives an ending after the question.

    The loss is that of the right ending's tokens. The second score is the first over the number of
    the ending's characters.
    """

    head: ClassVar[Head] = LanguageHead()

    def encode(
        self,
        question: str,
        choices: Sequence[str],
        right: int,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> dict[str, Any]:
        each = [_continued(question, choice, tokenizer, max_length) for choice in choices]
        return {**each[right], "choices": each, "sizes": [max(1, len(text)) for text in choices]}

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase", most: int
    ) -> Batch:
        del most
        return language_batch(rows, tokenizer)

    def scores(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
        most: int,
    ) -> "tuple[Tensor, Tensor]":
        import torch

        batch = language_batch([choice for row in rows for choice in row["choices"]], tokenizer)
        found = -torch.tensor(surprise(model, batch), dtype=torch.float64)
        sizes = found.new_tensor([size for row in rows for size in row["sizes"]])
        counts = [len(row["choices"]) for row in rows]
        return _by_row(found, counts, most), _by_row(found / sizes, counts, most)


@dataclass(frozen=True, kw_only=True)
class ByHead(Chooser):
    """An encoder, by a fresh linear over each pair of question and ending.

    A row with fewer endings than the longest has empty ones in training, which are never chosen.
    """

    head: ClassVar[Head] = ChoiceHead()

    def encode(
        self,
        question: str,
        choices: Sequence[str],
        right: int,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
    ) -> dict[str, Any]:
        pairs = [(question, choice) if question else (choice,) for choice in choices]
        cut = {"truncation": True, "max_length": max_length}
        return {"choices": [dict(tokenizer(*pair, **cut)) for pair in pairs], "labels": right}

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase", most: int
    ) -> Batch:
        import torch

        empty = dict(tokenizer(""))
        filled = [
            choice
            for row in rows
            for choice in (*row["choices"], *[empty] * (most - len(row["choices"])))
        ]
        batch = tokenizer.pad(filled, padding_side="right", return_tensors="pt")
        inputs = {key: each.view(len(rows), most, -1) for key, each in batch.items()}
        return {**inputs, "labels": torch.tensor([row["labels"] for row in rows])}

    def scores(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
        most: int,
    ) -> "tuple[Tensor, Tensor]":
        import torch

        batch = self.collate(rows, tokenizer, most)
        del batch["labels"]
        inputs = {key: each.to(model.device) for key, each in batch.items()}
        logits = model(**inputs).logits.double().cpu()
        found = [row[: len(own["choices"])] for row, own in zip(logits, rows, strict=True)]
        counts = [len(row["choices"]) for row in rows]
        scores = _by_row(torch.cat(found), counts, most)
        return scores, scores


@register_kind("choice")
@dataclass(frozen=True, kw_only=True)
class Choice(Kind):
    """The likeliest of several endings.

    An encoder has a fresh head, where transformers has a class for it; any other model gives each
    ending its likelihood.

    Attributes:
        most: the number of endings of the row with the most.
        chooser: how the model's architecture is asked.
    """

    precedence: ClassVar[int] = -1
    text_column: ClassVar[str | None] = "question"
    label_column: ClassVar[str | None] = "answer"
    inputs: ClassVar[Mapping[str, CellType]] = {"choices": WORDS}
    least_tokens: ClassVar[int] = 6  # of two texts, with the tokens around them
    batch_size: ClassVar[int] = 8
    most: int
    chooser: Chooser = ByHead()

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        _, label = cls.columns_in(columns, asked)
        listed = {*LISTS} & set(columns) or set(ENDINGS[:2]) <= set(columns)
        return bool(listed) and label in columns and asked.pair is None and asked.separator is None

    @classmethod
    def columns_in(cls, columns: Columns, asked: ColumnNames) -> tuple[str | None, str | None]:
        usual = next((name for name in ("answer", "label") if name in columns), "answer")
        return asked.text or cls.text_column, asked.label or usual

    @classmethod
    def prepared(cls, table: RawTable, names: ColumnNames) -> RawTable:
        """The table with a list of texts in the column ``choices``, and places that fit it."""
        columns, (_, label) = table.columns, cls.columns_in(table.columns, names)
        endings = [columns[name] for name in ENDINGS if name in columns]
        if not {*LISTS} & set(columns) and len(endings) > 1:
            choices = [_without_blank_end(row) for row in zip(*endings, strict=True)]
        else:
            column = next((name for name in LISTS if name in columns), LISTS[0])
            choices = table.column(column, "another --kind")
        read = {"choices": [_texts_of(cell) for cell in as_lists(choices) or choices]}
        if label in columns:
            right = zip(choices, columns[label], strict=True)
            read[label] = [_by_mark(*pair) for pair in right]
        return RawTable(where=table.where, columns={**columns, **read})

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {
            split: Examples(texts=rows.texts, inputs=rows.inputs, labels=_right(rows))
            for split, rows in splits.items()
        }
        most = max(len(each) for rows in splits.values() for each in rows.inputs["choices"])
        return ParsedLabels(cls(most=most), read)

    def for_model(self, config: Any) -> Self:
        from transformers import MODEL_FOR_MULTIPLE_CHOICE_MAPPING

        has_head = type(config) in MODEL_FOR_MULTIPLE_CHOICE_MAPPING
        return replace(self, chooser=ByHead() if has_head else ByLikelihood())

    @property
    def description(self) -> str:
        return f"one of up to {self.most} endings"

    @property
    def head(self) -> Head:
        return self.chooser.head

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "accuracy_norm")

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            each = [
                {
                    **self.chooser.encode(text, choices, right, tokenizer, max_length),
                    "truth": right,
                }
                for text, choices, right in zip(
                    rows["text"], rows["choices"], rows["label"], strict=True
                )
            ]
            return {key: [row[key] for row in each] for key in each[0]}

        return mapped(data, tokens)

    def size(self, example: EncodedExample) -> int:
        return max(len(choice["input_ids"]) for choice in example["choices"])

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return self.chooser.collate(rows, tokenizer, self.most)

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        """The endings with the highest plain scores. `Outputs.scores` are those for the length."""
        plain, for_length = self.chooser.scores(model, rows, tokenizer, self.most)
        return Outputs(plain.argmax(-1).tolist(), for_length.numpy())

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The most frequent place of the right ending in train."""
        del tokenizer
        counted: Counter[Value] = Counter(references(train))
        most = min(counted, key=lambda at: (-counted[at], at))
        frequencies = [counted.get(at, 0) / len(train) for at in range(self.most)]
        return Outputs([most] * len(test), [frequencies] * len(test))


def _by_row(scores: "Tensor", counts: Sequence[int], most: int) -> "Tensor":
    """The scores of all rows' endings, one row each; minus infinity where it has no ending."""
    whole = scores.new_full((len(counts), most), -float("inf"))
    for row, part in enumerate(scores.split(list(counts))):
        whole[row, : len(part)] = part
    return whole


def _continued(
    question: str, choice: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, list[int]]:
    """The tokens of a question and an ending, with labels for the ending alone."""
    row = Decoder().encode(Decoder().prompt(question, " "), choice, tokenizer, max_length)
    ids, labels = row["input_ids"][:-1], row["labels"][:-1]  # an ending does not end the text
    if IGNORED not in labels:  # the first token is predicted from one before it too
        start = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if start is None else start, *ids]
        labels = [IGNORED, *labels]
    return {"input_ids": ids, "labels": labels}


# ------------------------------------------------------------------------------ reading the rows


def _without_blank_end(row: Sequence[Any]) -> list[Any]:
    """The endings of a row, which may have fewer than there are columns."""
    size = max((at for at, each in enumerate(row, start=1) if not no_label(each)), default=0)
    return list(row[:size])


def _texts_of(cell: Any) -> Any:
    """The list of texts in a cell; data sets on the Hub have it in a dictionary's ``text``."""
    listed = cell.get("text", cell) if isinstance(cell, Mapping) else cell
    if not isinstance(listed, list):
        return listed
    return [str(each) if type(each) in (int, float) else each for each in listed]


def _by_mark(cell: Any, label: Any) -> Any:
    """The place of the choice with this mark, where a dictionary gives each its ``label``.

    Where marks are numbers, a number that is none of them is no place either.
    """
    marks = cell.get("label") if isinstance(cell, Mapping) else None
    if not isinstance(marks, list):
        return label
    names = list(map(class_name, marks))
    if class_name(label) in names:
        return names.index(class_name(label))
    if no_label(label) or not any(map(str.isdecimal, names)):
        return label
    return f"{label} (the marks are {', '.join(names)})"


def _right(rows: RawSplit) -> list[int]:
    pairs = zip(rows.inputs["choices"], rows.labels, strict=True)
    return [_place(rows, row, *pair) for row, pair in enumerate(pairs, start=1)]


def _place(rows: RawSplit, row: int, choices: list[str], label: Any) -> int:
    """The index of the right ending: a number from 0, a letter, or the ending itself."""
    if len(choices) < 2:
        raise rows.wrong(row, f"is of one choice, {short_list(choices)}", "Give each row several")
    if not all(each.strip() for each in choices):  # nothing is as likely as what has no token
        raise rows.wrong(row, f"is of a blank choice, {short_list(choices)}", "Write each one out")
    places = set() if no_label(label) else _places(label, choices)
    if len(places) == 1:
        return places.pop()
    problem = "has no answer" if no_label(label) else f"holds {short_repr(label)}"
    reading = "can be read in two ways" if places else "is none"
    raise rows.wrong(
        row,
        f"{problem}, which {reading} of the {len(choices)} choices",
        f"Give a number from 0 to {len(choices) - 1}, a letter from A, or the ending itself",
    )


def _places(label: Any, choices: Sequence[str]) -> set[int]:
    """The places that a label can mean; a whole number that is no text is a place alone."""
    name = class_name(label)
    found = {int(name)} if name.isdecimal() else set()
    if isinstance(label, str):
        found |= {LETTERS.index(name)} if len(name) == 1 and name in LETTERS else set()
        found |= {place for place, choice in enumerate(choices) if choice == name}
    return {place for place in found if place < len(choices)}
