"""A library that there is not, whose files name modules; bases that are a config; a Hub's cache."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from deltakit.arch.resolve import resolve
from deltakit.core.checkpoint import Checkpoint, Part
from deltakit.core.composition import One
from deltakit.core.spec import format_method, parse_method
from deltakit.errors import CheckpointError
from deltakit.inject.transfer import base_of
from deltakit.interop.files import read_json, read_tensors, write_json, write_tensors
from deltakit.interop.formats import FORMATS, Format

CONFIG, WEIGHTS = "adapter_config.json", "other.safetensors"


class Other(Format):
    """One delta a folder, under the paths of the model's modules. It has no words for sums."""

    title = "Other"
    markers = WEIGHTS

    def recognises(self, folder: Path) -> bool:
        return (folder / WEIGHTS).is_file()

    def read(self, folder: Path, model: Any) -> Checkpoint:
        spec = read_json(folder / CONFIG)["spec"]
        keys = {handle.path: handle.key for handle in resolve(model)}
        tensors = read_tensors(folder, (WEIGHTS,))
        found = {}
        for name, tensor in tensors.items():
            path, _, parameter = name.rpartition(".")
            key = f"{keys[path]}.{parameter}" if path in keys else f"own/{name}"
            found[f"d/{key}"] = tensor
        return Checkpoint(
            origin=str(folder),
            parts=(Part(name="d", method=parse_method(spec)),),
            base=base_of(model),
            tensors=found,
            composition=One("d"),
        )

    def write(self, folder: Path, checkpoint: Checkpoint, model: Any) -> None:
        (part,) = checkpoint.parts
        if "+" in format_method(part.method):
            raise CheckpointError(f"Other has no words for {part.name!r}, a sum.")
        paths = {handle.key: handle.path for handle in resolve(model)}
        tensors = {}
        for key, tensor in checkpoint.tensors.items():
            site, _, parameter = key.removeprefix(f"{part.name}/").rpartition(".")
            path = paths.get(site, site.removeprefix("own/"))
            tensors[f"{path}.{parameter}"] = tensor
        write_tensors(folder / WEIGHTS, tensors, {})
        spec = format_method(part.method)
        write_json(folder / CONFIG, {"spec": spec, "base_model_name_or_path": model.name_or_path})


@pytest.fixture
def other() -> Iterator[Format]:
    """The format "other", for the length of a test."""
    FORMATS.add("other", made := Other())
    yield made
    FORMATS.remove("other")


@pytest.fixture
def base(tmp_path: Path) -> Callable[..., str]:
    """A folder with the config of a model and no weights, changed as asked."""

    def make(model: Any, name: str = "base", **changes: Any) -> str:
        model.config.save_pretrained(tmp_path / name)
        path = tmp_path / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
        return str(tmp_path / name)

    return make


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a folder into the local cache of the Hub, as a download would; returns the snapshot."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))

    def put(folder: Path, repo: str, revision: str = "main", commit: str = "c" * 40) -> Path:
        home = cache / f"models--{repo.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = file.relative_to(folder)
            blob = home / "blobs" / f"{commit[:4]}-{str(name).replace('/', '-')}"
            blob.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, blob)
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            up = "../" * (len(name.parts) + 1)
            (snapshot / name).symlink_to(f"{up}blobs/{blob.name}")
        ref = home / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(commit)
        return snapshot

    return put
