"""Conversions between deltakit and a library that names modules, on shapes alone."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltakit as dk
from deltakit.core.method import METHODS
from deltakit.errors import CheckpointError, InvalidConfig, UnknownName
from deltakit.interop.origin import Origin, origin_of
from deltakit.models.find import classes, find, skeleton

importlib.import_module("deltakit.methods")  # fills METHODS
Base = Callable[..., str]
DELTA = "delta.safetensors"


def made(kit: SimpleNamespace, spec: str, family: str = "bert", kind: str = "classify") -> Any:
    """A model with a random delta "d" of that method."""
    model = kit.make_model(family, kind)
    dk.attach(model, dk.parse_method(spec), name="d")
    kit.randomise_deltas(model)
    return model


def same_files(one: Path, other: Path) -> bool:
    """Whether two deltakit folders hold the same, bit for bit."""
    names = ("delta.json", DELTA)
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


# ------------------------------------------------------------------------------ without a base


def test_deltakit_to_deltakit_needs_no_base(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert", "classify")
    kit.attach_fusion(model)
    dk.save(model, tmp_path / "a", name="fused")
    done = dk.convert(tmp_path / "a", tmp_path / "b", to="deltakit")
    assert same_files(tmp_path / "a", tmp_path / "b")
    tensors = load_file(tmp_path / "a" / DELTA)
    assert (done.base, done.tensors) == ("", len(tensors))
    assert done.params == sum(tensor.numel() for tensor in tensors.values())
    assert done.methods[0] == ("a", "adapter[bottleneck=3]")
    assert [name for name, _ in done.methods] == ["a", "b", "fused"]
    first, second = str(done).splitlines()
    assert first.startswith(f"read {tmp_path / 'a'} (deltakit): a = adapter[bottleneck=3], b = ")
    assert first.endswith(f"{done.tensors} tensors, {done.params:,} numbers")
    assert second == f"wrote {tmp_path / 'b'} (deltakit), no base was needed"


def test_with_a_base_the_fit_is_checked(kit: SimpleNamespace, tmp_path: Path, base: Base) -> None:
    dk.save(made(kit, "lora"), tmp_path / "a", name="d")
    like, wide = (kit.make_model("bert", hidden_size=size) for size in (16, 32))
    done = dk.convert(tmp_path / "a", tmp_path / "b", to="deltakit", base=base(like, "like"))
    assert same_files(tmp_path / "a", tmp_path / "b")
    assert done.base == f"BertForSequenceClassification of {str(tmp_path / 'like')!r}"
    with pytest.raises(CheckpointError, match=r"base with encoder width=16.*Tried on BertModel"):
        dk.convert(tmp_path / "a", tmp_path / "c", to="deltakit", base=base(wide, "wide"))
    assert not (tmp_path / "c").exists()


SIZED = {  # in a size that the tiny model has
    "compacter": "compacter[bottleneck=4]",
    "compacter++": "compacter++[bottleneck=4]",
    "hyperformer": "hyperformer[bottleneck=4]",
    "phm": "phm[bottleneck=4,n=4]",
    "learned_mean": "learned_mean[names=a/b]",
}


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_fits_a_skeleton(
    name: str, kit: SimpleNamespace, tmp_path: Path, base: Base
) -> None:
    model = kit.make_model("bert", "classify", num_hidden_layers=6)
    method = SIZED.get(name, name)
    if name == "fusion":
        kit.attach_fusion(model)
    else:
        for member in ("a", "b") if name == "learned_mean" else ():
            dk.attach(model, dk.LoRA(rank=2), name=member)
        dk.attach(model, dk.parse_method(method), name="fused")
    kit.randomise_deltas(model)
    dk.save(model, tmp_path / "a", name="fused")
    done = dk.convert(tmp_path / "a", tmp_path / "b", to="deltakit", base=base(model))
    assert done.base.startswith("BertForSequenceClassification of")
    assert same_files(tmp_path / "a", tmp_path / "b")


# --------------------------------------------------------------------------------- on a skeleton


@pytest.mark.parametrize(
    ("family", "kind", "architecture", "expected", "path"),
    [
        ("bert", "classify", "ForMaskedLM", "BertForSequenceClassification", "bert.encoder."),
        ("bert", "bare", "ForMaskedLM", "BertModel", "encoder."),
        ("llama", "causal", "ForCausalLM", "LlamaForCausalLM", "model.layers."),
        ("llama", "bare", "Model", "LlamaModel", "layers."),
        ("llama", "classify", "ForCausalLM", "LlamaForSequenceClassification", "model.layers."),
        ("t5", "seq2seq", "ForConditionalGeneration", "T5ForConditionalGeneration", "encoder."),
        ("roberta", "classify", "ForMaskedLM", "RobertaForSequenceClassification", "roberta."),
    ],
)
def test_there_and_back(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base, family: str, kind: str,
    architecture: str, expected: str, path: str,
) -> None:  # fmt: skip
    model = made(kit, "lora[rank=3,alpha=7]", family, kind)
    dk.save(model, tmp_path / "ours", name="d")
    config = base(
        model, architectures=[family.title() + architecture], id2label=None, label2id=None
    )
    done = dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=config)
    assert done.base == f"{expected} of {config!r}"
    names = load_file(tmp_path / "theirs" / "other.safetensors")
    assert any(name.startswith(path) for name in names)
    back = dk.convert(tmp_path / "theirs", tmp_path / "back", to="deltakit")
    assert back.base == done.base  # as the folder says
    assert same_files(tmp_path / "ours", tmp_path / "back")
    again = kit.make_model(family, kind)
    dk.load(again, tmp_path / "theirs")
    inputs = kit.make_inputs(family, kind)
    assert torch.equal(kit.first(again(**inputs)), kit.first(model(**inputs)))


def test_nothing_of_the_base_is_made(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base
) -> None:
    """A base of 10¹³ parameters, of which there is only the config."""
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    huge = base(kit.make_model("bert"), vocab_size=10**12)
    done = dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=huge)
    assert done.written_as == "Other"
    assert sorted(path.name for path in Path(huge).iterdir()) == ["config.json"]


def test_code_beside_a_base_is_not_run(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base
) -> None:
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    folder = base(
        kit.make_model("bert"), model_type="strange", auto_map={"AutoConfig": "evil.Config"}
    )
    trace = tmp_path / "trace"
    (Path(folder) / "evil.py").write_text(f"open({str(trace)!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UnknownName, match="cannot be resolved"):
        dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=folder)
    assert not trace.exists()


def test_a_name_on_the_hub(
    kit: SimpleNamespace, tmp_path: Path, publish: Callable[..., Path]
) -> None:
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    publish(tmp_path / "ours", "owner/name")
    dk.convert("owner/name", tmp_path / "copy", to="deltakit")
    assert same_files(tmp_path / "ours", tmp_path / "copy")


# -------------------------------------------------------------------------------------- refusals


def test_a_part_that_cannot_be_said(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base
) -> None:
    model = made(kit, "lora+houlsby")
    dk.save(model, tmp_path / "ours", name="d")
    with pytest.raises(CheckpointError, match="Other has no words for 'd', a sum"):
        dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=base(model))
    assert not (tmp_path / "theirs").exists()


def test_a_base_that_is_not_known(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base
) -> None:
    model = made(kit, "lora")
    dk.save(model, tmp_path / "ours", name="d")
    with pytest.raises(CheckpointError, match=r"ours does not say which model.*--base"):
        dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other")
    with pytest.raises(UnknownName, match="unknown model 'minilmm'. Did you mean 'minilm'"):
        dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base="minilmm")
    dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=base(model))
    config = tmp_path / "theirs" / "adapter_config.json"
    said = {**json.loads(config.read_text()), "base_model_name_or_path": "/nowhere/b"}
    config.write_text(json.dumps(said))
    with pytest.raises(CheckpointError, match=r"says it was made on '/nowhere/b': .*--base"):
        dk.convert(tmp_path / "theirs", tmp_path / "back", to="deltakit")
    dk.convert(tmp_path / "theirs", tmp_path / "back", to="deltakit", base=base(model))
    assert same_files(tmp_path / "ours", tmp_path / "back")


def test_a_file_that_fits_no_class(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base
) -> None:
    model = made(kit, "lora")
    dk.save(model, tmp_path / "ours", name="d")
    dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=base(model))
    weights = tmp_path / "theirs" / "other.safetensors"
    save_file({**load_file(weights), "bert.stray.weight": torch.ones(1)}, weights)
    with pytest.raises(
        CheckpointError, match="Tried on BertModel, .*BertForSequenceClass"
    ) as found:
        dk.convert(tmp_path / "theirs", tmp_path / "back", to="deltakit")
    assert "\n" not in str(found.value)
    assert not (tmp_path / "back").exists()


def test_where_it_may_not_be_written(kit: SimpleNamespace, tmp_path: Path, other: Any) -> None:
    ours = tmp_path / "ours"
    dk.save(made(kit, "lora"), ours, name="d")
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("precious")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "other.safetensors").write_text("precious")
    for taken in ("file", "folder", "theirs"):
        with pytest.raises(CheckpointError, match=f"{taken} exists and holds no delta of deltakit"):
            dk.convert(ours, tmp_path / taken, to="deltakit")
    (tmp_path / "link").symlink_to(ours)
    for itself in (ours, tmp_path / "link"):
        with pytest.raises(CheckpointError, match="read and written at once"):
            dk.convert(ours, itself, to="deltakit")
    with pytest.raises(UnknownName, match=r"unknown format 'otter'. Did you mean 'other'"):
        dk.convert(ours, tmp_path / "new", to="otter")
    assert (tmp_path / "file").read_text() == (tmp_path / "folder/file").read_text() == "precious"


@pytest.mark.parametrize("there", ["empty", "older"])
def test_where_it_may_be_written(kit: SimpleNamespace, tmp_path: Path, there: str) -> None:
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    (tmp_path / "empty").mkdir()
    dk.save(made(kit, "houlsby"), tmp_path / "older", name="d")
    dk.convert(tmp_path / "ours", tmp_path / there, to="deltakit")
    assert same_files(tmp_path / "ours", tmp_path / there)


def test_what_is_no_delta(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(CheckpointError, match="holds no delta. Looked for"):
        dk.convert(tmp_path / "folder", tmp_path / "new", to="deltakit")
    with pytest.raises(CheckpointError, match="is neither a folder here nor a name"):
        dk.convert("folder-that-is-not", tmp_path / "new", to="deltakit")


# ------------------------------------------------------------------ what a folder says, classes


@pytest.mark.parametrize(
    ("configs", "base", "kinds"),
    [
        ({}, "", ()),
        ({"": {"peft_type": "LORA", "base_model_name_or_path": None, "task_type": None}}, "", ()),
        (
            {"": {"base_model_name_or_path": "o/b", "task_type": "SEQ_CLS"}},
            "o/b",
            ("AutoModelForSequenceClassification",),
        ),
        (
            {"": {"auto_mapping": {"base_model_class": "BertForMaskedLM"}, "task_type": None}},
            "",
            ("BertForMaskedLM",),
        ),
        (
            {"": {"model_name": "o/b", "model_class": "BertForSequenceClassification"}},
            "o/b",
            ("BertForSequenceClassification",),
        ),
        ({"en": {"model_name": "o/b", "model_class": "X"}, "de": {}}, "o/b", ("X",)),
        ({"": {"model_name": 3, "task_type": ["SEQ_CLS"], "auto_mapping": "x"}}, "", ()),
    ],
)
def test_origins(
    configs: dict[str, Any], base: str, kinds: tuple[str, ...], tmp_path: Path
) -> None:
    for folder, config in configs.items():
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
    assert origin_of(tmp_path) == Origin(base=base, kinds=kinds)


def test_a_fusion_says_it_too(tmp_path: Path) -> None:
    config = {"model_name": "o/b", "model_class": "BertModel"}
    (tmp_path / "adapter_fusion_config.json").write_text(json.dumps(config))
    assert origin_of(tmp_path) == Origin(base="o/b", kinds=("BertModel",))


def names(config: Any, *told: str) -> list[str]:
    return [kind.__name__ for kind in classes(config, told)]


def test_classes_that_a_config_can_have(kit: SimpleNamespace) -> None:
    config = kit.make_model("bert").config
    config.architectures = ["BertForMaskedLM"]  # none that `load_base` makes: it says little
    usual = ["BertModel", "BertLMHeadModel", "BertForSequenceClassification"]
    assert names(config)[:3] == usual
    assert names(config, "BertForMaskedLM")[:2] == ["BertForMaskedLM", "BertModel"]
    assert names(config, "AutoModelForQuestionAnswering")[0] == "BertForQuestionAnswering"
    config.architectures = ["BertForSequenceClassification"]
    assert names(config)[0] == "BertForSequenceClassification"


@pytest.mark.parametrize(
    "told", ["BertAdapterModel", "RobertaModel", "BertConfig", "pipeline", "os", "__doc__", ""]
)
def test_names_that_are_no_class_of_it(told: str, kit: SimpleNamespace) -> None:
    config = kit.make_model("bert").config
    assert names(config, told) == names(config)


def test_a_skeleton_leaves_the_config(kit: SimpleNamespace, base: Base) -> None:
    config = find(base(kit.make_model("bert"))).config()
    (kind,) = (each for each in classes(config) if each.__name__.endswith("SequenceClassification"))
    model = skeleton(kind, config, labels=7)
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.classifier.weight.shape[0] == model.config.num_labels == 7
    assert config.num_labels == 2


def test_a_config_without_a_model(kit: SimpleNamespace, tmp_path: Path, base: Base) -> None:
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    parts = {part: {"model_type": "bert"} for part in ("encoder", "decoder")}
    folder = base(kit.make_model("bert"), model_type="speech-encoder-decoder", **parts)
    with pytest.raises(InvalidConfig, match="no model for SpeechEncoderDecoderConfig"):
        dk.convert(tmp_path / "ours", tmp_path / "new", to="deltakit", base=folder)


def test_a_config_that_describes_no_model(kit: SimpleNamespace, tmp_path: Path, base: Base) -> None:
    dk.save(made(kit, "lora"), tmp_path / "ours", name="d")
    folder = base(kit.make_model("bert"), hidden_size=-16)
    with pytest.raises(CheckpointError, match="no BertModel can be made from its config") as found:
        dk.convert(tmp_path / "ours", tmp_path / "new", to="deltakit", base=folder)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", ["bert-old", "owner/bert"])
def test_a_base_on_the_hub(
    kit: SimpleNamespace, tmp_path: Path, other: Any, base: Base, name: str,
    publish: Callable[..., Path],
) -> None:  # fmt: skip
    """The Hub's first models have no owner, and most folders name one of them."""
    model = made(kit, "lora")
    publish(Path(base(model)), name)
    dk.save(model, tmp_path / "ours", name="d")
    done = dk.convert(tmp_path / "ours", tmp_path / "theirs", to="other", base=name)
    assert done.base == f"BertForSequenceClassification of {name!r}"
    config = json.loads((tmp_path / "theirs" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == name
