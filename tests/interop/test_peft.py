"""PEFT's folders, both ways, beside the live library: outputs, tensors, configs, and what is not.

Every adapter has random values everywhere. Warnings are errors here, so that PEFT loads what we
write with no key missing and none left over.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from peft import (
    AdaLoraConfig,
    IA3Config,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from peft.utils import constants
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltakit as dk
from deltakit.arch.family import FAMILIES
from deltakit.core.method import Method
from deltakit.errors import CheckpointError
from deltakit.inject.transfer import to_checkpoint
from deltakit.interop.files import METADATA
from deltakit.interop.formats import FORMATS
from deltakit.interop.peft import defaults
from deltakit.testing.models import kind_of, make_inputs, make_model
from deltakit.testing.probes import assert_same, out
from deltakit.testing.probes import snapshot as state_of

WITHIN = 1e-5
TASKS = {"classify": "SEQ_CLS", "causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "bare": None}
SILENT = pytest.mark.filterwarnings("ignore:.*:UserWarning:peft", "ignore:.*:RuntimeWarning:peft")
"""For what PEFT says while it makes an adapter of its own."""


@torch.no_grad()
def randomised(model: Any) -> Any:
    """Random values in all that is trained; rescalings are drawn around one."""
    draw = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            values = torch.randn(parameter.shape, generator=draw) * 0.2
            parameter.copy_(values + 1 if "ia3_l" in name else values)
    return model.eval()


def theirs(config: PeftConfig, family: str, kind: str, folder: Path) -> Tensor:
    """Saves a random adapter of PEFT's, and returns what its model computes."""
    model = randomised(get_peft_model(make_model(family, kind), config))
    model.save_pretrained(folder)
    return out(model, make_inputs(family, kind))


def loaded(folder: Path, family: str, kind: str, **options: Any) -> Any:
    """A fresh model with the folder's adapter, by deltakit."""
    model = make_model(family, kind)
    dk.load(model, folder, **options)
    return model


def peft_loaded(folder: Path, family: str, kind: str) -> Any:
    """A fresh model with the folder's adapter, by PEFT."""
    return PeftModel.from_pretrained(make_model(family, kind), folder).eval()


