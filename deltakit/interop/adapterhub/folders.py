"""One folder of the library's: an adapter, or a fusion. Its config, its tensors, its head."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from deltakit._files import atomic_paths
from deltakit.core.checkpoint import Part
from deltakit.core.labels import Labels
from deltakit.core.method import Method, method_to_dict
from deltakit.core.site import Handle
from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub import fusion, heads
from deltakit.interop.adapterhub.layout import Host
from deltakit.interop.adapterhub.links import Link, pack, unpack
from deltakit.interop.adapterhub.methods import config_of, links_of, method_of, restored, shapes_of
from deltakit.interop.files import (
    METADATA,
    Tensors,
    our_words,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from deltakit.methods.fusion import AdapterFusion

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter.safetensors", "pytorch_adapter.bin")
FUSION_CONFIG = "adapter_fusion_config.json"
FUSION_WEIGHTS = ("model_adapter_fusion.safetensors", "pytorch_model_adapter_fusion.bin")
SETUP = "adapter_setup.json"
FILES = (SETUP, CONFIG, *WEIGHTS, FUSION_CONFIG, *FUSION_WEIGHTS, heads.CONFIG, *heads.WEIGHTS)
VERSION = "adapters.1.3.0"
"""The version whose format is written."""

_RENAMED = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
_ACTIVATIONS_BEFORE_VERSIONS = {"gelu": "gelu_new", "gelu_orig": "gelu"}

Files = dict[str, Any]
"""What a folder gets, by the file's name: tensors, or a JSON object."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """One delta of a folder.

    Attributes:
        name: what the library calls it.
        part: what it is.
        tensors: by handle's key and parameter.
        head: by the model's parameter.
        labels: the names of the head's classes.
    """

    name: str
    part: Part
    tensors: dict[str, Tensor]
    head: dict[str, Tensor] = field(default_factory=dict)
    labels: Labels = ()


# ------------------------------------------------------------------------------------- reading


def read_adapter(folder: Path, host: Host) -> Found:
    """The adapter of a folder. Raises `CheckpointError`."""
    path = folder / CONFIG
    top = _read_top(path, host)
    tensors = _tensors(folder, WEIGHTS, host)
    inverse = any(key.startswith(f"{host.layout.invertible}.") for key in tensors)
    method = method_of(_modern(top, str(path), inverse=inverse), host, str(path))
    method = restored(_words(top, tensors, path), method, lambda each: config_of(each, host))
    shapes = shapes_of(method, host, str(path))
    found = unpack(tensors, links_of(method, host, top["name"]), shapes)
    tensors.finish()
    part = Part(name=ours(top["name"]), method=method)
    return _found(top["name"], part, found, folder, host)


def _found(name: str, part: Part, tensors: dict[str, Tensor], folder: Path, host: Host) -> Found:
    head, labels = heads.read(folder, host), heads.labels_in(folder)
    return Found(name=name, part=part, tensors=tensors, head=head, labels=labels)


def fused_names(folder: Path) -> tuple[str, ...]:
    """The library's names of the members of a folder's fusion. Raises `CheckpointError`."""
    path = folder / FUSION_CONFIG
    top = read_json(path)
    name = top.get("name")
    names = top.get("adapter_names", name.split(",") if isinstance(name, str) else None)
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise CheckpointError(f"{path}: 'adapter_names' must be a list of the members' names.")
    return tuple(names)


def read_fusion(folder: Path, members: tuple[Found, ...], host: Host) -> Found:
    """The fusion of a folder, over its members. Raises `CheckpointError`."""
    path = folder / FUSION_CONFIG
    top = _read_top(path, host)
    handles = _same_sites(members, host, path)
    names = tuple(member.part.name for member in members)
    tensors = _tensors(folder, FUSION_WEIGHTS, host)
    _drop_others(tensors, top["name"])
    method: Method = fusion.read(top.get("config"), names, host, str(path))
    words = _words(top, tensors, path)
    method = restored(words, method, fusion.written)
    links = fusion.links_of(method, handles, host, top["name"])
    found = unpack(tensors, links, fusion.shapes_of(method, handles))
    tensors.finish()
    part = Part(name=ours(words.get("name", top["name"])), method=method)
    return _found(top["name"], part, found, folder, host)


def ours(name: object) -> str:
    """The library's name as one of deltakit's, which have letters, digits, "-" and "_" alone."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", str(name)) or "adapter"


