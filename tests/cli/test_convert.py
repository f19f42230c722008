"""``deltakit convert``: two lines for what was done, one for what cannot be."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk

Run = Callable[..., Any]


@pytest.fixture
def saved(kit: SimpleNamespace, tmp_path: Path) -> Path:
    """A folder with a random LoRA and a head of three classes."""
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.LoRA(rank=3), name="mine")
    kit.randomise_deltas(model)
    dk.save(model, tmp_path / "mine", name="mine")
    model.config.save_pretrained(tmp_path / "base")
    return tmp_path / "mine"


def test_a_copy_in_deltakits_own_format(deltakit: Run, saved: Path, tmp_path: Path) -> None:
    ended = deltakit("convert", saved, tmp_path / "copy", "--to", "deltakit")
    assert (ended.code, ended.err) == (0, "")
    first, second = ended.out.splitlines()
    assert first == f"read {saved} (deltakit): mine = lora[rank=3]; 10 tensors, 435 numbers"
    assert second == f"wrote {tmp_path / 'copy'} (deltakit), no base was needed"
    for name in ("delta.json", "delta.safetensors"):
        assert (tmp_path / "copy" / name).read_bytes() == (saved / name).read_bytes()


def test_a_base_is_looked_at(deltakit: Run, saved: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    ended = deltakit("convert", saved, tmp_path / "copy", "--to", "deltakit", "--base", base)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[1].endswith(
        f"with the shapes of BertForSequenceClassification of {str(base)!r}"
    )


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("mine", ("--to", "paft"), "unknown format 'paft'"),
        ("mine", (), "Missing option '--to'"),
        ("mine", ("--to", "deltakit", "--base", "minilmm"), "Did you mean 'minilm'"),
        ("base", ("--to", "deltakit"), "base holds no delta. Looked for: "),
        ("nothing", ("--to", "deltakit"), "is neither a folder here nor a name on the Hub"),
    ],
)
def test_refusals(
    source: str, options: tuple[str, ...], message: str, deltakit: Run, saved: Path, tmp_path: Path
) -> None:
    ended = deltakit("convert", saved.parent / source, tmp_path / "new", *options)
    assert ended.code == 2 and ended.out == ""
    assert message in ended.line
    assert not (tmp_path / "new").exists()


def test_a_name_that_nothing_has(deltakit: Run, tmp_path: Path) -> None:
    ended = deltakit("convert", "nobody/nothing-of-the-kind", tmp_path / "new", "--to", "deltakit")
    assert ended.code == 2 and "'nobody/nothing-of-the-kind' is not a folder here" in ended.line


def test_a_place_that_is_taken(deltakit: Run, saved: Path, tmp_path: Path) -> None:
    ended = deltakit("convert", saved, tmp_path / "base", "--to", "deltakit")
    assert ended.code == 2 and "exists and holds no delta of deltakit" in ended.line
    assert [path.name for path in (tmp_path / "base").iterdir()] == ["config.json"]


@pytest.mark.parametrize("other", ["peft", "adapterhub"])
def test_there_and_back(other: str, deltakit: Run, saved: Path, tmp_path: Path) -> None:
    base = ("--base", tmp_path / "base")
    there, back = tmp_path / "there", tmp_path / "back"
    ended = deltakit("convert", saved, there, "--to", other, *base)
    assert (ended.code, ended.err) == (0, "")
    assert (there / "adapter_config.json").is_file()
    ended = deltakit("convert", there, back, "--to", "deltakit", *base)
    assert (ended.code, ended.err) == (0, "")
    for name in ("delta.json", "delta.safetensors"):
        assert (back / name).read_bytes() == (saved / name).read_bytes()


def test_what_cannot_be_carried_over(deltakit: Run, kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.SequentialAdapter(bottleneck=3), name="mine")
    dk.save(model, tmp_path / "mine", name="mine")
    model.config.save_pretrained(tmp_path / "base")
    base = ("--base", tmp_path / "base")
    ended = deltakit("convert", tmp_path / "mine", tmp_path / "new", "--to", "peft", *base)
    assert ended.code == 2 and ended.out == "" and "SequentialAdapter" in ended.line
    assert not (tmp_path / "new").exists()
