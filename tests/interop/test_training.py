"""What transformers' Trainer leaves: `load` takes the delta out of its checkpoint folder."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Trainer, TrainingArguments

import deltakit as dk
from deltakit.errors import CheckpointError
from deltakit.inject.attachments import EXTRA
from deltakit.inject.description import as_tensor, from_tensor
from deltakit.testing.models import make_inputs, make_model
from deltakit.testing.probes import out

INPUTS = make_inputs("bert", "classify")


def attached() -> Any:
    """A classifier with a delta of several kinds, a fusion over two and one that is not active."""
    model = make_model("bert", "classify")
    model.config.id2label, model.config.label2id = (
        {0: "x", 1: "y", 2: "z"},
        {"x": 0, "y": 1, "z": 2},
    )
    dk.attach(model, dk.SequentialAdapter(bottleneck=2), "a")
    dk.attach(model, dk.LoRA(rank=1), "spare")
    return model


METHODS = {
    "sum": dk.SequentialAdapter(bottleneck=2) + dk.LoRA(rank=2) + dk.BitFit(),
    "dropped": dk.AdapterDrop(dk.SequentialAdapter(placement="houlsby", bottleneck=2), layers=0),
    "prefix": dk.PrefixTuning(length=2, bottleneck=3),
    "fusion": dk.AdapterFusion("a", "b"),
}


def trained(method: dk.Method, folder: Path, **settings: Any) -> Any:
    model = attached()
    dk.attach(model, dk.SequentialAdapter(bottleneck=3), "b")
    dk.attach(model, method, "d")
    rows = [
        {"input_ids": torch.arange(4) + row, "labels": torch.tensor(row % 3)} for row in range(4)
    ]
    arguments = TrainingArguments(
        str(folder), max_steps=2, save_steps=2, report_to=[], use_cpu=True, learning_rate=0.1,
        per_device_train_batch_size=2, disable_tqdm=True, logging_strategy="no", **settings,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=rows).train()
    return model.eval()


@pytest.mark.parametrize("case", METHODS)
def test_a_checkpoint_of_trainers(case: str, tmp_path: Path) -> None:
    model = trained(METHODS[case], tmp_path)
    again = make_model("bert", "classify")
    dk.load(again, tmp_path / "checkpoint-2")
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))
    members = ["a", "b"] if case == "fusion" else []
    assert list(again.deltakit.attached) == [*members, "d"]
    assert again.deltakit.get("d").method == METHODS[case]
    assert again.config.id2label == {0: "x", 1: "y", 2: "z"} or not again.deltakit.get("d").labels


@pytest.mark.slow
def test_in_another_process(tmp_path: Path) -> None:
    model = trained(METHODS["sum"], tmp_path)
    torch.save(out(model, INPUTS), tmp_path / "expected.pt")
    program = (
        "import sys, torch, deltakit as dk\n"
        "from deltakit.testing.models import make_inputs, make_model\n"
        "from deltakit.testing.probes import out\n"
        "model = make_model('bert', 'classify')\n"
        "dk.load(model, sys.argv[1] + '/checkpoint-2', name='mine')\n"
        "assert list(model.deltakit.attached) == ['mine']\n"
        "expected = torch.load(sys.argv[1] + '/expected.pt')\n"
        "assert torch.equal(out(model, make_inputs('bert', 'classify')), expected)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)


def test_the_models_own_save_pretrained(tmp_path: Path) -> None:
    """In several files too, and with a delta that was not active."""
    model = attached()
    dk.activate(model, dk.Stack("a", "spare"))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    again = make_model("bert", "classify")
    dk.load(again, tmp_path)
    assert again.deltakit.active == dk.Stack("a", "spare")
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))
    alone = make_model("bert", "classify")
    dk.load(alone, tmp_path, head=False)
    assert torch.equal(alone.classifier.weight, make_model("bert", "classify").classifier.weight)


def changed(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_what_does_not_fit(tmp_path: Path) -> None:
    model = attached()
    model.save_pretrained(tmp_path)
    key = next(key for key in model.state_dict() if key.endswith("lora_A"))

    def refused(message: str, other: Any = None) -> None:
        with pytest.raises(CheckpointError, match=message):
            dk.load(other or make_model("bert", "classify"), tmp_path)

    refused("made on a base with model_type='bert'; this GPT2Model", make_model("gpt2"))
    refused("missing 'encoder.2.attn", make_model("bert", "classify", num_hidden_layers=3))
    changed(tmp_path, lambda ts: ts.pop(key))
    refused("missing 'encoder.0.attn.q.lora_A'")
    changed(tmp_path, lambda ts: ts.update({key: torch.full((1, 16), float("nan"))}))
    refused("that are not finite")
    changed(tmp_path, lambda ts: ts.update({key: torch.zeros(1, 16)}))
    changed(tmp_path, lambda ts: ts.update({EXTRA: torch.zeros(3, dtype=torch.uint8)}))
    refused("_extra_state")
    changed(tmp_path, lambda ts: ts.pop(EXTRA))
    refused("holds no delta")
    with pytest.raises(CheckpointError, match="writes its own checkpoints"):
        dk.save(model, tmp_path / "new", "a", format="training")


def test_none_was_active(tmp_path: Path) -> None:
    model = attached()
    with dk.disabled(model):
        model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="the deltas 'a', 'spare', none of which was active"):
        dk.load(make_model("bert", "classify"), tmp_path)
    dk.detach(model, "spare")
    with dk.disabled(model):
        model.save_pretrained(tmp_path)
    again = make_model("bert", "classify")
    dk.load(again, tmp_path)
    dk.activate(model, "a")
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))


def test_a_state_dict_round_trip() -> None:
    """What the deltas are travels in it, and one without it loads as before."""
    model = attached()
    state = model.state_dict()
    said = from_tensor(state[EXTRA])
    assert [each["name"] for each in said["deltas"]] == ["a", "spare"]
    assert json.loads(bytes(as_tensor(said).tolist())) == said
    other = attached()
    assert not any(other.load_state_dict(state))
    del state[EXTRA]
    assert not any(other.load_state_dict(state))
    dk.detach(model)
    assert EXTRA not in model.state_dict()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model_fsdp.bin"])
def test_a_file_of_torchs(name: str, tmp_path: Path) -> None:
    model = attached()
    dk.activate(model, "a")
    torch.save(model.state_dict(), tmp_path / name)
    again = make_model("bert", "classify")
    dk.load(again, tmp_path)
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))


def test_files_of_torchs_with_an_index(tmp_path: Path) -> None:
    model = attached()
    dk.activate(model, "a")
    state = dict(model.state_dict())
    files = {key: f"pytorch_model-0000{1 + index % 2}.bin" for index, key in enumerate(state)}
    for file in set(files.values()):
        torch.save({key: state[key] for key in state if files[key] == file}, tmp_path / file)
    index = tmp_path / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"weight_map": files}))
    again = make_model("bert", "classify")
    dk.load(again, tmp_path)
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))


class Opens:
    """Something that runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def test_nothing_in_a_file_of_torchs_is_run(tmp_path: Path) -> None:
    torch.save({EXTRA: Opens(tmp_path / "ran")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="holds no delta"):
        dk.load(make_model("bert", "classify"), tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("pytorch_model_fsdp_0", "shards of FSDP.*accelerate merge-weights"),
        ("global_step2", "shards of DeepSpeed.*zero_to_fp32.py"),
    ],
)
def test_shards_are_refused(folder: str, message: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    with pytest.raises(CheckpointError, match=message) as caught:
        dk.load(make_model("bert", "classify"), tmp_path)
    assert "\n" not in str(caught.value)
    model = attached()
    model.save_pretrained(tmp_path)  # a whole state dict beside the shards is read
    dk.load(make_model("bert", "classify"), tmp_path)


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_what_the_refusal_of_shards_advises(tmp_path: Path) -> None:
    """Merged by accelerate, the shards of a distributed checkpoint are a folder that loads."""
    from accelerate.utils import merge_fsdp_weights
    from torch.distributed.checkpoint import save

    model = attached()
    dk.activate(model, "a")
    shards = tmp_path / "pytorch_model_fsdp_0"
    save({"model": model.state_dict()}, checkpoint_id=shards, no_dist=True)
    merge_fsdp_weights(str(shards), str(tmp_path / "merged"))
    again = make_model("bert", "classify")
    dk.load(again, tmp_path / "merged")
    assert torch.equal(out(again, INPUTS), out(model, INPUTS))
