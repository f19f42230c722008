"""AdapterFusion by its members' codes, and folded: equal to the general way, with less work."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import deltakit as dk
from deltakit.errors import NotMergeable
from deltakit.inject.switch import active_nodes
from deltakit.methods.forms.adapter import Bottleneck
from deltakit.methods.forms.fusion import FoldedFusion, Fusion
from deltakit.runtime.nodes import CombinerNode, FoldedNode

MEMBERS: dict[str, tuple[dk.Method, ...]] = {
    "sequential": (dk.SequentialAdapter(bottleneck=3), dk.SequentialAdapter(bottleneck=3)),
    "unequal": (
        dk.SequentialAdapter(bottleneck=2, scale=2.0),
        dk.SequentialAdapter(bottleneck=5, bias=False, activation="gelu"),
        dk.SequentialAdapter(bottleneck=3),
    ),
    "houlsby": (
        dk.SequentialAdapter(bottleneck=3, placement="houlsby"),
        dk.SequentialAdapter(bottleneck=4, placement="houlsby"),
    ),
    "parallel": (
        dk.ParallelAdapter(bottleneck=3),
        dk.ParallelAdapter(bottleneck=4, learned_scale=True),
    ),
    "lora": (dk.LoRA(rank=2), dk.LoRA(rank=3, alpha=5)),
    "lora all": (dk.LoRA(rank=2, targets="all"), dk.LoRA(rank=2, targets="all")),
}
NOT_BY_CODE: dict[str, tuple[dk.Method, ...]] = {
    "scaling": (dk.IA3(), dk.IA3()),
    "dora": (dk.DoRA(rank=2), dk.DoRA(rank=2)),
}


def fused(
    kit: SimpleNamespace, members: tuple[dk.Method, ...], family: str = "bert", **fields: Any
) -> Any:
    """In double precision, so that sums in another order are nearly equal."""
    model = kit.make_model(family, "classify").double()
    names = [f"m{index}" for index in range(len(members))]
    for name, method in zip(names, members, strict=True):
        dk.attach(model, method, name=name)
    dk.attach(model, dk.AdapterFusion(*names, **fields), name="fused")
    kit.randomise_deltas(model)
    return model


@contextmanager
def generally() -> Iterator[None]:
    """Inside, each member makes its change by itself."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CombinerNode, "stacked", lambda self: None)
        yield


def nodes(model: Any) -> list[CombinerNode]:
    found = active_nodes(model.deltakit).values()
    return [node for node in found if isinstance(node, CombinerNode)]


def gradients(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("members", MEMBERS)
def test_equals_the_general_way(kit: SimpleNamespace, members: str, family: str) -> None:
    model, batch = fused(kit, MEMBERS[members], family), kit.make_batch()
    assert all(node.stacked() is not None for node in nodes(model))
    with generally():
        expected = kit.out(model, batch)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("value", [True, False])
@pytest.mark.parametrize("tokens", [2, 50])
def test_more_tokens_than_units_and_fewer(tokens: int, value: bool) -> None:
    forms = [
        Bottleneck(8, 8, bottleneck=m, activation="relu", initialisation="normal") for m in (2, 4)
    ]
    fusion = Fusion(8, members=("a", "b"), value=value).double()
    parameters = [p for part in (fusion, *forms) for p in part.double().parameters()]
    for parameter in parameters:
        torch.nn.init.normal_(parameter)
    from deltakit.core.factors import stack_factors

    x, query = torch.randn(2, tokens, 8).double(), torch.randn(2, tokens, 8).double()
    expected = fusion(query, [form(x) for form in forms])
    stacked = stack_factors([form.factors() for form in forms])
    found = fusion.combined(query, stacked.code(x), stacked)
    torch.testing.assert_close(found, expected)
    folded = fusion.folded(stacked)
    torch.testing.assert_close(folded(query, x), expected)
    torch.testing.assert_close(folded(x, x), fusion(x, [form(x) for form in forms]))
    weight = torch.randn_like(expected)
    each = [torch.autograd.grad((y * weight).sum(), parameters) for y in (expected, found)]
    for one, other in zip(*each, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("train", [None, ["fused", "m0", "m1"]])
@pytest.mark.parametrize("members", ["sequential", "parallel", "lora"])
def test_gradients_are_those_of_the_general_way(
    kit: SimpleNamespace, members: str, train: list[str] | None
) -> None:
    model = fused(kit, MEMBERS[members], dropout=0.3).train()
    dk.activate(model, "fused", train=train)
    batch = kit.make_batch(labels=True)
    found = gradients(model, batch)
    with generally():
        expected = gradients(model, batch)
    assert found.keys() == expected.keys()
    assert any("m0" in name for name in found) == (train is not None)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-9, rtol=1e-7, msg=name)


def test_checkpointing_gives_the_same_gradients(kit: SimpleNamespace) -> None:
    model, batch = fused(kit, MEMBERS["sequential"]).train(), kit.make_batch(labels=True)
    expected = gradients(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model, batch)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, msg=name)


