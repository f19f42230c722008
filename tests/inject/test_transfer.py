"""Deltas on disk: bit-equal in a fresh process, and every way in which a folder can be wrong."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltakit as dk
from deltakit.errors import CheckpointError, DeltakitError, NameInUse, UnknownName

CONFIG, WEIGHTS = "delta.json", "delta.safetensors"
SPECS = {
    "lora": "lora[targets=all]",
    "houlsby": "houlsby[reduction=4]",
    "sum": "lora+houlsby[bottleneck=3]+lora[rank=2]",
    "full": "full",
    "head": "head",
    "norms": "houlsby[reduction=4,train_norms=true]",
}


def trained(kit: SimpleNamespace, what: str, family: str = "bert", name: str = "mine") -> Any:
    """A model with a trained delta of that name, its head trained too."""
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    if what == "fusion":
        for member in ("a", "b"):
            dk.attach(model, dk.SequentialAdapter(reduction=4), name=member)
        dk.attach(model, dk.AdapterFusion("a", "b"), name=name)
    else:
        dk.attach(model, dk.parse_method(SPECS[what]), name=name)
    kit.randomise_deltas(model)
    kit.train_steps(model, batch, steps=2)
    return model


@pytest.mark.parametrize("what", [*SPECS, "fusion"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_round_trip_is_bit_equal(
    kit: SimpleNamespace, tmp_path: Path, family: str, what: str
) -> None:
    batch = kit.make_batch()
    model = trained(kit, what, family)
    expected = kit.out(model, batch)
    dk.save(model, tmp_path, name="mine")
    other = kit.make_model(family, "classify")
    before, plain = kit.snapshot(other), kit.out(other, batch)
    dk.load(other, tmp_path)
    assert torch.equal(kit.out(other, batch), expected)
    assert dk.summary(other) == dk.summary(model)
    dk.detach(other)
    kit.assert_same(before, kit.snapshot(other))
    assert torch.equal(kit.out(other, batch), plain)


@pytest.mark.slow  # one process of tests/testing/test_conformance.py loads every method by default
def test_fresh_process(kit: SimpleNamespace, tmp_path: Path) -> None:
    batch = kit.make_batch()
    plain = kit.make_model("bert", "classify")
    plain.save_pretrained(tmp_path / "base")
    expected = {}
    for what in ("lora", "houlsby", "sum", "fusion", "full"):
        model = trained(kit, what)
        dk.save(model, tmp_path / what, name="mine")
        expected[what] = kit.out(model, batch)
    save_file({**batch, **{f"out.{k}": v for k, v in expected.items()}}, tmp_path / "io")
    code = """
import sys, torch, deltakit as dk
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification
torch.set_num_threads(2)
folder = Path(sys.argv[1])
io = load_file(folder / "io")
batch = {k: io[k] for k in ("input_ids", "attention_mask")}
load = AutoModelForSequenceClassification.from_pretrained
model = load(folder / "base", attn_implementation="eager").eval()
for what in ("lora", "houlsby", "sum", "fusion", "full"):
    dk.load(model, folder / what)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, io[f"out.{what}"]), what
    dk.detach(model)
print("same")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env={"PYTHONPATH": str(Path(dk.__file__).parents[1]), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip().endswith("same"), done.stderr


def test_files(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = trained(kit, "fusion")
    dk.save(model, tmp_path / "deep" / "folder", name="mine")
    folder = tmp_path / "deep" / "folder"
    assert sorted(p.name for p in folder.iterdir()) == [CONFIG, WEIGHTS]
    config = json.loads((folder / CONFIG).read_text())
    assert config["format"] == "deltakit" and config["schema_version"] == 2
    assert [d["name"] for d in config["deltas"]] == ["a", "b", "mine"]
    assert config["base"] == {"model_type": "bert", "encoder width": 16, "encoder layers": 2}
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    assert config["weights"] == {"file": WEIGHTS, "sha256": digest}
    keys = set(load_file(folder / WEIGHTS))
    assert {"mine/own/classifier.weight", "mine/own/classifier.bias"} <= keys
    assert not any(key.startswith(("a/own/", "b/own/")) for key in keys)
    assert "mine/encoder.0.block.out.query.weight" in keys


def test_saving_again_replaces(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "houlsby"), tmp_path, name="mine")
    model = trained(kit, "lora")
    dk.save(model, tmp_path, name="mine")
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path)
    batch = kit.make_batch()
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))


