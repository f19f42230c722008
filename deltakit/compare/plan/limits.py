"""Limits of a model's inputs: checked before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from deltakit.compare.records.latency import shape_of
from deltakit.compare.tasks.data.columns import short_repr
from deltakit.core.method import Method
from deltakit.core.provider import ExternalMethod
from deltakit.core.site import Handle, Site
from deltakit.errors import InvalidConfig
from deltakit.models.heads import WritingHead

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from deltakit.compare.tasks.task import TaskData

_TABLES = re.compile(r"wpe|(?!rel).*posit.*")
"""Names of modules that hold a vector for each absolute position, in transformers' models."""
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk")


def longest_input(skeleton: nn.Module, tokenizer: PreTrainedTokenizerBase, extra: int = 0) -> int:
    """The most tokens of a text that a model reads.

    Its table of positions ends there, `extra` of them left out, or its tokenizer does. Positions
    that are relative or rotated have no end.
    """
    from torch import nn

    tables = (
        module.num_embeddings - _first_position(module) - extra
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Embedding) and _TABLES.fullmatch(name.rpartition(".")[2])
    )
    return min([int(tokenizer.model_max_length), *tables])


def _first_position(table: nn.Embedding) -> int:
    """The place of the first token's vector: behind the padding's (RoBERTa), or at an offset."""
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return int(vars(table).get("offset", 0))


def added_positions(method: Method, handles: Iterable[Handle]) -> int:
    """The number of places in the table of positions that a method takes from the text."""
    if isinstance(method, ExternalMethod):
        return method.added_positions()
    inputs = [handle for handle in handles if handle.site in (Site.TOKENS, Site.POSITION_IDS)]
    return sum(
        _places(handle.site, placement.make_delta(handle))
        for placement in method.placements()
        for handle in inputs
        if handle.site is placement.site
    )


def _places(site: Site, delta: nn.Module) -> int:
    """The number of places that the tokens behind a delta are moved by."""
    import torch

    from deltakit.core.delta import ExtraPositions

    if site is Site.POSITION_IDS:
        return int(delta(torch.zeros(1, 1, dtype=torch.long)).item())
    return delta.length if site is Site.TOKENS and isinstance(delta, ExtraPositions) else 0


def cut_length(asked: int, limit: int, model: str) -> tuple[int, tuple[str, ...]]:
    """The length that texts are cut to, and a note where that is not the one asked for."""
    if asked <= limit:
        return asked, ()
    note = f"texts are cut to {limit} tokens, the most that {model} reads (--max-length {asked})."
    return limit, (note,)


def check_room(
    tasks: Iterable[TaskData],
    tokenizer: PreTrainedTokenizerBase,
    asked: int,
    limit: int,
    extra: int,
) -> None:
    """Raises `InvalidConfig` where texts have no room for a token of their own.

    A tokenizer leaves texts as they are rather than cut special tokens off.

    Args:
        tasks: whose texts are read.
        tokenizer: reads them.
        asked: the length that texts are cut to.
        limit: the most that the model reads of a text.
        extra: positions that a prompt has taken from the text already.
    """
    for task in tasks:
        special = tokenizer.num_special_tokens_to_add(pair=task.has_pairs)
        least = max(special + 1, task.kind.least_tokens)
        if min(asked, limit) < least:
            taken = f", and a prompt takes {extra} positions" if extra else ""
            other = "Shorten the prompt" if extra else "Choose a model that reads longer texts"
            raise InvalidConfig(
                f"{min(asked, limit)} tokens a text are too few for {task.name!r}, which takes "
                f"{least}: the tokenizer puts {special} special ones around a text{taken}. "
                f"{other if limit < least else f'Give --max-length {least} or more'}."
            )


