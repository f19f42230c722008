"""Deltas apart from any model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltakit.core.composition import Composition
from deltakit.core.labels import Labels
from deltakit.core.method import Method, method_from_dict, method_to_dict

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Part:
    """One delta of a checkpoint: the one that was saved, or a member of it.

    Attributes:
        name: what it was attached as.
        method: what it is.
        kept: the members that are left at a site, by the site's key, where some were pruned.
        labels: the names of its head's classes, row by row; empty where they have none.
        headless: the method without its task head, where that includes parameters of the base.
    """

    name: str
    method: Method
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)
    labels: Labels = ()
    headless: Method | None = None


def part_to_plain(part: Part) -> dict[str, Any]:
    """A delta without its tensors, as plain data."""
    plain: dict[str, Any] = {"name": part.name, "method": method_to_dict(part.method)}
    plain |= {"kept": part.kept} if part.kept else {}
    return {**plain, "labels": list(part.labels)} if part.labels else plain


def part_from_plain(data: dict[str, Any]) -> Part:
    """The inverse of `part_to_plain`.

    Raises:
        KeyError, TypeError, ValueError: a key that is missing, or of another type.
        DeltakitError: no method, or a setting that it does not take.
    """
    return Part(
        name=data["name"],
        method=method_from_dict(data["method"]),
        kept=_read_kept(data.get("kept", {})),
        labels=_read_labels(data.get("labels", [])),
    )


def _read_kept(data: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(data, dict) or not all(isinstance(names, list) for names in data.values()):
        raise TypeError("'kept'")
    return {key: tuple(map(str, names)) for key, names in data.items()}


def _read_labels(data: Any) -> Labels:
    labels = tuple(data) if isinstance(data, list) else (None,)
    if not all(isinstance(name, str) for name in labels) or len({*labels}) < len(labels):
        raise TypeError("'labels'")
    return labels


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