def test_saving_a_delta_that_is_not_active(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = trained(kit, "full"), kit.make_batch()
    expected = kit.out(model, batch)
    dk.attach(model, dk.LoRA(), name="other")
    before = kit.snapshot(model)
    dk.save(model, tmp_path, name="mine")
    kit.assert_same(before, kit.snapshot(model))
    with pytest.raises(UnknownName, match="unknown delta 'mien'.*'mine'"):
        dk.save(model, tmp_path, name="mien")
    fresh = kit.make_model("bert", "classify")
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), expected)


def test_saving_while_merged(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = trained(kit, "lora"), kit.make_batch()
    expected = kit.out(model, batch)
    dk.merge(model)
    dk.save(model, tmp_path, name="mine")
    fresh = kit.make_model("bert", "classify")
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), expected)


def test_under_another_name_beside_others(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = trained(kit, "lora"), kit.make_batch()
    expected = kit.out(model, batch)
    dk.save(model, tmp_path, name="mine")
    dk.load(model, tmp_path, name="again")
    assert torch.equal(kit.out(model, batch), expected)
    dk.detach(model, "mine")
    assert torch.equal(kit.out(model, batch), expected)


def test_without_the_head(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "lora"), tmp_path, name="mine")
    other = kit.make_model("bert", "classify")
    head = other.classifier.weight.detach().clone()
    dk.load(other, tmp_path, head=False)
    assert torch.equal(other.classifier.weight, head)
    wide = kit.make_model("bert", "classify", num_labels=5)
    before = kit.snapshot(wide)
    with pytest.raises(CheckpointError, match=r"classifier.*shape.*pass head=False"):
        dk.load(wide, tmp_path)
    kit.assert_same(before, kit.snapshot(wide))
    dk.load(wide, tmp_path, head=False)
    bare = kit.make_model("bert")
    with pytest.raises(CheckpointError, match=r"left over .*classifier.*pass head=False"):
        dk.load(bare, tmp_path)
    dk.load(bare, tmp_path, head=False)
    assert dk.summary(bare).trained_params == dk.summary(wide).trained_params


