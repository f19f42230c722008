"""Task arithmetic: the laws of a weighted sum, what it is exactly, and what it refuses."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, InvalidConfig, NameInUse, UnknownName

LIGHT = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
WEIGHT = st.floats(-2, 2, allow_nan=False)
SPECS = (
    "lora",
    "ia3",
    "pfeiffer[reduction=4]",
    "parallel[bottleneck=3]",
    "parallel[bottleneck=3,learned_scale=true]",
    "prefix[length=3,bottleneck=none]",
    "prompt[length=3]",
    "bitfit",
    "lora+parallel[bottleneck=3]",
    "adapterdrop[first=1,method=lora[rank=2]]",
    "head",
    "full",
)


def two(kit: SimpleNamespace, a: str, b: str | None = None, family: str = "bert") -> Any:
    """A model with random deltas "a" and "b", their heads and own values of the base trained."""
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    for name, spec in (("a", a), ("b", b or a)):
        dk.attach(model, dk.parse_method(spec), name=name)
    kit.randomise_deltas(model)
    for index, name in enumerate("ab"):
        dk.activate(model, name)
        kit.train_steps(model, batch, steps=1 + index, lr=0.02)
    return model


def alone(kit: SimpleNamespace, model: Any, name: str) -> Tensor:
    dk.activate(model, name)
    output: Tensor = kit.out(model, kit.make_batch())
    return output


@pytest.mark.parametrize("spec", SPECS)
def test_a_plus_b_minus_b_is_a(kit: SimpleNamespace, spec: str) -> None:
    model = two(kit, spec)
    expected, other = alone(kit, model, "a"), alone(kit, model, "b")
    dk.task_arithmetic(model, {"a": 1, "b": 1}, name="both")
    dk.task_arithmetic(model, {"both": 1, "b": -1}, name="again")
    assert kit.attachments(model).active.names == ("again",)
    again = kit.out(model, kit.make_batch())
    torch.testing.assert_close(again, expected, atol=1e-4, rtol=1e-4)
    assert (other - expected).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SPECS)
def test_average_of_a_delta_with_its_twin_is_it(kit: SimpleNamespace, spec: str) -> None:
    model = two(kit, spec)
    expected = alone(kit, model, "a")
    dk.task_arithmetic(model, {"a": 1}, name="twin")
    torch.testing.assert_close(kit.out(model, kit.make_batch()), expected, atol=1e-5, rtol=1e-5)
    dk.task_arithmetic(model, {"a": 0.5, "twin": 0.5}, name="mean")
    torch.testing.assert_close(kit.out(model, kit.make_batch()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
def test_saved_and_loaded(kit: SimpleNamespace, tmp_path: Path, spec: str) -> None:
    model, batch = two(kit, spec), kit.make_batch()
    dk.task_arithmetic(model, {"a": 0.7, "b": -0.3}, name="ab")
    expected = kit.out(model, batch)
    dk.save(model, tmp_path, name="ab")
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path)
    assert torch.equal(kit.out(other, batch), expected)


@pytest.mark.parametrize("spec", SPECS)
def test_leaves_the_rest_as_it_was(kit: SimpleNamespace, spec: str) -> None:
    model = kit.make_model("bert", "classify")
    before = kit.snapshot(model)
    for name in "ab":
        dk.attach(model, dk.parse_method(spec), name=name)
    kit.randomise_deltas(model)
    outputs = [alone(kit, model, name) for name in "ab"]
    dk.task_arithmetic(model, {"a": 0.7, "b": -0.3}, name="ab")
    for name, output in zip("ab", outputs, strict=True):
        assert torch.equal(alone(kit, model, name), output)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def changes(kit: SimpleNamespace, model: Any, name: str) -> dict[str, Tensor]:
    """What merging the delta changes in each of the base's parameters."""
    base = {key: value.clone() for key, value in originals(kit, model).items()}
    dk.activate(model, name)
    dk.merge(model)
    merged = {key: model.get_parameter(key).detach() - value for key, value in base.items()}
    dk.unmerge(model)
    return merged


