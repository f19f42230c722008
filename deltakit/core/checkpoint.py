"""Deltas apart from any model."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from deltakit.core.composition import Composition
from deltakit.core.method import Method


@dataclass(frozen=True, kw_only=True)
class Part:
    """One delta of a checkpoint: the one that was saved, or a member of it.

    Attributes:
        name: what it was attached as.
        method: what it is.
        kept: the members that are left at a site, by the site's key, where some were pruned.
        headless: the method without its task head, where that includes parameters of the base.
    """

    name: str
    method: Method
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    headless: Method | None = None


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Deltas apart from any model: read from a folder, or taken from a model to be written to one.

    Attributes:
        origin: where they come from, for messages.
        parts: the deltas, members first.
        base: what it was made on: model_type, and each stack's layers and width.
        tensors: by ``<part>/<site>.<parameter>``, or ``<part>/own/<parameter of the model>``.
        composition: what was saved, and is active after loading: the last part, or several.
        advice: what to do about files that do not fit a model, as a sentence.
    """

    origin: str
    parts: tuple[Part, ...]
    base: dict[str, Any]
    tensors: dict[str, Tensor]
    composition: Composition
    advice: str = "Copy the files again, as `save` wrote them."


def first_few(what: str, keys: list[str]) -> str:
    """The first few of `keys` behind a word, for a message; nothing where there are none."""
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(map(repr, keys[:3]))}{more}"
