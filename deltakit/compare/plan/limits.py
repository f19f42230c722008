"""Limits of a model's inputs: checked before anything is trained."""

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from torch import nn

from deltakit.compare.records.latency import shape_of
from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from deltakit.compare.tasks.task import TaskData

_TABLES = ("position_embeddings", "embed_positions", "position_embedding", "wpe")
"""Names of modules that hold a vector for each absolute position, in transformers' models."""
_SPECIAL = ("pad", "bos", "eos", "cls", "sep", "unk")


def longest_input(skeleton: nn.Module, tokenizer: "PreTrainedTokenizerBase") -> int:
    """The most tokens that a model reads: its table of positions, or its tokenizer, ends there."""
    tables = (
        module.num_embeddings - _first_position(module)
        for name, module in skeleton.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES
    )
    return min([int(tokenizer.model_max_length), *tables])


def _first_position(table: nn.Embedding) -> int:
    """The place of the first token's vector: behind the padding's (RoBERTa), or at an offset."""
    if table.padding_idx is not None:
        return table.padding_idx + 1
    return int(vars(table).get("offset", 0))


def cut_length(asked: int, limit: int, model: str) -> tuple[int, tuple[str, ...]]:
    """The length that texts are cut to, and a note where that is not the one asked for."""
    if asked <= limit:
        return asked, ()
    note = f"texts are cut to {limit} tokens, the most that {model} reads (--max-length {asked})."
    return limit, (note,)


def check_shapes(shapes: Iterable[str], limit: int, model: str) -> None:
    """Raises `InvalidConfig` for a shape of --latency that the model cannot read."""
    for text in shapes:
        if shape_of(text).tokens > limit:
            raise InvalidConfig(
                f"--latency {text}: model {model!r} takes {limit} tokens at most. Give "
                "shorter texts."
            )


def check_tokens(
    model: str, skeleton: Any, tokenizer: "PreTrainedTokenizerBase", tasks: Iterable["TaskData"]
) -> None:
    """Raises `InvalidConfig` for a tokenizer whose tokens the model or a text lacks."""
    if tokenizer.pad_token_id is None:
        raise InvalidConfig(
            f"the tokenizer of model {model!r} has no token for padding, and no end or unknown "
            "token in its place. Set tokenizer.pad_token to one of its tokens and save it again."
        )
    known = skeleton.get_input_embeddings().num_embeddings
    for name, number in _special_ids(tokenizer):
        if number >= known:
            raise InvalidConfig(
                f"the tokenizer of model {model!r} has the {name} token {number}, but the model "
                f"has embeddings for 0 to {known - 1}. Call "
                "model.resize_token_embeddings(len(tokenizer)) and save the model again."
            )
    if not tokenizer("")["input_ids"]:  # nothing is added to a text
        for task in tasks:
            _check_no_text_is_empty(task, tokenizer)


def _special_ids(tokenizer: "PreTrainedTokenizerBase") -> Iterator[tuple[str, int]]:
    for name in _SPECIAL:
        number = getattr(tokenizer, f"{name}_token_id")
        if number is not None:
            yield name, number


def _check_no_text_is_empty(task: "TaskData", tokenizer: "PreTrainedTokenizerBase") -> None:
    for split in ("train", "validation", "test"):
        texts = list(getattr(task, split)["text"])
        encoded = tokenizer(texts)["input_ids"] if texts else []
        empty = [row for row, ids in enumerate(encoded) if not ids]
        if empty:
            raise InvalidConfig(
                f"{len(empty):,} of {len(texts):,} texts of {task.name}'s {split} split have no "
                f"token in this model's vocabulary; the first is {texts[empty[0]]!r}. Remove "
                "these rows, or choose a model with a token for unknown words."
            )
