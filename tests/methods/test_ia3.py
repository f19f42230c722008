"""(IA)³: golden values before the activation, live PEFT after it, merging, counts."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import InvalidConfig, UnknownName


def test_golden_ia3(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    dk.attach(model, dk.IA3(feedforward="pre_activation"), name="a")
    places = {
        "attn.k": "attention.self.key",
        "attn.v": "attention.self.value",
        "ffn.up": "intermediate.dense",
    }
    with torch.no_grad():
        for key, tensor in kit.attachments(model).get("a").tensors():
            _, layer, site = key.removesuffix(".vector").split(".", 2)
            theirs = f"ia3.state.encoder.layer.{layer}.{places[site]}.loras.a.lora_B"
            tensor.copy_(golden.tensors[theirs].squeeze(-1))
    expected = golden.tensors["ia3.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_equals_live_peft(kit: SimpleNamespace, family: str) -> None:
    from peft import IA3Config, get_peft_model

    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.IA3())
    kit.randomise_deltas(model)
    handles = kit.attachments(model).handles
    vectors = {handles[k.removesuffix(".vector")].path: t.detach().clone()
               for k, t in kit.attachments(model).get("default").tensors()}  # fmt: skip
    ours = kit.out(model, batch)
    dk.detach(model)
    inner = [path for path in vectors if handles_input(path)]
    theirs = get_peft_model(
        model, IA3Config(target_modules=list(vectors), feedforward_modules=inner)
    ).eval()
    with torch.no_grad():
        for path, vector in vectors.items():
            parameter = theirs.base_model.model.get_submodule(path).ia3_l["default"]
            parameter.copy_(vector.view_as(parameter))
    torch.testing.assert_close(ours, kit.out(theirs, batch), atol=1e-5, rtol=1e-5)


def handles_input(path: str) -> bool:
    return path.endswith(("output.dense", "down_proj"))


EVERYWHERE = ("attn.q", "attn.k", "attn.v", "attn.mid", "attn.o", "ffn.up", "ffn.mid", "ffn.down")


@pytest.mark.parametrize(
    "method",
    [dk.IA3(), dk.IA3(feedforward="pre_activation"), dk.IA3(targets=EVERYWHERE)],
    ids=["post", "pre", "everywhere"],
)
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_merged_equals_unmerged_with_random_biases(
    kit: SimpleNamespace, family: str, method: dk.IA3
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    before, hooks = kit.out(model, batch), kit.hook_count(model)
    dk.attach(model, method + dk.LoRA(targets="all"))
    kit.randomise_deltas(model)
    unmerged = kit.out(model, batch)
    assert (unmerged - before).abs().max() > 1e-2
    dk.merge(model)
    assert kit.hook_count(model) == hooks
    torch.testing.assert_close(kit.out(model, batch), unmerged, atol=1e-4, rtol=1e-4)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), unmerged)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), before)


def test_at_the_start_it_is_the_identity_bit_for_bit(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("qwen2"), kit.make_batch()
    before = kit.out(model, batch)
    dk.attach(model, dk.IA3())
    assert torch.equal(kit.out(model, batch), before)


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_what_enters_the_last_projection_of_attention(kit: SimpleNamespace, family: str) -> None:
    """Rescaling it is rescaling the columns of that projection."""
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.IA3(targets="attn.mid"))
    kit.randomise_deltas(model)
    scaled = kit.out(model, batch)
    handles = kit.attachments(model).handles
    vectors = {
        k.removesuffix(".vector"): v for k, v in kit.attachments(model).get("default").tensors()
    }
    for key, vector in vectors.items():
        weight = handles[key].module.weight
        across = vector if isinstance(handles[key].module, torch.nn.Linear) else vector[:, None]
        weight.data = weight.data * across.detach()
    with dk.disabled(model):
        torch.testing.assert_close(kit.out(model, batch), scaled, atol=1e-5, rtol=1e-5)


def test_targets_are_sites() -> None:
    paper = dk.IA3(targets=("ffn.mid", "attn.v", "attn.k", "attn.v"))
    assert paper.sites() == dk.IA3().sites()
    assert dk.parse_method("ia3[targets=attn.q]") == dk.IA3(targets=("attn.q",))
    with pytest.raises(UnknownName, match="unknown IA3 target 'block.out'. Known: attn.k"):
        dk.IA3(targets=("block.out",))
    with pytest.raises(InvalidConfig, match="leave feedforward out"):
        dk.IA3(targets=("attn.k",), feedforward="pre_activation")
    for nothing in ((), 3):
        with pytest.raises(InvalidConfig, match="name sites"):
            dk.IA3(targets=nothing)  # type: ignore[arg-type]


def test_settings() -> None:
    with pytest.raises(InvalidConfig, match=r"IA3\(feedforward='after'\)"):
        dk.IA3(feedforward="after")
