"""Folders of several deltas: ``adapter_setup.json``, with a folder for each of them.

Of the library's compositions, stacks and fusions of sequential adapters are what deltakit computes
too. Its Average divides what it has averaged by the number of adapters once more (it is off by that
factor), stacks of LoRA are products, and of parallel adapters in a stack the last alone counts: all
these are refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltakit.core import composition as algebra
from deltakit.core.checkpoint import Checkpoint, Part
from deltakit.core.composition import Composition, One
from deltakit.errors import CheckpointError
from deltakit.inject.transfer import base_of
from deltakit.interop.adapterhub import fusion, heads
from deltakit.interop.adapterhub.folders import (
    CONFIG,
    FUSION_CONFIG,
    SETUP,
    VERSION,
    Files,
    Found,
    adapter_files,
    fused_names,
    fusion_files,
    read_adapter,
    read_fusion,
    top_level,
)
from deltakit.interop.adapterhub.layout import Host
from deltakit.interop.files import inside, read_json
from deltakit.methods.fusion import AdapterFusion

_REFUSED = {
    "Average": "the library divides by the number of adapters twice",
    "Parallel": "deltakit has PerRow for several deltas in one batch, and no batch of copies",
    "BatchSplit": "which row has which delta is said while a model runs, with deltakit.PerRow",
    "Split": "deltakit has no deltas of some positions of a sequence alone",
    "MultiTask": "deltakit has no tasks in a batch",
}


# ------------------------------------------------------------------------------------- reading


def read(folder: Path, host: Host) -> Checkpoint:
    """A folder of any of the three kinds. Raises `CheckpointError`."""
    if (folder / SETUP).is_file():
        return _read_setup(folder, host)
    if (folder / FUSION_CONFIG).is_file():
        return _read_fusion(folder, host)
    found = read_adapter(folder, host)
    return _checkpoint(folder, (found,), One(found.part.name), host)


def _read_fusion(folder: Path, host: Host) -> Checkpoint:
    """A fusion's folder, with its members' folders in it or next to it."""
    found: dict[str, Found] = {}
    names = fused_names(folder)
    members = tuple(_add(read_adapter(_beside(folder, n), host), found, folder) for n in names)
    fused = _add(_fused(read_fusion(folder, members, host), members), found, folder)
    return _checkpoint(folder, tuple(found.values()), One(fused.part.name), host)


def _beside(folder: Path, name: str) -> Path:
    """Where a fusion's member is."""
    for place in (inside(folder, name), inside(folder.absolute().parent, name)):
        if (place / CONFIG).is_file():
            return place
    raise CheckpointError(
        f"{folder} holds a fusion without its member {name!r}. Save all of it with the library's "
        "save_adapter_setup, or put the members' folders, called as they are, into it."
    )


def _read_setup(folder: Path, host: Host) -> Checkpoint:
    top = read_json(folder / SETUP)
    block = top.get("adapter_setup")
    kind, children = _block(block, folder)
    found: dict[str, Found] = {}
    parts = [
        _read_block(each, folder, host, found) for each in ([block] if kind == "Fuse" else children)
    ]
    _check_stack([part.part for part in parts], {f.part.name: f.part for f in found.values()})
    last = parts[-1]
    place = _place_of_head(top.get("head_setup"), folder, host)
    if place is not None:
        head, labels = heads.read(place, host), heads.labels_in(place)
        found[last.name] = replace(last, head=head, labels=labels)
    names = [part.part.name for part in parts]
    composition = One(names[0]) if len(names) == 1 else algebra.Stack(*names)
    return _checkpoint(folder, tuple(found.values()), composition, host)


def _block(block: Any, folder: Path) -> tuple[str, list[Any]]:
    """The kind of a composition, and what it is of."""
    match block:
        case {"type": "single" | "Stack" | "Fuse" as kind, "children": [_, *_] as children, **rest}:
            if rest in ({}, {"kwargs": {}}):
                return kind, children
        case {"type": str(kind)} if kind in _REFUSED:
            raise CheckpointError(f"{folder / SETUP}: {kind} cannot be loaded: {_REFUSED[kind]}.")
    raise CheckpointError(
        f"{folder / SETUP}: {block!r:.80} is neither a stack nor a fusion of adapters."
    )


