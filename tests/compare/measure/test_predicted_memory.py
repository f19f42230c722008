"""Predicted memory is what is measured on real tensors, and QLoRA's figure on a 7B config."""

import dataclasses
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure.memory import bytes_of, inference_memory, training_memory
from deltakit.compare.measure.predicted_memory import Load, PredictedMemory, predicted_memory
from deltakit.compare.measure.timing import Step
from deltakit.core.method import METHODS, CombiningMethod, Method
from deltakit.models.heads import Head, LanguageHead, SequenceHead
from deltakit.models.quantised import codec_of, stored_tensors
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
    "hyperformer": "hyperformer[bottleneck=4]",
    "learned_mean": "learned_mean[names=a/b]",
    "phm": "phm[bottleneck=4,n=2]",
}
"""Methods whose usual size is not one of the tiny models, and those that members are named for."""


def methods_by_name() -> tuple[str, ...]:
    dk.parse_method("lora")  # which knows all methods
    return tuple(METHODS)


def method_of(label: str, tiny: bool) -> Method:
    return dk.parse_method(
        TINY.get(label, label) if tiny or label in ("fusion", "learned_mean") else label
    )


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


@pytest.fixture(autouse=True)
def _no_collection() -> Iterator[None]:
    """When cycles are collected depends on all that ran before, and one tensor shows in a peak."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def check(source: ModelSource, method: Method, base: str, head: Head, load: Load) -> None:
    held, members = choice(base), members_of(method)
    found = by_kind(predicted_memory(source, method, held, head, load, members=members))
    real = measured(source, method, held, head, load)
    for kind in ("weights", "gradients", "optimizer"):
        assert found[kind] == real[kind], kind
    for kind in ("activations", "training_peak", "inference_peak"):
        assert found[kind] == pytest.approx(real[kind], rel=0.05), (kind, found, real)


def trains_on(label: str, base: str) -> bool:
    """Packed numbers are not trained, which two methods would do with the linears' weights."""
    return label not in ("full", "partial") or base in ("fp32", "bf16")


SETTINGS = [(base, again) for base in BASES for again in (False, True)]
TURNS = [(label, *SETTINGS[turn % len(SETTINGS)]) for turn, label in enumerate(methods_by_name())]
"""The methods, with the bases in turn, each with and without checkpointing."""


@pytest.mark.parametrize(
    ("label", "base", "again"),
    [
        pytest.param(*each, marks=[] if turn % 5 == 0 else pytest.mark.slow)
        for turn, each in enumerate(TURNS)
    ],
)
def test_each_method_needs_what_is_predicted(
    bert: Path, label: str, base: str, again: bool
) -> None:
    if not trains_on(label, base):
        base = "bf16"
    load = dataclasses.replace(LOAD, gradient_checkpointing=again)
    check(find_model(str(bert)), method_of(label, tiny=True), base, SEQUENCE, load)


@pytest.mark.parametrize("label", ["lora", "adapter", "ia3"])
def test_peaks_on_int8_are_those_that_are_predicted(bert: Path, label: str) -> None:
    """What the forward pass keeps is not as near: see docs/memory.md."""
    source, method = find_model(str(bert)), method_of(label, tiny=True)
    found = by_kind(predicted_memory(source, method, choice("int8"), SEQUENCE, LOAD))
    real = measured(source, method, choice("int8"), SEQUENCE, LOAD)
    for kind in ("weights", "gradients", "optimizer"):
        assert found[kind] == real[kind], kind
    for kind in ("training_peak", "inference_peak"):
        assert found[kind] == pytest.approx(real[kind], rel=0.05), (kind, found, real)


@pytest.mark.parametrize(("base", "again"), SETTINGS[1::2])
def test_a_decoder_needs_what_is_predicted(decoder: Path, base: str, again: bool) -> None:
    load = dataclasses.replace(LOAD, gradient_checkpointing=again)
    check(find_model(str(decoder)), dk.LoRA(), base, LANGUAGE, load)


SMOLLM2 = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
"""The shapes of SmolLM2-135M."""
MINILM = {
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "vocab_size": 30522,
}
"""The shapes of all-MiniLM-L6-v2."""