def originals(kit: SimpleNamespace, model: Any) -> dict[str, Tensor]:
    with dk.disabled(model):
        return {
            key: value.detach().clone()
            for key, value in model.named_parameters()
            if not key.startswith("deltakit.")
        }


@LIGHT
@given(
    weights=st.tuples(WEIGHT, WEIGHT),
    ranks=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rslora=st.booleans(),
)
def test_loras_change_of_the_weights_is_linear(
    kit: SimpleNamespace, weights: tuple[float, float], ranks: tuple[int, int], rslora: bool
) -> None:
    model = kit.make_model("gpt2").double()
    dk.attach(model, dk.LoRA(rank=ranks[0], alpha=3, rslora=rslora, targets=("q", "up")), name="a")
    dk.attach(model, dk.LoRA(rank=ranks[1], alpha=5, targets=("up", "q")), name="b")
    kit.randomise_deltas(model)
    a, b = changes(kit, model, "a"), changes(kit, model, "b")
    dk.task_arithmetic(model, dict(zip("ab", weights, strict=True)), name="ab")
    summed = changes(kit, model, "ab")
    assert kit.attachments(model).get("ab").method.rank == sum(ranks)
    for key, change in summed.items():
        expected = weights[0] * a[key] + weights[1] * b[key]
        torch.testing.assert_close(change, expected, atol=1e-6, rtol=1e-6)


@LIGHT
@given(weights=st.tuples(WEIGHT, WEIGHT))
def test_rescaling_is_summed_as_deviations_from_one(
    kit: SimpleNamespace, weights: tuple[float, float]
) -> None:
    model = two(kit, "ia3")
    dk.task_arithmetic(model, dict(zip("ab", weights, strict=True)), name="ab")
    a, b, ab = (dict(kit.attachments(model).get(name).tensors()) for name in ("a", "b", "ab"))
    for key, tensor in ab.items():
        expected = 1 + weights[0] * (a[key] - 1) + weights[1] * (b[key] - 1)
        torch.testing.assert_close(tensor, expected, atol=1e-6, rtol=1e-6)