def method_of(model: Any, name: str = "default") -> Method:
    """The method that is attached."""
    return model.deltakit.attached[name].method


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def edit(folder: Path, **changes: Any) -> None:
    """Changes the config; None takes a key out."""
    config = {**config_of(folder), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    (folder / "adapter_config.json").write_text(json.dumps(kept))


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Changes the tensors; our own words stay."""
    from safetensors import safe_open

    path = folder / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file(change(load_file(path)), path, metadata=metadata)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=WITHIN, rtol=WITHIN)


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


# ----------------------------------------------------------------------------- PEFT -> ours -> PEFT


def lora(**fields: Any) -> LoraConfig:
    return LoraConfig(**{"r": 3, "lora_alpha": 5, "init_lora_weights": False, **fields})


EVERY_LINEAR = {
    "bert": ["query", "key", "value", "intermediate.dense", "output.dense"],
    "roberta": "all-linear",
    "distilbert": ["q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2"],
}
FROM_PEFT = [
    *((family, {}, lora()) for family in ("bert", "roberta", "llama", "gpt2", "qwen2", "t5",
                                          "mistral", "gpt_neox", "bloom", "bart")),
    ("distilbert", {}, lora(target_modules=["q_lin", "v_lin"])),
    ("phi3", {}, lora(target_modules=["qkv_proj", "gate_up_proj"])),
    *((family, {}, lora(target_modules=EVERY_LINEAR.get(family, "all-linear")))
      for family in ("bert", "roberta", "distilbert", "llama", "gpt2", "t5")),
    *((family, {}, lora(target_modules=names)) for family, names in (
        ("bert", ["word_embeddings", "query"]), ("gpt2", ["wte"]), ("qwen2", "model.embed_tokens"),
        ("llama", ["embed_tokens", "q_proj"]), ("t5", ["embed_tokens"]))),
    *((family, {}, lora(use_dora=True, target_modules=EVERY_LINEAR.get(family, "all-linear")))
      for family in ("bert", "distilbert", "llama", "gpt2", "t5", "phi3", "gpt_neox")),
    ("bert", {}, lora(use_dora=True, use_rslora=True, rank_pattern={"key": 5}, lora_dropout=0.25,
                      target_modules=["query", "key"], modules_to_save=["classifier"])),
    *((family, {}, IA3Config()) for family in ("bert", "roberta", "llama", "gpt2", "qwen2", "t5",
                                               "mistral", "bart", "mt5", "gpt_neox")),
    ("distilbert", {}, IA3Config(target_modules=["k_lin", "v_lin", "lin2"],
                                 feedforward_modules=["lin2"])),
    ("llama", {}, IA3Config(target_modules=r".*\.(o_proj|up_proj|down_proj)",
                            feedforward_modules=r".*\.(o_proj|down_proj)")),
    ("llama", {}, IA3Config(target_modules=["model.layers.1.self_attn.o_proj", "up_proj"],
                            feedforward_modules=[])),
    *((family, {}, PromptTuningConfig(num_virtual_tokens=3))
      for family in ("llama", "gpt2", "qwen2", "mistral")),
    *((family, {}, PrefixTuningConfig(num_virtual_tokens=3))
      for family in ("bert", "roberta", "electra", "llama", "gpt2", "qwen2", "mistral", "qwen3",
                     "phi3")),
    ("llama", {"kind": "classify"}, PrefixTuningConfig(
        num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=5)),
    ("gpt2", {"kind": "bare"}, lora(layers_to_transform=[1], layers_pattern="h")),
    ("bert", {"kind": "bare"}, lora(
        target_modules=["query", "key", "output.dense"], layers_to_transform=[1], bias="all",
        rank_pattern={"key": 5, "1.output.dense": 2}, use_rslora=True,
        alpha_pattern={r"attention\.self\.(query|key)": 7})),
    ("roberta", {}, lora(target_modules=r".*\.(query|dense)", lora_dropout=0.25,
                         exclude_modules=["intermediate.dense"])),
    ("bert", {}, lora(bias="all", modules_to_save=["classifier"])),
    ("bert", {}, lora(bias="lora_only", modules_to_save=["pooler", "output.LayerNorm"])),
    ("gpt2", {}, lora(bias="lora_only")),
    ("llama", {}, lora(modules_to_save=["embed_tokens", "lm_head"])),
    ("llama", {}, IA3Config(modules_to_save=["lm_head"])),
    ("t5", {}, lora(target_modules=["q", "wi", "wo"], layers_to_transform=1)),
    ("llama", {}, lora(target_modules=["model.layers.0.self_attn.q_proj",
                                       "model.layers.1.self_attn.v_proj"],
                       rank_pattern={"^model.layers.0.self_attn.q_proj": 4})),
    ("llama", {"kind": "classify"}, lora(init_lora_weights="gaussian")),
]  # fmt: skip


def named(case: Any) -> str:
    family, options, config = case
    return f"{family}-{config.peft_type.value.lower()}{'-bare' if options else ''}"


@SILENT
@pytest.mark.parametrize("case", FROM_PEFT, ids=named)
def test_theirs_become_ours_and_theirs_again(case: Any, tmp_path: Path) -> None:
    family, options, config = case
    kind = options.get("kind", kind_of(family))
    config = type(config)(**{**config.to_dict(), "task_type": TASKS[kind]})
    expected = theirs(config, family, kind, tmp_path / "theirs")
    inputs = make_inputs(family, kind)
    ours = loaded(tmp_path / "theirs", family, kind)
    found = out(ours, inputs)
    close(found, expected[:, -found.shape[1] :])  # PEFT has logits for a prompt, too
    assert (found - out(make_model(family, kind), inputs)).abs().max() > 1e-2
    dk.save(ours, tmp_path / "again", format="peft")
    back = peft_loaded(tmp_path / "again", family, kind)
    close(out(back, inputs), expected)
    spare = (".original_module.bias", ".modules_to_save.bias", "embed_tokens.base_layer.weight")
    before = {k: t for k, t in tensors_of(tmp_path / "theirs").items() if not k.endswith(spare)}
    equal(tensors_of(tmp_path / "again"), before)
    again = loaded(tmp_path / "again", family, kind)
    assert method_of(again) == method_of(ours)
    equal(to_checkpoint(again).tensors, to_checkpoint(ours).tensors)


# ----------------------------------------------------------------------------- ours -> PEFT -> ours


def attached(method: Method, family: str, kind: str, name: str = "default") -> Any:
    """A model with a random delta of ours, head and biases included."""
    model = make_model(family, kind)
    dk.attach(model, method, name)
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                values = torch.randn(parameter.shape, generator=draw) * 0.2
                parameter.copy_(values + 1 if key.endswith("vector") else values)
    return model.eval()


SUM = dk.LoRA(rank=2, alpha=3, targets=("q", "v")) + dk.LoRA(rank=4, alpha=3, targets=("k", "up"))
TO_PEFT = [
    *((family, method) for method in (dk.LoRA(rank=2), dk.LoRA(rank=2, targets="all"), dk.IA3())
      for family in ("bert", "roberta", "distilbert", "llama", "gpt2", "qwen2", "t5", "mistral")),
    *((family, dk.LoRA(rank=2) + dk.LoRA(rank=1, targets="up")) for family in
      ("vit", "whisper", "clip", "electra", "bart", "albert", "mpnet", "opt")),
    *((family, dk.LoRA(rank=2, targets=("embed", "q"))) for family in ("bert", "gpt2", "llama")),
    ("qwen2", dk.AdapterDrop(dk.LoRA(rank=3, targets=("v", "embed")), first=1)),
    *((family, dk.DoRA(rank=2)) for family in ("bert", "roberta", "llama", "qwen2", "t5")),
    ("llama", dk.AdapterDrop(dk.DoRA(rank=2, rslora=True, targets="all"), first=1)),
    ("gpt2", dk.DoRA(rank=2, alpha=3, targets=("q", "k", "v", "up"))),
    ("bert", dk.DoRA(rank=2, targets="q") + dk.DoRA(rank=3, targets=("v", "down"))),
    ("mt5", dk.IA3(feedforward="pre_activation")),
    ("gpt2", dk.IA3(feedforward="pre_activation")),
    ("gpt2", dk.IA3(targets=("attn.v", "attn.mid"))),
    ("bert", dk.IA3(targets=("attn.mid", "ffn.down"))),
    ("deberta-v2", dk.LoRA(rank=2)),
    ("gpt_neox", dk.LoRA(rank=2, targets=("k", "down"))),
    ("phi3", dk.LoRA(rank=2, targets=("v", "gate"))),
    ("bert", SUM),
    ("llama", SUM),
    ("llama", dk.LoRA(rank=4, alpha=0.3, rslora=True, dropout=0.1) + dk.LoRA(rank=2, targets="o",
                                                                            dropout=0.1)),
    ("gpt2", dk.LoRA(rank=2, alpha=3, targets="q") + dk.LoRA(rank=4, alpha=6, targets=("v", "o"))),
    ("bert", dk.LoRA(rank=2, alpha=2, targets="q") + dk.LoRA(rank=3, alpha=3, targets="q")),
    ("llama", dk.AdapterDrop(dk.LoRA(rank=2, initialisation="kaiming"), first=1)),
    ("gpt2", dk.AdapterDrop(dk.LoRA(rank=2, targets=("q", "v", "up")), layers=(0,))),
    ("t5", dk.AdapterDrop(dk.LoRA(rank=2), layers=(1,))),
    ("bert", dk.AdapterDrop(dk.IA3(), layers=(1,))),
    ("qwen2", dk.AdapterDrop(SUM, random_up_to=1)),
    ("bert", dk.AdapterDrop(dk.LoRA(rank=2), first=1) + dk.LoRA(rank=3, targets="down")),
    ("bert", dk.LoRA(rank=2, targets=("q", "down")) + dk.BitFit()),
    ("roberta", dk.LoRA(rank=2) + dk.NormTuning()),
    ("bert", dk.IA3() + dk.PartialFineTuning(parameters=("*pooler*", "*.layer.1.*.LayerNorm.*"))),
    ("gpt2", dk.LoRA(rank=2) + dk.PartialFineTuning(parameters=("*.c_attn.bias", "*.ln_f.*"))),
    ("llama", dk.NormTuning() + dk.IA3()),
    ("gpt2", dk.PromptTuning(length=3)),
    ("llama", dk.PromptTuning(length=2)),
    *((family, dk.PrefixTuning(length=3, bottleneck=None, positions="shifted", dropout=0.1))
      for family in ("bert", "roberta", "llama", "gpt2", "qwen2", "mistral")),
]  # fmt: skip


@pytest.mark.parametrize(("family", "method"), TO_PEFT, ids=lambda each: str(each)[:40])
def test_ours_become_theirs_and_ours_again(family: str, method: Method, tmp_path: Path) -> None:
    kind = kind_of(family)
    model, inputs = attached(method, family, kind, "mine"), make_inputs(family, kind)
    dk.save(model, tmp_path, "mine", format="peft")
    expected, found = out(model, inputs), out(peft_loaded(tmp_path, family, kind), inputs)
    close(found[:, -expected.shape[1] :], expected)
    again = loaded(tmp_path, family, kind)
    assert method_of(again, "mine") == method
    equal(to_checkpoint(again, "mine").tensors, to_checkpoint(model, "mine").tensors)
    assert torch.equal(out(again, inputs), expected)


@pytest.mark.parametrize(
    ("family", "method"),
    [
        ("gpt2", dk.DoRA(rank=2)),
        ("bert", dk.DoRA(rank=2, targets="q") + dk.DoRA(rank=2, targets="q")),
    ],
)
def test_a_length_of_each_output_is_needed(family: str, method: Method, tmp_path: Path) -> None:
    model = attached(method, family, kind_of(family))
    with pytest.raises(CheckpointError, match="one change and one length for every output"):
        dk.save(model, tmp_path / "new", format="peft")
    assert not (tmp_path / "new").exists()


def test_a_prefix_leaves_its_network_behind(tmp_path: Path) -> None:
    method = dk.PrefixTuning(length=3, bottleneck=4, positions="shifted")
    model, inputs = attached(method, "llama", "causal"), make_inputs("llama")
    dk.save(model, tmp_path, format="peft")
    close(out(peft_loaded(tmp_path, "llama", "causal"), inputs), out(model, inputs))
    dk.deploy(model)
    again = loaded(tmp_path, "llama", "causal")
    assert method_of(again) == method_of(model)
    equal(to_checkpoint(again).tensors, to_checkpoint(model).tensors)
    sizes = {"num_virtual_tokens": 3, "num_layers": 2, "token_dim": 8, "num_attention_heads": 2}
    config = config_of(tmp_path)
    assert {key: config[key] for key in sizes} == sizes
    for key, value in sizes.items():
        edit(tmp_path, **{key: value + 1})
        refused(tmp_path, make_model("llama", "causal"), f"{key} is|must have")
        edit(tmp_path, **{key: value})


def test_what_a_folder_of_ours_looks_like(tmp_path: Path) -> None:
    model = attached(dk.AdapterDrop(SUM, first=1), "llama", "causal")
    dk.save(model, tmp_path, format="peft")
    config = config_of(tmp_path)
    expected = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": 2,
        "lora_alpha": 3,
        "target_modules": ["q_proj", "v_proj", "k_proj", "up_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"k_proj": 4, "up_proj": 4},
        "alpha_pattern": {},
        "modules_to_save": None,
        "bias": "none",
    }
    assert {key: config[key] for key in expected} == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    prefix = "base_model.model.model.layers.1"
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors_of(tmp_path).items()}
    assert shapes[f"{prefix}.self_attn.k_proj.lora_B.weight"] == (8, 4)
    assert len(shapes) == 8 and all(key.startswith(prefix) for key in shapes)


def test_sites_of_one_module(tmp_path: Path) -> None:
    """One A where all have the same; else the ranks add up, and B has a block for each."""
    model = attached(dk.LoRA(rank=2, alpha=3, targets=("q", "v")), "gpt2", "bare")
    dk.save(model, tmp_path / "own", format="peft")
    key = "base_model.model.h.0.attn.c_attn.lora_{}.weight"
    A, B = (tensors_of(tmp_path / "own")[key.format(each)] for each in "AB")
    assert A.shape == (4, 16) and B.shape == (48, 4)
    assert not B[:16, 2:].any() and not B[16:32].any() and not B[32:, :2].any()
    assert (config_of(tmp_path / "own")["r"], config_of(tmp_path / "own")["lora_alpha"]) == (4, 6)
    own = to_checkpoint(model).tensors
    for layer in range(2):
        shared = f"default/decoder.{layer}.attn.{{}}.lora_A"
        dict(model.deltakit.attached["default"].tensors())[
            f"decoder.{layer}.attn.v.lora_A"
        ].data = own[shared.format("q")].clone()
    dk.save(model, tmp_path / "shared", format="peft")
    A, B = (tensors_of(tmp_path / "shared")[key.format(each)] for each in "AB")
    assert A.shape == (2, 16) and B.shape == (48, 2) and not B[16:32].any()


def test_our_words_are_taken_only_while_they_are_true(tmp_path: Path) -> None:
    method = dk.LoRA(rank=2, alpha=3, targets=("q", "v"))
    dk.save(attached(method, "gpt2", "causal", "mine"), tmp_path, "mine", format="peft")
    assert method_of(loaded(tmp_path, "gpt2", "causal"), "mine") == method
    edit(tmp_path, lora_alpha=8, lora_dropout=0.5)
    model, inputs = loaded(tmp_path, "gpt2", "causal"), make_inputs("gpt2", "causal")
    every = ("attn.q", "attn.k", "attn.v")
    edited = dk.LoRA(rank=4, alpha=8, targets=every, dropout=0.5, initialisation="gaussian")
    assert method_of(model, "mine") == edited
    close(out(model, inputs), out(peft_loaded(tmp_path, "gpt2", "causal"), inputs))
    edit(tmp_path, lora_alpha=6, lora_dropout=0.0)
    assert method_of(loaded(tmp_path, "gpt2", "causal"), "mine") == method
    # Trained on by PEFT, a zero of B's has become something: the sites share the wider A now.
    rewrite(tmp_path, lambda ts: {k: t + 0.1 if "lora_B" in k else t for k, t in ts.items()})
    model = loaded(tmp_path, "gpt2", "causal")
    assert method_of(model, "mine").rank == 4
    close(out(model, inputs), out(peft_loaded(tmp_path, "gpt2", "causal"), inputs))


def test_words_that_are_no_method_are_of_no_account(tmp_path: Path) -> None:
    dk.save(attached(dk.IA3(), "llama", "causal", "mine"), tmp_path, "mine", format="peft")
    for words in ({"method": {"class": "Later"}}, {"method": {"class": "IA3", "new": 1}},
                  {"method": 3}, {"method": {"class": "LoRA", "rank": 2}}):  # fmt: skip
        save_file(
            tensors_of(tmp_path),
            tmp_path / "adapter_model.safetensors",
            metadata={METADATA: json.dumps(words)},
        )
        assert method_of(loaded(tmp_path, "llama", "causal")) == dk.IA3()


@SILENT
def test_another_head_can_stay_where_it_is(tmp_path: Path) -> None:
    theirs(lora(task_type="SEQ_CLS"), "bert", "classify", tmp_path)
    model = make_model("bert", "classify", num_labels=5)
    with pytest.raises(
        CheckpointError, match=r"'classifier.weight' has shape \(3, 16\).*head=False"
    ):
        dk.load(model, tmp_path)
    before = model.classifier.weight.clone()
    dk.load(model, tmp_path, head=False)
    assert torch.equal(model.classifier.weight, before)


@SILENT
def test_beside_other_deltas(tmp_path: Path) -> None:
    """The model's modules are PEFT's to name, ours are not among them."""
    expected = theirs(lora(target_modules="all-linear"), "llama", "bare", tmp_path)
    model = attached(dk.LoRA(rank=2, targets="all"), "llama", "bare", "first")
    dk.load(model, tmp_path, "second")
    close(out(model, make_inputs("llama")), expected)
    dk.save(model, tmp_path / "again", "second", format="peft")
    equal(tensors_of(tmp_path / "again"), tensors_of(tmp_path))


@SILENT
def test_a_table_that_is_saved_whole_is_the_models(tmp_path: Path) -> None:
    """PEFT writes all of a table that is targeted as "embed_tokens", as the model has it."""
    expected = theirs(lora(target_modules=["embed_tokens"]), "llama", "bare", tmp_path)
    key = "base_model.model.embed_tokens.base_layer.weight"
    loaded(tmp_path, "llama", "bare")
    other = make_model("llama")
    other.embed_tokens.weight.data[5, 5] += 1
    before = other.embed_tokens.weight.clone()
    dk.load(other, tmp_path)
    close(out(other, make_inputs("llama")), expected)
    dk.detach(other)
    assert torch.equal(other.embed_tokens.weight, before)
    apart = FORMATS.get("peft").read(tmp_path, make_model("llama").to("meta"))
    assert torch.equal(apart.tensors["default/own/embed_tokens.weight"], tensors_of(tmp_path)[key])


# -------------------------------------------------------------- folders of other versions of PEFT's


def wide(names: list[str]) -> LoraConfig:
    return lora(target_modules=names)


@SILENT
@pytest.mark.parametrize(
    ("family", "kind", "config"),
    [
        ("vit", "bare", wide(["q_proj", "v_proj", "query", "value"])),
        ("vit", "bare", lora(target_modules=["q_proj", "fc1", "query"], bias="lora_only")),
        ("bert", "bare", wide(["query", "value", "q_proj", "v_proj", "c_attn"])),
        ("gpt2", "causal", wide(["q_proj", "c_attn", "c_proj"])),
        ("llama", "bare", IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj", "fc2"],
            feedforward_modules=["down_proj", "fc2"], init_ia3_weights=False)),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)  # fmt: skip
def test_targets_for_several_architectures(
    family: str, kind: str, config: PeftConfig, tmp_path: Path
) -> None:
    """PEFT changes the modules that are there; the other names say nothing."""
    expected = theirs(config, family, kind, tmp_path)
    model = loaded(tmp_path, family, kind)
    close(out(model, make_inputs(family, kind)), expected)
    dk.save(model, tmp_path / "again", format="peft")
    equal(tensors_of(tmp_path / "again"), tensors_of(tmp_path))


@SILENT
@pytest.mark.parametrize(
    "said",
    [
        {"enable_lora": None, "merge_weights": False},
        {"merge_weights": True},
        {"a_key_of_later": None, "another": False, "a_list": [], "a_table": {}},
        {"rank_pattern": {"qeury": 3}, "alpha_pattern": {"c_attn": 2.0}},
        {"layers_to_transform": [0, 1, 7]},
        {"modules_to_save": ["classifier", "lm_head"]},
    ],
)
def test_keys_that_switch_nothing_on(said: dict[str, Any], copy: Path) -> None:
    edit(copy, **said)
    expected = out(peft_loaded(copy, "bert", "classify"), make_inputs("bert", "classify"))
    close(out(loaded(copy, "bert", "classify"), make_inputs("bert", "classify")), expected)


FORMER = {
    "vit": [
        (".layers.", ".encoder.layer."), ("attention.q_proj", "attention.attention.query"),
        ("attention.v_proj", "attention.attention.value"), ("mlp.fc1", "intermediate.dense"),
    ],
    "gemma3": [(".model.language_model.", ".language_model.model.")],
}  # fmt: skip
"""What modules were called: today's part of a key, and the former."""


@SILENT
@pytest.mark.parametrize(
    ("family", "kind", "config", "said"),
    [
        ("vit", "classify", wide(["q_proj", "v_proj", "fc1"]),
         {"target_modules": ["query", "value", "intermediate.dense"],
          "modules_to_save": ["classifier"]}),
        ("gemma3", "causal", lora(target_modules=r".*language_model.*\.(q|v)_proj",
                                  rank_pattern={"layers.0.self_attn.q_proj": 2}),
         {"target_modules": r"language_model\.model\.layers\.\d+\.self_attn\.(q|v)_proj",
          "rank_pattern": {r"language_model\.model\.layers\.0\.self_attn\.q_proj": 2}}),
        ("gemma3", "causal", IA3Config(target_modules=["k_proj", "v_proj"], feedforward_modules=[],
                                       exclude_modules=r".*vision.*", init_ia3_weights=False), {}),
    ],
    ids=["vit", "gemma3", "gemma3-ia3"],
)  # fmt: skip
def test_modules_by_their_former_names(
    family: str, kind: str, config: PeftConfig, said: dict[str, Any], tmp_path: Path
) -> None:
    """Transformers has renamed modules since: its own renamings say what a key is about."""
    if family == "vit":
        config.modules_to_save = ["classifier"]
    expected = theirs(config, family, kind, tmp_path)

    def former(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for key, tensor in tensors.items():
            for today, before in FORMER[family]:
                key = key.replace(today, before)
            found[key] = tensor
        return found

    today = set(tensors_of(tmp_path))
    rewrite(tmp_path, former)
    assert today != set(tensors_of(tmp_path))
    edit(tmp_path, **said)
    close(out(loaded(tmp_path, family, kind), make_inputs(family, kind)), expected)
    rewrite(tmp_path, lambda ts: {**ts, "base_model.model.encoder.x.lora_A.weight": torch.ones(1)})
    refused(tmp_path, make_model(family, kind), "has 'base_model.model.encoder.x.lora_A.weight'")


def resized(family: str, kind: str, rows: int = 120) -> Any:
    """A model with more tokens, whose new embeddings are drawn by the global generator."""
    model = make_model(family, kind)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model.eval()


@SILENT
@pytest.mark.parametrize(
    ("family", "targets"),
    [("llama", ["q_proj"]), ("gpt2", ["c_attn"]), ("gpt2", ["c_attn", "wte"])],
    ids=["untied", "tied", "targeted"],
)
def test_embeddings_of_a_resized_base(family: str, targets: list[str], tmp_path: Path) -> None:
    """PEFT saves them whole by default; a base resized elsewhere has other new rows."""
    torch.manual_seed(1)
    base = resized(family, "causal")
    model = get_peft_model(base, wide(targets))
    randomised(model).save_pretrained(tmp_path, save_embedding_layers=True)
    inputs = make_inputs(family, "causal")
    expected = out(model, inputs)
    torch.manual_seed(2)
    again = resized(family, "causal")
    dk.load(again, tmp_path)
    close(out(again, inputs), expected)
    dk.save(again, tmp_path / "ours")
    torch.manual_seed(3)
    third = resized(family, "causal")
    dk.load(third, tmp_path / "ours")
    close(out(third, inputs), expected)
    refused(tmp_path, make_model(family, "causal"), "has shape|resize_token_embeddings.120. before")


@SILENT
def test_embeddings_that_are_the_models_are_not_the_deltas(tmp_path: Path) -> None:
    model = randomised(get_peft_model(make_model("llama", "causal"), wide(["q_proj"])))
    model.save_pretrained(tmp_path, save_embedding_layers=True)
    again = loaded(tmp_path, "llama", "causal")
    assert isinstance(method_of(again), dk.LoRA)
    close(out(again, make_inputs("llama", "causal")), out(model, make_inputs("llama", "causal")))


@SILENT
def test_a_pickle_of_tensors(tmp_path: Path) -> None:
    expected = theirs(lora(), "llama", "bare", tmp_path)
    torch.save(tensors_of(tmp_path), tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_model.safetensors").unlink()
    close(out(loaded(tmp_path, "llama", "bare"), make_inputs("llama")), expected)


@SILENT
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_fewest_words_that_peft_takes(family: str, tmp_path: Path) -> None:
    expected = theirs(lora(r=8, lora_alpha=8), family, "bare", tmp_path)
    config = {"peft_type": "LORA"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    close(out(loaded(tmp_path, family, "bare"), make_inputs(family)), expected)


def test_the_defaults_are_pefts() -> None:
    import deltakit.arch.families  # noqa: F401, registers them

    tables = (
        (defaults.LORA, constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING),
        (defaults.IA3_TARGETS, constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING),
        (
            defaults.IA3_FEEDFORWARD,
            constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
        ),
    )
    for ours, all_of_them in tables:
        known = {kind: tuple(names) for kind, names in all_of_them.items() if kind in FAMILIES}
        assert dict(ours) == known


PATHS = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")


@st.composite
def configs(draw: st.DrawFn) -> LoraConfig:
    """LoRA of any ranks and scales at some modules of some layers."""
    chosen = draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4, unique=True))
    # Patterns that fit one target each: PEFT sorts them when it saves; the first that fits counts.
    ends = st.sampled_from([rf"\d\.{path}" if path == "output.dense" else path for path in chosen])
    return LoraConfig(
        r=draw(st.integers(1, 6)),
        lora_alpha=draw(st.integers(1, 4) | st.floats(0.25, 4)),
        target_modules=chosen,
        use_rslora=draw(st.booleans()),
        layers_to_transform=draw(st.none() | st.lists(st.integers(0, 1), min_size=1, unique=True)),
        rank_pattern=draw(st.dictionaries(ends, st.integers(1, 6), max_size=2)),
        alpha_pattern=draw(st.dictionaries(ends, st.integers(1, 4), max_size=2)),
        bias=draw(st.sampled_from(["none", "all"])),
        init_lora_weights=False,
    )


@SILENT
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(config=configs())
def test_any_lora_goes_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, config: LoraConfig
) -> None:
    folder, inputs = tmp_path_factory.mktemp("lora"), make_inputs("bert")
    expected = theirs(config, "bert", "bare", folder)
    ours = loaded(folder, "bert", "bare")
    close(out(ours, inputs), expected)
    dk.save(ours, folder / "again", format="peft")
    equal(tensors_of(folder / "again"), tensors_of(folder))
    close(out(peft_loaded(folder / "again", "bert", "bare"), inputs), expected)


METHODS = st.builds(
    dk.LoRA,
    rank=st.integers(1, 5),
    alpha=st.floats(0.1, 2) | st.integers(1, 2),
    targets=st.lists(
        st.sampled_from(["q", "k", "v", "o", "up", "down"]), min_size=1, max_size=6
    ).map(tuple)
    | st.just(("all",)),
    rslora=st.booleans(),
)
DROPPED = METHODS | st.builds(dk.AdapterDrop, METHODS, first=st.just(1))


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(method=DROPPED | st.builds(lambda a, b: a + b, DROPPED, DROPPED),
       family=st.sampled_from(["bert", "gpt2"]))  # fmt: skip
def test_any_sum_of_ours_goes_there_and_back(
    tmp_path_factory: pytest.TempPathFactory, method: Method, family: str
) -> None:
    folder, inputs = tmp_path_factory.mktemp("sum"), make_inputs(family)
    model = attached(method, family, "bare")
    try:
        dk.save(model, folder, format="peft")
    except CheckpointError as error:
        assert "PEFT has one scale" in str(error) and not any(folder.iterdir())
        return
    close(out(peft_loaded(folder, family, "bare"), inputs), out(model, inputs))
    again = loaded(folder, family, "bare")
    assert method_of(again) == method
    equal(to_checkpoint(again).tensors, to_checkpoint(model).tensors)


# ---------------------------------------------------------------------------------- what is refused


def refused(folder: Path, model: Any, message: str) -> None:
    """`load` raises one line that says so, and the model is as it was."""
    before = state_of(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        dk.load(model, folder)
    assert "\n" not in str(caught.value)
    assert_same(before, state_of(model))


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with LoRA on BERT's queries and values, and its head."""
    folder = tmp_path_factory.mktemp("sample")
    dk.save(attached(dk.LoRA(rank=2), "bert", "classify"), folder, format="peft")
    return folder


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    """A copy of it, to be spoilt."""
    import shutil

    return shutil.copytree(sample, tmp_path / "copy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_modules": ["query", "valeu"]},
         r"target_modules names 'valeu', and no module of this BertForSequenceClassification is "
         r"called that. Did you mean 'value'"),
        ({"target_modules": ["query", "value", "pooler.dense"]},
         r"targets 'bert.pooler.dense' \(Linear\), which is none of the sites .*: attn.k, attn.kv"),
        ({"target_modules": "all-linear"}, "targets 'bert.pooler.dense' .Linear., which is none"),
        ({"target_modules": ["position_embeddings"]}, r"' \(Embedding\), which is none of"),
        ({"target_modules": "quer"}, "nothing in this BertForSequenceClassification is left"),
        ({"target_modules": "("}, r"target_modules is '\('; '\(' is not a regular expression"),
        ({"target_modules": 3}, "target_modules is 3; it must be names or a regex"),
        ({"target_modules": []}, "PEFT has no default for 'bert'"),
        ({"target_modules": ".*query", "layers_to_transform": [0]}, "only with a list of names"),
        ({"target_modules": ["query", "key", "value"]}, r"lacks '.*key.lora_A.weight', '.*unlike"),
        ({"target_modules": ["query"]}, r"has '.*value.lora_A.weight', .*unlike what adapter_"),
        ({"layers_to_transform": [0, 5]}, "nothing is targeted in layer 5 of this Bert"),
        ({"layers_to_transform": [0]}, r"has '.*layer.1.attention.self.query.lora_A.weight'"),
        ({"layers_to_transform": [0], "layers_pattern": ["("]}, r"adapter_config.json: missing \)"),
        ({"layers_to_transform": ["0"]}, "layers_to_transform is .'0'.; it must be layers' n"),
        ({"exclude_modules": ["query", "value"]}, "nothing in this .* is left to target"),
        ({"rank_pattern": {"query": 2.5}}, "rank_pattern is .*it must be a table of whole numbers"),
        ({"alpha_pattern": {"[": 2}}, r"'\[' is not a regular expression"),
        ({"r": 3}, r"'.*lora_A.weight' has shape \(2, 16\); .* it must have \(3, 16\)"),
        ({"r": 0}, "r is 0; it must be a whole number above zero"),
        ({"r": True}, "r is True; it must be a whole number"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a number"),
        ({"lora_alpha": -1}, r"adapter_config.json: LoRA\(alpha=-1\)"),
        ({"lora_alpha": 10**400}, "lora_alpha is 10*; it must be a number"),
        ({"lora_dropout": 1.0}, r"LoRA\(dropout=1.0\): dropout must be at least 0 and below 1"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; it must be a bool"),
        ({"bias": "some"}, "bias is 'some'; it must be one of none, all, lora_only"),
        ({"bias": "all"}, "lacks 'base_model.model.bert.embeddings.LayerNorm.bias'"),
        ({"modules_to_save": ["classifer"], "task_type": None},
         "names 'classifer', and .*Did you mean 'classifier'"),
        ({"modules_to_save": ["classifier", "pooler"]}, "lacks 'base_model.model.bert.pooler"),
        ({"task_type": "SEQUENCE"}, "task_type is 'SEQUENCE'; it must be one of None, SEQ_CLS"),
        ({"enable_lora": [True, False, True]}, "unknown key 'enable_lora'"),
        ({"use_rslroa": 0}, "unknown key 'use_rslroa'. Did you mean 'use_rslora'"),
        ({"use_rslroa": True}, "unknown key 'use_rslroa'. Did you mean 'use_rslora'"),
        ({"use_dora": True}, "lacks '.*lora_magnitude_vector'"),
        ({"use_dora": "yes"}, "use_dora is 'yes'; it must be a bool"),
        ({"init_lora_weights": "loftq"}, "only starts that leave the base's weights alone"),
        ({"lora_bias": True}, "lora_bias is True; a bias of B cannot be loaded"),
        ({"layer_replication": [[0, 2]]}, "a model of repeated layers cannot be loaded"),
        ({"target_parameters": ["x"]}, "target_parameters is .'x'.; LoRA on parameters"),
        ({"trainable_token_indices": [1]}, "the training of single tokens cannot be loaded"),
        ({"alora_invocation_tokens": [1]}, "Activated LoRA cannot be loaded"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": ["pissa"]}, "only starts that leave the base's weights alone"),
        ({"peft_type": "ADALORA"}, "peft_type is 'ADALORA'.*save_as_lora"),
        ({"peft_type": None}, "peft_type is None"),
    ],
)  # fmt: skip
def test_a_config_that_is_not_understood(copy: Path, change: dict[str, Any], message: str) -> None:
    edit(copy, **change)
    refused(copy, make_model("bert", "classify"), message)


Q = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight"


def misnamed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.replace("base_model.model.", "model."): t for key, t in tensors.items()}


READ = ("LORA", "IA3", "PREFIX_TUNING", "PROMPT_TUNING")


@pytest.mark.parametrize("kind", sorted({*PeftType.__members__} - {*READ}))
def test_every_other_tuner_is_refused_with_the_next_step(kind: str, tmp_path: Path) -> None:
    """Whatever else is in the folder: of X-LoRA it is a classifier and several adapters."""
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "r": 4}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"unread")
    refused(tmp_path, make_model("bert"), f"peft_type is '{kind}'.*Use it with PEFT itself; what")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (misnamed, "lacks 'base_model.model.bert.* and 7 more and has 'model.bert.* and 7 more"),
        (lambda ts: {k: t for k, t in ts.items() if k != Q}, f"safetensors lacks '{Q}', unlike"),
        (lambda ts: {**ts, "x": torch.ones(1)}, "safetensors has 'x', unlike what"),
        (lambda ts: {**ts, Q: ts[Q] * float("nan")}, f"holds values in '{Q}' that are not finite"),
        (lambda ts: {**ts, Q: ts[Q][:, :8].clone()}, rf"'{Q}' has shape \(2, 8\); by adapter_conf"),
        (lambda ts: {**ts, Q: ts[Q].int()}, "torch.int32, this model needs torch.float32"),
        (lambda ts: {k: t for k, t in ts.items() if "classifier" not in k},
         "lacks 'base_model.model.classifier.bias', 'base_model.model.classifier.weight', unlike"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_the_config_says(copy: Path, change: Any, message: str) -> None:
    rewrite(copy, change)
    refused(copy, make_model("bert", "classify"), message)


class Evil:
    """A pickle that would leave a trace if it were run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.trace), "w"))


def test_a_pickle_of_code(copy: Path) -> None:
    (copy / "adapter_model.safetensors").unlink()
    refused(copy, make_model("bert", "classify"), "has no weights: none of adapter_model.safet")
    torch.save({Q: Evil(copy / "trace")}, copy / "adapter_model.bin")
    refused(copy, make_model("bert", "classify"), "adapter_model.bin holds more than tensors")
    assert not (copy / "trace").exists()


def test_another_model(sample: Path) -> None:
    refused(sample, make_model("bert", "bare"), "lacks .* and has .*, unlike what adapter_config")
    refused(sample, make_model("llama", "bare"), "names 'query', and no module of this LlamaModel")
    wide = make_model("bert", "classify", hidden_size=32)
    refused(sample, wide, r"has shape \(2, 16\); by adapter_config.json and this Bert.* \(2, 32\)")
    deep = make_model("bert", "classify", num_hidden_layers=3)
    refused(sample, deep, r"lacks 'base_model.model.bert.encoder.layer.2.attention.self.query")


def test_a_module_of_two_names(tmp_path: Path) -> None:
    """PEFT puts its own in the place of the first, and the second stays what it was."""
    dk.save(attached(dk.LoRA(rank=2), "llama", "bare"), tmp_path, format="peft")
    model = make_model("llama")
    model.layers[1].self_attn.v_proj = model.layers[0].self_attn.v_proj
    refused(tmp_path, model, "'layers.0.self_attn.v_proj' is 'layers.1.self_attn.v_proj' too")


def test_a_config_without_a_type_is_not_pefts(copy: Path) -> None:
    edit(copy, peft_type=...)
    assert not FORMATS.get("peft").recognises(copy)
    (copy / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="adapter_config.json is not JSON"):
        dk.load(make_model("bert"), copy)


@SILENT
@pytest.mark.parametrize(
    ("family", "config", "message"),
    [
        ("t5", lora(target_modules=r".*decoder.*\.(q|v)"), "'attn.q' is targeted in layer 0 of one "
         "stack, and not in that of 'encoder'; deltakit puts a method into the same layers"),
        ("llama", lora(target_modules=["q_proj", "lm_head"]), "targets 'lm_head' .Linear., w"),
        ("llama", lora(use_dora=True, target_modules=["embed_tokens"]),
         "use_dora is True; DoRA of the embeddings"),
        ("gpt2", lora(modules_to_save=["lm_head"], task_type="CAUSAL_LM"),
         "not one value for all of 'transformer.wte.weight', 'lm_head.weight', which are one p"),
        ("llama", AdaLoraConfig(total_step=9), "deltakit loads LORA, IA3"),
        ("llama", IA3Config(target_modules=["q_proj"], feedforward_modules=["q_proj"]),
         "targets the input of 'layers.0.self_attn.q_proj' .Linear., which is none of the sites"),
        ("gpt2", PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_CLS"),
         "task_type is 'SEQ_CLS'; a prompt can be loaded for CAUSAL_LM"),
        ("bert", PromptTuningConfig(num_virtual_tokens=2, task_type="FEATURE_EXTRACTION"),
         "comes before all tokens of a decoder"),
        ("t5", PromptTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"),
         "comes before all tokens of a decoder"),
        ("t5", PrefixTuningConfig(num_virtual_tokens=2, task_type="SEQ_2_SEQ_LM"),
         "a T5ForCond.* has deltakit's prefixes in cross, decoder, encoder, and PEFT's in one"),
        ("gemma2", PrefixTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM"),
         "a Gemma2ForCausalLM cannot see a prefix of PEFT's from 8 tokens on"),
    ],
    ids=lambda each: getattr(each, "peft_type", None) and each.peft_type.value.lower(),
)  # fmt: skip
def test_an_adapter_that_ours_cannot_be(
    family: str, config: PeftConfig, message: str, tmp_path: Path
) -> None:
    kind = {"SEQ_CLS": "classify", "CAUSAL_LM": "causal", "SEQ_2_SEQ_LM": "seq2seq"}.get(
        str(config.task_type),
        "causal" if config.peft_type == "LORA" and family == "llama" else "bare",
    )
    get_peft_model(make_model(family, kind), config).save_pretrained(tmp_path)
    refused(tmp_path, make_model(family, kind), message)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("bert", dk.SequentialAdapter(bottleneck=2), "no words for SequentialAdapter in one"),
        ("bert", dk.LoRA(rank=2) + dk.IA3(), r"no words for IA3 \+ LoRA in one adapter"),
        ("bert", dk.BitFit(), "no words for BitFit"),
        ("bert", dk.LoRA(rank=2) + dk.PartialFineTuning(parameters=("*.key.weight",)),
         "no words for values of 'bert.encoder.layer.0.attention.self.key.weight', 'bert.*alone"),
        ("bert", dk.IA3() + dk.BitFit(), "no words for values of 'bert.embeddings.LayerNorm.b"),
        ("bert", dk.LoRA(rank=2) + dk.LoRA(rank=2, targets="o", dropout=0.1), "one lora_dropout"),
        ("gpt2", dk.LoRA(rank=2, alpha=2) + dk.LoRA(rank=2, alpha=4, targets="k"),
         r"one scale for 'transformer.h.0.attn.c_attn', where deltas of the scales 1.0, 2.0 are"),
        ("bert", dk.IA3(targets="attn.mid") + dk.IA3(targets="attn.o"),
         "has one vector for '.*0.attention.output.dense'; 'default' has several, at encoder.0"),
        ("llama", dk.IA3() + dk.IA3(), "has one vector for 'model.layers.0.self_attn.k_proj'"),
        ("bert", dk.PromptTuning(length=2), "comes before all tokens of a decoder"),
        ("llama", dk.PrefixTuning(length=2), r"read .*positions='kept'\) as .*positions='shifted'"),
        ("distilbert", dk.PrefixTuning(length=2), "a DistilBertFor.* takes no past_key_values"),
        ("bloom", dk.PromptTuning(length=2) + dk.LoRA(), r"no words for LoRA \+ PromptTuning"),
        ("llama", dk.AdapterDrop(dk.PrefixTuning(length=2, bottleneck=None), first=1),
         "PEFT has a prefix in every layer"),
    ],
    ids=lambda each: str(each)[:40],
)  # fmt: skip
def test_a_delta_that_peft_has_no_words_for(
    family: str, method: Method, message: str, tmp_path: Path
) -> None:
    model = attached(method, family, kind_of(family))
    with pytest.raises(CheckpointError, match=message) as caught:
        dk.save(model, tmp_path, format="peft")
    assert "\n" not in str(caught.value) and not any(tmp_path.iterdir())


def test_a_folder_holds_one_adapter(tmp_path: Path) -> None:
    model = attached(dk.LoRA(rank=2), "llama", "bare", "a")
    dk.attach(model, dk.LoRA(rank=2), "b")
    with pytest.raises(CheckpointError, match="holds one adapter.*composition of 'a', 'b'"):
        dk.save(model, tmp_path, dk.Stack("a", "b"), format="peft")
    assert not any(tmp_path.iterdir())


def test_what_would_be_read_as_something_else_is_not_written(tmp_path: Path) -> None:
    """A frozen head is no part of the delta, and PEFT asks for one with the task."""
    model = make_model("bert", "classify")
    model.classifier.requires_grad_(False)
    dk.attach(model, dk.LoRA(rank=2))
    with pytest.raises(
        CheckpointError, match="cannot hold 'default' exactly: .*lacks '.*classifier"
    ):
        dk.save(model, tmp_path, format="peft")
    assert not any(tmp_path.iterdir())
