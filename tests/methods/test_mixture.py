"""Mixtures: formula, laws, AdaMix's draws and mean, top-k, balance, a route of one's own."""

import copy
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.core.delta import Delta
from deltakit.core.method import Placement
from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas, InvalidConfig
from deltakit.methods.forms.mixture import (
    BalancedByToken,
    DrawnByBatch,
    Experts,
    Mixed,
    RoutedByToken,
    masked_mean,
)
from deltakit.methods.mixture import Mixture
from deltakit.runtime.consistency import consistency, divergence

METHODS = {
    "adapter": dk.SequentialAdapter(bottleneck=3),
    "parallel": dk.ParallelAdapter(bottleneck=3),
    "lora": dk.LoRA(rank=2),
    "ia3": dk.IA3(),
}


def forms(model: Any, name: str = "default") -> dict[str, Any]:
    return dict(model.deltakit.attached[name].modules())


def mixed(kit: SimpleNamespace, method: dk.Method, family: str = "bert", seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = kit.make_model(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


@pytest.mark.parametrize("label", list(METHODS))
def test_one_expert_is_the_method_itself(kit: SimpleNamespace, label: str) -> None:
    plain, one = METHODS[label], Mixture(METHODS[label], experts=1)
    models = [mixed(kit, method) for method in (plain, one)]
    outputs = [kit.out(model, kit.make_batch()) for model in models]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("label", list(METHODS))
@pytest.mark.parametrize("route", ["token", "sequence", "batch"])
def test_equal_experts_are_the_method(kit: SimpleNamespace, label: str, route: Any) -> None:
    plain = mixed(kit, METHODS[label])
    model = mixed(kit, Mixture(METHODS[label], experts=3, route=route))
    with torch.no_grad():
        for key, form in forms(model).items():
            expected = dict(forms(plain)[key].named_parameters())
            for name, stacked in form.experts.form.named_parameters():
                stacked.copy_(expected[name].expand_as(stacked))
    batch = kit.make_batch()
    found, expected = kit.out(model, batch), kit.out(plain, batch)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("top", [None, 1, 2])
def test_the_formula(kit: SimpleNamespace, top: int | None) -> None:
    model = mixed(kit, Mixture(METHODS["lora"], experts=3, top=top))
    form = forms(model)["encoder.1.attn.q"]
    x = torch.randn(2, 5, form.router.in_features)
    p = F.softmax(x @ form.router.weight.T, dim=-1)
    if top is not None:
        smallest = p.sort(-1, descending=True).values[..., top - 1 : top]
        p = p * (p >= smallest)
        p = p / p.sum(-1, keepdim=True)
    A, B = form.experts.form.lora_A, form.experts.form.lora_B
    expected = sum(p[..., e, None] * (x @ A[e].T @ B[e].T) for e in range(3))
    torch.testing.assert_close(form(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("share", [(), "first", "last"])
@pytest.mark.parametrize("label", ["adapter", "parallel", "lora"])
def test_units_are_weighed_and_no_change_of_the_models_width_is_made(
    kit: SimpleNamespace, label: str, share: Any
) -> None:
    parts = ("lora_A", "lora_B") if label == "lora" else ("down", "up")
    shared = {"first": parts[:1], "last": parts[1:]}.get(share, ())
    model = mixed(kit, Mixture(METHODS[label], experts=3, share=shared))
    form = next(iter(forms(model).values()))
    x, saved = torch.randn(4, 5, form.router.in_features, requires_grad=True), []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        found = form(x)
    assert max(saved) < 3 * found.numel(), "one for each expert would be kept for the gradient"
    weights = form.attention(form.router(x)).reshape(-1, 3)
    changes = form.experts.all(x.reshape(-1, x.shape[-1]))
    expected = torch.einsum("te,etd->td", weights, changes).view_as(found)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(out.square().sum(), x, retain_graph=True)[0]
             for out in (found, expected)]  # fmt: skip
    torch.testing.assert_close(*grads, atol=1e-4, rtol=1e-4)


def test_experts_of_adamix_start_as_copies_of_one(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(
        model, dk.parse_method("adamix[experts=4,method=pfeiffer[bottleneck=3,placement=ffn]]")
    )
    model.train()
    for form in forms(model).values():
        x = torch.randn(2, form.experts.form.down.weight.shape[-1])
        first = form(x)
        assert all(torch.equal(form(x), first) for _ in range(8))


def test_down_and_up_are_drawn_on_their_own() -> None:
    torch.manual_seed(0)
    method = Mixture(dk.SequentialAdapter(bottleneck=2, bias=False), experts=2, route="batch")
    form = _form(method, 4)
    with torch.no_grad():
        form.experts.form.down.weight[0].fill_(1.0)
        form.experts.form.down.weight[1].fill_(2.0)
        form.experts.form.up.weight[0].fill_(1.0)
        form.experts.form.up.weight[1].fill_(10.0)
    form.train()
    seen = {round(float(form(torch.ones(1, 4))[0, 0].detach())) for _ in range(40)}
    assert seen == {8, 16, 80, 160}


def _form(method: Mixture, d: int) -> Mixed:
    (placement,) = method.placements()
    handle: Any = SimpleNamespace(d_in=d, d_out=d, layer=0, depth=1, activation=None, linear=None)
    form = placement.make_delta(handle)
    assert isinstance(form, Mixed)
    return form


def test_deployed_adamix_is_the_mean_of_its_experts(kit: SimpleNamespace, tmp_path: Path) -> None:
    spec = "adamix[experts=3,method=pfeiffer[bottleneck=3,placement=ffn]]"
    model, batch = mixed(kit, dk.parse_method(spec)), kit.make_batch()
    means = {
        f"{key}.{name}": value[0].clone()
        for key, form in forms(model).items()
        for name, value in form.experts.mean().items()
    }
    before = kit.out(model, batch)
    dk.deploy(model)
    plain = {f"{k}.{n}": p for k, form in forms(model).items() for n, p in form.named_parameters()}
    assert plain.keys() == means.keys()
    assert all(torch.equal(plain[key], means[key]) for key in means)
    assert model.deltakit.attached["default"].method == dk.SequentialAdapter(
        bottleneck=3, placement="ffn"
    )
    torch.testing.assert_close(kit.out(model, batch), before, atol=1e-5, rtol=1e-5)
    dk.save(model, tmp_path / "plain")
    fresh = kit.make_model("bert")
    dk.load(fresh, tmp_path / "plain")
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))


@pytest.mark.parametrize("factor", [1.0, 1000.0])
@pytest.mark.parametrize("own_loss", [False, True])
def test_two_passes_in_training(kit: SimpleNamespace, factor: float, own_loss: bool) -> None:
    """The gradient of the task's loss and of the divergence, whatever the loop does with it."""
    method = Mixture(dk.LoRA(rank=2), experts=3, route="batch", consistency=0.7)
    model = kit.make_model("bert", "classify")
    dk.attach(model, method)
    kit.randomise_deltas(model)
    model.train()
    batch = kit.make_batch()
    labels = torch.tensor([0, 1] * len(batch["input_ids"]))[: len(batch["input_ids"])]
    trained = [p for p in model.parameters() if p.requires_grad]

    torch.manual_seed(3)
    output = model(**batch, labels=None if own_loss else labels)
    loss = F.cross_entropy(output.logits, labels) if own_loss else output.loss
    (loss * factor).backward()
    found = [p.grad.clone() for p in trained]

    model.zero_grad()
    plain = copy.deepcopy(model)
    for form in forms(plain).values():
        form.consistency = 0.0
    dk.activate(plain, None)
    dk.activate(plain, "default")
    torch.manual_seed(3)
    first, second = plain(**batch).logits, plain(**batch).logits
    expected = F.cross_entropy(first, labels) + 0.7 * divergence(first, second, None)
    (expected * factor).backward()
    wanted = [p.grad for p in plain.parameters() if p.requires_grad]
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * factor, rtol=1e-4)
    if not own_loss:
        torch.testing.assert_close(loss, expected)


def test_divergence() -> None:
    torch.manual_seed(0)
    one, other = torch.randn(4, 3), torch.randn(4, 3)
    p, q = one.softmax(-1), other.softmax(-1)
    expected = 0.5 * ((p * (p / q).log()).sum(-1) + (q * (q / p).log()).sum(-1)).mean()
    torch.testing.assert_close(divergence(one, other, None), expected)
    torch.testing.assert_close(divergence(one, one, None), torch.zeros(()))
    counted = torch.tensor([True, False, False, False])
    torch.testing.assert_close(
        divergence(one, other, counted), divergence(one[:1], other[:1], None)
    )
    assert not divergence(one, other, torch.zeros(4, dtype=torch.bool))


@pytest.mark.parametrize("labelled", [False, True])
def test_padding_has_no_part_in_the_consistency(kit: SimpleNamespace, labelled: bool) -> None:
    """A padded row has the same term as the row alone."""
    model = kit.make_model("llama", "causal")
    dk.attach(model, Mixture(dk.LoRA(rank=2), experts=3, route="batch", consistency=1.0))
    kit.randomise_deltas(model)
    model.train()
    ids = torch.randint(5, 60, (1, 4))
    short = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    padded = {k: torch.cat([v, torch.zeros(1, 3).long()], dim=1) for k, v in short.items()}
    terms = []
    for batch in (short, padded):
        if labelled:
            given = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
            batch = {**batch, "labels": given.masked_fill(given == ids[0, 0], -100)}
        torch.manual_seed(1)
        output = model(**{k: v for k, v in batch.items() if k != "labels"})
        term = consistency(model, (), batch, output)
        assert term is not None and term > 0
        terms.append(term)
    torch.testing.assert_close(terms[1], terms[0], atol=1e-6, rtol=1e-4)


def test_what_is_shared_is_counted_once(kit: SimpleNamespace) -> None:
    counts = {}
    for share in ((), ("up",)):
        method = Mixture(dk.SequentialAdapter(bottleneck=3), experts=4, route="batch", share=share)
        counts[share] = dk.summary(mixed(kit, method)).trained_params
    d, layers = kit.make_model("bert").config.hidden_size, 2
    assert counts[()] - counts[("up",)] == layers * 3 * (3 * d + d)


def test_experts_by_parts_of_the_layers(kit: SimpleNamespace) -> None:
    model = mixed(kit, Mixture(dk.LoRA(rank=2), experts=(2, 5)))
    assert {key: form.experts.count for key, form in forms(model).items() if "attn.q" in key} == {
        "encoder.0.attn.q": 2,
        "encoder.1.attn.q": 5,
    }


def test_active_parameters(kit: SimpleNamespace) -> None:
    model = mixed(kit, Mixture(dk.LoRA(rank=2), experts=4, top=1))
    found, d = dk.summary(model), model.config.hidden_size
    pairs, pair, router = 4, 2 * 2 * d, 4 * d
    assert found.trained_params == pairs * (4 * pair + router)
    assert found.active_params == pairs * (pair + router)


def test_a_row_is_the_same_in_any_batch(kit: SimpleNamespace) -> None:
    model = mixed(kit, Mixture(dk.LoRA(rank=2), experts=3, route="sequence"))
    ids = torch.randint(5, 60, (1, 4))
    alone = kit.out(model, {"input_ids": ids, "attention_mask": torch.ones(1, 4, dtype=torch.long)})
    padded = torch.cat([ids, torch.zeros(1, 3, dtype=torch.long)], dim=1)
    batch = torch.cat([padded, torch.randint(5, 60, (2, 7))])
    mask = torch.ones(3, 7, dtype=torch.long)
    mask[0, 4:] = 0
    among = kit.out(model, {"input_ids": batch, "attention_mask": mask})
    torch.testing.assert_close(among[0, :4], alone[0], atol=1e-5, rtol=1e-5)


def test_masked_mean() -> None:
    x, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    found = masked_mean(x, mask)
    torch.testing.assert_close(found[0], x[0, :2].mean(0))
    assert not found[1].any(), "a row without tokens has no mean, and no division by zero"


def test_balance_loss() -> None:
    torch.manual_seed(0)
    experts = Experts([_form_of(dk.LoRA(rank=2)) for _ in range(3)], ())
    form = BalancedByToken(experts, 8, top=2, balance=0.5)
    x, mask = torch.randn(2, 4, 8), torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0]]).bool()
    change, loss = form.with_loss(x, mask)
    real = x[mask]
    p = F.softmax(real @ form.router.weight.T, dim=-1)
    f = F.one_hot(p.argmax(-1), 3).float().mean(0)
    torch.testing.assert_close(loss, 0.5 * 3 * (f * p.mean(0)).sum())
    torch.testing.assert_close(change, form(x, mask))