@pytest.fixture(scope="module")
def real_shapes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Checkpoints of the shapes of MiniLM and SmolLM2, with random values."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
    )

    folders = {name: str(tmp_path_factory.mktemp(name)) for name in ("minilm", "smollm2")}
    BertForSequenceClassification(BertConfig(**MINILM)).save_pretrained(folders["minilm"])
    LlamaForCausalLM(LlamaConfig(**SMOLLM2)).save_pretrained(folders["smollm2"])
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("label", methods_by_name())
@pytest.mark.parametrize("model", ["minilm", "smollm2"])
def test_real_shapes_need_what_is_predicted(
    real_shapes: dict[str, str], model: str, label: str, base: str
) -> None:
    if not trains_on(label, base):
        pytest.skip("it trains every weight, which needs them as numbers")
    if model == "smollm2" and label == "bitfit":
        pytest.skip("it has no bias")
    head = SEQUENCE if model == "minilm" else LANGUAGE
    for again in (False, True):
        load = Load(batch_size=4, max_length=64, gradient_checkpointing=again)
        check(find_model(real_shapes[model]), method_of(label, tiny=False), base, head, load)


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


# --------------------------------------------------------------------- a config and nothing else

LLAMA_7B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
}


@pytest.fixture
def llama_7b(tmp_path: Path) -> Path:
    """The config of a Llama of 7 billion parameters."""
    file = tmp_path / "llama-7b.json"
    file.write_text(json.dumps(LLAMA_7B))
    return file


def test_double_quantisation_takes_the_bits_of_qloras_paper(llama_7b: Path) -> None:
    """Dettmers et al. (2023): 4 + 8/64 + 32/(64 · 256) = 4.127 bits for each parameter."""
    model = find_model(str(llama_7b)).skeleton_in(choice("nf4"), LANGUAGE)
    linears: list[Any] = [each for each in model.modules() if codec_of(each) is not None]
    numbers = sum(each.in_features * each.out_features for each in linears)
    bits = 8 * bytes_of(stored_tensors(torch.nn.ModuleList(linears))) / numbers
    assert (len(linears), numbers) == (7 * 32, 6_476_005_376)
    assert round(bits, 3) == 4.127


def test_packing_without_values_leaves_the_librarys_tables_alone(bert: Path) -> None:
    held = choice("nf4")
    find_model(str(bert)).skeleton_in(held, SEQUENCE)
    from bitsandbytes.functional import name2qmap

    assert all(table.device.type != "meta" for table in name2qmap.values())


def test_the_command_reads_a_config_and_nothing_else(bert: Path, deltakit: Any) -> None:
    config = str(bert / "config.json")
    ended = deltakit(
        "plan", "--memory", "--model", config, "--methods", "lora,prompt", "--batch-size", 4,
        "--max-length", 12, "--gradient-checkpointing", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended
    told = json.loads(ended.out)
    assert [row["method"] for row in told["rows"]] == ["lora", "prompt"]
    load = dataclasses.replace(LOAD, gradient_checkpointing=True)
    lora = predicted_memory(find_model(config), dk.LoRA(), choice("fp32"), SEQUENCE, load)
    assert told["rows"][0]["memory"] == dataclasses.asdict(lora)


def test_a_row_that_cannot_be_says_why(bert: Path, deltakit: Any) -> None:
    ended = deltakit(
        "plan", "--memory", "--model", str(bert), "--methods", "adapter[reduction=64]",
        "--batch-size", 2, "--max-length", 8, "--no-gradient-checkpointing",
    )  # fmt: skip
    assert ended.code == 0, ended
    assert "reduction=64 leaves no bottleneck" in ended.out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--memory", "--max-length", "9999"), "tokens at most"),
        (("--memory", "--max-length", "9", "--kind", "pictures"), "pictures"),
        (("--json",), "add it"),
    ],
)
def test_wrong_questions_are_one_line(
    bert: Path, deltakit: Any, options: tuple[str, ...], said: str
) -> None:
    ended = deltakit("plan", "--model", str(bert), "--methods", "lora", *options)
    assert ended.code == 2
    assert said in ended.err
