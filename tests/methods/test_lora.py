"""LoRA: golden values, hand-made merged weights, PEFT, initialisation, settings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import InvalidConfig, UnknownName

SITES = {  # PEFT's module names, by family and our site
    "bert": {
        "attn.q": "encoder.layer.{}.attention.self.query",
        "attn.v": "encoder.layer.{}.attention.self.value",
        "attn.o": "encoder.layer.{}.attention.output.dense",
        "ffn.up": "encoder.layer.{}.intermediate.dense",
        "ffn.down": "encoder.layer.{}.output.dense",
    },
    "distilbert": {
        "attn.q": "transformer.layer.{}.attention.q_lin",
        "attn.k": "transformer.layer.{}.attention.k_lin",
        "ffn.down": "transformer.layer.{}.ffn.lin2",
    },
    "llama": {
        "attn.q": "layers.{}.self_attn.q_proj",
        "attn.k": "layers.{}.self_attn.k_proj",
        "attn.v": "layers.{}.self_attn.v_proj",
        "attn.o": "layers.{}.self_attn.o_proj",
        "ffn.gate": "layers.{}.mlp.gate_proj",
        "ffn.up": "layers.{}.mlp.up_proj",
        "ffn.down": "layers.{}.mlp.down_proj",
    },
    "gpt2": {
        "attn.o": "h.{}.attn.c_proj",
        "ffn.up": "h.{}.mlp.c_fc",
        "ffn.down": "h.{}.mlp.c_proj",
    },
}


def tensors(model: Any, name: str = "default") -> dict[str, Tensor]:
    return dict(model.deltakit.attached[name].tensors())


@pytest.mark.parametrize(
    ("case", "targets"),
    [("lora_qv", ("q", "v")), ("lora_all", ("q", "k", "v", "up", "down"))],
)
def test_golden(golden: Any, kit: SimpleNamespace, case: str, targets: tuple[str, ...]) -> None:
    model = golden.model()
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets=targets), name="a")
    golden.fill(model, case, ffn="ffn.out")
    expected = golden.tensors[f"{case}.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", list(SITES))
def test_equals_peft(kit: SimpleNamespace, family: str, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    sites = SITES[family]
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=7, rslora=rslora, targets=tuple(sites)))
    kit.randomise_deltas(model)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        use_rslora=rslora,
        fan_in_fan_out=family == "gpt2",
        target_modules=[path.format(layer) for path in sites.values() for layer in (0, 1)],
    )
    other = peft.get_peft_model(kit.make_model(family), config).eval()
    theirs = dict(other.base_model.model.named_parameters())
    used = set()
    with torch.no_grad():
        for key, tensor in tensors(model).items():
            _, layer, site_and_name = key.split(".", 2)
            site, _, matrix = site_and_name.rpartition(".")
            name = f"{sites[site].format(layer)}.{matrix}.default.weight"
            theirs[name].copy_(tensor)
            used.add(name)
    assert used == {name for name in theirs if "lora_" in name}
    expected = kit.out(other, batch)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("initialisation", ["gaussian", "kaiming"])
@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3"],
)
def test_bit_equal_to_the_base_at_the_start(
    kit: SimpleNamespace, family: str, initialisation: Any
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    before = kit.out(model, batch)
    dk.attach(model, dk.LoRA(targets="all", initialisation=initialisation))
    assert torch.equal(kit.out(model, batch), before)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("bert", "encoder.layer.{}.attention.self.query"),
        ("llama", "layers.{}.self_attn.q_proj"),
    ],
)
def test_equals_a_weight_merged_by_hand(
    kit: SimpleNamespace, family: str, path: str, rslora: bool
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=3, targets="q", rslora=rslora))
    kit.randomise_deltas(model)
    merged, weights = kit.make_model(family), tensors(model)
    stack = "encoder" if family == "bert" else "decoder"
    with torch.no_grad():
        for layer in (0, 1):
            a, b = (weights[f"{stack}.{layer}.attn.q.lora_{m}"] for m in "AB")
            scale = 3 / 2 if rslora else 3 / 4  # alpha / sqrt(r), alpha / r
            merged.get_submodule(path.format(layer)).weight.add_(scale * b @ a)
    torch.testing.assert_close(kit.out(model, batch), kit.out(merged, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "targets", [("q",), ("k",), ("v",), ("q", "v"), ("q", "k", "v"), ("q", "v", "o", "down")]
)
def test_fused_columns_equal_a_weight_merged_by_hand(
    kit: SimpleNamespace, targets: tuple[str, ...]
) -> None:
    model, batch = kit.make_model("gpt2"), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets=targets))
    kit.randomise_deltas(model)
    merged, weights = kit.make_model("gpt2"), tensors(model)
    with torch.no_grad():
        for layer, block in enumerate(merged.h):
            for index, target in enumerate("qkv"):
                if target in targets:
                    a, b = (weights[f"decoder.{layer}.attn.{target}.lora_{m}"] for m in "AB")
                    columns = slice(16 * index, 16 * index + 16)
                    block.attn.c_attn.weight[:, columns] += 2 * (b @ a).T
            for site, module in (("attn.o", block.attn), ("ffn.down", block.mlp)):
                if site.partition(".")[2] in targets:
                    a, b = (weights[f"decoder.{layer}.{site}.lora_{m}"] for m in "AB")
                    module.c_proj.weight += 2 * (b @ a).T
    torch.testing.assert_close(kit.out(model, batch), kit.out(merged, batch), atol=1e-5, rtol=1e-5)


def test_initialisations_have_their_papers_spread(kit: SimpleNamespace) -> None:
    handle = SimpleNamespace(d_in=4096, d_out=8)
    gaussian = dk.LoRA(rank=8).form(handle)
    kaiming = dk.LoRA(rank=8, initialisation="kaiming").form(handle)
    assert gaussian.lora_A.std().item() == pytest.approx(1 / 8, rel=0.03)
    assert kaiming.lora_A.abs().max().item() == pytest.approx(1 / 64, rel=0.01)
    assert not gaussian.lora_B.any() and not kaiming.lora_B.any()


def test_dropout_is_on_the_input_in_training(kit: SimpleNamespace) -> None:
    form = dk.LoRA(rank=2, dropout=0.5).form(SimpleNamespace(d_in=6, d_out=6))
    torch.nn.init.ones_(form.lora_B)
    x = torch.ones(1000, 6)
    form.eval()
    torch.testing.assert_close(form(x), x @ form.weight_change().T, atol=1e-5, rtol=1e-5)
    form.train()
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(form(x), dropped @ form.weight_change().T, atol=1e-6, rtol=1e-5)


def test_a_delta_takes_the_mode_of_its_model(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(dropout=0.5))
    kit.randomise_deltas(model)
    assert torch.equal(kit.out(model, batch), kit.out(model, batch))


def test_targets_by_word_name_and_all(kit: SimpleNamespace) -> None:
    assert dk.LoRA(targets=("v", "q")).sites() == (dk.Site.ATTN_Q, dk.Site.ATTN_V)
    assert dk.LoRA(targets="ffn.down").sites() == (dk.Site.FFN_DOWN,)
    assert dk.LoRA(targets=["q", "v"]) == dk.LoRA()
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(targets="all"))
    keys = {key.rpartition(".")[0].split(".", 2)[2] for key in tensors(model)}
    assert keys == {"attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down"}


def test_all_is_not_a_target_among_others() -> None:
    with pytest.raises((InvalidConfig, UnknownName), match="all") as caught:
        dk.LoRA(targets=("q", "all"))
    assert "Did you mean 'all'" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"rank": 0}, InvalidConfig, r"rank=0.*whole number above zero"),
        ({"rank": 2.0}, InvalidConfig, r"rank=2.0"),
        ({"alpha": -1}, InvalidConfig, r"alpha=-1"),
        ({"alpha": float("inf")}, InvalidConfig, r"alpha=inf"),
        ({"dropout": 1}, InvalidConfig, r"dropout=1"),
        ({"initialisation": "gausian"}, InvalidConfig, r"gaussian, kaiming"),
        ({"targets": ()}, InvalidConfig, r"name at least one site"),
        ({"targets": "quary"}, UnknownName, r"unknown LoRA target 'quary'.*Known: .*attn\.q"),
        ({"targets": "mid"}, UnknownName, r"unknown LoRA target 'mid'"),
        ({"targets": 3}, InvalidConfig, r"targets=3"),
        ({"targets": (3,)}, (InvalidConfig, UnknownName), r"3"),
        ({"rslora": "yes"}, InvalidConfig, r"rslora='yes'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        dk.LoRA(**fields)