def _read_top(path: Path, host: Host) -> dict[str, Any]:
    """A config file, made for a model like this one."""
    top = read_json(path)
    if not isinstance(top.get("name"), str):
        raise CheckpointError(f"{path}: 'name' must be what the library calls it.")
    here = {"model_type": host.config.model_type, "hidden_size": host.width}
    for key, value in here.items():
        if top.get(key) != value and not (key == "hidden_size" and top.get(key) is None):
            raise CheckpointError(
                f"{path} was made for a base with {key}={top.get(key)!r}; this {host.kind} has "
                f"{key}={value!r}. Load it on a model like its own."
            )
    return top


def _tensors(folder: Path, names: tuple[str, ...], host: Host) -> Tensors:
    """The tensors of a folder, by the keys that they have today in the base model."""
    if all((folder / name).is_file() for name in names):
        raise CheckpointError(f"{folder} holds both {' and '.join(names)}. Keep one of them in it.")
    read = read_tensors(folder, names)
    modern: dict[str, Tensor] = {}
    for key, tensor in read.items():
        today = key.removeprefix(host.base_prefix)
        for old, new in _RENAMED.items():
            today = today.replace(old, new)
        if today in modern:
            raise CheckpointError(f"{read.path}: two of its tensors are {today!r} today.")
        modern[today] = tensor
    dtypes = {str(tensor.dtype) for tensor in modern.values()}
    if len(dtypes) > 1:
        raise CheckpointError(f"{read.path} holds tensors of several dtypes: {sorted(dtypes)}.")
    return Tensors(read.path, modern, read.metadata)


def _modern(top: dict[str, Any], origin: str, *, inverse: bool) -> Any:
    """The config as today's version of the library reads those of its older versions."""
    config = top.get("config")
    if not isinstance(config, dict):
        return config
    config = dict(config)
    word = config.get("non_linearity")
    if "version" not in top and isinstance(word, str):
        config["non_linearity"] = _ACTIVATIONS_BEFORE_VERSIONS.get(word, word)
    if "invertible_adapter" in config:
        block = config.pop("invertible_adapter")
        given = block if isinstance(block, dict) else {"block_type": block}
        config["inv_adapter"] = given.get("block_type")
        config["inv_adapter_reduction_factor"] = given.get("reduction_factor")
    if top.get("type") == "text_task" and "inv_adapter" in config and not inverse:
        config["inv_adapter"] = None  # these named invertible adapters that they did not have
    return _with_true_alpha(config, top.get("version"), origin)


def _with_true_alpha(config: dict[str, Any], version: object, origin: str) -> dict[str, Any]:
    """Before 1.1.0, LoRA was trained with a scale of one whatever alpha said."""
    if not _is_before_1_1(version):
        return config
    if config.get("architecture") == "lora" and "r" in config:
        return {**config, "alpha": config["r"]}
    union = config.get("configs") if config.get("architecture") == "union" else None
    for each in union if isinstance(union, list) else ():
        lora = isinstance(each, dict) and each.get("architecture") == "lora"
        if lora and each.get("r", 8) != each.get("alpha", 8):
            raise CheckpointError(
                f"{origin}: version={version!r} trained LoRA with a scale of one, and today's "
                f"library loads that of a union with alpha={each.get('alpha', 8)!r}. Set alpha to "
                "r, and version to 'adapters.1.1.0', if it was trained with that version."
            )
    return config


def _is_before_1_1(version: object) -> bool:
    pattern = r"adapters\.(\d+)\.(\d+)\.(\d+)(.*)"
    found = re.fullmatch(pattern, version) if isinstance(version, str) else None
    if found is None:
        return False
    *numbers, preview = found.groups()
    return (*map(int, numbers), not preview) < (1, 1, 0, True)


def _drop_others(tensors: Tensors, name: str) -> None:
    """Uses up the tensors of fusions whose names begin alike: the library's filter takes them."""
    for key in tensors:
        _, _, rest = key.partition(f".{fusion.LAYER}.")
        other = rest.partition(".")[0]
        if other.startswith(name) and other != name:
            tensors.take(key)


def _same_sites(members: tuple[Found, ...], host: Host, path: Path) -> tuple[Handle, ...]:
    sites = [fusion.handles_of(m.part.name, m.part.method, host) for m in members]
    if not sites or any(each != sites[0] for each in sites):
        raise CheckpointError(f"{path}: its members must be adapters of one placement.")
    return sites[0]


