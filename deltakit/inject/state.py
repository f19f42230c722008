"""Deltas on disk: ``delta.json`` says what they are, ``delta.safetensors`` holds their tensors.

Reading is strict: every tensor is used exactly once or nothing is loaded. Nothing is unpickled.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deltakit._files import atomic_path, write_text
from deltakit.arch.resolve import resolve
from deltakit.core.algebra import Composition, One, composition_from_plain
from deltakit.core.method import Method, method_from_dict, method_to_dict
from deltakit.core.site import Tap
from deltakit.errors import CheckpointError, DeltakitError, InvalidConfig, NameInUse
from deltakit.inject.attach import (
    activate,
    attach,
    check_name,
    current,
    deactivate,
    detach,
    reactivate,
)
from deltakit.inject.bank import Attached, Bank, bank_of, base_parameters, head_names, need_bank

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "delta.json"
WEIGHTS = "delta.safetensors"
SCHEMA_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Part:
    """One delta of a checkpoint: the one that was saved, or a member of it."""

    name: str
    method: Method
    kept: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A folder that has been read and checked, apart from any model.

    Attributes:
        folder: where it was read.
        parts: the deltas, members first.
        base: what it was made on: model_type, and each stack's layers and width.
        tensors: by ``<part>/<site>.<parameter>``, or ``<part>/own/<parameter of the model>``.
        composition: what was saved, and is active after loading: the last part, or several.
    """

    folder: Path
    parts: tuple[Part, ...]
    base: dict[str, Any]
    tensors: dict[str, Tensor]
    composition: Composition


