"""The parallel adapter: golden values, what it reads in pre-LN models, counts, settings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import InvalidConfig, SiteNotFound


def test_golden_par_bn(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    dk.attach(model, dk.ParallelAdapter(reduction=4, scale=4.0), name="a")
    golden.fill(model, "par_bn", ffn="ffn.out")
    expected = golden.tensors["par_bn.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


def test_golden_scaled_par_bn(golden: Any, kit: SimpleNamespace) -> None:
    model = golden.model()
    dk.attach(model, dk.ParallelAdapter(reduction=4, learned_scale=True), name="a")
    ours = dict(kit.attachments(model).get("a").tensors())
    with torch.no_grad():
        for layer in (0, 1):
            theirs = f"scaled_par_bn.state.encoder.layer.{layer}.output.adapters.a"
            site = f"encoder.{layer}.ffn.out"
            ours[f"{site}.scale"].copy_(golden.tensors[f"{theirs}.scaling"])
            for part, key in (("down", "adapter_down.0"), ("up", "adapter_up")):
                for kind in ("weight", "bias"):
                    ours[f"{site}.form.{part}.{kind}"].copy_(
                        golden.tensors[f"{theirs}.{key}.{kind}"]
                    )
    expected = golden.tensors["scaled_par_bn.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("reads", "site", "reader"),
    [("input", "ffn.out", "mlp"), ("stream", "ffn.stream", "post_attention_layernorm")],
)
def test_what_it_reads_in_a_pre_ln_model(
    kit: SimpleNamespace, reads: str, site: str, reader: str
) -> None:
    """What the feed-forward reads, or the stream before it is normed."""
    model, batch = kit.make_model("llama"), kit.make_batch()
    seen: dict[str, Any] = {}

    def hook(module: Any, args: Any, output: Any) -> None:
        seen["y"] = output

    def read(module: Any, args: Any) -> None:
        seen["x"] = args[0]

    model.layers[0].get_submodule(reader).register_forward_pre_hook(read)
    handle = model.layers[0].mlp.register_forward_hook(hook)
    kit.out(model, batch)
    plain = seen["y"]
    handle.remove()
    method = dk.ParallelAdapter(bottleneck=3, scale=2.0, activation="tanh", reads=reads)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    handle = model.layers[0].mlp.register_forward_hook(hook)
    kit.out(model, batch)
    handle.remove()
    w = {k.partition(f"{site}.")[2]: t for k, t in kit.attachments(model).get("default").tensors()
         if k.startswith("decoder.0")}  # fmt: skip
    inner = torch.tanh(seen["x"] @ w["down.weight"].T + w["down.bias"])
    expected = plain + 2.0 * (inner @ w["up.weight"].T + w["up.bias"])
    torch.testing.assert_close(seen["y"], expected, atol=1e-5, rtol=1e-5)


def test_at_the_start_it_is_the_identity_bit_for_bit(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("roberta"), kit.make_batch()
    before = kit.out(model, batch)
    dk.attach(model, dk.ParallelAdapter())
    assert torch.equal(kit.out(model, batch), before)


@pytest.mark.parametrize(
    "setting",
    [
        {"scale": 0},
        {"learned_scale": "yes"},
        {"activation": "rleu"},
        {"bottleneck": 0},
        {"reads": "norm"},
    ],
)
def test_settings(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidConfig, match=f"ParallelAdapter\\({name}="):
        dk.ParallelAdapter(**setting)


@pytest.mark.parametrize("family", ["bert", "opt"])
def test_there_is_no_stream_to_read(kit: SimpleNamespace, family: str) -> None:
    with pytest.raises(SiteNotFound, match="no norm of the stream in front of its feed-forward"):
        dk.attach(kit.make_model(family), dk.ParallelAdapter(reads="stream"))
