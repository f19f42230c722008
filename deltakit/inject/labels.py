"""The names of classes in a model's config: those of the head that the model runs with.

A delta whose head was trained with other names, or with the same in another order, brings its own.
The config has them while the delta is active, so predictions have the right names.
"""

import warnings
from typing import TYPE_CHECKING

from deltakit.core.checkpoint import Part
from deltakit.core.composition import PerRow
from deltakit.core.labels import Labels, labels_of, row_of_each
from deltakit.errors import CheckpointError
from deltakit.inject.attachments import Attached, Attachments

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def labels_with(model: "PreTrainedModel", attachments: Attachments, attached: Attached) -> Labels:
    """The names of the classes of a delta's head; nothing where it has no head, or they no names.

    A head without names of its own has those of the model's config.
    """
    if not attached.own.keys() & attached.head:
        return ()
    return attached.labels or _own_labels(model, attachments)


def take_labels(
    model: "PreTrainedModel",
    attachments: Attachments,
    attached: Attached,
    part: Part,
    origin: str,
) -> None:
    """Gives a delta the names that its head was saved with, and the config if it is active.

    A warning is given where the model's config has other names, or another order.

    Raises:
        CheckpointError: the model has another number of classes.
    """
    here = _own_labels(model, attachments)
    if not part.labels or part.labels == here or not attached.own.keys() & attached.head:
        return
    if len(part.labels) != model.config.num_labels:
        raise CheckpointError(
            f"{origin}: its head is for {len(part.labels)} classes, and the config of this "
            f"{type(model).__name__} says {model.config.num_labels}. To load the delta without "
            "its task head, pass head=False."
        )
    attached.labels = part.labels
    settle_labels(model, attachments)
    if here:
        warnings.warn(
            f"{origin}: the classes of its head are {_listed(part.labels)} in this order; "
            f"model.config has {_listed(here)}. While {attached.name!r} is active, model.config "
            "has those of its head. Number the labels of your data alike.",
            stacklevel=2,
        )


def settle_labels(model: "PreTrainedModel", attachments: Attachments) -> None:
    """Gives the config the names of the active head's classes, or its own ones."""
    config = model.config
    if attachments.config_labels is not None:
        config.id2label, config.label2id = attachments.config_labels
        attachments.config_labels = None
    labels = _active_labels(attachments)
    if labels:
        attachments.config_labels = config.id2label, config.label2id
        config.id2label, config.label2id = dict(enumerate(labels)), row_of_each(labels)


def keep_labels(attachments: Attachments) -> None:
    """Makes the names that the config has for now its own; another head keeps those it had."""
    if attachments.config_labels is None:
        return
    before = labels_of(attachments.config_labels[1])
    for attached in attachments.attached.values():
        if attached.own.keys() & attached.head and not attached.labels:
            attached.labels = before
    attachments.config_labels = None


def _own_labels(model: "PreTrainedModel", attachments: Attachments) -> Labels:
    """The names that the config has without deltas."""
    if attachments.config_labels is not None:
        return labels_of(attachments.config_labels[1])
    return labels_of(model.config.to_dict().get("label2id"))


def _active_labels(attachments: Attachments) -> Labels:
    """The names that the active deltas bring; nothing where rows of one batch have different."""
    composition = attachments.active
    names = () if composition is None else composition.names
    heads = [a for a in map(attachments.get, names) if a.own.keys() & a.head]
    if isinstance(composition, PerRow):
        found = {each.labels for each in heads}
        return found.pop() if len(found) == 1 else ()
    return heads[-1].labels if heads else ()


def _listed(labels: Labels) -> str:
    shown = ", ".join(map(repr, labels[:6]))
    return f"{shown}, ..." if len(labels) > 6 else shown