def _form_of(method: dk.LoRA) -> Delta:
    handle: Any = SimpleNamespace(d_in=8, d_out=8)
    return method.form(handle)


def test_routers_are_seen(kit: SimpleNamespace) -> None:
    model = mixed(kit, Mixture(dk.LoRA(rank=2), experts=3, top=1))
    with dk.fusion_attention(model) as seen:
        kit.out(model, kit.make_batch())
    load = seen.mean()["encoder.0.attn.q"]
    assert list(load) == ["0", "1", "2"]
    assert sum(load.values()) == pytest.approx(1.0)


def test_a_mixture_has_no_weighted_sum(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    for name in ("a", "b"):
        dk.attach(model, Mixture(dk.LoRA(rank=2), experts=2), name=name)
    with pytest.raises(IncompatibleDeltas):
        dk.task_arithmetic(model, {"a": 0.5, "b": 0.5}, name="sum")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Mixture(experts=0), "experts"),
        (lambda: Mixture(experts=()), "give a number"),
        (lambda: Mixture(experts=2, top=3), "only 2 experts"),
        (lambda: Mixture(route="batch", top=1), "drawn for each batch"),
        (lambda: Mixture(route="word"), "batch, token, sequence"),
        (lambda: Mixture(route="batch", balance=0.1), "no|only a router"),
        (lambda: Mixture(consistency=1.0), "only where experts are drawn"),
        (lambda: Mixture(dk.AdapterFusion("a", "b")), "puts deltas into layers"),
    ],
)
def test_bad_settings(make: Any, text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        make()


@pytest.mark.parametrize(
    ("spec", "arxiv"),
    [
        ("adamix", "2205.12410"),
        ("molora", "2309.05444"),
        ("mov", "2309.05444"),
        ("mola", "2402.08562"),
    ],
)
def test_each_name_has_its_own_paper(spec: str, arxiv: str) -> None:
    assert dk.parse_method(spec).paper.arxiv == arxiv


def test_what_cannot_be_mixed(kit: SimpleNamespace) -> None:
    with pytest.raises(InvalidConfig, match="cannot compute several experts"):
        dk.attach(kit.make_model("bert"), Mixture(dk.PrefixTuning(length=2)))
    with pytest.raises(InvalidConfig, match="has no such part. It has: lora_A, lora_B"):
        dk.attach(kit.make_model("bert"), Mixture(dk.LoRA(), share="up"))


# ------------------------------------------------------------- a mixture of one's own, in one file


class RoutedByHash(Mixed):
    """Each token has the expert that its id says (Roller et al. 2021)."""

    reads = (dk.Reads.SOURCE, dk.Reads.INPUT_IDS)

    def forward(self, x: Tensor, input_ids: Tensor) -> Tensor:
        changes = self.experts.all(x.reshape(-1, x.shape[-1]))
        index = (input_ids.reshape(1, -1, 1) % self.experts.count).expand(1, -1, changes.shape[-1])
        return changes.gather(0, index)[0].view(*x.shape[:-1], -1)


@dataclass(frozen=True, kw_only=True, init=False)
class HashMixture(Mixture):
    """A mixture whose router is a hash of the token's id."""

    def form(self, placement: Placement, handle: Handle) -> Delta:
        made = super().form(placement, handle)
        assert isinstance(made, RoutedByToken)
        return RoutedByHash(made.experts)


@pytest.mark.parametrize("family", ["bert", "t5", "llama"])
def test_a_route_of_ones_own(kit: SimpleNamespace, family: str) -> None:
    model = mixed(kit, HashMixture(dk.LoRA(rank=2), experts=2), family)
    one = mixed(kit, dk.LoRA(rank=2), family)
    with torch.no_grad():
        for key, form in forms(model).items():
            for name, stacked in form.experts.form.named_parameters():
                forms(one)[key].get_parameter(name).copy_(stacked[0])
    batch = kit.make_inputs(family)
    even = {k: (v - v % 2 if "input_ids" in k else v) for k, v in batch.items()}
    found, expected = kit.out(model, even), kit.out(one, even)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(kit.out(model, batch), kit.out(one, batch))


def test_ids_that_are_not_given_are_refused(kit: SimpleNamespace) -> None:
    model = mixed(kit, HashMixture(dk.LoRA(rank=2), experts=2))
    with pytest.raises(IncompatibleDeltas, match="the model was given none"):
        model(inputs_embeds=torch.randn(1, 3, model.config.hidden_size))


def test_a_copy_draws_its_own_experts() -> None:
    form = DrawnByBatch(Experts([_form_of(dk.LoRA(rank=2))] * 2, ()), consistency=0.0)
    other = copy.deepcopy(form)
    with torch.no_grad():
        other.experts.form.lora_B.fill_(1.0)
    assert not form(torch.ones(1, 8)).any()
    assert other(torch.ones(1, 8)).any()