def _name(block: Any, folder: Path) -> str:
    match _block(block, folder):
        case "single", [str(name)]:
            return name
    raise CheckpointError(
        f"{folder / SETUP}: {block!r:.80} cannot be loaded here: deltakit reads stacks of adapters "
        "and of fusions, and fusions of adapters."
    )


def _read_block(block: Any, folder: Path, host: Host, found: dict[str, Found]) -> Found:
    """One member of a stack, added to what was `found`, with its own members first."""
    kind, children = _block(block, folder)
    if kind != "Fuse":
        return _read_member(_name(block, folder), folder, host, found)
    names = tuple(_name(child, folder) for child in children)
    members = tuple(_read_member(name, folder, host, found) for name in names)
    at = inside(folder, ",".join(names))
    if fused_names(at) != names:
        raise CheckpointError(f"{at} is not a fusion of {', '.join(names)} as {SETUP} says.")
    return _add(_fused(read_fusion(at, members, host), members), found, folder)


def _read_member(name: str, folder: Path, host: Host, found: dict[str, Found]) -> Found:
    if name in found:
        return found[name]
    member = read_adapter(inside(folder, name), host)
    if member.name != name:
        raise CheckpointError(f"{folder / name} holds {member.name!r}, not {name!r}.")
    return _add(member, found, folder)


def _add(each: Found, found: dict[str, Found], folder: Path) -> Found:
    if each.name in found or each.part.name in {other.part.name for other in found.values()}:
        raise CheckpointError(f"{folder}: two of its deltas are called {each.part.name!r}.")
    found[each.name] = each
    return each


def _check_stack(parts: Sequence[Part], every: Mapping[str, Part]) -> None:
    """Raises `CheckpointError` unless library and deltakit stack the parts alike."""
    placements = set()
    for part in parts if len(parts) > 1 else ():
        method, first = part.method, part is parts[0]
        fused = isinstance(method, AdapterFusion)
        members = method.names if isinstance(method, AdapterFusion) else (part.name,)
        placements |= {
            fusion.placement_of(name, every[name].method, first=first and not fused)
            for name in members
        }
    if len(placements) > 1:
        raise CheckpointError(
            "AdapterHub's library stacks adapters of different placements "
            f"({', '.join(sorted(placements))}) in another order than deltakit. Stack those of one."
        )


def _fused(found: Found, members: Sequence[Found]) -> Found:
    """The fusion with its head: the library saves it with each of the members."""
    if found.head:
        return found
    said = {member.labels for member in members if member.head}
    labels = said.pop() if len(said) == 1 else ()
    return replace(found, head=_agreed({m.name: m.head for m in members}), labels=labels)


def _place_of_head(setup: Any, folder: Path, host: Host) -> Path | None:
    """The folder of a setup's head: next to its config, or in a folder by its name."""
    if setup is None or setup is False:
        return None
    if setup is not True and not isinstance(setup, str):
        raise CheckpointError(
            f"{folder / SETUP}: head_setup={setup!r:.80} cannot be loaded: a delta has one head. "
            "Save it with that one's name, or with head_setup=None."
        )
    place = folder if setup is True else inside(folder, setup)
    if not heads.read(place, host):
        raise CheckpointError(
            f"{folder / SETUP} says that there is a head in {place}; it has none."
        )
    return place


