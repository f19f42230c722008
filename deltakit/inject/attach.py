"""attach, activate, disabled, detach: what a model becomes, and how it is given back."""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from deltakit.core.composition import Composition, One
from deltakit.core.method import Method
from deltakit.errors import IncompatibleDeltas, InvalidConfig, NameInUse, unknown
from deltakit.inject.attachments import CHILD, attachments_of, need_attachments
from deltakit.inject.base_names import parameter_names
from deltakit.inject.build import build, new_attachments
from deltakit.inject.compositions import check
from deltakit.inject.partitions import check_attachable
from deltakit.inject.switch import (
    change_to,
    keep_merged,
    paused,
    settle_flags,
    starting,
    use_in_thread,
)
from deltakit.models.quantised import keep_as_loaded, trainable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = re.compile(r"[A-Za-z0-9_-]+")


def attach(
    model: "PreTrainedModel",
    method: Method,
    name: str = "default",
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Attaches a delta to a model in place, makes it the active one and freezes the base.

    The task head (what lies outside ``model.base_model``) stays trainable; each delta has its own
    values of it, starting from the model's.

    Args:
        model: a transformers model. Its class, module names and state-dict keys stay as they are;
            the deltas are its new child module ``deltakit``.
        method: what to attach.
        name: letters, digits, ``-`` and ``_``.
        dtype: of all parameters that it trains; by default float32, or float64 on such a base.

    Raises:
        UnknownArchitecture: the model's sites are not known.
        SiteNotFound: the method needs a site that the model does not have.
        NameInUse: a delta has this name already.
        InvalidConfig: a bad name, or a method that does not fit the model's width.
        IncompatibleDeltas: members that cannot be composed.
    """
    check_name(name)
    method.check_names(parameter_names(model))
    attach_unchecked(model, method, name, dtype=dtype)


def attach_unchecked(
    model: "PreTrainedModel", method: Method, name: str, *, dtype: torch.dtype | None
) -> None:
    """As `attach`, for a method that was checked on the model that it was saved from.

    A saved delta may name a parameter by names that only its own model has, such as a tied one's.
    """
    check_name(name)
    check_attachable(model)
    old = attachments_of(model)
    attachments = old or new_attachments(model)
    if name in attachments.attached:
        raise NameInUse(f"a delta called {name!r} is attached already; detach it or take another.")
    attachments.training = attachments.base.train(model.training).training
    try:
        with paused(model, attachments) as pause:
            with torch.inference_mode(False):  # what is made inside cannot be trained
                attachments.add(build(model, attachments, method, name, dtype))
            pause.then = starting(One(name), (name,))
    except BaseException:
        if name in attachments.attached:
            attachments.remove(name)
        raise
    if old is None:
        attachments.undo.extend((*keep_as_loaded(model), *trainable(model)))
        model.add_module(CHILD, attachments)


def activate(
    model: "PreTrainedModel",
    what: str | Composition | None,
    *,
    train: tuple[str, ...] | list[str] | None = None,
) -> None:
    """Makes a delta, or a composition of several, the one that the model runs with.

    Args:
        model: a model with deltas.
        what: a delta's name, a composition (``Stack("a", "b")``), or None for the plain base.
        train: the names to train, of those in `what` and their members; by default all those in
            `what`, while the members of a fusion are frozen.

    Raises:
        UnknownName: a name that nothing attached has, or one to train that is not in `what`.
        IncompatibleDeltas: the deltas train the same parameters of the base.
    """
    attachments = need_attachments(model)
    composition = One(what) if isinstance(what, str) else what
    names = () if composition is None else composition.names
    taking_part = {attached.name for attached in attachments.with_members(names)}
    for name in train or ():
        if attachments.get(name).name not in taking_part:
            raise unknown("name to train", name, taking_part, hint="It is not in what is active.")
    if composition is not None:
        check(attachments, composition)
    trained = names if train is None else tuple(train)
    if attachments.merged is None:
        change_to(model, attachments, composition, trained)
    else:
        with paused(model, attachments) as pause:
            pause.then = None if composition is None else starting(composition, trained)
    for name in train or ():
        attachments.get(name).train_if_frozen()


@contextlib.contextmanager
def using(model: "PreTrainedModel", what: str | Composition | None) -> Iterator[None]:
    """Inside, the calls of this thread run with a delta or a composition of several.

    ::

        with dk.using(model, "imdb"):
            model(**batch)

    Other threads go on with what they use, or with what is active. It can be nested, and ends with
    an exception too. What is trained stays as `activate` has it.

    Args:
        model: a model with deltas.
        what: a delta's name, a composition (``Stack("a", "b")``), or None for the plain base.

    Raises:
        UnknownName: a name that nothing attached has.
        IncompatibleDeltas: the deltas cannot run together, or deltas are merged into the base.
    """
    attachments = need_attachments(model)
    if attachments.merged is not None:
        raise IncompatibleDeltas(
            "deltas are merged into the base's weights, which all threads share; `unmerge` first."
        )
    composition = One(what) if isinstance(what, str) else what
    if composition is not None:
        attachments.with_members(composition.names)
        check(attachments, composition)
    with use_in_thread(model, attachments, composition):
        yield


@contextlib.contextmanager
def disabled(model: "PreTrainedModel") -> Iterator[None]:
    """Inside, the model is the base exactly: no hooks, its own parameters and their flags.

    Afterwards what was active is active again, whatever was done inside.
    """
    attachments = need_attachments(model)
    with paused(model, attachments):
        settle_flags(model, attachments)
        yield


def detach(model: "PreTrainedModel", name: str | None = None) -> None:
    """Takes one delta, or all, off the model. With the last one gone it is as it was, bit for bit.

    What ``merge(model, keep=True)`` has merged stays in the weights when its deltas are detached.

    Raises:
        UnknownName: no delta has the name.
        IncompatibleDeltas: another delta is composed of it.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    names = list(attachments.attached) if name is None else [attachments.get(name).name]
    if attachments.active is not None and set(names) & set(attachments.active.names):
        keep_merged(attachments)
    with paused(model, attachments):
        attachments.remove(*names)
    if not attachments.attached:
        if attachments.program is not None:
            attachments.program.remove()
        for held in attachments.undo:
            held.remove()
        delattr(model, CHILD)


def check_name(name: str) -> None:
    """Raises `InvalidConfig` unless `name` can name a delta."""
    if not _NAME.fullmatch(name):
        raise InvalidConfig(
            f"{name!r} cannot name a delta; use letters, digits, '-' and '_', as in 'my-task'."
        )
