"""Chats: the likelihood of the assistant's turns, and whether a short last turn is generated."""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from deltakit.compare.records.result import Value
from deltakit.compare.tasks.data.columns import CellType, ColumnNames, RawSplit, short_repr
from deltakit.compare.tasks.data.files import Columns
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
from deltakit.compare.tasks.kinds.written import Decoder, ends, generated, too_long
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, LanguageHead

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ASSISTANT = "assistant"
SHORT = 64
"""Characters of a last turn that is short enough to be generated."""
_TAGS = re.compile(r"\{%-?\s*generation\s*-?%\}")

Message = Sequence[str]
"""A role and a content."""


def _message(cell: Any) -> list[str] | None:
    """The role and the content of a message of text alone."""
    if not isinstance(cell, dict) or cell.get("tool_calls") or cell.get("function_call"):
        return None
    role, content = cell.get("role"), cell.get("content")
    return [role, content] if isinstance(role, str) and isinstance(content, str) else None


def _messages(cell: Any) -> list[list[str]] | None:
    """The messages of a cell, which may be JSON in a text: a table has no lists."""
    if isinstance(cell, str):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return None
    read = [_message(each) for each in cell] if isinstance(cell, list) and cell else [None]
    kept = [each for each in read if each is not None]
    return kept if len(kept) == len(read) else None


MESSAGES = CellType(
    name="a list of messages, each of which has the texts 'role' and 'content'", read=_messages
)


@register_kind("chat")
@dataclass(frozen=True, kw_only=True)
class Chat(Kind):
    """Messages, of which a model writes those of the assistant.

    The tokenizer's chat template makes a text of them. The loss is taken of all turns of the
    assistant, each with the token that ends it, and of nothing else. Chats are not packed: each is
    a row of its own. A long one loses its beginning. The truth of a row is its last turn. The
    prediction is the sum of the negative log-likelihoods of the assistant's tokens, their number,
    and the last turn that is generated, where that is short.

    Attributes:
        short: true if all last turns are short enough to be generated.
    """

    precedence: ClassVar[int] = -1
    options: ClassVar[frozenset[str]] = frozenset()
    text_column: ClassVar[str | None] = None
    label_column: ClassVar[str | None] = None
    inputs: ClassVar[Mapping[str, CellType]] = {"messages": MESSAGES}
    batch_size: ClassVar[int] = 8  # a vocabulary of logits for every token takes its room
    short: bool = False

    @classmethod
    def matches(cls, columns: Columns, asked: ColumnNames) -> bool:
        return not asked.given() and "messages" in columns and "label" not in columns

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        del classes
        read = {split: _examples(rows) for split, rows in splits.items()}
        answers = [answer for each in read.values() for answer in each.labels or ()]
        notes = tuple(note for split, rows in splits.items() for note in _left_out(split, rows))
        return ParsedLabels(cls(short=max(map(len, answers)) <= SHORT), read, notes)

    @property
    def description(self) -> str:
        return "chats"

    @property
    def identity(self) -> tuple[str, ...]:
        return ("short",) if self.short else ()

    @property
    def head(self) -> Head:
        return LanguageHead()

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("answer_perplexity", *(("answer_match",) if self.short else ()))

    @property
    def cut(self) -> str:
        return "beginning"

    def encode(
        self, data: "Dataset", tokenizer: "PreTrainedTokenizerBase", max_length: int
    ) -> "Dataset":
        """As for every kind; ``before`` is what is there before the last turn."""

        def tokens(rows: dict[str, Any]) -> dict[str, Any]:
            chats = zip(rows["messages"], rows["label"], strict=True)
            encoded = [_encoded(*chat, tokenizer, max_length) for chat in chats]
            return {key: [row[key] for row in encoded] for key in encoded[0]}

        _check_template(tokenizer)
        encoded = mapped(data, tokens)
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
        nats = surprise(model, self.collate(rows, tokenizer))
        said = [""] * len(rows)
        if self.short:
            stops = sorted({stop for row in rows for stop in row["stops"]})
            said = generated(model, rows, tokenizer, Decoder(), eos_token_id=stops)
        values = zip(nats, map(_scored, rows), (text.strip() for text in said), strict=True)
        return Outputs(list(values))

    def majority_prediction(
        self, train: "Dataset", test: "Dataset", tokenizer: "PreTrainedTokenizerBase"
    ) -> Outputs:
        """The frequency of each of the assistant's tokens in train plus one, and its usual turn."""
        import numpy as np

        counts = np.ones(len(tokenizer))
        for row in train["labels"]:
            np.add.at(counts, _aims(row), 1)
        nats = np.log(counts.sum()) - np.log(counts)
        counted = Counter(map(str, references(train)))
        usual = min(counted, key=lambda text: (-counted[text], text)) if self.short else ""
        values: list[Value] = [
            (float(nats[_aims(row)].sum()), len(_aims(row)), usual) for row in test["labels"]
        ]
        return Outputs(values)


def _aims(labels: Sequence[int]) -> list[int]:
    """The tokens that are predicted: a text's first is not."""
    return [label for label in labels[1:] if label != IGNORED]


def _scored(row: EncodedExample) -> int:
    return len(_aims(row["labels"]))


# ------------------------------------------------------------------------------- reading the chats


