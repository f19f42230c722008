"""deltakit's own files of deltas.

``delta.json`` describes them, ``delta.safetensors`` holds their tensors. Reading is strict, and
nothing is unpickled.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from torch import Tensor

from deltakit._files import atomic_paths
from deltakit.core.checkpoint import Checkpoint, first_few, part_from_plain, part_to_plain
from deltakit.core.composition import composition_from_plain
from deltakit.errors import CheckpointError, DeltakitError
from deltakit.inject.attach import check_name
from deltakit.interop.files import COPY_AGAIN

CONFIG = "delta.json"
WEIGHTS = "delta.safetensors"
SCHEMA_VERSION = 2


def write(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes both files, or none; those of an earlier delta in the folder are replaced."""
    from safetensors.torch import save_file

    with atomic_paths(folder / WEIGHTS, folder / CONFIG) as (weights, description):
        save_file(checkpoint.tensors, weights, metadata={"format": "pt"})
        config = {
            "format": "deltakit",
            "schema_version": SCHEMA_VERSION,
            "base": checkpoint.base,
            "deltas": [part_to_plain(part) for part in checkpoint.parts],
            "active": checkpoint.composition.to_plain(),
            "weights": {"file": WEIGHTS, "sha256": sha256(weights)},
        }
        description.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def read(folder: Path) -> Checkpoint:
    """Reads a folder that `write` wrote.

    Raises:
        CheckpointError: as `load`, as far as it can be told without a model.
    """
    config = _read_config(folder)
    try:
        if config["schema_version"] == 1:
            config = _from_first(config)
        parts = tuple(map(part_from_plain, config["deltas"]))
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
            f"{folder / WEIGHTS} holds tensors of no delta in {CONFIG}: {first_few('', stray)}. "
            f"{COPY_AGAIN}"
        )
    unknown = set(composition.names) - {part.name for part in parts}
    if unknown:
        raise CheckpointError(
            f"{folder / CONFIG}: 'active' names deltas that it does not describe, "
            f"{first_few('', sorted(unknown))}. {COPY_AGAIN}"
        )
    return Checkpoint(
        origin=str(folder), parts=parts, base=base, tensors=tensors, composition=composition
    )


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{folder} holds no {CONFIG}. Give a folder that deltakit.save wrote."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}. {COPY_AGAIN}") from None
    if not isinstance(config, dict) or config.get("format") != "deltakit":
        raise CheckpointError(
            f"{path} is not a delta that deltakit saved (no format 'deltakit'). Give a folder that "
            "deltakit.save wrote."
        )
    version = config.get("schema_version")
    if version not in (1, SCHEMA_VERSION):
        raise CheckpointError(
            f"{path} has schema_version {version!r}; this deltakit reads 1 and {SCHEMA_VERSION}. "
            "Load it with the version that saved it, or save it again."
        )
    return config


def _from_first(config: dict[str, Any]) -> dict[str, Any]:
    """A config of the first schema: one delta, on a base described by its config's own keys."""
    base = {"model_type": config["base"]["model_type"]}
    return {**config, "base": base, "active": config["deltas"][-1]["name"]}


def _read_tensors(path: Path, digest: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path} is missing next to its {CONFIG}. {COPY_AGAIN}")
    if sha256(path) != digest:
        raise CheckpointError(
            f"{path} is not the file that its {CONFIG} was written for (its SHA-256 differs): it "
            "was cut short or replaced. Copy both files again."
        )
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise CheckpointError(f"{path} cannot be read: {error}. {COPY_AGAIN}") from None
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise CheckpointError(
                f"{path} holds values in {key!r} that are not finite. Train it again at a lower "
                "rate."
            )
    return tensors


def sha256(path: Path) -> str:
    """The checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
