"""Deltas between a model and a checkpoint: taken off one to be saved, put onto one when loaded.

Installing is strict: every tensor is used exactly once, or the model is left as it was.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import resolve
from deltakit.core.checkpoint import Checkpoint, Part, first_few
from deltakit.core.composition import Composition, One
from deltakit.core.data_start import take_as_started
from deltakit.errors import CheckpointError, DeltakitError, InvalidConfig, NameInUse
from deltakit.inject.attach import activate, attach_unchecked, detach
from deltakit.inject.attachments import Attached, Attachments, attachments_of, need_attachments
from deltakit.inject.base_names import parameter_names
from deltakit.inject.labels import labels_with, take_labels
from deltakit.inject.partitions import check_whole, is_sharded
from deltakit.inject.places import follow_places, stored_value
from deltakit.inject.prepare import check_started
from deltakit.inject.switch import paused, snapshot_active

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def to_checkpoint(model: "PreTrainedModel", what: str | Composition = "default") -> Checkpoint:
    """An attached delta or a composition of several, with members and task heads, copied.

    Raises:
        UnknownName: no delta has the name.
        InvalidConfig: a delta that waits for its start from data.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    check_whole(model, "saving")
    follow_places(model, attachments)
    composition = One(what) if isinstance(what, str) else what
    parts = attachments.with_members(composition.names)
    for part in parts:
        check_started(attachments, part.name)
    return Checkpoint(
        origin=f"this {type(model).__name__}",
        parts=tuple(_part(model, attachments, each, composition) for each in parts),
        base=base_of(model),
        tensors=dict(_tensors(attachments, parts, composition)),
        composition=composition,
    )


def _part(
    model: "PreTrainedModel", attachments: Attachments, attached: Attached, composition: Composition
) -> Part:
    """A delta without its tensors; members have no head."""
    is_top = attached.name in composition.names
    labels = labels_with(model, attachments, attached) if is_top else ()
    return Part(name=attached.name, method=attached.method, kept=attached.kept, labels=labels)


@torch.inference_mode(False)  # what is made in inference mode cannot be trained
def from_checkpoint(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    name: str | None = None,
    *,
    head: bool = True,
) -> None:
    """Attaches the deltas of a checkpoint, with their members, and makes what was saved active.

    A member whose name is attached already is taken as it is if it is the same delta.

    Args:
        model: a model of the architecture and size that they were made for.
        checkpoint: what to attach.
        name: the name to attach it under; by default the one that it was saved under.
        head: whether to load the task head that was saved with it.

    Raises:
        CheckpointError: another architecture, a tensor that is missing, left over or of another
            shape. The model is unchanged.
        InvalidConfig: a name for a composition of several.
        NameInUse: another delta has the name.
    """
    _check_base(model, checkpoint)
    if name is not None and not isinstance(checkpoint.composition, One):
        raise InvalidConfig(
            f"{checkpoint.origin} holds a composition of "
            f"{', '.join(checkpoint.composition.names)}, which keep their names; load it without "
            f"name={name!r}."
        )
    added: list[str] = []
    try:
        with _as_before_on_error(model, added):
            for part in checkpoint.parts:
                _load_part(model, checkpoint, part, name, added, head=head)
            if not isinstance(checkpoint.composition, One):
                activate(model, checkpoint.composition)
    except DeltakitError as error:
        if not isinstance(error, CheckpointError | NameInUse):
            raise CheckpointError(f"{checkpoint.origin} does not fit this model: {error}") from None
        raise


@contextlib.contextmanager
def _as_before_on_error(model: "PreTrainedModel", added: list[str]) -> Iterator[None]:
    """After an exception, the deltas named in `added` are detached, and what was active is so."""
    attachments = attachments_of(model)
    before = None if attachments is None else snapshot_active(model, attachments)
    try:
        yield
    except BaseException:
        for each in reversed(added):
            detach(model, each)
        if attachments is not None:
            with paused(model, attachments) as pause:
                pause.then = before
        raise


def _tensors(
    attachments: Attachments, parts: tuple[Attached, ...], composition: Composition
) -> Iterator[tuple[str, Tensor]]:
    for part in parts:
        for key, tensor in part.tensors():
            yield f"{part.name}/{key}", _plain(tensor)
    for name in composition.names:
        for parameter, value in attachments.get(name).own.items():
            yield f"{name}/own/{parameter}", _plain(value)


def _plain(tensor: Tensor) -> Tensor:
    if is_sharded(tensor):
        from torch.distributed.tensor import DTensor

        assert isinstance(tensor, DTensor)
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous().clone()


def base_of(model: "PreTrainedModel") -> dict[str, Any]:
    """The base that a delta needs: the architecture, and the depth and width of its stacks."""
    attachments = attachments_of(model)
    handles = resolve(model) if attachments is None else tuple(attachments.handles.values())
    sizes: dict[str, int] = {}
    for handle in handles:
        if handle.in_a_layer:
            sizes.setdefault(f"{handle.stack} width", handle.d_in)
            sizes[f"{handle.stack} layers"] = handle.layer + 1
    return {"model_type": model.config.model_type, **sizes}


