"""Tags of words: named entities, parts of speech, chunks."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

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
    check_fast,
    mapped,
    on_the_right,
    references,
    register_kind,
)
from deltakit.compare.tasks.kinds.causal import IGNORED
from deltakit.compare.tasks.kinds.classification import class_name, in_order
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, TokenHead

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_SPAN_TAG = re.compile(r"O|[BIESLU](-.*)?")
NOT_READ = -1
"""The prediction for a word that the model is not given. It is the id of no tag."""


@register_kind("tokens")
@dataclass(frozen=True, kw_only=True)
class Tokens(Kind):
    """A tag for each word of a sentence. `tags` are their names; the index is the tag's id.

    The first sub-word of a word is labelled, and predicts its tag; no loss is taken of the others.
    A word that is cut off has no prediction. It counts as wrong, and its entity as missed.
    """

    precedence: ClassVar[int] = -1
    options: ClassVar[frozenset[str]] = Kind.options | {"--label-separator"}
    text_column: ClassVar[str | None] = None
    label_column: ClassVar[str | None] = "tags"
    inputs: ClassVar[Mapping[str, CellType]] = {"tokens": WORDS}
    tags: tuple[str, ...]

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        wanted = {asked.text or "tokens", asked.label or "tags"}
        words = columns.get(asked.text or "tokens", [])
        return wanted <= set(columns) and asked.pair is None and as_lists(words) is not None

    @classmethod
    def columns_in(cls, columns: Columns, asked: ColumnNames) -> tuple[str | None, str | None]:
        del columns
        return None, asked.label or cls.label_column

    @classmethod
    def prepared(cls, table: RawTable, names: ColumnNames) -> RawTable:
        """The table with lists of words in the column ``tokens``, and of tags."""
        words = table.column(names.text or "tokens", "--text-column")
        tag_column = names.label or "tags"
        tags = table.column(tag_column, "--label-column")
        read = {
            column: as_lists(values, names.separator) or values
            for column, values in (("tokens", words), (tag_column, tags))
        }
        return RawTable(where=table.where, columns={**table.columns, **read})

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        named = {split: _tags(rows) for split, rows in splits.items()}
        tags = classes or in_order(tag for row in named["train"] for tag in row)
        if len(tags) < 2:
            raise InvalidConfig(
                f"{splits['train'].where} has only one tag, {short_list(tags)}. Give two or more; "
                "check --label-column."
            )
        ids = {tag: index for index, tag in enumerate(tags)}
        read = {
            split: Examples(inputs=rows.inputs, labels=_ids(rows, named[split], ids))
            for split, rows in splits.items()
        }
        kind = cls(tags=tags)
        return ParsedLabels(kind, read, () if kind.has_spans else (_no_spans(tags),))

    @property
    def has_spans(self) -> bool:
        """True if the tags are those of spans: ``O``, ``B-LOC``, ``I-LOC`` and the like."""
        return "O" in self.tags and all(map(_SPAN_TAG.fullmatch, self.tags))

    @property
    def description(self) -> str:
        return f"{len(self.tags)} tags of words"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tags

    @property
    def head(self) -> Head:
        return TokenHead(outputs=len(self.tags))

    @property
    def metrics(self) -> tuple[str, ...]:
        spans = ("span_f1",) if self.has_spans else ()
        return (*spans, "word_accuracy", "exact_match")

    def check_tokenizer(self, model: str, tokenizer: "PreTrainedTokenizerBase") -> None:
        check_fast(self, model, tokenizer)

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        """As for every kind; ``first`` is the place of each word's first sub-word that is read."""

        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            texts = [" ".join(words) for words in rows["tokens"]]
            encoded = tokenizer(texts, truncation=True, max_length=max_length)
            firsts = [
                first_sub_words(encoded[row], words) for row, words in enumerate(rows["tokens"])
            ]
            sizes = map(len, encoded["input_ids"])
            aims = [_aims(*row) for row in zip(sizes, firsts, rows["label"], strict=True)]
            return {**encoded, "labels": aims, "first": firsts, "truth": rows["label"]}

        return mapped(data, tokens)

    def notes(self, encoded: "Dataset") -> tuple[str, ...]:
        firsts = encoded["first"]
        cut = sum(place == NOT_READ for first in firsts for place in first)
        if not cut:
            return ()
        words, rows = sum(map(len, firsts)), sum(NOT_READ in first for first in firsts)
        return (
            f"{cut:,} of {words:,} words, in {rows:,} sentences, are cut off by --max-length or "
            "have no token. They count as wrong, and their spans as missed.",
        )

    def collate(
        self, rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
    ) -> Batch:
        return on_the_right(rows, tokenizer, padding={"labels": IGNORED}, without=("first",))

    def predict(
        self,
        model: "PreTrainedModel",
        rows: Sequence[EncodedExample],
        tokenizer: "PreTrainedTokenizerBase",
    ) -> Outputs:
        batch = self.collate(rows, tokenizer)
        length = batch.pop("labels").shape[1]
        logits = model(**{key: each.to(model.device) for key, each in batch.items()}).logits
        # From the end: a method may put positions of its own before the text.
        best = logits[:, -length:].argmax(-1).tolist()
        return Outputs([_said(row["first"], tags) for row, tags in zip(rows, best, strict=True)])

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The most frequent tag of train for every word."""
        del tokenizer
        counted = Counter(tag for tags in train["truth"] for tag in tags)
        most = min(counted, key=lambda tag: (-counted[tag], tag))
        return Outputs([(most,) * len(tags) for tags in _tuples(references(test))])


def first_sub_words(encoding: Any, words: Sequence[str]) -> list[int]:
    """The place of the first token of each word; `NOT_READ` where it has none.

    Words are joined by spaces before they are tokenised, as text is: a tokenizer that takes words
    one by one has to be told that a space goes before each.

    Args:
        encoding: one text's, of the `tokenizers` library.
        words: of the text, in order.
    """
    places, start = [], 0
    for word in words:
        spots = map(encoding.char_to_token, range(start, start + len(word)))
        places.append(next((spot for spot in spots if spot is not None), NOT_READ))
        start += len(word) + 1
    return places


def _aims(size: int, first: Sequence[int], tags: Sequence[int]) -> list[int]:
    """The labels of a text's tokens."""
    aims = [IGNORED] * size
    # Backwards, so that a token of two words has the tag of the first.
    for place, tag in reversed([*zip(first, tags, strict=True)]):
        if place != NOT_READ:
            aims[place] = tag
    return aims