def readable_shapes(
    shapes: tuple[str, ...], limit: int, model: str, usual: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The shapes of --latency that the model reads, and a note on those that it does not.

    Raises:
        InvalidConfig: the model cannot read one, and they are not the `usual` ones of a profile.
    """
    long = [text for text in shapes if shape_of(text).tokens > limit]
    if not long:
        return shapes, ()
    if not usual:
        raise InvalidConfig(
            f"--latency {long[0]}: model {model!r} takes {limit} tokens at most. Give shorter "
            "texts."
        )
    note = f"latency is not timed at {', '.join(long)}: {model} reads {limit} tokens at most."
    return tuple(text for text in shapes if text not in long), (note,)


def check_tokens(
    model: str, skeleton: Any, tokenizer: PreTrainedTokenizerBase, tasks: Iterable[TaskData]
) -> None:
    """Raises `InvalidConfig` for a tokenizer whose tokens the model or a text lacks."""
    if tokenizer.pad_token_id is None:
        raise InvalidConfig(
            f"the tokenizer of model {model!r} has no token for padding, and no end or unknown "
            "token in its place. Set tokenizer.pad_token to one of its tokens and save it again."
        )
    for task in tasks:
        task.kind.check_tokenizer(model, tokenizer)
    known = skeleton.get_input_embeddings().num_embeddings
    for name, number in _special_ids(tokenizer):
        if number >= known:
            raise InvalidConfig(
                f"the tokenizer of model {model!r} has the {name} token {number}, but the model "
                f"has embeddings for 0 to {known - 1}. Call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again."
            )
    whole = max(tokenizer.get_vocab().values(), default=0) < known
    if whole and _reads_everything(tokenizer):
        return
    for task in tasks:
        for split in ("train", "validation", "test"):
            where = f"{task.name}'s {split} split"
            for column, texts in _texts(getattr(task, split)):
                _check_texts(where, column, texts, tokenizer, known)


def _reads_everything(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if no text is without a token, and no word is without one."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    in_pieces = backend is not None and type(backend.model).__name__ == "BPE"
    words = in_pieces or getattr(tokenizer, "unk_token_id", None) is not None
    return words and bool(tokenizer("")["input_ids"])


def _texts(rows: Dataset) -> Iterator[tuple[str, list[str]]]:
    """The columns of texts, answers among them; lists of words are joined."""
    for column in rows.column_names:
        values = list(rows[column])
        if all(isinstance(value, str) for value in values):
            yield column, values
        elif all(isinstance(v, list) and all(isinstance(w, str) for w in v) for v in values):
            yield column, [" ".join(words) for words in values]


def check_answers(
    tasks: Iterable[TaskData], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[str, ...]:
    """Notes on texts of the first task, the target, that are cut.

    Raises:
        InvalidConfig: texts to continue leave no room for their answers.
    """
    notes = [_cuts(task, tokenizer, max_length) for task in tasks]
    return notes[0]


def _cuts(task: TaskData, tokenizer: PreTrainedTokenizerBase, max_length: int) -> tuple[str, ...]:
    kind, notes = task.kind, []
    for split in ("train", "validation", "test") if isinstance(kind.head, WritingHead) else ():
        encoded = kind.encode(getattr(task, split), tokenizer, max_length)
        lost = [] if kind.cut is None else [tokens for tokens in encoded["lost"] if tokens]
        if lost:
            notes.append(
                f"{split}: {len(lost):,} of {len(encoded):,} texts lose their {kind.cut}, up to "
                f"{max(lost):,} tokens (--max-length {max_length})."
            )
    return tuple(notes)


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, int]]:
    for name in _SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            yield name, number


def _check_texts(
    where: str, column: str, texts: list[str], tokenizer: PreTrainedTokenizerBase, known: int
) -> None:
    """Raises `InvalidConfig` for a text without a token, or with one that the model lacks."""
    encoded = _encoded(where, column, texts, tokenizer)
    empty = [row for row, ids in enumerate(encoded) if not ids and column == "text"]
    if empty:
        raise InvalidConfig(
            f"{len(empty):,} of {len(texts):,} texts of {where} have no token in this model's "
            f"vocabulary; the first is {texts[empty[0]]!r}. Remove these rows, or choose a model "
            "with a token for unknown words."
        )
    for row, ids in enumerate(encoded):
        if max(ids, default=0) >= known:
            raise InvalidConfig(
                f"{where}, row {row + 1}: the {column} has the token "
                f"{tokenizer.convert_ids_to_tokens(max(ids))!r} ({max(ids)}), but the model has "
                f"embeddings for 0 to {known - 1}. Call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again."
            )


def _encoded(
    where: str, column: str, texts: list[str], tokenizer: PreTrainedTokenizerBase
) -> list[list[int]]:
    """The tokens of each text. Raises `InvalidConfig` for one that the tokenizer cannot read."""
    try:
        return list(tokenizer(texts)["input_ids"]) if texts else []
    except Exception as error:  # tokenizers raises no class of its own
        row = next((row for row, text in enumerate(texts) if not _reads(tokenizer, text)), 0)
        reason = " ".join(str(error).split())[:100].rstrip(".")
        raise InvalidConfig(
            f"{where}, row {row + 1}: this model's tokenizer cannot read the {column} "
            f"{short_repr(texts[row])} ({reason}). Remove such rows, or choose a model with a "
            "token for unknown words."
        ) from None


def _reads(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    try:
        tokenizer(text)
    except Exception:
        return False
    return True