def _examples(rows: RawSplit) -> Examples:
    """The messages before each last turn of the assistant, and that turn."""
    before, answers = [], []
    for row, chat in enumerate(rows.inputs["messages"], start=1):
        last = _last(chat)
        answer = chat[last][1].strip() if last else ""
        if not answer:
            problem = "no text in its last turn of" if last else "no turn of"
            first = " after another message" if last == 0 else ""
            raise InvalidConfig(
                f"{rows.where}, row {row}: the chat has {problem} the {ASSISTANT}{first}; it "
                f"starts with {short_repr(chat[0][1])}. Remove it, or give it an answer of the "
                f"role {ASSISTANT!r}."
            )
        before.append([list(message) for message in chat[:last]])
        answers.append(answer)
    return Examples(inputs={"messages": before}, labels=answers)


def _last(chat: Sequence[Message]) -> int | None:
    """The place of the assistant's last turn."""
    places = [at for at, (role, _) in enumerate(chat) if role == ASSISTANT]
    return places[-1] if places else None


def _left_out(split: str, rows: RawSplit) -> list[str]:
    """A note on messages behind the assistant's last turn."""
    behind = [len(chat) - 1 - (_last(chat) or 0) for chat in rows.inputs["messages"]]
    if not any(behind):
        return []
    return [
        f"{split}: {sum(behind):,} messages behind the last turn of the {ASSISTANT} were left out, "
        f"of {sum(map(bool, behind)):,} chats."
    ]


# ------------------------------------------------------------------------------------- as tokens


def _check_template(tokenizer: "PreTrainedTokenizerBase") -> None:
    if not tokenizer.chat_template:
        raise InvalidConfig(
            "the model's tokenizer has no chat template, so that it is not known how the model "
            "reads a chat. Name a model that was trained on chats with --model, such as smollm2, "
            "or set tokenizer.chat_template and save the tokenizer again."
        )
    if not tokenizer.is_fast:
        raise InvalidConfig(
            "the model's tokenizer cannot tell where a token is in a text, so that the turns of a "
            "chat are not known in it. Save a tokenizer.json with the model, or choose another "
            "--model."
        )


def _encoded(
    before: Sequence[Message], answer: str, tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> dict[str, Any]:
    """One row."""
    chat = [{"role": role, "content": content} for role, content in (*before, (ASSISTANT, answer))]
    ids, mask = masked(chat, tokenizer)
    if not any(mask):
        raise InvalidConfig(
            f"the chat template of the model writes no token for the answer {short_repr(answer)}. "
            "Choose another --model, or set tokenizer.chat_template."
        )
    size = max(at for at, own in enumerate(mask) if own) + 1
    start = max(at for at, (left, own) in enumerate(pairwise((0, *mask))) if own > left)
    aim = ids[start:size]
    first = ends(tokenizer)[0]
    first = first if ids[: len(first)] == first else []
    if len(aim) + len(first) + 1 > max_length:
        raise too_long(answer, aim, max_length)
    lost = max(0, size - max_length)
    lost = lost + len(first) if lost else 0
    kept = [*(first if lost else []), *ids[lost:size]]
    own = [*([0] * len(first) if lost else []), *mask[lost:size]]
    special = aim[-1:] if aim[-1] in tokenizer.all_special_ids else []
    return {
        "input_ids": kept,
        "labels": [token if mine else IGNORED for token, mine in zip(kept, own, strict=True)],
        "truth": answer,
        "before": kept[: len(kept) - len(aim)],
        "answer": aim,
        "stops": [ends(tokenizer)[1], *special],
        "lost": lost,
    }


def masked(
    chat: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[int]]:
    """The tokens of a chat, and a 1 for each that the assistant writes.

    A template with ``generation`` tags says which these are. Otherwise the chat is written up to
    each turn of the assistant, and with it.

    Raises:
        InvalidConfig: the template refuses the chat, or writes the beginning of a chat in another
            way once more follows.
    """
    if _TAGS.search(str(tokenizer.chat_template)):
        found = _applied(
            chat, tokenizer, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        return found["input_ids"], found["assistant_masks"]
    whole, spans = _spans(chat, tokenizer)
    found = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    mask = [
        int(any(begin < end and start < stop for begin, stop in spans))
        for start, end in found["offset_mapping"]
    ]
    return found["input_ids"], mask


def _spans(
    chat: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, list[tuple[int, int]]]:
    """The text of a chat, and from where to where the assistant writes."""
    whole, spans = _applied(chat, tokenizer, tokenize=False), []
    for at, message in enumerate(chat):
        if message["role"] != ASSISTANT:
            continue
        until = _applied(chat[: at + 1], tokenizer, tokenize=False)
        begin = until[: until.find(message["content"])]
        if at:
            begin = _applied(chat[:at], tokenizer, tokenize=False, add_generation_prompt=True)
        if not (whole.startswith(until) and until.startswith(begin)):
            raise InvalidConfig(
                "the chat template of the model writes earlier turns in another way once later "
                "ones follow, so that the assistant's cannot be told apart. Put generation tags "
                "around them in tokenizer.chat_template, or choose another --model."
            )
        spans.append((len(begin), len(until.rstrip())))
    return whole, spans


def _applied(
    chat: list[dict[str, str]], tokenizer: "PreTrainedTokenizerBase", **settings: Any
) -> Any:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(chat, **settings)
    except TemplateError as error:
        raise InvalidConfig(
            f"the chat template of the model refuses the chat that starts with "
            f"{short_repr(chat[0]['content'])}: {str(error).rstrip('.')}. Correct the chat, or "
            "choose another --model."
        ) from None