@pytest.mark.parametrize("members", NOT_BY_CODE)
def test_members_without_factors_are_fused_as_before(kit: SimpleNamespace, members: str) -> None:
    model, batch = fused(kit, NOT_BY_CODE[members]), kit.make_batch()
    assert all(node.stacked() is None for node in nodes(model))
    found = kit.out(model, batch)
    with generally():
        assert torch.equal(kit.out(model, batch), found)
    with pytest.raises(NotMergeable, match=r"over Fusion at|Fusion over"):
        dk.merge(model)


@pytest.mark.parametrize(
    "method",
    [
        dk.SequentialAdapter(bottleneck=3, dropout=0.5),
        dk.ParallelAdapter(bottleneck=3, dropout=0.5),
        dk.LoRA(rank=2, dropout=0.5),
    ],
)
def test_a_member_with_dropout_is_by_code_in_evaluation_only(
    kit: SimpleNamespace, method: dk.Method
) -> None:
    model, batch = fused(kit, (method, method)).train(), kit.make_batch(labels=True)
    assert all(node.stacked() is None for node in nodes(model))
    gradients(model, batch)
    assert dk.merge(model).folded
    assert all(module.training for module in model.modules())
    dk.unmerge(model)
    assert all(node.stacked() is not None for node in nodes(model.eval()))


def test_what_reads_different_inputs_is_not_by_code(kit: SimpleNamespace) -> None:
    houlsby = dk.SequentialAdapter(placement="houlsby", bottleneck=3)
    lora = dk.LoRA(rank=2, targets=("attn.o", "ffn.down"))
    model = kit.make_model("bert")
    for name, method in (("a", houlsby), ("b", houlsby), ("c", lora)):
        dk.attach(model, method, name=name)
    dk.attach(model, dk.AdapterFusion("a", "b"), name="fused")
    (node, *_) = nodes(model)
    other = next(iter(model.deltakit.get("c").leaves.values()))
    assert CombinerNode(node.combiner, (node.members[0], *other)).stacked() is None


class Doubled(Bottleneck):
    """It says anew what it computes, and nothing of its factors."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_form_that_overrides_forward_is_not_by_code(kit: SimpleNamespace) -> None:
    model, batch = fused(kit, MEMBERS["sequential"]), kit.make_batch()
    before = kit.out(model, batch)
    for module in model.modules():
        if type(module) is Bottleneck:
            module.__class__ = Doubled
    model.deltakit.nodes.clear()
    for attached in model.deltakit.attached.values():
        for key, leaves in attached.leaves.items():
            attached.leaves[key] = tuple(
                type(leaf)(leaf.delta, leaf.insertion, leaf.scale) for leaf in leaves
            )
    dk.activate(model, "fused")
    assert all(node.stacked() is None for node in nodes(model))
    assert not torch.allclose(kit.out(model, batch), before)


class Products(TorchDispatchMode):
    """Counts matrix products, and the widest axis of what any operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm)
        return func(*args, **(kwargs or {}))


def counted(call: Callable[[], Any]) -> int:
    with Products() as products:
        call()
    return products.count


def test_the_number_of_products_does_not_depend_on_the_members(kit: SimpleNamespace) -> None:
    batch, method = kit.make_batch(labels=True), dk.SequentialAdapter(bottleneck=2)
    few, many = (fused(kit, (method,) * n).train() for n in (2, 6))
    step = [counted(lambda model=model: model(**batch).loss.backward()) for model in (few, many)]
    assert step[0] == step[1]
    for model in (few, many):
        model.eval()
        dk.merge(model)
    passes = [counted(lambda model=model: kit.out(model, batch)) for model in (few, many)]
    assert passes[0] == passes[1]