def _agreed(given: Mapping[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    """The one head of several files; what differs is kept under keys that no model has."""
    agreed: dict[str, Tensor] = {}
    for name, head in given.items():
        same = agreed.keys() == head.keys() and all(torch.equal(agreed[k], head[k]) for k in head)
        if not agreed:
            agreed = dict(head)
        elif head and not same:
            agreed |= {f"{key} of {name}": tensor for key, tensor in head.items()}
    return agreed


def _with_head_words(found: Found, host: Host) -> Part:
    """The part with its head's labels, and with the pooler that belongs to the head."""
    part = heads.with_pooler(found.part, found.head, host)
    return replace(part, labels=found.labels if found.head else ())


def _checkpoint(
    folder: Path, found: tuple[Found, ...], composition: Composition, host: Host
) -> Checkpoint:
    tensors: dict[str, Tensor] = {}
    parts = []
    for each in found:
        tensors |= {f"{each.part.name}/{key}": tensor for key, tensor in each.tensors.items()}
        is_top = each.part.name in composition.names
        parts.append(_with_head_words(each, host) if is_top else each.part)
        if is_top:
            own = {f"{each.part.name}/own/{key}": tensor for key, tensor in each.head.items()}
            tensors |= own
    return Checkpoint(
        origin=str(folder),
        parts=tuple(parts),
        base=base_of(host.model),
        tensors=tensors,
        composition=composition,
        advice="Load it on a model of the size it was made for.",
    )


# ------------------------------------------------------------------------------------- writing


def write(checkpoint: Checkpoint, host: Host) -> dict[str, Files]:
    """The files of each folder, by its path in the one that is written; that one is "" and last.

    Raises:
        CheckpointError: the library has no words for something.
    """
    every = {part.name: part for part in checkpoint.parts}
    chosen = [every[name] for name in _chosen(checkpoint.composition)]
    alone = isinstance(checkpoint.composition, One) and chosen[0] is checkpoint.parts[0]
    if alone:
        files = adapter_files(chosen[0], _tensors(chosen[0], checkpoint), host)
        return {"": _with_head(chosen[0], files, checkpoint, host)}
    _check_stack(chosen, every)
    folders: dict[str, Files] = {}
    for part in checkpoint.parts:
        name = _called(part)
        if name in folders:
            raise CheckpointError(
                f"AdapterHub's format has one folder {name!r} for two deltas. Rename one of them, "
                "and fuse two adapters at least."
            )
        folders[name] = _with_head(part, _files(part, every, checkpoint, host), checkpoint, host)
    return {**folders, "": _setup(chosen, checkpoint, host)}


def _chosen(composition: Composition) -> tuple[str, ...]:
    """The names of a single delta, or of those of a plain stack."""
    match composition:
        case One(name):
            return (name,)
        case algebra.Stack(parts) if all(isinstance(part, One) for part in parts):
            return composition.names
    raise CheckpointError(
        f"{composition!r} has no words in AdapterHub's format that its library computes alike: it "
        "holds single deltas, fusions, and stacks of those. Save it as format='deltakit'."
    )


def _called(part: Part) -> str:
    """What the library calls a delta: fusions are called by their members."""
    return ",".join(part.method.names) if isinstance(part.method, AdapterFusion) else part.name


def _files(part: Part, every: Mapping[str, Part], checkpoint: Checkpoint, host: Host) -> Files:
    tensors = _tensors(part, checkpoint)
    if not isinstance(part.method, AdapterFusion):
        return adapter_files(part, tensors, host)
    members = tuple(every[name] for name in part.method.names)
    return fusion_files(part, _called(part), members, tensors, host)


def _with_head(part: Part, files: Files, checkpoint: Checkpoint, host: Host) -> Files:
    """The files with those of the delta's head in front, as the config comes last."""
    top = {**top_level(host), "name": _called(part)}
    return {**heads.write(_own(part, checkpoint), top, part.labels, host), **files}


def _setup(chosen: list[Part], checkpoint: Checkpoint, host: Host) -> Files:
    """The setup's own files: its head is that of the last part, which the model runs with."""
    blocks = [_described(part) for part in chosen]
    single = blocks[0] if len(blocks) == 1 and blocks[0]["type"] == "Fuse" else None
    top = {**top_level(host), "name": _called(chosen[-1])}
    head = heads.write(_own(chosen[-1], checkpoint), top, chosen[-1].labels, host)
    config = {
        "adapter_setup": single or {"type": "Stack", "children": blocks},
        "head_setup": True if head else None,
        "version": VERSION,
    }
    return {**head, SETUP: config}


def _described(part: Part) -> dict[str, Any]:
    if not isinstance(part.method, AdapterFusion):
        return {"type": "single", "children": [part.name]}
    singles = [{"type": "single", "children": [name]} for name in part.method.names]
    return {"type": "Fuse", "children": singles}


def _tensors(part: Part, checkpoint: Checkpoint) -> dict[str, Tensor]:
    prefix, own = f"{part.name}/", f"{part.name}/own/"
    return {
        key.removeprefix(prefix): tensor
        for key, tensor in checkpoint.tensors.items()
        if key.startswith(prefix) and not key.startswith(own)
    }


def _own(part: Part, checkpoint: Checkpoint) -> dict[str, Tensor]:
    prefix = f"{part.name}/own/"
    return {
        k.removeprefix(prefix): t for k, t in checkpoint.tensors.items() if k.startswith(prefix)
    }
