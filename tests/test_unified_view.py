"""The identities of the unified view (He et al. 2022), each computed twice on the same weights.

That a deployed prefix is the trained one is in methods/test_prefix, that MAM is a sum in
methods/test_mam.
"""

import sys
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.core.method import UNIFIED_VIEW, Paper, Placement
from deltakit.core.site import Handle, Insertion, Site
from deltakit.methods.forms.adapter import Bottleneck
from deltakit.methods.prefix import PrefixTuning

HEADS = 4
PROJECTIONS = {
    "bert": "encoder.layer.0.attention.output.dense",
    "gpt2": "h.0.attn.c_proj",
    "llama": "layers.0.self_attn.o_proj",
}


def first_attention(
    kit: SimpleNamespace, model: Any, family: str, batch: dict[str, Tensor]
) -> tuple[dict[str, Any], Tensor]:
    """What the first layer's attention function is given, and the heads' outputs, side by side."""
    scope = vars(sys.modules[type(model).__module__])
    attend, calls, heads = scope["eager_attention_forward"], [], []

    def recorded(module: Any, query: Any, key: Any, value: Any, mask: Any, **settings: Any) -> Any:
        scaling = settings.get("scaling") or query.shape[-1] ** -0.5
        calls.append({"query": query, "key": key, "value": value, "mask": mask, "scaling": scaling})
        return attend(module, query, key, value, mask, **settings)

    projection = model.get_submodule(PROJECTIONS[family])
    hook = projection.register_forward_pre_hook(lambda _, args: heads.append(args[0]))
    scope["eager_attention_forward"] = recorded
    try:
        kit.out(model, batch)
    finally:
        scope["eager_attention_forward"] = attend
        hook.remove()
    return calls[0], heads[0]


