"""Costs: bytes that can be counted by hand, timings in the order they promise."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import deltakit as dk
from deltakit.compare.adapted import TRAINED, DeltakitModel
from deltakit.compare.measure import timing
from deltakit.compare.measure.memory import LiveBytes, inference_memory, training_memory
from deltakit.compare.measure.timing import (
    Ratio,
    Step,
    enough,
    interleave,
    interval,
    latency,
    load_and_swap,
    merge_ms,
    merged_latency_vs_base,
)
from deltakit.compare.records.protocol import Repeats

KIB = 256  # float32 numbers in 1024 bytes


# ---------------------------------------------------------------------------- bytes that live


def test_live_bytes_come_and_go() -> None:
    live = LiveBytes()
    with live:
        a = torch.ones(KIB)
        assert live.live == 1024
        b = a + a
        assert live.live == 2048
        del a
        assert live.live == 1024
        c = b * 2
        del b, c
        assert live.live == 0
    assert live.peak == 2048


def test_views_and_in_place_changes_are_no_new_bytes() -> None:
    live = LiveBytes()
    with live:
        a = torch.zeros(KIB)
        view = a.view(16, 16).T[3]
        a.add_(1).relu_()
        del a
        assert live.live == 1024  # the view keeps the storage
        del view
        assert live.live == 0
    assert live.peak == 1024


def test_what_was_there_before_is_not_counted() -> None:
    outside = torch.ones(KIB)
    live = LiveBytes()
    with live:
        outside.mul_(2)
        row = outside[:3]
        twice = outside * 2
    assert live.live == live.peak == 1024
    del row, twice
    assert live.live == 0


def test_intermediate_results_inside_an_operation_count_at_their_peak() -> None:
    live = LiveBytes()
    with live:
        total = sum(torch.ones(KIB) for _ in range(4))
    assert isinstance(total, Tensor)
    assert live.live == 1024
    assert live.peak == 3 * 1024  # the sum so far, the next term, their sum


def test_several_results_of_one_operation() -> None:
    live = LiveBytes()
    with live:
        values, indices = torch.ones(KIB).max(dim=0, keepdim=True)
        assert live.live == 4 + 8
        del values, indices
    assert (live.live, live.peak) == (0, 1024 + 4 + 8)


# --------------------------------------------------------------------------------- one step


class Line(nn.Module):
    """Σ (W x + b)², with a buffer of 5 numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 3)
        self.register_buffer("spare", torch.zeros(5))

    def forward(self, x: Tensor) -> Any:
        out = self.line(x)
        return SimpleNamespace(loss=out.square().sum(), logits=out)


@pytest.fixture
def step() -> Step:
    return Step(Line(), {"x": torch.randn(8, 4)})  # type: ignore[arg-type]


def test_each_kind_of_memory_is_exact(step: Step) -> None:
    memory = training_memory(step)
    parameters = 4 * 3 + 3
    assert memory.weights == 4 * (parameters + 5)
    assert memory.gradients == 4 * parameters
    # Two moments for each number, and a counter for each of the two parameters.
    assert memory.optimizer == 2 * 4 * parameters + 2 * 4
    # The input for W's gradient, the output for the square's.
    assert memory.activations == 4 * (8 * 4 + 8 * 3)
    assert memory.peak >= memory.weights + memory.optimizer + memory.gradients


def test_frozen_parameters_have_neither_gradients_nor_state(step: Step) -> None:
    model = Line()
    model.line.weight.requires_grad_(False)
    memory = training_memory(Step(model, step.batch))  # type: ignore[arg-type]
    assert memory.gradients == 4 * 3
    assert memory.optimizer == 2 * 4 * 3 + 4
    assert memory.activations == 4 * 8 * 3  # the input is not needed any more


class Aside(Line):
    """A line with a weight that is used without its gradient, as DoRA uses its norm."""

    def forward(self, x: Tensor) -> Any:
        self.line.weight.square().square().sum().detach()
        return super().forward(x)


def test_what_no_gradient_leads_to_is_not_kept(step: Step) -> None:
    aside = Step(Aside(), step.batch)  # type: ignore[arg-type]
    assert training_memory(aside).activations == training_memory(step).activations


class Sparse(Line):
    """A line whose weight is sparse, by a list of places and a parameter of values."""

    def __init__(self) -> None:
        super().__init__()
        self.line.weight.requires_grad_(False)
        self.values = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Any:
        places = torch.tensor([[0, 2], [1, 3]])
        change = torch.sparse_coo_tensor(places, self.values, (3, 4), check_invariants=False)
        out = self.line(x) + torch.sparse.mm(change, x.T).T
        return SimpleNamespace(loss=out.square().sum(), logits=out)