# -------------------------------------------------------------------------- our own few words


def _words(top: Mapping[str, Any], tensors: Tensors, path: Path) -> dict[str, Any]:
    """The metadata that deltakit wrote; in the config where the weights are not safetensors."""
    words = our_words(tensors) or top.get(METADATA, {})
    if not isinstance(words, dict):
        raise CheckpointError(f"{path}: {METADATA!r} must be a JSON object.")
    return words


# ------------------------------------------------------------------------------------- writing


class _Layout(NamedTuple):
    """What one kind of folder has of its own: file names, keys of the config, our own words."""

    names: tuple[str, str, str]
    described: Mapping[str, Any]
    words: Mapping[str, Any]


def adapter_files(part: Part, tensors: Mapping[str, Tensor], host: Host) -> Files:
    """The files of an adapter. Raises `CheckpointError` where the library has no words for it."""
    _check_name(part.name)
    config = config_of(part.method, host)
    links = list(links_of(part.method, host, part.name))
    words = {"method": method_to_dict(heads.without_pooler(part.method))}
    layout = _Layout((CONFIG, *WEIGHTS), {"config": config}, words)
    return _files(part, tensors, links, host, layout)


def fusion_files(
    part: Part, name: str, members: tuple[Part, ...], tensors: Mapping[str, Tensor], host: Host
) -> Files:
    """The files of a fusion that the library calls `name`. Raises as `adapter_files`."""
    method = part.method
    assert isinstance(method, AdapterFusion)
    if part.kept:
        raise CheckpointError(
            f"{part.name!r} has pruned members at some sites, for which AdapterHub's format has no "
            "words. Save it as format='deltakit'."
        )
    for member in members:
        if "architecture" in config_of(member.method, host):
            raise CheckpointError(
                f"AdapterHub's library fuses no unions, and {member.name!r} is {member.method!r}. "
                "Save it as format='deltakit'."
            )
    handles = [fusion.handles_of(member.name, member.method, host) for member in members]
    links = list(fusion.links_of(method, handles[0], host, name))
    described = {
        "config": fusion.write(method),
        "adapter_names": list(method.names),
        "name": name,
    }
    words = {"name": part.name, "method": method_to_dict(method)}
    layout = _Layout((FUSION_CONFIG, *FUSION_WEIGHTS), described, words)
    return _files(part, tensors, links, host, layout)


def _files(
    part: Part,
    tensors: Mapping[str, Tensor],
    links: list[Link],
    host: Host,
    layout: _Layout,
) -> Files:
    config_name, safe, pickled = layout.names
    used = {key for link in links for key in link.ours}
    if used != set(tensors):
        raise CheckpointError(
            f"{part.name!r} has tensors that AdapterHub's format has no place for: "
            f"{sorted(used ^ set(tensors))[:3]}. Save it as format='deltakit'."
        )
    packed = pack(tensors, links, "" if host.is_base else host.base_prefix)
    top = {**top_level(host), "name": part.name, **layout.described}
    if any(link.copies for link in links):  # which safetensors would hold again for every layer
        return {pickled: packed, config_name: {**top, METADATA: layout.words}}
    return {safe: (packed, layout.words), config_name: top}


def top_level(host: Host) -> dict[str, Any]:
    """The keys of all the library's configs."""
    return {
        "hidden_size": host.width,
        "model_class": host.kind,
        "model_name": host.model.name_or_path,
        "model_type": host.config.model_type,
        "version": VERSION,
    }


def _check_name(name: str) -> None:
    if name in dir(torch.nn.ModuleDict):
        raise CheckpointError(
            f"AdapterHub's library cannot call an adapter {name!r}, which is a word of torch's. "
            "Attach it under another name."
        )


def write_files(folder: Path, files: Files) -> None:
    """Writes a folder's files, all or none; those of an earlier delta are taken away."""
    with atomic_paths(*(folder / name for name in files)) as temporary:
        for path, content in zip(temporary, files.values(), strict=True):
            match path.suffix:
                case ".json":
                    write_json(path, content)
                case ".safetensors":
                    write_tensors(path, *content)
                case _:
                    with path.open("wb") as file:  # whose errors say what the system says
                        torch.save(content, file)
    for name in FILES:
        if name not in files:
            (folder / name).unlink(missing_ok=True)