def _said(first: Sequence[int], tags: Sequence[int]) -> Value:
    return tuple(NOT_READ if place == NOT_READ else tags[place] for place in first)


def _tuples(values: Sequence[Value]) -> list[tuple[Any, ...]]:
    return [value for value in values if isinstance(value, tuple)]


def _no_spans(tags: Sequence[str]) -> str:
    return (
        f"the tags ({short_list(tags)}) name no spans, as O, B-LOC and I-LOC do: scores are of "
        "single words."
    )


# ------------------------------------------------------------------------------ reading the tags


def _tags(rows: RawSplit) -> list[list[str]]:
    """The names of the tags of every sentence."""
    pairs = zip(rows.inputs["tokens"], rows.labels, strict=True)
    return [_row_tags(rows, row, *pair) for row, pair in enumerate(pairs, start=1)]


def _row_tags(rows: RawSplit, row: int, words: list[str], tags: Any) -> list[str]:
    if not isinstance(tags, list):
        problem = "has no tags" if no_label(tags) else f"holds {short_repr(tags)}, no list of tags"
        raise rows.wrong(row, problem, "Give every sentence a list with a tag for each word")
    if len(tags) != len(words):
        problem = f"has {len(tags)} tags for {len(words)} words"
        raise rows.wrong(row, problem, "Give each word one tag")
    if not all(isinstance(tag, str | int) and not no_label(tag) for tag in tags):
        problem = f"holds {short_repr(tags)}, of which not all are tags"
        raise rows.wrong(row, problem, "Give each word a whole number or a name")
    return [class_name(tag) for tag in tags]


def _ids(
    rows: RawSplit, named: Sequence[Sequence[str]], ids: Mapping[str, int]
) -> list[tuple[int, ...]]:
    for row, tags in enumerate(named, start=1):
        unknown = next((tag for tag in tags if tag not in ids), None)
        if unknown is not None:
            raise InvalidConfig(
                f"{rows.where}, row {row}: tag {short_repr(unknown)} does not occur in train, "
                f"whose tags are {short_list(ids)}. Correct it, or add examples of it to train."
            )
    return [tuple(ids[tag] for tag in tags) for tags in named]
