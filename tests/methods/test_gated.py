"""Gated sums: UniPELT and Compacter of `adapters`, gates by token and sequence, rows, settings."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertModel

import deltakit as dk
from deltakit.errors import InvalidConfig
from deltakit.methods.gated import Gated

FILE = Path(__file__).parents[1] / "golden" / "adapters_unipelt.safetensors"
CASES = {
    "unipelt": (
        "unipelt[method=prefix[length=3,bottleneck=none]+pfeiffer[reduction=4]+lora[rank=2,alpha=2]]",
        {"output": "block.out"},
    ),
    "compacter": ("compacter[reduction=4,n=2,activation=gelu]", {"output": "ffn.out"}),
    "compacterpp": (
        "compacter++[reduction=4,n=2,activation=gelu,placement=pfeiffer]",
        {"output": "block.out"},
    ),
}
SITES = {
    "attention.output": "attn.out",
    "attention.self.query": "attn.q",
    "attention.self.value": "attn.v",
}
COMPACTER = {
    "adapter_down.0.W_left": "down.blocks.left",
    "adapter_down.0.W_right": "down.blocks.right",
    "adapter_down.0.b": "down.bias",
    "adapter_up.W_left": "up.blocks.left",
    "adapter_up.W_right": "up.blocks.right",
    "adapter_up.b": "up.bias",
}
UNIPELT = {
    "adapter_down.0.": "form.down.",
    "adapter_up.": "form.up.",
    "lora_": "form.lora_",
    "gate.": "attention.linear.",
}


def renamed(case: str, key: str, whole: Tensor, sites: dict[str, str]) -> Iterator[Any]:
    """Our tensors that one of theirs holds, by our keys."""
    if key.endswith("phm_rule"):
        site = "attn.out" if case == "compacter" else sites["output"]
        yield f"encoder.0.{site}.down.rule.weight", whole
        return
    if key.endswith("control_trans"):
        for layer, each in enumerate(whole.view(3, 2, 2, -1).permute(1, 2, 0, 3)):
            yield f"encoder.{layer}.attn.kv.form.memory", each
        return
    layer, _, rest = key.removeprefix("encoder.layer.").partition(".")
    if "prefix_gates" in rest:
        yield f"encoder.{layer}.attn.kv.attention.linear.{rest.rpartition('.')[2]}", whole
        return
    module, _, name = rest.replace("loras.a.", "adapters.a.").partition(".adapters.a.")
    if case == "unipelt":
        old = next(word for word in UNIPELT if name.startswith(word))
        name = name.replace(old, UNIPELT[old])
    else:
        name = COMPACTER[name]
    yield f"encoder.{layer}.{({**SITES, **sites})[module]}.{name}", whole


@pytest.mark.parametrize("case", list(CASES))
def test_equals_adapters(kit: SimpleNamespace, case: str) -> None:
    golden, (spec, sites) = load_file(FILE), CASES[case]
    config = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=40,
        attn_implementation="eager",
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    base = {k.removeprefix("base."): t for k, t in golden.items() if k.startswith("base.")}
    model.load_state_dict(base)
    dk.attach(model, dk.parse_method(spec))
    ours = dict(model.deltakit.attached["default"].tensors())
    theirs = {
        key: tensor
        for name, whole in golden.items()
        if name.startswith(f"{case}.state.")
        for key, tensor in renamed(case, name.removeprefix(f"{case}.state."), whole, sites)
    }
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for key, tensor in theirs.items():
            ours[key].copy_(tensor)
        found = model(input_ids=golden["input_ids"]).last_hidden_state
    torch.testing.assert_close(found, golden[f"{case}.output"], atol=1e-5, rtol=1e-5)


SMALL = dk.PrefixTuning(length=2, bottleneck=None) + dk.LoRA(rank=2)


def attached(kit: SimpleNamespace, method: dk.Method, *names: str) -> Any:
    torch.manual_seed(0)
    model = kit.make_model("bert")
    for name in names or ("default",):
        dk.attach(model, method, name=name)
    kit.randomise_deltas(model)
    return model


@torch.no_grad()
def set_gates(model: Any, bias: float) -> None:
    for name, parameter in model.named_parameters():
        if ".attention.linear." in name and ".deltakit." in f".{name}":
            parameter.fill_(bias if name.endswith("bias") else 0.0)


@pytest.mark.parametrize("gate", ["token", "sequence"])
def test_open_gates_are_the_method(kit: SimpleNamespace, gate: Any) -> None:
    method = dk.LoRA(rank=2) + dk.ParallelAdapter(bottleneck=3)
    model, plain = attached(kit, Gated(method, gate=gate)), attached(kit, method)
    with torch.no_grad():
        for key, form in plain.deltakit.attached["default"].modules():
            other = dict(model.deltakit.attached["default"].modules())[key].form
            for name, parameter in form.named_parameters():
                parameter.copy_(other.get_parameter(name))
    batch = kit.make_batch()
    set_gates(model, 50.0)
    torch.testing.assert_close(kit.out(model, batch), kit.out(plain, batch), atol=1e-5, rtol=1e-5)
    set_gates(model, -50.0)
    with dk.disabled(model):
        base = kit.out(model, batch)
    torch.testing.assert_close(kit.out(model, batch), base, atol=1e-5, rtol=1e-5)


def test_a_padded_row_is_the_row_alone(kit: SimpleNamespace) -> None:
    model = attached(kit, Gated(SMALL))
    ids = torch.randint(5, 60, (1, 4))
    alone = kit.out(model, {"input_ids": ids, "attention_mask": torch.ones(1, 4, dtype=torch.long)})
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = 0
    batch = {"input_ids": torch.cat([padded, torch.randint(5, 60, (2, 7))]), "attention_mask": mask}
    among = kit.out(model, batch)
    torch.testing.assert_close(among[0, :4], alone[0], atol=1e-5, rtol=1e-5)


def test_rows_of_two_gated_prefixes(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, Gated(SMALL), "a", "b"), kit.make_batch()
    dk.attach(model, dk.PrefixTuning(length=4, bottleneck=None), name="plain")
    names = ["b", None, "plain", "a"][: len(batch["input_ids"])]
    alone: dict[Any, Tensor] = {}
    for name in names:
        dk.activate(model, name)
        alone[name] = kit.out(model, batch)
    dk.activate(model, dk.PerRow(names))
    found = kit.out(model, batch)
    for row, name in enumerate(names):
        torch.testing.assert_close(found[row], alone[name][row], atol=1e-5, rtol=1e-5)


def test_gates_are_seen(kit: SimpleNamespace) -> None:
    model = attached(kit, Gated(SMALL))
    set_gates(model, 0.0)
    with dk.fusion_attention(model) as seen:
        kit.out(model, kit.make_batch())
    means = seen.mean()
    assert {site.partition(".")[2].partition(".")[2] for site in means} == {
        "attn.kv",
        "attn.q",
        "attn.v",
    }
    assert all(each["gate"] == pytest.approx(0.5) for each in means.values())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Gated(gate="word"), "sequence, token"),
        (lambda: Gated(dk.PromptTuning(length=2)), "before all layers"),
        (lambda: Gated(dk.AdapterFusion("a", "b")), "puts deltas into layers"),
    ],
)
def test_bad_settings(make: Any, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        make()


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (Gated(SMALL, gate="token"), "Take gate='sequence'"),
        (Gated(dk.DoRA(rank=2)), "reads other inputs"),
    ],
)
def test_what_cannot_be_gated(kit: SimpleNamespace, method: dk.Method, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        dk.attach(kit.make_model("bert"), method)
