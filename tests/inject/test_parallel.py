"""A parallel delta that is defined here: x is the input of the sub-module, on every model."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.runtime.passes import current_pass

PATHS = {
    "bert": ("encoder.layer.{}.attention.self", "encoder.layer.{}.intermediate"),
    "roberta": ("encoder.layer.{}.attention.self", "encoder.layer.{}.intermediate"),
    "distilbert": ("transformer.layer.{}.attention", "transformer.layer.{}.ffn"),
    "gpt2": ("h.{}.attn", "h.{}.mlp"),
    "llama": ("layers.{}.self_attn", "layers.{}.mlp"),
    "qwen3": ("layers.{}.self_attn", "layers.{}.mlp"),
}
"""The modules whose input is x: of attention, of the feed-forward."""
OUTPUTS = {
    "bert": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "roberta": ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense"),
    "distilbert": ("transformer.layer.{}.attention.out_lin", "transformer.layer.{}.ffn"),
    "gpt2": ("h.{}.attn.c_proj", "h.{}.mlp"),
    "llama": ("layers.{}.self_attn.o_proj", "layers.{}.mlp"),
    "qwen3": ("layers.{}.self_attn.o_proj", "layers.{}.mlp"),
}
"""The modules that return h, before the residual addition."""


class Toy(dk.Delta):
    """tanh(x W)."""

    def __init__(self, d_in: int, d_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(d_in, d_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x @ self.weight)


@dataclass(frozen=True, kw_only=True)
class Beside(dk.Method):
    """Toy beside both sub-modules."""

    scale: float = 0.5
    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-3

    def placements(self) -> tuple[dk.Placement, ...]:
        return tuple(
            dk.Placement(
                site=site,
                make_delta=lambda handle: Toy(handle.d_in, handle.d_out),
                insertion=dk.Insertion.PARALLEL,
                scale=self.scale,
            )
            for site in (dk.Site.ATTN_OUT, dk.Site.FFN_OUT)
        )


def attached(kit: SimpleNamespace, family: str, kind: str = "bare") -> Any:
    model = kit.make_model(family, kind)
    dk.attach(model, Beside())
    kit.randomise_deltas(model)
    return model


def by_hand(kit: SimpleNamespace, model: Any, family: str, kind: str = "bare") -> Any:
    """A plain model whose sub-modules add 0.5 · tanh(x W), by hooks of this test's own."""
    other = kit.make_model(family, kind)
    weights = {k: t.detach().clone() for k, t in kit.attachments(model).get("default").tensors()}
    stack = next(iter(weights)).partition(".")[0]
    root = other.base_model
    for layer in (0, 1):
        for reads, returns, site in zip(
            PATHS[family], OUTPUTS[family], ("attn.out", "ffn.out"), strict=True
        ):
            weight = weights[f"{stack}.{layer}.{site}.weight"]
            kept: list[Tensor] = []

            def keep(_m: Any, args: Any, kwargs: Any, kept: list[Tensor] = kept) -> None:
                kept[:] = [args[0] if args else kwargs["hidden_states"]]

            def add(
                _m: Any, _a: Any, y: Tensor, kept: list[Tensor] = kept, w: Tensor = weight
            ) -> Tensor:
                return y + 0.5 * torch.tanh(kept[0] @ w)

            root.get_submodule(reads.format(layer)).register_forward_pre_hook(
                keep, with_kwargs=True
            )
            root.get_submodule(returns.format(layer)).register_forward_hook(add)
    return other


@pytest.mark.parametrize("family", list(PATHS))
def test_equals_the_formula(kit: SimpleNamespace, family: str) -> None:
    model, batch = attached(kit, family), kit.make_batch()
    expected = kit.out(by_hand(kit, model, family), batch)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)
    with dk.disabled(model):
        assert (kit.out(model, batch) - expected).abs().max() > 1e-2


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_equals_the_formula_under_checkpointing(
    kit: SimpleNamespace, family: str, reentrant: bool
) -> None:
    def weights(model: Any) -> dict[str, Tensor]:
        loss = model.train()(**kit.make_batch(labels=True)).loss
        loss.backward()
        found = {
            n: p.grad.clone()
            for n, p in model.named_parameters()
            if n.startswith("deltakit.delta_")
        }
        model.zero_grad()
        return found

    model = attached(kit, family, "classify")
    plain = weights(model)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = weights(model)
    model.gradient_checkpointing_disable()
    assert plain and plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        assert value.abs().max() > 0
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5, msg=name)
    batch = kit.make_batch()
    expected = kit.out(by_hand(kit, model, family, "classify").eval(), batch)
    torch.testing.assert_close(kit.out(model.eval(), batch), expected, atol=1e-5, rtol=1e-5)


def test_nothing_is_held_after_a_pass(kit: SimpleNamespace) -> None:
    model, held = attached(kit, "bert"), list[int]()

    def note(module: Any, args: Any, output: Any) -> None:
        held.append(len(current_pass().held))

    model.register_forward_hook(note, prepend=True)
    kit.out(model, kit.make_batch())
    assert held == [0] and not current_pass().held


def test_detach_takes_the_readers_too(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama")
    before = kit.snapshot(model)
    dk.attach(model, Beside())
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_deltas_that_read_the_same_input_share_its_cast(kit: SimpleNamespace) -> None:
    from torch.utils._python_dispatch import TorchDispatchMode

    class Casts(TorchDispatchMode):
        found: int = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            wider = func is torch.ops.aten._to_copy.default and args[0].ndim == 3
            self.found += wider and (kwargs or {}).get("dtype") is torch.float32
            return func(*args, **(kwargs or {}))

    counts = {}
    for targets in (("q",), ("q", "k", "v")):
        model = kit.make_model("bert").to(torch.bfloat16)
        with Casts() as plain:
            model(**kit.make_batch())
        dk.attach(model, dk.LoRA(rank=2, targets=targets), dtype=torch.float32)
        with Casts() as seen:
            model(**kit.make_batch())
        counts[targets] = seen.found - plain.found
    assert counts == {("q",): 2, ("q", "k", "v"): 2}