# ------------------------------------------------------------------------------------- folded


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("members", MEMBERS)
def test_folded_equals_unfolded(kit: SimpleNamespace, members: str, family: str) -> None:
    model, batch = fused(kit, MEMBERS[members], family), kit.make_batch()
    before, expected = kit.snapshot(model), kit.out(model, batch)
    report = dk.merge(model)
    assert set(report.folded) == set(model.deltakit.get("fused").combiners)
    assert not report.linears and "folded at" in str(report)
    assert dk.merge(model) is report
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-9, rtol=1e-9)
    dk.unmerge(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), expected)


def test_a_folded_site_has_no_square_matrix(kit: SimpleNamespace) -> None:
    model = fused(kit, MEMBERS["sequential"])
    dk.merge(model)
    folded = list(active_nodes(model.deltakit).values())
    assert folded and all(isinstance(node, FoldedNode) for node in folded)
    for node in folded:
        assert isinstance(node.module, FoldedFusion) and not [*node.module.parameters()]
        shapes = {name: tuple(buffer.shape) for name, buffer in node.module.named_buffers()}
        assert shapes == {
            "down": (6, 16),
            "down_bias": (6,),
            "match": (8, 16),
            "match_bias": (8,),
            "outer": (16, 8),
        }


def test_folded_is_saved_unfolded(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = fused(kit, MEMBERS["unequal"]), kit.make_batch()
    keys, expected = model.state_dict().keys(), kit.out(model, batch)
    dk.merge(model)
    assert model.state_dict().keys() == keys
    dk.save(model, tmp_path, name="fused")
    other = kit.make_model("bert", "classify").double()
    dk.load(other, tmp_path, name="fused")
    assert torch.equal(kit.out(other, batch), expected)


def test_disabled_activated_and_detached_while_folded(kit: SimpleNamespace) -> None:
    batch = kit.make_batch()
    base = kit.out(kit.make_model("bert", "classify").double(), batch)
    model = fused(kit, MEMBERS["sequential"])
    unfolded = kit.out(model, batch)
    dk.merge(model)
    folded = kit.out(model, batch)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), base)
    assert torch.equal(kit.out(model, batch), folded)
    dk.activate(model, "fused")
    assert torch.equal(kit.out(model, batch), unfolded)
    dk.merge(model)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), base)


def test_a_folded_fusion_cannot_be_kept(kit: SimpleNamespace) -> None:
    model = fused(kit, MEMBERS["sequential"])
    message = "folded, not merged into a weight"
    with pytest.raises(NotMergeable, match=message):
        dk.merge(model, keep=True)
    assert all(isinstance(node, CombinerNode) for node in active_nodes(model.deltakit).values())
    dk.merge(model)
    with pytest.raises(NotMergeable, match=message):
        dk.merge(model, keep=True)


def test_attention_is_seen_while_folded(kit: SimpleNamespace) -> None:
    model, batch = fused(kit, MEMBERS["sequential"]), kit.make_batch()
    with dk.fusion_attention(model) as unfolded:
        kit.out(model, batch)
    dk.merge(model)
    with dk.fusion_attention(model) as folded:
        kit.out(model, batch)
    assert folded.members == unfolded.members
    for site, weights in unfolded.weights.items():
        torch.testing.assert_close(folded.weights[site], weights, atol=1e-9, rtol=1e-9)


def test_half_precision_is_kept(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert").bfloat16(), kit.make_batch()
    for name in "ab":
        dk.attach(model, dk.SequentialAdapter(bottleneck=3), name=name)
    dk.attach(model, dk.AdapterFusion("a", "b"), name="fused")
    kit.randomise_deltas(model)
    with generally():
        expected = kit.out(model, batch)
    for _ in range(2):
        found = kit.out(model, batch)
        assert found.dtype is torch.bfloat16
        torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)
        dk.merge(model)


def test_folded_moves_with_the_model(kit: SimpleNamespace) -> None:
    model, batch = fused(kit, MEMBERS["sequential"]), kit.make_batch()
    expected = kit.out(model, batch)
    dk.merge(model)
    model.float()
    torch.testing.assert_close(kit.out(model, batch), expected.float(), atol=1e-4, rtol=1e-4)