@LIGHT
@given(weights=st.tuples(WEIGHT, WEIGHT))
@pytest.mark.parametrize("spec", ["bitfit", "head", "full", "pfeiffer[reduction=4]"])
def test_own_values_are_summed_as_deviations_from_the_models(
    kit: SimpleNamespace, spec: str, weights: tuple[float, float]
) -> None:
    model = two(kit, spec)
    dk.task_arithmetic(model, dict(zip("ab", weights, strict=True)), name="ab")
    with dk.disabled(model):
        base = {key: p.detach().clone() for key, p in model.named_parameters()}
        a, b, ab = (kit.attachments(model).get(name).own for name in ("a", "b", "ab"))
    assert {"classifier.weight", "classifier.bias"} <= set(ab)
    for key, tensor in ab.items():
        start = base[key]
        expected = start + weights[0] * (a[key] - start) + weights[1] * (b[key] - start)
        torch.testing.assert_close(tensor, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_truncation_is_the_best_approximation(kit: SimpleNamespace, rank: int) -> None:
    model = kit.make_model("bert").double()
    dk.attach(model, dk.LoRA(rank=2, alpha=3), name="a")
    dk.attach(model, dk.LoRA(rank=4, alpha=5), name="b")
    kit.randomise_deltas(model)
    dk.task_arithmetic(model, {"a": 0.7, "b": -0.3}, name="exact")
    dk.task_arithmetic(model, {"a": 0.7, "b": -0.3}, name="cut", rank=rank)
    attachments = kit.attachments(model)
    assert attachments.get("cut").method.rank == min(rank, 6)
    for key, (leaf,) in attachments.get("exact").leaves.items():
        product = leaf.delta.weight_change()
        u, s, v = torch.linalg.svd(product)
        best = u[:, :rank] @ torch.diag(s[:rank]) @ v[:rank]
        cut = attachments.get("cut").leaves[key][0].delta.weight_change()
        torch.testing.assert_close(cut, best, atol=1e-9, rtol=1e-9)


def test_truncation_beyond_the_width(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    for name in "ab":
        dk.attach(model, dk.LoRA(rank=12), name=name)
    kit.randomise_deltas(model)
    dk.task_arithmetic(model, {"a": 1, "b": 1}, name="exact")
    expected = kit.out(model, kit.make_batch())
    dk.task_arithmetic(model, {"a": 1, "b": 1}, name="cut", rank=20)  # the width is 16
    torch.testing.assert_close(kit.out(model, kit.make_batch()), expected, atol=1e-4, rtol=1e-4)


def test_parts_of_a_sum_are_truncated_where_they_are_products(kit: SimpleNamespace) -> None:
    model = two(kit, "lora[rank=2]+parallel[bottleneck=3]", "lora[rank=4]+parallel[bottleneck=3]")
    dk.task_arithmetic(model, {"a": 1, "b": -1}, name="ab", rank=3)
    lora, parallel = kit.attachments(model).get("ab").method.parts
    assert (lora.rank, parallel.bottleneck) == (3, 3)


def test_prefix_is_summed_when_it_is_deployed(kit: SimpleNamespace) -> None:
    model = two(kit, "prefix[length=3,bottleneck=5]+lora")
    message = r"'a' is trained through a network at .*: deploy\(model, 'a'\) first"
    with pytest.raises(IncompatibleDeltas, match=message):
        dk.task_arithmetic(model, {"a": 1, "b": 1}, name="ab")
    for name in "ab":
        dk.deploy(model, name)
    dk.task_arithmetic(model, {"a": 2, "b": 1}, name="ab")
    a, b, ab = (dict(kit.attachments(model).get(name).tensors()) for name in ("a", "b", "ab"))
    key = "encoder.0.attn.kv.memory"
    torch.testing.assert_close(ab[key], 2 * a[key] + b[key])


def test_dtype_is_that_of_the_deltas(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert").to(torch.bfloat16)
    dk.attach(model, dk.LoRA(), name="a", dtype=torch.float32)
    dk.task_arithmetic(model, {"a": -1}, name="b")
    assert {t.dtype for _, t in kit.attachments(model).get("b").tensors()} == {torch.float32}


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ("lora", "ia3", "LoRA and IA3 have no weighted sum: take deltas of one kind"),
        ("lora+ia3", "lora", r"LoRA\+IA3 and LoRA have no weighted sum"),
        ("lora+ia3", "lora+bitfit", r"LoRA\+IA3 and LoRA\+BitFit have no weighted sum"),
        ("lora", "lora[targets=q/k]", r"same sites, but 'a' and 'b' differ at 'encoder.0.attn.k'"),
        ("pfeiffer[reduction=4]", "pfeiffer[reduction=2]", "reduction is 4 in one, 2 in another"),
        (
            "adapterdrop[random_up_to=1,method=lora]",
            "adapterdrop[first=0,method=lora]",
            "random_up_to is 1 in one, 0 in another",
        ),
        ("pfeiffer[bottleneck=3]", "houlsby[bottleneck=3]", "placement is 'pfeiffer' in one"),
        ("adapterdrop[first=1,method=lora]", "lora", "AdapterDrop and LoRA have no weighted sum"),
    ],
)
def test_deltas_that_have_no_sum(kit: SimpleNamespace, a: str, b: str, message: str) -> None:
    model = two(kit, a, b)
    before, output = kit.snapshot(model), kit.out(model, kit.make_batch())
    with pytest.raises(IncompatibleDeltas, match=message) as caught:
        dk.task_arithmetic(model, {"a": 1, "b": 1}, name="ab")
    assert "\n" not in str(caught.value)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, kit.make_batch()), output)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: dk.task_arithmetic(m, {}), IncompatibleDeltas, "at least one delta"),
        (lambda m: dk.task_arithmetic(m, {"c": 1}), UnknownName, "unknown delta 'c'"),
        (
            lambda m: dk.task_arithmetic(m, {"fused": 1}, name="x"),
            IncompatibleDeltas,
            r"'fused' combines other deltas \(AdapterFusion\)",
        ),
        (lambda m: dk.task_arithmetic(m, {"a": 1}, name="b"), NameInUse, "'b' is attached"),
        (lambda m: dk.task_arithmetic(m, {"a": 1}, name="a b"), InvalidConfig, "cannot name"),
        (
            lambda m: dk.task_arithmetic(m, {"a": float("nan")}, name="x"),
            InvalidConfig,
            "the weight of 'a' is nan: give a finite number",
        ),
        (
            lambda m: dk.task_arithmetic(m, {"a": 1}, name="x", rank=0),
            InvalidConfig,
            "rank must be a whole number above zero",
        ),
    ],
)
def test_refusals(
    kit: SimpleNamespace, call: Callable[[Any], None], error: type[Exception], message: str
) -> None:
    model = kit.make_model("bert")
    for name in "ab":
        dk.attach(model, dk.SequentialAdapter(bottleneck=3), name=name)
    dk.attach(model, dk.AdapterFusion("a", "b"), name="fused")
    before = kit.snapshot(model)
    with pytest.raises(error, match=message):
        call(model)
    kit.assert_same(before, kit.snapshot(model))