def test_a_delta_without_a_head_on_a_model_with_one(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    dk.save(model, tmp_path)
    other, batch = kit.make_model("bert", "classify"), kit.make_batch()
    dk.load(other, tmp_path)
    inner = dict(other.deltakit.attached["default"].tensors())
    for key, tensor in model.deltakit.attached["default"].tensors():
        assert torch.equal(inner[key], tensor)
    kit.out(other, batch)


def test_own_values_of_the_base_keep_their_names(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Full fine-tuning of a bare model loads on a model with a head, whose body has a prefix."""
    model = kit.make_model("bert")
    dk.attach(model, dk.FullFineTuning())
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    dk.load(other, tmp_path)
    assert torch.equal(other.bert(**kit.make_batch())[0], model(**kit.make_batch())[0])


@pytest.mark.parametrize("what", ["lora", "fusion"])
def test_single_precision_deltas_of_a_bf16_base(
    kit: SimpleNamespace, tmp_path: Path, what: str
) -> None:
    model, batch = kit.make_model("bert").to(torch.bfloat16), kit.make_batch()
    if what == "fusion":
        dk.attach(model, dk.SequentialAdapter(reduction=4), name="a", dtype=torch.float32)
        dk.attach(model, dk.AdapterFusion("a"), name="mine", dtype=torch.float32)
    else:
        dk.attach(model, dk.LoRA(), name="mine", dtype=torch.float32)
    kit.randomise_deltas(model)
    dk.save(model, tmp_path, name="mine")
    other = kit.make_model("bert").to(torch.bfloat16)
    dk.load(other, tmp_path)
    loaded = dict(other.deltakit.attached["mine"].tensors())
    for key, tensor in model.deltakit.attached["mine"].tensors():
        assert loaded[key].dtype is tensor.dtype and torch.equal(loaded[key], tensor), key
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))


# ------------------------------------------------------------------------- folders that are wrong


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def retensor(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Changes the tensors and signs the file anew."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)
    sign(folder)


def sign(folder: Path) -> None:
    digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    edit(folder, lambda c: c["weights"].update(sha256=digest))


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def truncate_and_sign(folder: Path) -> None:
    truncate(folder)
    sign(folder)


def remove_all(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


KEY = "mine/encoder.0.attn.q.lora_A"
WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty folder": (remove_all, r"holds no delta. Looked for: .*delta.json and delta.safetensors"),
    "no config": (lambda f: (f / CONFIG).unlink(), r"holds no delta. Looked for"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"delta.safetensors is missing next to"),
    "cut": (truncate, r"SHA-256 differs.*cut short or replaced"),
    "cut, signed": (truncate_and_sign, r"delta.safetensors cannot be read"),
    "renamed tensor": (
        lambda f: retensor(f, lambda t: t.update({f"{KEY}x": t.pop(KEY)})),
        r"does not fit this model: missing 'encoder.0.attn.q.lora_A', left over .*lora_Ax'",
    ),
    "missing tensor": (lambda f: retensor(f, lambda t: t.pop(KEY)), r"missing 'encoder.0.attn.q"),
    "extra tensor": (
        lambda f: retensor(f, lambda t: t.update({"mine/x": torch.ones(1)})),
        r"left over 'x'",
    ),
    "stray tensor": (
        lambda f: retensor(f, lambda t: t.update({"else/x": torch.ones(1)})),
        r"holds tensors of no delta in delta.json: .*'else/x'",
    ),
    "other shape": (
        lambda f: retensor(f, lambda t: t.update({KEY: torch.ones(3, 16)})),
        r"lora_A' has shape \(3, 16\), this model needs \(8, 16\)",
    ),
    "transposed": (
        lambda f: retensor(f, lambda t: t.update({KEY: t[KEY].T.contiguous()})),
        r"has shape \(16, 8\), this model needs \(8, 16\)",
    ),
    "other dtype": (
        lambda f: retensor(f, lambda t: t.update({KEY: t[KEY].to(torch.int64)})),
        r"lora_A",
    ),
    "nan": (
        lambda f: retensor(f, lambda t: t[KEY][0].fill_(float("nan"))),
        r"holds values in 'mine/encoder.0.attn.q.lora_A' that are not finite",
    ),
    "infinite head": (
        lambda f: retensor(f, lambda t: t["mine/own/classifier.bias"].fill_(float("inf"))),
        r"not finite",
    ),
    "renamed head": (
        lambda f: retensor(
            f, lambda t: t.update({"mine/own/x": t.pop("mine/own/classifier.bias")})
        ),
        r"left over 'x'.*head=False",
    ),
    "bad json": (lambda f: (f / CONFIG).write_text("{"), r"delta.json is not JSON"),
    "binary config": (
        lambda f: (f / CONFIG).write_bytes(b"\xff\xfe\x00"),
        r"delta.json is not JSON",
    ),
    "json of another kind": (lambda f: (f / CONFIG).write_text("[1]"), r"no format 'deltakit'"),
    "another format": (lambda f: edit(f, lambda c: c.update(format="x")), r"no format 'deltakit'"),
    "future schema": (
        lambda f: edit(f, lambda c: c.update(schema_version=3)),
        r"schema_version 3; this deltakit reads 1 and 2.*version that saved it",
    ),
    "no schema": (lambda f: edit(f, lambda c: c.pop("schema_version")), r"schema_version None"),
    "unknown method": (
        lambda f: edit(f, lambda c: c["deltas"][0]["method"].update({"class": "LoRa"})),
        r"unknown method class 'LoRa'.*'LoRA'",
    ),
    "unknown setting": (
        lambda f: edit(f, lambda c: c["deltas"][0]["method"].update(ranks=3)),
        r"LoRA has no setting 'ranks'",
    ),
    "bad setting": (
        lambda f: edit(f, lambda c: c["deltas"][0]["method"].update(rank=-3)),
        r"rank=-3",
    ),
    "other rank": (
        lambda f: edit(f, lambda c: c["deltas"][0]["method"].update(rank=4)),
        r"has shape \(8, 16\), this model needs \(4, 16\)",
    ),
    "method that does not fit": (
        lambda f: edit(f, lambda c: c["deltas"][0]["method"].update(targets=["gate"])),
        r"ffn.gate",
    ),
    "method is text": (
        lambda f: edit(f, lambda c: c["deltas"][0].update(method="lora")),
        r"delta.json",
    ),
    "no method": (lambda f: edit(f, lambda c: c["deltas"][0].pop("method")), r"key 'method'"),
    "no deltas": (lambda f: edit(f, lambda c: c.update(deltas=[])), r"no delta in delta.json"),
    "deltas are text": (lambda f: edit(f, lambda c: c.update(deltas="x")), r"delta.json"),
    "no base": (lambda f: edit(f, lambda c: c.pop("base")), r"key 'base'"),
    "base is text": (lambda f: edit(f, lambda c: c.update(base="bert")), r"delta.json"),
    "no digest": (lambda f: edit(f, lambda c: c["weights"].pop("sha256")), r"key 'sha256'"),
    "bad name": (lambda f: edit(f, lambda c: c["deltas"][0].update(name="../x")), r"cannot name"),
    "other architecture": (
        lambda f: edit(f, lambda c: c["base"].update(model_type="roberta")),
        r"a base with model_type='roberta'; this BertForSequenceClassification has .*'bert'",
    ),
    "other depth": (
        lambda f: edit(f, lambda c: c["base"].update({"encoder layers": 12})),
        r"encoder layers=12; .* encoder layers=2",
    ),
    "other width": (
        lambda f: edit(f, lambda c: c["base"].update({"encoder width": 768})),
        r"encoder width=768",
    ),
}


@pytest.mark.parametrize("occupied", [False, True], ids=["plain", "occupied"])
@pytest.mark.parametrize("what", list(WRONG))
def test_a_wrong_folder_changes_nothing(
    kit: SimpleNamespace, tmp_path: Path, what: str, occupied: bool
) -> None:
    spoil, message = WRONG[what]
    source = kit.make_model("bert", "classify")
    dk.attach(source, dk.LoRA(), name="mine")
    dk.save(source, tmp_path, name="mine")
    spoil(tmp_path)
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    if occupied:
        dk.attach(model, dk.SequentialAdapter(reduction=4), name="other")
        kit.randomise_deltas(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(DeltakitError, match=message) as caught:
        dk.load(model, tmp_path)
    assert hasattr(model, "deltakit") is occupied
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, CheckpointError)


def test_missing_folder(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert")
    with pytest.raises(CheckpointError, match=r"nowhere does not exist"):
        dk.load(model, tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file exists and is not a folder"):
        dk.load(model, tmp_path / "file")
    assert not hasattr(model, "deltakit")


def test_name_in_use(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "lora"), tmp_path, name="mine")
    model, batch = trained(kit, "houlsby"), kit.make_batch()
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(NameInUse, match="'mine' is attached already"):
        dk.load(model, tmp_path)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


@pytest.mark.parametrize("same", [True, False])
def test_members_that_are_attached_already(
    kit: SimpleNamespace, tmp_path: Path, same: bool
) -> None:
    source, batch = trained(kit, "fusion"), kit.make_batch()
    dk.save(source, tmp_path / "fused", name="mine")
    dk.save(source, tmp_path / "a", name="a")
    model = kit.make_model("bert", "classify")
    if same:
        dk.load(model, tmp_path / "a")
        dk.load(model, tmp_path / "fused")
        assert torch.equal(kit.out(model, batch), kit.out(source, batch))
        return
    dk.attach(model, dk.SequentialAdapter(reduction=4), name="b")
    before = kit.snapshot(model)
    with pytest.raises(CheckpointError, match="a member 'b', and another delta of that name"):
        dk.load(model, tmp_path / "fused")
    kit.assert_same(before, kit.snapshot(model))
    assert list(model.deltakit.attached) == ["b"]


def test_a_fusion_that_fails_late_leaves_no_member(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "fusion"), tmp_path, name="mine")
    retensor(tmp_path, lambda t: t.pop("mine/encoder.1.block.out.value.weight"))
    model = kit.make_model("bert", "classify")
    before = kit.snapshot(model)
    with pytest.raises(CheckpointError, match="missing 'encoder.1.block.out.value.weight'"):
        dk.load(model, tmp_path)
    kit.assert_same(before, kit.snapshot(model))


def test_a_failed_load_leaves_a_merged_model_merged(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "lora"), tmp_path, name="mine")
    retensor(tmp_path, lambda t: t.pop("mine/encoder.0.attn.q.lora_A"))
    model = trained(kit, "lora", name="other")
    dk.merge(model)
    before = kit.snapshot(model)
    with pytest.raises(CheckpointError):
        dk.load(model, tmp_path)
    kit.assert_same(before, kit.snapshot(model))


def test_a_model_of_another_kind(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(trained(kit, "lora"), tmp_path, name="mine")
    for other in (kit.make_model("roberta"), kit.make_model("bert", num_hidden_layers=3)):
        before = kit.snapshot(other)
        with pytest.raises(CheckpointError, match="was made on a base with"):
            dk.load(other, tmp_path)
        kit.assert_same(before, kit.snapshot(other))


def test_an_interrupted_save_leaves_the_old_delta(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = trained(kit, "lora"), kit.make_batch()
    dk.save(model, tmp_path, name="mine")
    expected = kit.out(model, batch)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("safetensors.torch.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        dk.save(trained(kit, "houlsby"), tmp_path, name="mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == [CONFIG, WEIGHTS]
    fresh = kit.make_model("bert", "classify")
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), expected)


def test_a_torn_folder_of_the_first_schema_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = trained(kit, "lora")
    dk.save(model, tmp_path, name="mine")
    config = json.loads((tmp_path / CONFIG).read_text())
    del config["base"]
    (tmp_path / CONFIG).write_text(json.dumps({**config, "schema_version": 1}))
    with pytest.raises(dk.DeltakitError, match="bad or missing key 'base'"):
        dk.load(kit.make_model("bert", "classify"), tmp_path)


def test_a_folder_of_the_first_schema_loads(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = trained(kit, "fusion")
    dk.save(model, tmp_path, name="mine")
    config = json.loads((tmp_path / CONFIG).read_text())
    config["base"] = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 2}
    config["schema_version"] = 1
    del config["active"]
    (tmp_path / CONFIG).write_text(json.dumps(config))
    fresh, batch = kit.make_model("bert", "classify"), kit.make_batch()
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))


def test_a_table_of_another_size_is_not_taken_for_a_head(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.PartialFineTuning(parameters=("*word_embeddings.weight",)))
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify", vocab_size=70)
    for head in (True, False):
        with pytest.raises(CheckpointError, match=r"shape \(64, 16\).*resize_token") as refusal:
            dk.load(other, tmp_path, head=head)
        assert "head=False" not in str(refusal.value)
    other.resize_token_embeddings(64)
    dk.load(other, tmp_path)
