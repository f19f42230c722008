"""The checkpoints that training loops save: a model's weights, with those of its deltas among them.

transformers' `Trainer` and ``model.save_pretrained`` write ``model.safetensors``, or several files
and an index; older versions and FSDP's whole state dicts are files of torch's, of which only
tensors are read. The state dict holds a description of the attached deltas, so `load` gives the
active ones. The base's weights in the folder are not read.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from deltakit.core.checkpoint import Checkpoint, Part, first_few, part_from_plain
from deltakit.core.composition import Composition, One, composition_from_plain
from deltakit.errors import CheckpointError, DeltakitError
from deltakit.inject.attach import check_name
from deltakit.inject.attachments import CHILD, EXTRA, child_key, child_name
from deltakit.inject.description import from_tensor
from deltakit.inject.transfer import base_of
from deltakit.interop.files import Tensors, read_json, some_tensors, tensor_keys
from deltakit.interop.formats import Format, register_format

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG = "config.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin", "pytorch_model_fsdp.bin")
INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


@register_format("training")
class TrainingCheckpoint(Format):
    """``model.safetensors`` with ``deltakit.`` keys, the index of several, or torch's files."""

    title = "a training loop"
    markers = f"{WEIGHTS[0]} or {INDEXES[0]}, saved while deltas were attached"

    def recognises(self, folder: Path) -> bool:
        return EXTRA in _files_by_key(folder)

    def read(self, folder: Path, model: "PreTrainedModel") -> Checkpoint:
        _check_model(folder, model)
        files = _files_by_key(folder)
        ours = {key: path for key, path in files.items() if key.startswith(f"{CHILD}.")}
        found = _read(folder, ours)
        return _checkpoint(folder, found, base_of(model))

    def write(self, folder: Path, checkpoint: Checkpoint, model: "PreTrainedModel") -> None:
        raise CheckpointError(
            "a training loop writes its own checkpoints: model.save_pretrained, or transformers' "
            "Trainer. Save the delta as format='deltakit'."
        )


def _files_by_key(folder: Path) -> dict[str, Path]:
    """The file of each tensor of the model; nothing where the folder has no such file."""
    for index in INDEXES:
        if (folder / index).is_file():
            table = read_json(folder / index).get("weight_map")
            names = table if isinstance(table, dict) else {}
            return {key: folder / Path(str(name)).name for key, name in names.items()}
    path = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    return {} if path is None else dict.fromkeys(tensor_keys(path), path)


def _check_model(folder: Path, model: "PreTrainedModel") -> None:
    path = folder / CONFIG
    kind = read_json(path).get("model_type") if path.is_file() else model.config.model_type
    if kind != model.config.model_type:
        raise CheckpointError(
            f"{folder} was made on a base with model_type={kind!r}; this {type(model).__name__} "
            f"has model_type={model.config.model_type!r}. Load it on a model like its own."
        )


def _read(folder: Path, files: dict[str, Path]) -> Tensors:
    tensors: dict[str, Tensor] = {}
    for path in dict.fromkeys(files.values()):
        wanted = {key for key in files if files[key] == path}
        tensors |= dict(some_tensors(path, wanted).items())
    return Tensors(folder, tensors)


def _checkpoint(folder: Path, found: Tensors, base: dict[str, Any]) -> Checkpoint:
    try:
        said = from_tensor(found.take(EXTRA))
        described = {each["name"]: each for each in said["deltas"]}
        composition = _composition(folder, said["active"], list(described))
        chosen = _with_members(composition.names, described)
        parts = tuple(part_from_plain(described[name]) for name in chosen)
        for part in parts:
            check_name(part.name)
        tensors = {
            f"{part.name}/{key}": tensor
            for part in parts
            for key, tensor in _tensors_of(
                part, described[part.name]["modules"], found, composition
            ).items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = str(error) if isinstance(error, DeltakitError) else f"bad or missing key {error}"
        raise CheckpointError(f"{folder}: {EXTRA}: {reason}") from None
    return Checkpoint(
        origin=str(folder), parts=parts, base=base, tensors=tensors, composition=composition
    )


def _composition(folder: Path, active: Any, names: list[str]) -> Composition:
    """What was active, or the only delta."""
    if active is not None:
        return composition_from_plain(active)
    if len(names) == 1:
        return One(names[0])
    raise CheckpointError(
        f"{folder} holds {first_few('the deltas', names)}, none of which was active when it was "
        "saved. Attach them as they were, and load the state dict of the folder."
    )


def _with_members(names: tuple[str, ...], described: dict[str, Any]) -> list[str]:
    """The deltas called `names` and their members, members first."""
    found: dict[str, None] = {}
    for name in names:
        found |= dict.fromkeys(_with_members(tuple(described[name]["members"]), described))
        found[name] = None
    return list(found)


def _tensors_of(
    part: Part, keys: list[str], found: Tensors, composition: Composition
) -> dict[str, Tensor]:
    """A delta's tensors, by the keys that `Checkpoint` has without its name."""
    start = f"{CHILD}.{child_name(part.name)}."
    sites = {child_key(key): key for key in keys}
    tensors: dict[str, Tensor] = {}
    for key in found:
        module, _, rest = key.removeprefix(start).partition(".")
        if not key.startswith(start):
            continue
        if module != "own":
            tensors[f"{sites[module]}.{rest}"] = found.take(key)
        elif part.name in composition.names:
            tensors[f"own/{rest}"] = found.take(key)
    return tensors