def test_sparse_tensors_are_counted_by_their_parts(step: Step) -> None:
    batch = step.batch
    memory = training_memory(Step(Sparse(), batch))  # type: ignore[arg-type]
    assert memory.gradients == 4 * (3 + 2)
    # The places, the input and the output; the values are the parameter itself.
    assert memory.activations == 8 * 4 + 4 * (8 * 4 + 8 * 3)
    assert inference_memory(Sparse(), batch) > 4 * (3 * 4 + 3 + 5)  # type: ignore[arg-type]


def test_counting_again_counts_the_same(step: Step) -> None:
    first = training_memory(step)
    step()
    assert training_memory(step) == first


def test_memory_grows_with_the_batch_where_it_should() -> None:
    small = training_memory(Step(Line(), {"x": torch.randn(8, 4)}))  # type: ignore[arg-type]
    large = training_memory(Step(Line(), {"x": torch.randn(16, 4)}))  # type: ignore[arg-type]
    assert large.activations == 2 * small.activations
    assert (large.weights, large.gradients, large.optimizer) == (
        small.weights,
        small.gradients,
        small.optimizer,
    )
    assert large.peak > small.peak


def test_a_step_leaves_the_weights_as_they_are(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.FullFineTuning())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step = Step(model, kit.make_batch(labels=True))
    for _ in range(3):
        step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is None