class Broken(dk.Delta, dk.CustomSum):
    """A form whose sum fails."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.vector

    def weighted_sum(
        self, terms: Sequence[tuple[float, Mapping[str, Tensor]]]
    ) -> dict[str, Tensor]:
        raise ArithmeticError(len(terms))


@dataclass(frozen=True, kw_only=True)
class Breaking(dk.Method):
    """Broken at every block's end."""

    paper: ClassVar[Any] = dk.LoRA.paper
    learning_rate: ClassVar[float] = 1e-3

    def placements(self) -> tuple[dk.Placement, ...]:
        form = lambda handle: Broken()  # noqa: E731
        site, insertion = dk.Site.BLOCK_OUT, dk.Insertion.SEQUENTIAL
        return (dk.Placement(site=site, make_delta=form, insertion=insertion),)


def test_a_form_that_fails_leaves_the_model_as_it_was(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, Breaking(), name="a")
    dk.attach(model, dk.LoRA(), name="b")
    dk.merge(model)
    before = kit.snapshot(model)
    with pytest.raises(ArithmeticError):
        dk.task_arithmetic(model, {"a": 1}, name="x")
    kit.assert_same(before, kit.snapshot(model))


class Gated(dk.Delta):
    """h times a gate: a product of two parameters, so sums of both are no sum of changes."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = torch.nn.Parameter(torch.ones(1))
        self.vector = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate * self.vector


@dataclass(frozen=True, kw_only=True)
class GatedMethod(Breaking):
    """Says nothing about sums."""

    def placements(self) -> tuple[dk.Placement, ...]:
        form = lambda handle: Gated()  # noqa: E731
        site, insertion = dk.Site.BLOCK_OUT, dk.Insertion.SEQUENTIAL
        return (dk.Placement(site=site, make_delta=form, insertion=insertion),)


@dataclass(frozen=True, kw_only=True)
class SummableMethod(GatedMethod, dk.Summable):
    """Says that it adds up."""


@pytest.mark.parametrize(
    "method", [GatedMethod(), GatedMethod() + dk.LoRA(), dk.AdapterDrop(GatedMethod(), first=1)]
)
def test_a_method_that_says_nothing_has_no_sum(kit: SimpleNamespace, method: dk.Method) -> None:
    model = kit.make_model("bert")
    dk.attach(model, method, name="a")
    before = kit.snapshot(model)
    with pytest.raises(
        IncompatibleDeltas, match=r"does not say .* of its Gated add up.*IA3, .*LoRA"
    ):
        dk.task_arithmetic(model, {"a": 1}, name="x")
    kit.assert_same(before, kit.snapshot(model))


def test_a_method_that_says_so_is_summed_by_parameter(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, SummableMethod(), name="a")
    dk.task_arithmetic(model, {"a": 0.5}, name="x")
    values = {n: p.item() for n, p in model.named_parameters() if "delta_x" in n}
    assert set(values.values()) == {0.5}