def _check_base(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    here = base_of(model)
    for key in checkpoint.base:
        value = here.get(key)
        if checkpoint.base[key] != value:
            raise CheckpointError(
                f"{checkpoint.origin} was made on a base with {key}={checkpoint.base[key]!r}; "
                f"this {type(model).__name__} has {key}={value!r}. Load it on a model like its own."
            )


def _load_part(
    model: "PreTrainedModel",
    checkpoint: Checkpoint,
    part: Part,
    rename: str | None,
    added: list[str],
    *,
    head: bool,
) -> None:
    is_top = part.name in checkpoint.composition.names
    name = rename if is_top and rename is not None else part.name
    alone = is_top and isinstance(checkpoint.composition, One)
    attachments = attachments_of(model)
    if not alone and attachments is not None and name in attachments.attached:
        _check_same(attachments.get(name), part, checkpoint)
        return
    prefix = f"{part.name}/"
    given = {
        key.removeprefix(prefix): tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}own/")
    }
    saved_in = next((t.dtype for t in given.values() if t.is_floating_point()), None)
    method = part.method if head or part.headless is None else part.headless
    attach_unchecked(model, method, name, dtype=saved_in)
    added.append(name)
    attachments = need_attachments(model)
    attached = attachments.get(name)
    expected = dict(attached.tensors())
    _check_keys(checkpoint, expected, given, checkpoint.advice)
    with torch.no_grad():
        for key, tensor in given.items():
            expected[key].copy_(tensor)
    take_as_started(module for _, module in attached.modules())
    _keep(model, attachments, attached, part, checkpoint)
    if is_top:
        _load_own(model, attachments, attached, part, checkpoint, head=head)
        if head and _own_tensors(model, checkpoint, part).keys() & attached.head:
            take_labels(model, attachments, attached, part, checkpoint.origin)


def _keep(
    model: "PreTrainedModel",
    attachments: Attachments,
    attached: Attached,
    part: Part,
    checkpoint: Checkpoint,
) -> None:
    """The members that the part kept at each site, where some were pruned."""
    for key, names in part.kept.items():
        known = tuple(name for name in attached.members if name in names)
        if key not in attached.combiners or not names or known != names:
            raise CheckpointError(
                f"{checkpoint.origin}: {part.name!r} keeps {list(names)} at {key!r}, but "
                f"it has {', '.join(attached.members)} at {', '.join(attached.combiners)}."
            )
    if part.kept:
        with paused(model, attachments):
            attached.keep(part.kept)


def _load_own(
    model: "PreTrainedModel",
    attachments: Attachments,
    attached: Attached,
    part: Part,
    checkpoint: Checkpoint,
    *,
    head: bool,
) -> None:
    """The delta's values for the head and for parameters of the base."""
    given = _own_tensors(model, checkpoint, part)
    if head:
        _own_what_is_given(model, attached, given)
    optional = attached.head | attached.fresh
    needed = {key: value for key, value in attached.own.items() if key not in optional}
    wanted = {key: value for key, value in attached.own.items() if key in needed or key in given}
    if not head:
        wanted, given = needed, {key: given[key] for key in given if key in needed}
    of_base = {key: tensor for key, tensor in given.items() if key in needed}
    _check_keys(checkpoint, needed, of_base, _BASE_HINT)
    _check_keys(checkpoint, wanted, given, _HEAD_HINT)
    with paused(model, attachments):
        attachments.add(attached)
        for key, tensor in given.items():
            attached.own[key].data = tensor.to(attached.own[key].device, copy=True)


_BASE_HINT = (
    "It is a parameter of the base, which the delta has values for: load the delta on a model of "
    "that size (resize_token_embeddings changes the size of a vocabulary)."
)
_HEAD_HINT = "To load the delta without its task head, pass head=False."


def _own_what_is_given(
    model: "PreTrainedModel", attached: Attached, given: Mapping[str, Tensor]
) -> None:
    """The delta owns, too, what it owned on another base: what that one's checkpoint lacked."""
    aliases = {names[0]: names for names in parameter_names(model)}
    for name in given.keys() & aliases.keys() - attached.own.keys():
        attached.tree.put(name, nn.Parameter(stored_value(model, name).to(given[name].dtype)))
        attached.aliases[name] = aliases[name]
        attached.fresh |= {name}


def _own_tensors(model: "PreTrainedModel", checkpoint: Checkpoint, part: Part) -> dict[str, Tensor]:
    """The saved values of the base's and the head's parameters, by this model's names."""
    prefix, known = f"{part.name}/own/", _names_here(model)
    own = {k.removeprefix(prefix): t for k, t in checkpoint.tensors.items() if k.startswith(prefix)}
    return {_name_here(model, name, known): tensor for name, tensor in own.items()}


def _names_here(model: "PreTrainedModel") -> dict[str, str]:
    """The first name of each parameter, by all of its names."""
    return {name: names[0] for names in parameter_names(model) for name in names}


def _name_here(model: "PreTrainedModel", name: str, known: Mapping[str, str]) -> str:
    """A parameter's name in this class, whose body may have a prefix that another's lacks."""
    prefix = f"{model.base_model_prefix}."
    for each in (name, name.removeprefix(prefix), f"{prefix}{name}"):
        if each in known:
            return known[each]
    return name


def _check_keys(
    checkpoint: Checkpoint,
    expected: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    hint: str,
) -> None:
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{checkpoint.origin} does not fit this model: {first_few('missing', missing)}"
            f"{', ' if missing and extra else ''}{first_few('left over', extra)}. {hint}"
        )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{checkpoint.origin}: {key!r} has shape {tuple(tensor.shape)}, this model needs "
                f"{tuple(expected[key].shape)}. {hint}"
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(
                f"{checkpoint.origin}: {key!r} is {tensor.dtype}, this model needs "
                f"{expected[key].dtype}."
            )


def _check_same(attached: Attached, part: Part, checkpoint: Checkpoint) -> None:
    own = {f"{part.name}/{key}": tensor for key, tensor in attached.tensors()}
    alike = (attached.method, attached.kept) == (part.method, part.kept)
    same = alike and all(
        key in checkpoint.tensors and torch.equal(tensor.cpu(), checkpoint.tensors[key])
        for key, tensor in own.items()
    )
    if not same:
        raise CheckpointError(
            f"{checkpoint.origin} has a member {part.name!r}, and another delta of that name is "
            "attached. Detach that one first."
        )
