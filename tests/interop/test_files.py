"""Hostile and torn files: one clear error each, and nothing in them is run."""

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit._files import atomic_paths
from deltakit.errors import CheckpointError
from deltakit.interop.files import (
    Tensors,
    inside,
    our_words,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)
from deltakit.testing.models import make_model

NAMES = ("weights.safetensors", "weights.bin")


class Evil:
    """A pickle that would leave a trace if it were run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.trace), "w"))


def test_what_is_written_is_read(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(2, 3), "b": torch.arange(3)}
    write_tensors(tmp_path / NAMES[0], tensors, {"alpha": 2})
    found = read_tensors(tmp_path, NAMES)
    assert our_words(found) == {"alpha": 2}
    assert all(torch.equal(found.take(key), tensors[key]) for key in tensors)
    found.finish()
    torch.save(tensors, tmp_path / NAMES[1])
    (tmp_path / NAMES[0]).unlink()
    pickled = read_tensors(tmp_path, NAMES)
    assert our_words(pickled) == {}
    assert all(torch.equal(pickled.take(key), tensors[key]) for key in tensors)


def test_each_tensor_is_taken_once() -> None:
    found = Tensors(Path("w"), {"layer.0.up": torch.ones(1), "layer.0.down": torch.ones(1)})
    with pytest.raises(
        CheckpointError, match=r"'layer.0.ups' is missing. Did you mean 'layer.0.up"
    ):
        found.take("layer.0.ups")
    found.take("layer.0.up")
    with pytest.raises(CheckpointError, match="'layer.0.up' is used twice"):
        found.take("layer.0.up")
    with pytest.raises(CheckpointError, match="holds 'layer.0.down', which belong to nothing"):
        found.finish()


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_is_not_run(tmp_path: Path, how: str) -> None:
    trace, path = tmp_path / "trace", tmp_path / NAMES[1]
    if how == "torch":
        torch.save({"a": Evil(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    with pytest.raises(CheckpointError, match=r"weights.bin holds more than tensors"):
        read_tensors(tmp_path, NAMES)
    assert not trace.exists()


def test_a_header_of_ten_gigabytes(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).write_bytes((10 << 30).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="header has 10,737,418,240 bytes"):
        read_tensors(tmp_path, NAMES)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "header|cannot be read|cut short"),
        (b"\x02\0\0\0\0\0\0\0[]", "cannot be read"),
        (b"\x08\0\0\0\0\0\0\0not json", "cannot be read"),
    ],
)
def test_torn_safetensors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / NAMES[0]).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_tensors(tmp_path, NAMES)


def test_torn_and_odd_pickles(tmp_path: Path) -> None:
    path = tmp_path / NAMES[1]
    torch.save({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"weights.bin holds more than tensors, or is torn"):
        read_tensors(tmp_path, NAMES)
    torch.save([torch.ones(1)], path)
    with pytest.raises(CheckpointError, match="not a table of tensors"):
        read_tensors(tmp_path, NAMES)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(tmp_path: Path, value: float) -> None:
    write_tensors(tmp_path / NAMES[0], {"a": torch.tensor([1.0, value])}, {})
    with pytest.raises(CheckpointError, match="values in 'a' that are not finite"):
        read_tensors(tmp_path, NAMES)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none of weights.safetensors, weights.bin"):
        read_tensors(tmp_path, NAMES)


def test_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with pytest.raises(CheckpointError, match="is missing"):
        read_json(path)
    write_json(path, {"r": 8})
    assert read_json(path) == {"r": 8}
    for text, message in (
        ("{", "is not JSON"),
        ("[1]", "not a list"),
        ("[" * 100_000, "is not JSON"),
        (json.dumps({"a": "x" * (17 << 20)}), "too large for a config"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            read_json(path)
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(CheckpointError, match="is not JSON"):
        read_json(path)


@pytest.mark.parametrize("words", ["{", "[1]"])
def test_metadata_that_is_none_of_ours(tmp_path: Path, words: str) -> None:
    with pytest.raises(CheckpointError, match="metadata"):
        our_words(Tensors(tmp_path, {}, {"deltakit": words}))


@pytest.mark.parametrize("name", ["member", "lang/en", "a.b", ".hidden", "a..b", "..a"])
def test_a_name_inside(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["..", "../b", "a/../../b", "/etc", "C:\\a", "C:a", "\\\\host\\a", "..\\b", ".. /b", "a/..", "",
     ".", "./", "a\0", None, 3, ["a"]],
)  # fmt: skip
def test_a_name_that_climbs_out(tmp_path: Path, name: object) -> None:
    with pytest.raises(CheckpointError, match="is not the name of a file in this folder"):
        inside(tmp_path, name)


def test_a_link_may_lead_anywhere(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "main"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / "0123").write_text('{"r": 8}')
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    assert read_json(inside(snapshot, "config.json")) == {"r": 8}


@pytest.mark.parametrize("format", ["deltakit", "peft", "adapterhub"])
def test_a_disk_that_is_full_at_the_last_file_leaves_the_earlier_delta(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new weights beside the old description would be read as another delta."""
    model = make_model("bert", "bare")
    dk.attach(model, dk.LoRA(rank=2, alpha=4), "a")
    dk.attach(model, dk.LoRA(rank=2, alpha=64), "b")
    dk.save(model, tmp_path, "a", format=format)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(OSError, match="No space left"):
            dk.save(model, tmp_path, "b", format=format)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    dk.save(model, tmp_path, "b", format=format)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} != before
    dk.load(make_model("bert", "bare"), tmp_path)


def test_what_describes_other_files_is_away_while_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, config = tmp_path / "a.safetensors", tmp_path / "a.json"
    for path in (weights, config):
        path.write_text("old")
    there, replace = [], Path.replace

    def watched(self: Path, target: Path) -> Path:
        there.append((target.name, config.exists()))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", watched)
    with atomic_paths(weights, config) as temporary:
        for path in temporary:
            path.write_text("new")
        assert config.read_text() == weights.read_text() == "old"
    assert there == [("a.safetensors", False), ("a.json", False)]
    assert config.read_text() == weights.read_text() == "new"
