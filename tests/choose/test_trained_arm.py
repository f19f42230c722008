"""Trained arms: a training that was stopped goes on bit for bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from deltakit.choose.arm_facts import arm_facts
from deltakit.choose.bench import Bench, abilities_of, facts_of, measured_facts, timed
from deltakit.choose.candidates import Candidate, candidates_of, combining, read_field
from deltakit.choose.constraints import constraints_of
from deltakit.choose.decide.arms import Reading, Rung
from deltakit.choose.journal import Journal
from deltakit.choose.request import choice_request
from deltakit.choose.trained_arm import TrainedArm, average, shuffled_batches
from deltakit.compare.measure.predicted_memory import Load, predicted_memory
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.predict import predict
from deltakit.compare.run.progress import Silent
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import InvalidConfig

TIMES = {"step": 0.01, "row": 0.001, "fixed": 0.01}


@pytest.fixture(scope="module")
def bench(bert: Path, reviews: Path) -> Bench:
    asked = choice_request(
        {"task": str(reviews), "model": str(bert), "batch_size": 16, "max_length": 16}
    )
    plan = build_plan(asked.compared)
    folder = RunFolder(Path("unused"))
    context = RunContext(plan=plan, folder=folder, progress=Silent())
    return Bench(plan=plan, context=context, seed=7)


def candidates(bench: Bench, *specs: str) -> tuple[Candidate, ...]:
    skeleton = bench.plan.model.skeleton(bench.plan.task.kind.head)
    found, misfits = candidates_of(read_field(specs), list(bench.bases.values()), skeleton)
    assert not misfits
    return found


def arm(bench: Bench, spec: str, folder: Path, lr: float = 1e-2) -> TrainedArm:
    (candidate,) = candidates(bench, spec)
    return TrainedArm(
        facts=arm_facts(candidate, lr, TIMES),
        candidate=candidate,
        bench=bench,
        folder=folder,
        warmup=2,
        total=9,
    )


def rung(steps: int) -> Rung:
    return Rung(number=1, steps=steps, rows=32)


@pytest.mark.parametrize(
    "spec", ["lora[rank=2,alpha=4]", "bitfit", "prefix[length=3,bottleneck=4]"]
)
def test_an_arm_goes_on_bit_for_bit(bench: Bench, tmp_path: Path, spec: str) -> None:
    whole = arm(bench, spec, tmp_path / "whole").advance(rung(9)).predictions
    for steps in (3, 9):  # a new process each time
        parts = arm(bench, spec, tmp_path / "parts").advance(rung(steps)).predictions
    assert parts == whole
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["9.safetensors"]
    assert (tmp_path / "parts/9.safetensors").read_bytes() == (
        tmp_path / "whole/9.safetensors"
    ).read_bytes()


def test_predictions_are_those_of_averaged_weights(bench: Bench, tmp_path: Path) -> None:
    folder = tmp_path / "arm"
    made = arm(bench, "lora[rank=2,alpha=4]", folder, lr=0.3).advance(rung(9)).predictions
    state = load_file(folder / "9.safetensors")
    by_kind = {}
    for kind in ("parameter", "average"):
        (candidate,) = candidates(bench, "lora[rank=2,alpha=4]")
        model = bench.adapted(candidate.method, candidate.base, bench.seed).model
        weights = {key: state[f"{kind}:{key}"] for key in trained_names(model)}
        model.load_state_dict(weights, strict=False)
        rows = bench.encoded("validation").select(range(32))
        by_kind[kind] = predict(model, rows, bench.plan.task.kind, bench.context.processor)
    assert by_kind["average"] == made != by_kind["parameter"]


def trained_names(model: nn.Module) -> list[str]:
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def test_later_weights_count_more_in_an_average() -> None:
    """Step t counts as t (t + 1) (t + 2), and what was there before the first step not at all."""
    steps = 40
    values = torch.randn(steps, 3, generator=torch.Generator().manual_seed(0))
    found = {"w": torch.full((3,), 1e3)}
    for at in range(steps):
        average(found, {"w": nn.Parameter(values[at])}, at + 1)
    t = torch.arange(1, steps + 1, dtype=torch.float32)
    share = t * (t + 1) * (t + 2)
    expected = (share[:, None] * values).sum(0) / share.sum()
    assert torch.allclose(found["w"], expected, atol=1e-5)
    assert 0.6 < share[-steps // 4 :].sum() / share.sum() < 0.75


def test_a_loss_that_is_not_finite_is_a_result(bench: Bench, tmp_path: Path) -> None:
    reading = arm(bench, "lora[rank=2,alpha=4]", tmp_path, lr=1e30).advance(rung(9))
    assert reading.predictions is None and "the loss is" in (reading.reason or "")


def test_a_reading_comes_back_whole(bench: Bench, tmp_path: Path) -> None:
    reading = arm(bench, "bitfit", tmp_path / "arm").advance(rung(2))
    journal = Journal(tmp_path / "choice")
    journal.keep("bitfit on fp32 at 0.01", 1, reading)
    assert journal.reading("bitfit on fp32 at 0.01", 1) == reading
    assert journal.reading("bitfit on fp32 at 0.01", 2) is None
    lost = Reading(steps=2, seconds=1.5, predictions=None, reason="why")
    journal.keep("x", 1, lost)
    assert journal.reading("x", 1) == lost


def test_a_folder_of_another_choice_is_refused(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "choice")
    journal.open("one", {})
    journal.open("one", {})
    with pytest.raises(InvalidConfig, match="another choice"):
        journal.open("two", {})
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(InvalidConfig, match=r"no request\.json"):
        Journal(tmp_path / "other").open("one", {})


def test_batches_hold_every_row_once_and_texts_of_like_length() -> None:
    lengths = [at % 40 for at in range(1000)]
    batches = shuffled_batches(lengths, 10, "0")
    assert sorted(row for batch in batches for row in batch) == list(range(1000))
    spread = [max(lengths[r] for r in b) - min(lengths[r] for r in b) for b in batches]
    assert sum(spread) / len(spread) < 8
    assert batches == shuffled_batches(lengths, 10, "0") != shuffled_batches(lengths, 10, "1")


def test_sizes_and_rates_of_a_field(bench: Bench) -> None:
    found = candidates(bench, "lora", "lora[rank=3]", "ia3")
    by_family = {family: [c for c in found if c.family == family] for family in ("lora", "ia3")}
    trained = [each.counts.trained_params for each in by_family["lora"]]
    assert len(trained) == 3 and trained[1] < trained[0] < trained[2]
    assert len(by_family["ia3"]) == 1
    assert [c.label for c in found if c.family == "lora[rank=3]"] == ["lora[rank=3]"]
    own, low, high = by_family["lora"][0].rates
    assert low < own < high and own == by_family["lora"][0].method.learning_rate


def test_facts_are_measured_where_a_constraint_asks(bench: Bench) -> None:
    (lora,) = candidates(bench, "lora[rank=2,alpha=4]")
    facts = facts_of(lora, bench.base_params)
    asked = constraints_of({"max_latency": 9, "max_memory": "1GB", "max_infer_memory": "1GB"})
    found = measured_facts(bench, lora, facts, asked)
    assert found.latency and found.train_peak_bytes and found.infer_peak_bytes
    assert found.train_peak_bytes > found.infer_peak_bytes > 0
    assert facts.latency is None


def test_the_memory_of_training_is_predicted_from_the_config(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (lora,) = candidates(bench, "lora[rank=2,alpha=4]")
    asked = constraints_of({"max_memory": "1GB"})
    load = Load(batch_size=16, max_length=16)
    head = bench.plan.task.kind.head
    found = measured_facts(bench, lora, facts_of(lora, bench.base_params), asked)
    expected = predicted_memory(bench.plan.model, lora.method, lora.base, head, load)
    assert found.train_peak_bytes == expected.training_peak

    def refuse(*_: object, **__: object) -> None:
        raise InvalidConfig("sizes depend on values")

    monkeypatch.setattr("deltakit.choose.bench.predicted_memory", refuse)
    measured = measured_facts(bench, lora, facts_of(lora, bench.base_params), asked)
    assert measured.train_peak_bytes and measured.train_peak_bytes != found.train_peak_bytes


def test_what_combines_deltas_is_out_with_the_cost_of_its_first_stage() -> None:
    field = read_field(["lora", "fusion"])
    kept, out = combining(field, 3, 800)
    assert list(kept) == ["lora"] and list(out) == ["fusion"]
    assert "3 trainings of 800 steps come before its first" in out["fusion"]


def test_a_tuner_with_callbacks_of_the_trainer_is_out(bench: Bench) -> None:
    pytest.importorskip("peft")
    skeleton = bench.plan.model.skeleton(bench.plan.task.kind.head)
    field = read_field(["peft:adalora[init_r=4,target_r=2]", "peft:lora[r=2]"])
    found, out = candidates_of(field, list(bench.bases.values()), skeleton)
    assert [each.label for each in found] == ["peft:lora[r=2]"]
    assert "callbacks of transformers' Trainer" in out["peft:adalora[init_r=4,target_r=2]"]


def test_the_majority_is_predicted_for_the_rows_of_a_rung(bench: Bench) -> None:
    made = bench.majority(10)
    assert len(made.labels) == 10 and set(made.predicted) == {0}


def test_a_clock_that_work_moves_is_all_that_times_depend_on(bench: Bench, tmp_path: Path) -> None:
    class Work:
        def __init__(self) -> None:
            self.spent = 0.0

        def now(self) -> float:
            return self.spent

        def worked(self, *, steps: int = 0, rows: int = 0) -> None:
            self.spent += 3 * steps + 0.125 * rows

    counted = replace(bench, clock=Work())
    (lora,) = candidates(counted, "lora[rank=2,alpha=4]")
    assert timed(counted, lora.method, lora.base) == {"fixed": 0.0, "step": 3.0, "row": 0.125}
    reading = arm(counted, "lora[rank=2,alpha=4]", tmp_path).advance(rung(2))
    assert reading.seconds == 2 * 3 + 32 * 0.125


def test_abilities_are_tried(bench: Bench) -> None:
    lora, prefix = candidates(bench, "lora[rank=2,alpha=4]", "prefix[length=3,bottleneck=4]")
    able = {
        each.family: abilities_of(bench.adapted(each.method, each.base, 0), each.method)
        for each in (lora, prefix)
    }
    assert {"merge", "compose", "peft"} <= set(able[lora.family])
    assert "merge" not in able[prefix.family]


def test_times_are_measured_once(bench: Bench, tmp_path: Path) -> None:
    from deltakit.choose.arm_facts import FLOOR, measure_field

    journal = Journal(tmp_path)
    found = candidates(bench, "lora[rank=2,alpha=4]")
    field = measure_field(bench, found, journal, 0.0, 1e6)
    assert {arm.family for arm in field.facts} == {"lora[rank=2,alpha=4]", FLOOR}
    assert all(arm.step_seconds > 0 for arm in field.facts)
    again = measure_field(bench, found, journal, 0.0, 1e6)
    assert again.facts == field.facts and again.setup_seconds == field.setup_seconds


def test_what_is_not_timed_in_a_tenth_of_the_budget_counts_as_the_slowest(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deltakit.choose import arm_facts as measuring

    class Passing:
        """A clock on which each method takes 40 seconds to time."""

        seconds = 0.0

        def now(self) -> float:
            return self.seconds

        def worked(self, *, steps: int = 0, rows: int = 0) -> None:
            """Nothing."""

    clock = Passing()
    timed_methods = []

    def slow(bench: Bench, method: object, base: object) -> dict[str, float]:
        clock.seconds += 40
        timed_methods.append(method)
        return {"fixed": 1.0, "step": 1.0 * len(timed_methods), "row": 0.1}

    monkeypatch.setattr(measuring, "timed", slow)
    busy = replace(bench, clock=clock)
    found = candidates(bench, "lora[rank=4,alpha=8]", "ia3", "bitfit", "lora[rank=2,alpha=4]")
    field = measuring.measure_field(busy, found, Journal(tmp_path), 0.0, 1000.0)
    assert len(timed_methods) == 3, "the floor and two methods, then 100 seconds are over"
    seconds = {each.family: each.step_seconds for each in field.facts}
    assert seconds == {
        "head": 1.0, "lora[rank=4,alpha=8]": 2.0, "ia3": 3.0, "bitfit": 3.0,
        "lora[rank=2,alpha=4]": 3.0,
    }  # fmt: skip
