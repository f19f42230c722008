"""Labels travel with a head: in each format, to a model of other labels, and back."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification

import deltakit as dk
from deltakit.core.labels import default_labels, labels_of, row_of_each
from deltakit.errors import CheckpointError

FORMATS = ("deltakit", "peft", "adapterhub")
TRAINED = ("ham", "spam", "other")


def model_with(labels: tuple[str, ...]) -> Any:
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=20,
        max_position_embeddings=20,
        id2label=dict(enumerate(labels)),
        label2id=row_of_each(labels),
    )
    return RobertaForSequenceClassification(config).eval()


def answer(model: Any) -> str:
    ids = torch.tensor([[5, 6, 7]])
    return model.config.id2label[int(model(ids).logits.argmax())]


@pytest.fixture(params=FORMATS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A head that always answers "spam", saved in each format."""
    model = model_with(TRAINED)
    method = dk.LoRA(rank=1) if request.param == "peft" else dk.SequentialAdapter(bottleneck=2)
    dk.attach(model, method, "d")
    with torch.no_grad():
        model.classifier.out_proj.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]))
    dk.save(model, tmp_path, "d", format=request.param)
    return tmp_path


def test_a_model_without_labels_takes_the_heads(folder: Path, tmp_path: Path) -> None:
    model = model_with(default_labels(3))
    before = model.config.to_dict()
    dk.load(model, folder)
    assert answer(model) == "spam"
    assert model.config.label2id == row_of_each(TRAINED)
    dk.save(model, tmp_path / "again", "d", format="deltakit")
    again = model_with(default_labels(3))
    dk.load(again, tmp_path / "again", name="other")
    assert answer(again) == "spam"
    with dk.disabled(model):
        assert model.config.to_dict() == before
    assert answer(model) == "spam"
    dk.detach(model)
    assert model.config.to_dict() == before


@pytest.mark.parametrize("labels", [("spam", "other", "ham"), ("a", "b", "c")])
def test_other_labels_are_told_and_the_answer_is_right(
    folder: Path, labels: tuple[str, ...]
) -> None:
    model = model_with(labels)
    with pytest.warns(UserWarning, match="head are 'ham', 'spam', 'other' in this order; model.c"):
        dk.load(model, folder)
    assert answer(model) == "spam"
    dk.detach(model)
    assert tuple(model.config.id2label.values()) == labels


def test_without_its_head_nothing_is_said(folder: Path) -> None:
    model = model_with(("x", "y", "z"))
    dk.load(model, folder, head=False)
    assert tuple(model.config.id2label.values()) == ("x", "y", "z")


def test_the_same_labels(folder: Path) -> None:
    model = model_with(TRAINED)
    config = model.config.to_dict()
    dk.load(model, folder)
    assert model.config.to_dict() == config


def test_each_head_has_its_own(folder: Path, tmp_path: Path) -> None:
    """Deltas of several tasks on one model: the config has the labels of the active one."""
    other = model_with(("cold", "warm", "hot"))
    dk.attach(other, dk.LoRA(rank=1), "weather")
    dk.save(other, tmp_path / "weather", "weather")
    model = model_with(default_labels(3))
    dk.attach(model, dk.HeadOnly(), "mine")
    dk.load(model, folder)
    dk.load(model, tmp_path / "weather")
    assert model.config.label2id == row_of_each(("cold", "warm", "hot"))
    dk.activate(model, "d")
    assert answer(model) == "spam"
    dk.activate(model, "mine")
    assert tuple(model.config.id2label.values()) == default_labels(3)
    dk.activate(model, dk.PerRow(["d", "weather"]))
    assert tuple(model.config.id2label.values()) == default_labels(3)
    dk.save(model, tmp_path / "inactive", "weather")
    described = json.loads((tmp_path / "inactive" / "delta.json").read_text())["deltas"][0]
    assert described["labels"] == ["cold", "warm", "hot"]


@pytest.mark.parametrize("order", ["spam", "none"])
def test_a_merge_that_is_kept_keeps_the_labels(tmp_path: Path, order: str) -> None:
    """The head stays in the model, so its labels stay; another delta's head keeps its own."""
    model = model_with(TRAINED)
    dk.attach(model, dk.LoRA(rank=1), "d")
    with torch.no_grad():
        model.classifier.out_proj.bias.copy_(torch.tensor([-9.0, 9.0, -9.0]))
    dk.save(model, tmp_path / "saved", "d")
    here = ("spam", "other", "ham") if order == "spam" else default_labels(3)
    again = model_with(here)
    dk.attach(again, dk.LoRA(rank=1), "mine")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dk.load(again, tmp_path / "saved")
    dk.merge(again, keep=True)
    dk.detach(again, "d")
    assert answer(again) == "spam" and again.config.label2id == row_of_each(TRAINED)
    if order == "spam":
        dk.activate(again, "mine")
        assert again.config.label2id == row_of_each(here)
    dk.detach(again)
    assert answer(again) == "spam"
    again.save_pretrained(tmp_path / "whole")
    assert answer(type(again).from_pretrained(tmp_path / "whole").eval()) == "spam"


def test_folders_of_before_say_nothing(folder: Path) -> None:
    path = folder / "delta.json"
    if path.is_file():
        content = json.loads(path.read_text())
        del content["deltas"][0]["labels"]
        path.write_text(json.dumps(content))
        model = model_with(("x", "y", "z"))
        dk.load(model, folder)
        assert tuple(model.config.id2label.values()) == ("x", "y", "z")
        content["deltas"][0]["labels"] = ["a", "a"]
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="bad or missing key 'labels'"):
            dk.load(model, folder, name="other")


def test_the_librarys_own_order(tmp_path: Path) -> None:
    """A published head_config.json has its labels in any order, by the row of each."""
    model = model_with(TRAINED)
    dk.attach(model, dk.SequentialAdapter(bottleneck=2), "d")
    with torch.no_grad():
        model.classifier.out_proj.bias.copy_(torch.tensor([9.0, -9.0, -9.0]))
    dk.save(model, tmp_path, "d", format="adapterhub")
    path = tmp_path / "head_config.json"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "label2id": {"0": 2, "1": 0, "2": 1}})
    )
    again = model_with(default_labels(3))
    dk.load(again, tmp_path)
    assert answer(again) == "1"


@pytest.mark.parametrize(
    ("said", "labels"),
    [
        (None, ()),
        ({}, ()),
        ({"a": 0, "b": 0}, ()),
        ({"a": 1, "b": 2}, ()),
        ({"a": "0", "b": "1"}, ()),
        ({"LABEL_0": 0, "LABEL_1": 1}, ()),
        ({"b": 1, "a": 0}, ("a", "b")),
    ],
)
def test_what_a_config_says(said: Any, labels: tuple[str, ...]) -> None:
    assert labels_of(said) == labels


def test_another_number_of_classes(tmp_path: Path) -> None:
    model = model_with(TRAINED)
    dk.attach(model, dk.SequentialAdapter(bottleneck=2), "d")
    dk.save(model, tmp_path, "d", format="adapterhub")
    path = tmp_path / "head_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "label2id": {"a": 0, "b": 1}}))
    other = model_with(("x", "y", "z"))
    before = other.config.to_dict()
    with warnings.catch_warnings(), pytest.raises(CheckpointError, match="is for 2 classes"):
        dk.load(other, tmp_path)
    assert other.config.to_dict() == before
