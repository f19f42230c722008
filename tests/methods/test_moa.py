"""MoA: one router a block, what it reads, its threshold, what it shows, settings."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import deltakit as dk
from deltakit.errors import InvalidConfig
from deltakit.methods.moa import MoA

PARTS = dk.LoRA(rank=2, targets=("q", "down")) + dk.ParallelAdapter(bottleneck=3)


def forms(model: Any) -> dict[str, Any]:
    return dict(model.deltakit.attached["default"].modules())


def attached(kit: SimpleNamespace, method: dk.Method, family: str = "bert") -> Any:
    torch.manual_seed(0)
    model = kit.make_model(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model.eval()


def streams(model: Any, batch: dict[str, Tensor], layers: Any) -> list[Tensor]:
    """The stream that enters each layer."""
    found: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda module, args, kwargs: found.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for layer in layers
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize(("family", "layers"), [("bert", "encoder.layer"), ("llama", "layers")])
def test_the_router_reads_the_stream_that_enters_the_block(
    kit: SimpleNamespace, family: str, layers: str
) -> None:
    model, batch = attached(kit, MoA(PARTS, threshold=None), family), kit.make_batch()
    blocks = model.get_submodule(layers)
    with dk.fusion_attention(model) as seen:
        entering = streams(model, batch, blocks)
    assert len(seen.weights) == len(blocks), "one router a block"
    for layer, (key, weights) in enumerate(seen.weights.items()):
        attention = forms(model)[key].router.attention
        router, x = attention.router, entering[layer]
        inner = F.silu(router.gate(x)) * router.up(x)
        torch.testing.assert_close(weights, torch.sigmoid(router.down(inner)))
        assert weights.shape[-1] == 3 and seen.members[key] == ("attn.q", "ffn.down", "ffn.out")


def test_it_is_computed_once_and_read_by_all_parts(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, MoA(PARTS)), kit.make_batch()
    calls: list[nn.Module] = []
    routers = [form.of_block for form in forms(model).values()]
    for router in dict.fromkeys(routers):
        router.register_forward_hook(lambda module, *rest: calls.append(module))
    kit.out(model, batch)
    assert len(routers) == 6 and len(calls) == len({*calls}) == 2
    kit.out(model, batch)
    assert len(calls) == 4, "in each pass"


def test_each_part_is_multiplied_by_its_weight(kit: SimpleNamespace) -> None:
    model, plain = (
        attached(kit, MoA(PARTS, router="linear", threshold=None)),
        kit.make_model("bert"),
    )
    dk.attach(plain, PARTS)
    chosen = torch.tensor([0.25, 0.5, 0.75])
    with torch.no_grad():
        for form in forms(model).values():
            form.of_block.router.weight.zero_()
            form.of_block.router.bias.copy_(chosen.logit())
        for (key, part), mine in zip(forms(plain).items(), forms(model).values(), strict=True):
            weight = chosen[("attn.q", "ffn.down", "ffn.out").index(key.split(".", 2)[2])]
            part.load_state_dict(mine.form.state_dict())
            last = part.up if hasattr(part, "up") else part
            for parameter in [last.lora_B] if last is part else last.parameters():
                parameter.mul_(weight)
    batch = kit.make_batch()
    torch.testing.assert_close(
        kit.out(model, batch), kit.out(plain.eval(), batch), atol=1e-5, rtol=1e-5
    )


def test_weights_below_the_threshold_are_zero_and_the_threshold_learns(
    kit: SimpleNamespace,
) -> None:
    model = attached(kit, MoA(PARTS, threshold=1.0))
    attention = next(iter(forms(model).values())).of_block
    x = torch.randn(2, 7, 16, requires_grad=True)
    weights = attention(x)
    whole = torch.sigmoid(attention.router(x))
    limit = torch.sigmoid(attention.threshold(x))
    kept = whole >= limit
    assert kept.any() and not kept.all()
    assert torch.equal(weights, torch.where(kept, whole, 0.0))
    (slope,) = torch.autograd.grad(weights.sum(), attention.threshold.bias)
    (expected,) = torch.autograd.grad((-whole.detach() * limit_of(attention, x)).sum(),
                                      attention.threshold.bias)  # fmt: skip
    torch.testing.assert_close(slope, expected)


def limit_of(attention: Any, x: Tensor) -> Tensor:
    return attention.highest * torch.sigmoid(attention.threshold(x))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(kit: SimpleNamespace, reentrant: bool) -> None:
    found = []
    for checkpointed in (False, True):
        model, batch = attached(kit, MoA(PARTS)), kit.make_batch()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model.train()
        model(**batch)[0].square().sum().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    assert sum("router" in name for name in found[0]) > 0
    for name, grad in found[0].items():
        torch.testing.assert_close(found[1][name], grad, atol=1e-5, rtol=1e-4)


def test_rows_with_deltas_of_their_own(kit: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model, batch = kit.make_model("bert").eval(), kit.make_batch()
    for name in ("a", "b"):
        dk.attach(model, MoA(PARTS), name)
        kit.randomise_deltas(model, name)
    alone = []
    for name in ("a", "b"):
        dk.activate(model, name)
        alone.append(kit.out(model, batch))
    dk.activate(model, dk.PerRow(("a", "b", "a")))
    mixed = kit.out(model, batch)
    for row, index in enumerate((0, 1, 0)):
        torch.testing.assert_close(mixed[row], alone[index][row], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"threshold": 0.0}, "above 0"),
        ({"router": "mlp"}, "swiglu"),
        ({"method": dk.PromptTuning(length=2)}, "before all blocks"),
    ],
)
def test_bad_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        MoA(**fields)


@pytest.mark.parametrize(
    ("method", "text"),
    [
        (dk.PrefixTuning(length=2), "the same for all tokens"),
        (dk.LoReFT(rank=2), "reads other inputs"),
        (dk.IA3(targets=("ffn.mid",)), "Begin the sum with a part"),
    ],
)
def test_what_cannot_be_weighed(kit: SimpleNamespace, method: dk.Method, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        dk.attach(kit.make_model("bert"), MoA(method))