def save(model: "PreTrainedModel", folder: str | Path, name: str | Composition = "default") -> None:
    """Saves an attached delta or a composition of several, with members and task heads.

    Args:
        model: a model with deltas.
        folder: made if needed; files of an earlier delta in it are replaced, each atomically.
        name: which delta, or which composition, for example ``Stack("lang", "task")``.

    Raises:
        UnknownName: no delta has the name.
        DeltakitError: nothing is attached.
    """
    from safetensors.torch import save_file

    bank = need_bank(model)
    composition = One(name) if isinstance(name, str) else name
    parts = bank.closure(composition.names)
    tensors = dict(_tensors(model, bank, parts, composition))
    target = Path(folder)
    with atomic_path(target / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
        digest = _sha256(temporary)
    config = {
        "format": "deltakit",
        "schema_version": SCHEMA_VERSION,
        "base": _base(model),
        "deltas": [_described(part) for part in parts],
        "active": composition.to_plain(),
        "weights": {"file": WEIGHTS, "sha256": digest},
    }
    write_text(target / CONFIG, json.dumps(config, indent=2) + "\n")


def load(
    model: "PreTrainedModel", folder: str | Path, name: str | None = None, *, head: bool = True
) -> None:
    """Attaches a saved delta, with its members, and makes it the active one.

    A member whose name is attached already is taken as it is if it is the same delta.

    Args:
        model: a model of the architecture and size that the delta was made for.
        folder: what `save` wrote.
        name: the name to attach it under; by default the one that it was saved under.
        head: whether to load the task head that was saved with it.

    Raises:
        CheckpointError: a missing or torn file, another format, another architecture, a tensor
            that is missing, left over, of another shape or not finite. The model is unchanged.
        NameInUse: another delta has the name.
    """
    checkpoint = read(Path(folder))
    _check_base(model, checkpoint)
    if name is not None and not isinstance(checkpoint.composition, One):
        raise InvalidConfig(
            f"{folder} holds a composition of {', '.join(checkpoint.composition.names)}, which "
            f"keep their names; load it without name={name!r}."
        )
    bank = bank_of(model)
    before = None if bank is None else current(model, bank)
    added: list[str] = []
    try:
        for part in checkpoint.parts:
            _load_part(model, checkpoint, part, name, added, head=head)
        if not isinstance(checkpoint.composition, One):
            activate(model, checkpoint.composition)
    except BaseException as error:
        for each in reversed(added):
            detach(model, each)
        if bank is not None:
            deactivate(model, bank)
            reactivate(model, bank, before)
        if isinstance(error, DeltakitError) and not isinstance(error, CheckpointError | NameInUse):
            raise CheckpointError(f"{folder} does not fit this model: {error}") from None
        raise


def read(folder: Path) -> Checkpoint:
    """Reads a folder that `save` wrote, without a model.

    Raises:
        CheckpointError: as `load`, as far as it can be told without a model.
    """
    config = _read_config(folder)
    try:
        parts = tuple(
            Part(
                name=each["name"],
                method=method_from_dict(each["method"]),
                kept=_read_kept(each.get("kept", {})),
            )
            for each in config["deltas"]
        )
        for part in parts:
            check_name(part.name)
        base, digest = dict(config["base"]), config["weights"]["sha256"]
        composition = composition_from_plain(config["active"])
    except (KeyError, TypeError, ValueError) as error:
        reason = str(error) if isinstance(error, DeltakitError) else f"bad or missing key {error}"
        raise CheckpointError(f"{folder / CONFIG}: {reason}") from None
    tensors = _read_tensors(folder / WEIGHTS, digest)
    stray = [key for key in tensors if key.partition("/")[0] not in {part.name for part in parts}]
    if stray or not parts:
        raise CheckpointError(
            f"{folder / WEIGHTS} holds tensors of no delta in {CONFIG}: {_named('', stray)}."
        )
    unknown = set(composition.names) - {part.name for part in parts}
    if unknown:
        raise CheckpointError(f"{folder / CONFIG}: 'active' names no delta of its own: {unknown}.")
    return Checkpoint(
        folder=folder, parts=parts, base=base, tensors=tensors, composition=composition
    )


# -------------------------------------------------------------------------------------- writing


def _tensors(
    model: "PreTrainedModel", bank: Bank, parts: tuple[Attached, ...], composition: Composition
) -> Iterator[tuple[str, Tensor]]:
    for part in parts:
        for key, tensor in part.tensors():
            yield f"{part.name}/{key}", _plain(tensor)
    parameters = base_parameters(model)
    for name in composition.names:
        for parameter, stored in bank.get(name).own.items():
            owner, _ = bank.displaced.get(parameter, (None, None))
            value = stored
            if owner == name:  # a value that deltas were merged into is kept beside it
                value = bank.merged.get(parameter, parameters[parameter])
            yield f"{name}/own/{parameter}", _plain(value)


def _described(part: Attached) -> dict[str, Any]:
    described: dict[str, Any] = {"name": part.name, "method": method_to_dict(part.method)}
    return {**described, "kept": part.kept} if part.kept else described


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _base(model: "PreTrainedModel") -> dict[str, Any]:
    """What a delta must find again: the architecture, and how deep and wide its stacks are."""
    bank = bank_of(model)
    handles = resolve(model) if bank is None else tuple(bank.handles.values())
    sizes: dict[str, int] = {}
    for handle in handles:
        if handle.tap is not Tap.SEQUENCE:
            sizes.setdefault(f"{handle.stack} width", handle.d_in)
            sizes[f"{handle.stack} layers"] = handle.layer + 1
    return {"model_type": model.config.model_type, **sizes}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# -------------------------------------------------------------------------------------- reading


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"{folder} holds no {CONFIG}{_what_it_is(folder)}.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is no JSON: {error}.") from None
    if not isinstance(config, dict) or config.get("format") != "deltakit":
        raise CheckpointError(f"{path} is not a delta that deltakit saved (no format 'deltakit').")
    version = config.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise CheckpointError(
            f"{path} has schema_version {version!r}; this deltakit reads 1 and {SCHEMA_VERSION}. "
            "Load it with the version that saved it, or save it anew."
        )
    return _from_first(config) if version == 1 else config