def test_inference_keeps_less_than_training(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    assert inference_memory(model, batch) > weights
    dk.attach(model, dk.LoRA())
    trained = training_memory(Step(model, kit.make_batch(labels=True)))
    assert trained.weights + trained.activations > inference_memory(model, batch)


# ------------------------------------------------------------------------------------- times


def test_actions_are_timed_in_turn() -> None:
    calls: list[str] = []
    timings = interleave(
        [lambda: calls.append("a"), lambda: calls.append("b")], repeats=3, warmup=2
    )
    assert "".join(calls) == "ab" * 5
    assert len(timings) == 2
    assert all(timing.median_ms >= 0 and timing.iqr_ms >= 0 for timing in timings)


def test_the_warm_up_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    # The warm-up is begun but not read again.
    clock = iter([7.0, 0.0, 0.001, 0.0, 0.002, 0.0, 0.003])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    (timed,) = interleave([lambda: None], repeats=3, warmup=1)
    assert timed.median_ms == pytest.approx(2)
    assert timed.iqr_ms == pytest.approx(2)


def test_one_repetition_has_no_spread() -> None:
    (timing,) = interleave([lambda: None], repeats=1, warmup=0)
    assert timing.iqr_ms == 0


# ------------------------------------------------------------------------ as long as it must


RULE = Repeats(least=4, most=9, percent=3)


def test_the_interval_of_ratios_is_students() -> None:
    """Against scipy, on the logarithms."""
    ratios = [0.5, 0.52, 0.49, 0.55]
    logs = np.log(ratios)
    known = stats.t.interval(0.95, len(logs) - 1, loc=logs.mean(), scale=stats.sem(logs))
    assert interval(ratios) == pytest.approx(tuple(np.exp(known)))
    ratio = Ratio.of(ratios)
    assert (ratio.low, ratio.high) == interval(ratios)
    assert (ratio.value, ratio.repeats) == (pytest.approx(0.51), 4)


def test_one_repetition_has_no_interval() -> None:
    assert Ratio.of([2.0]) == Ratio(value=2.0, low=None, high=None, repeats=1)


@pytest.mark.parametrize(
    ("own", "reference", "is_enough"),
    [
        ([1.0] * 3, [2.0] * 3, False),  # fewer than the least
        ([1.0] * 4, [2.0] * 4, True),
        ([1.0, 2.0, 4.0, 8.0], [2.0, 4.0, 8.0, 16.0], True),  # the machine drifts, not the ratio
        ([1.0, 1.2, 1.0, 1.2], [2.0] * 4, False),
        ([1.0, 2.0] * 4 + [1.0], [2.0] * 9, True),  # the most
    ],
)
def test_when_repetitions_end(own: list[float], reference: list[float], is_enough: bool) -> None:
    assert enough([own, reference], RULE) == is_enough
    assert enough([reference, own], RULE) == is_enough


def test_a_single_action_is_repeated_until_its_time_is_known() -> None:
    assert enough([[1.0, 1.001, 1.0, 1.001]], RULE)
    assert not enough([[1.0, 1.2, 1.0, 1.2]], RULE)


def test_every_ratio_must_be_known() -> None:
    steady, noisy = [1.0] * 4, [1.0, 1.2, 1.0, 1.2]
    assert enough([steady, steady, steady], RULE)
    assert not enough([steady, steady, noisy], RULE)


def test_without_a_rule_nothing_ends_early() -> None:
    assert not enough([[1.0] * 8, [1.0] * 8], Repeats(most=9))


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Though it is looked at again and again: 90 to 98 % of 1,000 draws, with noise of 1 to 8 %."""
    random = np.random.default_rng(0)
    for noise in (0.01, 0.02, 0.04, 0.08):
        covered = 0
        for _ in range(1000):
            own = list(np.exp(random.normal(0, noise, RULE.most)))
            taken = next(n for n in range(1, 1 + RULE.most) if enough([own[:n]], RULE))
            low, high = interval(own[:taken])
            covered += low <= 1 <= high
        assert 900 <= covered <= 980, (noise, covered)


def test_the_interval_has_the_median_inside_though_a_few_pairs_were_slow() -> None:
    ratios = [1.0] * 20 + [1.5] * 10
    assert interval(ratios)[0] > 1.0, "the interval of the mean"
    found = Ratio.of(ratios)
    assert found.value == found.low == 1.0 and found.high == interval(ratios)[1]


@pytest.fixture
def adapted(kit: SimpleNamespace) -> Any:
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.LoRA(), name="low")
    kit.randomise_deltas(model)
    return model


def test_latency_leaves_the_model_as_it_was(adapted: Any, kit: SimpleNamespace) -> None:
    batch = kit.make_batch()
    before = kit.snapshot(adapted)
    with torch.no_grad():
        logits = adapted(**batch).logits
    wrapped = DeltakitModel(adapted, dk.LoRA())
    result = latency(wrapped, batch, repeats=2, warmup=2)
    assert result.timing.median_ms > 0 and result.vs_base.value > 0
    merged = merged_latency_vs_base(wrapped, batch, repeats=2, warmup=2)
    assert merged is not None and merged.value > 0 and merged.repeats == 2
    kit.assert_same(before, kit.snapshot(adapted))
    with torch.no_grad():
        assert torch.equal(adapted(**batch).logits, logits)


def test_the_base_is_measured_without_the_deltas(
    adapted: Any, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, seen = kit.make_batch(), []
    with dk.disabled(adapted), torch.no_grad():
        base = adapted(**batch).logits

    timed = timing._warm_ms

    def spy(model: Any, run: timing.Call) -> float:
        with torch.no_grad():
            seen.append(torch.equal(adapted(**batch).logits, base))
        return timed(model, run)

    monkeypatch.setattr(timing, "_warm_ms", spy)
    latency(DeltakitModel(adapted, dk.LoRA()), batch, repeats=2, warmup=2)
    assert seen == [False, True] * 4  # two rounds of warm-up, two that count


@pytest.mark.parametrize(
    ("method", "merges"),
    [
        (dk.LoRA(), True),
        (dk.SequentialAdapter(), False),
        (dk.HeadOnly(), False),
        (dk.FullFineTuning(), False),
    ],
    ids=["lora", "adapter", "head", "full"],
)
def test_only_what_merges_has_a_merged_latency(
    method: dk.Method, merges: bool, kit: SimpleNamespace
) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, method)
    found = merged_latency_vs_base(
        DeltakitModel(model, method), kit.make_batch(), repeats=1, warmup=2
    )
    assert (found is not None) == merges


def test_measuring_does_not_leave_a_merged_model(adapted: Any, kit: SimpleNamespace) -> None:
    weights = {name: p.detach().clone() for name, p in adapted.named_parameters()}
    merged_latency_vs_base(DeltakitModel(adapted, dk.LoRA()), kit.make_batch(), repeats=1, warmup=2)
    for name, parameter in adapted.named_parameters():
        assert torch.equal(parameter, weights[name]), name


# ---------------------------------------------------------------------------------- handling


METHODS = {
    "lora": dk.LoRA(),
    "adapter": dk.SequentialAdapter(),
    "prefix": dk.PrefixTuning(),
    "ia3": dk.IA3(),
    "bitfit": dk.BitFit(),
    "head": dk.HeadOnly(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", METHODS)
def test_a_second_one_is_loaded_switched_to_and_taken_off(
    name: str, dtype: torch.dtype, kit: SimpleNamespace, tmp_path: Path
) -> None:
    model, method = kit.make_model("bert", "classify").to(dtype), METHODS[name]
    dk.attach(model, method, TRAINED)
    kit.randomise_deltas(model)
    adapted = DeltakitModel(model, method)
    adapted.save(tmp_path)
    batch, before = kit.make_batch(), kit.snapshot(model)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
        with adapted.second_copy(tmp_path) as swap:
            for _ in range(3):
                assert torch.equal(model(**batch).logits, logits)
                swap()
        assert torch.equal(model(**batch).logits, logits)
    kit.assert_same(before, kit.snapshot(model))
    found = load_and_swap(adapted, tmp_path, repeats=2)
    assert found.load_ms > 0 and found.swap_ms > 0


def test_merging_is_timed_and_undone(adapted: Any, kit: SimpleNamespace) -> None:
    before = kit.snapshot(adapted)
    found = merge_ms(DeltakitModel(adapted, dk.LoRA()), repeats=3)
    assert found is not None and found > 0
    kit.assert_same(before, kit.snapshot(adapted))
