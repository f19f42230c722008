"""Short answers: does a model that is given a prompt generate exactly what it should?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import ColumnNames, RawSplit, is_null, no_label, short_repr
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.data.splits import Examples
from deltakit.compare.tasks.kinds.base import (
    Batch,
    EncodedExample,
    Kind,
    Outputs,
    ParsedLabels,
    mapped,
    register_kind,
)
from deltakit.compare.tasks.kinds.causal import IGNORED, language_batch
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, LanguageHead

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@register_kind("answers")
@dataclass(frozen=True, kw_only=True)
class Answers(Kind):
    """A text to continue, and the one line that should follow.

    A space separates the two, unless the prompt ends in a line break. An end-of-text token follows
    the answer, and the loss is taken of the answer alone. A prompt that is too long loses its
    beginning. Generation is greedy. Its first line, without the spaces around it, is the answer.
    """

    precedence: ClassVar[int] = -1
    text_column: ClassVar[str] = "prompt"
    label_column: ClassVar[str | None] = "answer"
    batch_size: ClassVar[int] = 32

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
    def head(self) -> Head:
        return LanguageHead()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("exact_match",)

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        """As for every kind; ``before`` is the prompt, ``most`` how many tokens to generate."""

        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            pairs = zip(rows["text"], rows["label"], strict=True)
            encoded = [_encoded(*pair, tokenizer, max_length) for pair in pairs]
            return {key: [row[key] for row in encoded] for key in encoded[0]}

        encoded = mapped(data, tokens)
        # The same for every row: what a row is given must not depend on the rest of its batch.
        most = max(len(answer) for answer in encoded["answer"])
        return encoded.add_column("most", [most] * len(encoded))

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
        """Rows of one length at a time: not every method is right about a padded prompt."""
        lengths: dict[int, list[int]] = {}
        for at, row in enumerate(rows):
            lengths.setdefault(len(row["before"]), []).append(at)
        said: dict[int, Value] = {}
        for alike in lengths.values():
            texts = _continued(model, [rows[at] for at in alike], tokenizer)
            said.update(zip(alike, texts, strict=True))
        return Outputs([said[at] for at in range(len(rows))])


def _continued(
    model: "PreTrainedModel", rows: Sequence[EncodedExample], tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    """What follows the prompts, which have as many tokens each."""
    import torch

    ids = torch.tensor([row["before"] for row in rows], device=model.device)
    whole = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=rows[0]["most"],
        eos_token_id=tokenizer.eos_token_id,
        do_sample=False,
    )
    new = tokenizer.batch_decode(whole[:, ids.shape[1] :], skip_special_tokens=True)
    return [text.strip().partition("\n")[0].strip() for text in new]


def _encoded(
    prompt: str, answer: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, Any]:
    """One row. The two are tokenised together, because a space may belong to the next token."""
    prompt = prompt.rstrip(" ")
    space = "" if prompt[-1:].isspace() else " "
    first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    whole = tokenizer(prompt + space + answer, add_special_tokens=False)["input_ids"]
    same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(first, whole, strict=False))))
    begin, end = _ends(tokenizer)
    aim = [*whole[same:], end]
    room = max_length - len(begin) - len(aim)
    if room < 1:
        raise InvalidConfig(
            f"the answer {short_repr(answer)} has {len(aim)} tokens and leaves no room for its "
            f"prompt in {max_length}. Raise --max-length, or shorten the answer."
        )
    before = [*begin, *whole[:same][-room:]]
    return {
        "input_ids": [*before, *aim],
        "labels": [*([IGNORED] * len(before)), *aim],
        "truth": answer,
        "before": [*begin, *first[-room:]],
        "answer": aim,
    }


def _ends(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], int]:
    """What the tokenizer puts before a text, and the token that ends one."""
    end = tokenizer.eos_token_id
    if end is None:
        raise InvalidConfig(
            "the model's tokenizer has no end-of-text token, so that no answer would ever end. "
            "Choose another --model."
        )
    begin = tokenizer.bos_token_id
    starts = begin is not None and tokenizer("a")["input_ids"][:1] == [begin]
    return ([begin] if starts else []), end


def _lines(rows: RawSplit) -> list[str]:
    lines = []
    for row, value in enumerate(rows.labels, start=1):
        if no_label(value) or not isinstance(value, str | int | float):
            problem = "has no answer" if is_null(value) else f"holds {short_repr(value)}, no answer"
            raise rows.wrong(row, problem, "Give every prompt an answer")
        text = str(value).strip()
        if "\n" in text:
            raise rows.wrong(
                row, f"holds {short_repr(text)}, of several lines", "Give an answer of one line"
            )
        lines.append(text)
    return lines