def _from_first(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the first schema: one delta, on a base described by its config's own keys."""
    base = {"model_type": config["base"]["model_type"]}
    return {**config, "base": base, "active": config["deltas"][-1]["name"]}


def _read_kept(data: Any) -> dict[str, tuple[str, ...]]:
    if not isinstance(data, dict) or not all(isinstance(names, list) for names in data.values()):
        raise TypeError("'kept'")
    return {key: tuple(map(str, names)) for key, names in data.items()}


def _what_it_is(folder: Path) -> str:
    if not folder.is_dir():
        return ", it does not exist" if not folder.exists() else ", it is no folder"
    if not (folder / "adapter_config.json").is_file():
        return f"; a delta that deltakit saved has {CONFIG} and {WEIGHTS}"
    text = (folder / "adapter_config.json").read_text(encoding="utf-8", errors="replace")
    other = "PEFT" if '"peft_type"' in text else "AdapterHub"
    return f", but adapter_config.json: it is a checkpoint of {other}, which load does not read"


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is missing beside its {CONFIG}.")
    if _sha256(path) != digest:
        raise CheckpointError(
            f"{path} is not the file that its {CONFIG} was written for (its SHA-256 differs): it "
            "was cut short or replaced. Copy both files again."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(f"{path} holds values in {key!r} that are not finite.")
    return tensors


def _check_base(model: "PreTrainedModel", checkpoint: Checkpoint) -> None:
    here = _base(model)
    for key in checkpoint.base:
        value = here.get(key)
        if checkpoint.base[key] != value:
            raise CheckpointError(
                f"{checkpoint.folder} was made on a base with {key}={checkpoint.base[key]!r}; "
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
    bank = bank_of(model)
    if not alone and bank is not None and name in bank.attached:
        _check_same(bank.get(name), part, checkpoint)
        return
    prefix = f"{part.name}/"
    given = {
        key.removeprefix(prefix): tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix) and not key.startswith(f"{prefix}own/")
    }
    saved_in = next((t.dtype for t in given.values() if t.is_floating_point()), None)
    attach(model, part.method, name, dtype=saved_in)
    added.append(name)
    bank = need_bank(model)
    attached = bank.get(name)
    expected = dict(attached.tensors())
    _check_keys(checkpoint.folder, expected, given)
    with torch.no_grad():
        for key, tensor in given.items():
            expected[key].copy_(tensor)
    _keep(model, bank, attached, part, checkpoint)
    if is_top:
        _load_own(model, bank, attached, part, checkpoint, head=head)


def _keep(
    model: "PreTrainedModel", bank: Bank, attached: Attached, part: Part, checkpoint: Checkpoint
) -> None:
    """The members that the part kept at each site, where some were pruned."""
    for key, names in part.kept.items():
        known = tuple(name for name in attached.members if name in names)
        if key not in attached.combiners or not names or known != names:
            raise CheckpointError(
                f"{checkpoint.folder / CONFIG}: {part.name!r} keeps {list(names)} at {key!r}, but "
                f"it has {', '.join(attached.members)} at {', '.join(attached.combiners)}."
            )
    if part.kept:
        before = deactivate(model, bank)
        attached.keep(part.kept)
        reactivate(model, bank, before)


def _load_own(
    model: "PreTrainedModel",
    bank: Bank,
    attached: Attached,
    part: Part,
    checkpoint: Checkpoint,
    *,
    head: bool,
) -> None:
    """The delta's values for the head and for parameters of the base."""
    heads = head_names(model)
    given = _own_tensors(checkpoint, part)
    needed = {key: value for key, value in attached.own.items() if key not in heads}
    wanted = {key: value for key, value in attached.own.items() if key in needed or key in given}
    if not head:
        wanted, given = needed, {key: given[key] for key in given if key in needed}
    _check_keys(checkpoint.folder, wanted, given, hint=_HEAD_HINT)
    before = deactivate(model, bank)
    for key, tensor in given.items():
        attached.own[key] = tensor.to(attached.own[key].device, attached.own[key].dtype)
    reactivate(model, bank, before)


_HEAD_HINT = " To load the delta without its task head, pass head=False."


def _own_tensors(checkpoint: Checkpoint, part: Part) -> dict[str, Tensor]:
    prefix = f"{part.name}/own/"
    return {
        k.removeprefix(prefix): t for k, t in checkpoint.tensors.items() if k.startswith(prefix)
    }


def _check_keys(
    folder: Path, expected: dict[str, Tensor], given: dict[str, Tensor], *, hint: str = ""
) -> None:
    missing = [key for key in expected if key not in given]
    extra = [key for key in given if key not in expected]
    if missing or extra:
        raise CheckpointError(
            f"{folder / WEIGHTS} does not fit this model: {_named('missing', missing)}"
            f"{', ' if missing and extra else ''}{_named('left over', extra)}.{hint}"
        )
    for key, tensor in given.items():
        if tensor.shape != expected[key].shape:
            raise CheckpointError(
                f"{folder / WEIGHTS}: {key!r} has shape {tuple(tensor.shape)}, this model needs "
                f"{tuple(expected[key].shape)}.{hint}"
            )
        if tensor.is_floating_point() != expected[key].is_floating_point():
            raise CheckpointError(
                f"{folder / WEIGHTS}: {key!r} is {tensor.dtype}, this model needs "
                f"{expected[key].dtype}."
            )


def _named(what: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{what} {', '.join(map(repr, keys[:3]))}{more}"


def _check_same(attached: Attached, part: Part, checkpoint: Checkpoint) -> None:
    own = {f"{part.name}/{key}": tensor for key, tensor in attached.tensors()}
    alike = (attached.method, attached.kept) == (part.method, part.kept)
    same = alike and all(
        key in checkpoint.tensors and torch.equal(tensor.cpu(), checkpoint.tensors[key])
        for key, tensor in own.items()
    )
    if not same:
        raise CheckpointError(
            f"{checkpoint.folder} has a member {part.name!r}, and another delta of that name is "
            "attached. Detach that one first."
        )