def repeated(tensor: Tensor) -> Tensor:
    """One copy for each query head, where heads share keys and values."""
    return tensor.repeat_interleave(HEADS // tensor.shape[1], dim=1)


@pytest.mark.parametrize("family", list(PROJECTIONS))
def test_a_prefix_is_a_gated_change_of_each_head(kit: SimpleNamespace, family: str) -> None:
    """Eq. 7: softmax(q [P; K]ᵀ) [P; V] = (1 - λ) softmax(q Kᵀ) V + λ softmax(q Pᵀ) P_v.

    λ is the share that the prefix has of the softmax's denominator. With 1/√d in all scores and
    the mask in those of the model's own keys.
    """
    model, batch = kit.make_model(family), kit.make_batch()
    own, plain = first_attention(kit, model, family, batch)
    dk.attach(model, PrefixTuning(length=3, bottleneck=4))
    kit.randomise_deltas(model, std=0.7)
    dk.deploy(model)
    _, concatenated = first_attention(kit, model, family, batch)
    memory = next(t for _, t in kit.attachments(model).get("default").tensors()).detach()
    heads = own["key"].shape[1]  # Llama's here are half as many as its queries'
    prefix = memory.unflatten(-1, (heads, -1)).transpose(1, 2).unsqueeze(1)  # 2, 1, heads, l, w
    keys, values = repeated(own["key"]), repeated(own["value"])
    scores = own["query"] @ keys.transpose(-1, -2) * own["scaling"] + own["mask"]
    added = own["query"] @ repeated(prefix[0]).transpose(-1, -2) * own["scaling"]
    without = scores.softmax(-1) @ values
    change = added.softmax(-1) @ repeated(prefix[1])
    inside, outside = added.exp().sum(-1, keepdim=True), scores.exp().sum(-1, keepdim=True)
    gate = inside / (inside + outside)
    gated = (1 - gate) * without + gate * change

    seen = batch["attention_mask"].bool()
    side_by_side = {
        name: tensor.transpose(1, 2).flatten(2)[seen]
        for name, tensor in (("without", without), ("gated", gated))
    }
    torch.testing.assert_close(side_by_side["without"], plain[seen], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(side_by_side["gated"], concatenated[seen], atol=1e-6, rtol=1e-5)
    assert gate.min() > 0 and gate.max() < 1
    assert (concatenated - plain)[seen].abs().max() > 0.05


@dataclass(frozen=True, kw_only=True)
class LinearAdapter(dk.Method):
    """A parallel adapter whose nonlinearity is the identity, at some projections."""

    rank: int
    scale: float
    sites: tuple[Site, ...]

    paper: ClassVar[Paper] = UNIFIED_VIEW
    learning_rate: ClassVar[float] = 1e-3

    def placements(self) -> tuple[Placement, ...]:
        return tuple(
            Placement(
                site=site, make_delta=self.form, insertion=Insertion.PARALLEL, scale=self.scale
            )
            for site in self.sites
        )

    def form(self, handle: Handle) -> dk.Delta:
        """Without biases, started as LoRA is."""
        return Bottleneck(
            handle.d_in,
            handle.d_out,
            bottleneck=self.rank,
            activation="identity",
            initialisation="lora",
            bias=False,
        )


@pytest.mark.parametrize("targets", ["q/v", "k/o", "up/down"])
@pytest.mark.parametrize("family", ["bert", "gpt2", "gpt_neox", "llama", "t5"])
def test_lora_is_a_linear_parallel_adapter(kit: SimpleNamespace, family: str, targets: str) -> None:
    names = {"q": Site.ATTN_Q, "k": Site.ATTN_K, "v": Site.ATTN_V, "o": Site.ATTN_O,
             "up": Site.FFN_UP, "down": Site.FFN_DOWN}  # fmt: skip
    batch, chosen = kit.make_inputs(family), tuple(targets.split("/"))
    plain, outputs = kit.out(kit.make_model(family), batch), []
    for method in (
        dk.LoRA(rank=3, alpha=6, targets=chosen),
        LinearAdapter(rank=3, scale=2.0, sites=tuple(names[each] for each in chosen)),
    ):
        model = kit.make_model(family)
        dk.attach(model, method)
        assert torch.equal(kit.out(model, batch), plain)  # both start at the identity
        draw = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for _, tensor in kit.attachments(model).get("default").tensors():
                tensor.copy_(torch.randn(tensor.shape, generator=draw) * 0.3)
        outputs.append(kit.out(model, batch))
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=1e-6)
    assert (outputs[0] - plain).abs().max() > 0.05


@pytest.mark.parametrize(
    "member",
    [
        dk.SequentialAdapter(bottleneck=3),
        dk.SequentialAdapter(placement="houlsby", bottleneck=3),
        dk.ParallelAdapter(bottleneck=3),
        dk.LoRA(rank=2),
    ],
    ids=["pfeiffer", "houlsby", "parallel", "lora"],
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_fusion_over_one_delta_is_that_delta(
    kit: SimpleNamespace, family: str, member: dk.Method
) -> None:
    """A softmax over one is one, whatever query and key are; V = I does nothing."""
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, member, name="a")
    kit.randomise_deltas(model)
    alone = kit.out(model, batch)
    for value in (False, True):
        dk.attach(model, dk.AdapterFusion("a", value=value), name=f"fused-{value}")
        with torch.no_grad():
            for key, tensor in kit.attachments(model).get(f"fused-{value}").tensors():
                if "value" in key:
                    torch.testing.assert_close(tensor, torch.eye(len(tensor)), atol=1e-5, rtol=0)
                    tensor.copy_(torch.eye(len(tensor)))
                else:
                    tensor.normal_()
        torch.testing.assert_close(kit.out(model, batch), alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_scale_is_a_factor_of_the_second_projection(kit: SimpleNamespace, family: str) -> None:
    """s f(x) with W_up is f(x) with s W_up: scaled and plain parallel adapters are one form."""
    batch, outputs = kit.make_batch(), []
    for scale in (4.0, 1.0):
        model = kit.make_model(family)
        dk.attach(model, dk.ParallelAdapter(bottleneck=3, scale=scale))
        kit.randomise_deltas(model)
        with torch.no_grad():
            for key, tensor in kit.attachments(model).get("default").tensors():
                if ".up." in key:
                    tensor.mul_(4.0 / scale)
        outputs.append(kit.out(model, batch))
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-5, rtol=1e-5)
