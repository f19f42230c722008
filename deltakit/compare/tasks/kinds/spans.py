"""Extractive question answering: which part of a context answers a question?"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import (
    CellType,
    ColumnNames,
    RawSplit,
    RawTable,
    short_repr,
)
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.data.squad import Given, answers_of
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    Kind,
    Outputs,
    ParsedLabels,
    check_fast,
    mapped,
    references,
    register_kind,
)
from deltakit.models.heads import Head, SpanHead

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = CellType(name="a text", read=lambda cell: cell if isinstance(cell, str) else None)
LONGEST = 30
"""Most tokens of an answer that is predicted."""
_TARGETS = ("start_positions", "end_positions")
_NO_ANSWER = "-1:"
_OUTSIDE = [-1, -1]


class _Best(NamedTuple):
    """The best span of a window, and the score of none."""

    score: float
    begin: int
    end: int
    null: float


@register_kind("spans")
@dataclass(frozen=True, kw_only=True)
class Spans(Kind):
    """The part of a context that answers a question, or none.

    A context that is too long is read in overlapping windows, in training too. A window without
    the answer has its first token, [CLS], for one. The best span of all windows is the prediction;
    it is no answer where train has unanswerable questions and the first token scores higher.

    Attributes:
        unanswerable: whether train has questions without an answer.
    """

    precedence: ClassVar[int] = -1
    options: ClassVar[frozenset[str]] = Kind.options | {"--pair-column"}
    text_column: ClassVar[str | None] = "question"
    label_column: ClassVar[str | None] = "answers"
    inputs: ClassVar[Mapping[str, CellType]] = {"context": TEXT}
    least_tokens: ClassVar[int] = 10  # half of them are for the question
    batch_size: ClassVar[int] = 16
    unanswerable: bool = False

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        usual = (asked.text or cls.text_column, asked.pair or "context") == ("question", "context")
        _, label = cls.columns_in(columns, asked)
        return usual and {"question", "context", label} <= set(columns) and not asked.separator

    @classmethod
    def columns_in(cls, columns: Columns, asked: ColumnNames) -> tuple[str | None, str | None]:
        usual = next((name for name in ("answers", "answer") if name in columns), "answers")
        return asked.text or cls.text_column, asked.label or usual

    @classmethod
    def prepared(cls, table: RawTable, names: ColumnNames) -> RawTable:
        """The table with the column ``context``."""
        contexts = table.column(names.pair or "context", "--pair-column")
        return RawTable(where=table.where, columns={**table.columns, "context": contexts})

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {
            split: Examples(texts=rows.texts, inputs=rows.inputs, labels=_answers(rows))
            for split, rows in splits.items()
        }
        none = [(_NO_ANSWER,) in (part.labels or ()) for part in read.values()]
        unanswerable = (_NO_ANSWER,) in (read["train"].labels or ())
        note = (
            "train has an answer to every question, so that no question is predicted to have none."
        )
        return ParsedLabels(
            cls(unanswerable=unanswerable), read, (note,) if any(none) and not unanswerable else ()
        )

    @property
    def description(self) -> str:
        return f"answers out of a text{', or none' if self.unanswerable else ''}"

    @property
    def identity(self) -> tuple[str, ...]:
        return ("unanswerable",) if self.unanswerable else ()

    @property
    def head(self) -> Head:
        return SpanHead()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("answer_f1", "answer_exact")

    def check_tokenizer(self, model: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        check_fast(self, model, tokenizer)

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        """As for every kind. ``windows`` are the model's inputs, and ``input_ids`` the first's.

        ``spans`` has the first and the last token of the answer in each window, ``offsets`` the
        characters of the context that each token is of.
        """

        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            columns = zip(rows["text"], rows["context"], rows["label"], strict=True)
            each = [
                _encoded(question, context, answers, tokenizer, max_length)
                for question, context, answers in columns
            ]
            return {key: [row[key] for row in each] for key in each[0]}

        return mapped(data, tokens)

    def notes(self, encoded: "Dataset") -> tuple[str, ...]:
        several = sum(len(windows) > 1 for windows in encoded["windows"])
        if not several:
            return ()
        return (
            f"{several:,} of {len(encoded):,} contexts do not fit --max-length; they are read in "
            "windows that overlap.",
        )

    def size(self, example: EncodedExample) -> int:
        return sum(len(window["input_ids"]) for window in example["windows"])

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        """All windows of the rows, in order."""
        import torch

        windows = [window for row in rows for window in row["windows"]]
        batch = tokenizer.pad(windows, padding_side="right", return_tensors="pt")
        first, last = zip(*(span for row in rows for span in row["spans"]), strict=True)
        return {
            **batch,
            "start_positions": torch.tensor(first),
            "end_positions": torch.tensor(last),
        }

    def without_labels(self, batch: Batch) -> Batch:
        return {key: each for key, each in batch.items() if key not in _TARGETS}

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        batch = self.without_labels(self.collate(rows, tokenizer))
        inputs = {key: each.to(model.device) for key, each in batch.items()}
        outputs = model(**inputs)
        length = inputs["input_ids"].shape[1]
        # From the end: a method may put positions of its own before the text.
        begins, ends = (
            each[:, -length:].double().cpu() for each in (outputs.start_logits, outputs.end_logits)
        )
        pairs = zip(begins, ends, strict=True)
        return Outputs([self._answer(row, pairs) for row in rows])

    def _answer(self, row: EncodedExample, logits: Iterator[tuple["Tensor", "Tensor"]]) -> Value:
        """The answer for a row, whose windows' logits are the next ones."""
        found = [(_best_span(offsets, *next(logits)), offsets) for offsets in row["offsets"]]
        best, offsets = max(found, key=lambda each: each[0].score)
        if self.unanswerable and min(each.null for each, _ in found) >= best.score:
            return ""
        return str(row["context"])[offsets[best.begin][0] : offsets[best.end][1]].strip()

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The most frequent answer of train, which may be none."""
        del tokenizer
        firsts = (answers[0] for answers in references(train) if isinstance(answers, tuple))
        counted = Counter(map(str, firsts))
        most = min(counted, key=lambda answer: (-counted[answer], answer))
        return Outputs([most] * len(test))


def _best_span(offsets: Sequence[Sequence[int]], begins: "Tensor", ends: "Tensor") -> _Best:
    """The likeliest span of at most `LONGEST` tokens of the context."""
    import torch

    size = len(offsets)
    outside = torch.tensor([first < 0 for first, _ in offsets])
    begin = begins[:size].masked_fill(outside, -torch.inf)
    end = ends[:size].masked_fill(outside, -torch.inf)
    both = begin[:, None] + end[None, :]
    allowed = torch.ones_like(both, dtype=torch.bool).triu().tril(LONGEST - 1)
    both = both.masked_fill(~allowed, -torch.inf)
    at = int(both.argmax())
    null = float(begins[0] + ends[0])
    return _Best(float(both.flatten()[at]), at // size, at % size, null)


# ------------------------------------------------------------------------------ reading the rows


def _answers(rows: RawSplit) -> list[tuple[str, ...]]:
    """The answers of each row, each after the place of its first character and a colon."""
    pairs = zip(rows.inputs["context"], rows.labels, strict=True)
    return [_row_answers(rows, row, *pair) for row, pair in enumerate(pairs, start=1)]


def _row_answers(rows: RawSplit, row: int, context: str, cell: Any) -> tuple[str, ...]:
    given = answers_of(cell)
    if given is None:
        raise rows.wrong(
            row,
            f"holds {short_repr(cell)}, which is not an answer",
            "Give the text of the answer, a list of texts, or SQuAD's text and answer_start",
        )
    found = [_placed(rows, row, context, answer) for answer in given]
    return tuple(dict.fromkeys(found)) or (_NO_ANSWER,)


def _placed(rows: RawSplit, row: int, context: str, answer: Given) -> str:
    start, text = answer.start, answer.text
    if start is None or context[start : start + len(text)] != text:
        start = _nearest(context, text, start or 0)
    if start is None or not text.strip():
        raise rows.wrong(
            row,
            f"holds {short_repr(text)}, which is not in the context",
            "Give answers as the context has them, and none to a question without an answer",
        )
    return f"{start}:{text}"


def _nearest(context: str, text: str, place: int) -> int | None:
    """The start of the text in the context that is nearest to a place; None where there is none."""
    starts, at = [], context.find(text)
    while at >= 0 and text:
        starts.append(at)
        at = context.find(text, at + 1)
    return min(starts, key=lambda start: abs(start - place), default=None)


# ---------------------------------------------------------------------------------------- tokens


def _encoded(
    question: str,
    context: str,
    answers: Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> dict[str, Any]:
    """One row: its windows, and the answer's place in each."""
    question = _shortened(question, tokenizer, max_length // 2)
    added = tokenizer.num_special_tokens_to_add(pair=True)
    asked = len(tokenizer(question, add_special_tokens=False)["input_ids"])
    room = max(1, max_length - added - asked)
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=asked + added + room,
        stride=room // 3,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    start, _, first = answers[0].partition(":")
    wanted = (int(start), int(start) + len(first))
    names = [name for name in tokenizer.model_input_names if name in encoded]
    windows = [
        {name: encoded[name][at] for name in names} for at in range(len(encoded["input_ids"]))
    ]
    offsets = [_context_offsets(encoded, at) for at in range(len(windows))]
    return {
        "input_ids": windows[0]["input_ids"],
        "windows": windows,
        "offsets": offsets,
        "spans": [_tokens_of(wanted, window) for window in offsets],
        "context": context,
        "truth": [answer.partition(":")[2] for answer in answers],
    }


def _shortened(question: str, tokenizer: "PreTrainedTokenizerBase", most: int) -> str:
    """The question, cut so that half of the model's length is left for the context."""
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    offsets = encoded["offset_mapping"]
    return question if len(offsets) <= most else question[: offsets[most - 1][1]]


def _context_offsets(encoded: Any, window: int) -> list[list[int]]:
    """The characters that each token is of; -1 outside of the context."""
    parts = zip(encoded["offset_mapping"][window], encoded.sequence_ids(window), strict=True)
    return [list(place) if part == 1 else _OUTSIDE for place, part in parts]


def _tokens_of(wanted: tuple[int, int], offsets: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The first and the last token of an answer; the first token twice where it is not whole."""
    inside = [
        at
        for at, (first, last) in enumerate(offsets)
        if first >= 0 and first < wanted[1] and last > wanted[0]
    ]
    whole = inside and offsets[inside[0]][0] <= wanted[0] and offsets[inside[-1]][1] >= wanted[1]
    return (inside[0], inside[-1]) if whole else (0, 0)
