"""The measuring protocol: its numbers are settings, and every measurement keeps to them."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.adapted import DeltakitModel
from deltakit.compare.api import run_plan
from deltakit.compare.measure import costs, timing
from deltakit.compare.measure.timing import Step
from deltakit.compare.plan.request import request_of
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.protocol import EARLIER, VARIABLE, Protocol
from deltakit.compare.run.description import describe
from deltakit.compare.store.run_folder import RunFolder, as_begun, open_run
from deltakit.core.method import Role
from deltakit.errors import InvalidConfig, UnknownName


def test_the_variable_changes_what_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, " step_repeats=3, curve_rows=50 ,")
    assert Protocol.from_environment() == Protocol(step_repeats=3, curve_rows=50)
    monkeypatch.delenv(VARIABLE)
    assert Protocol.from_environment() == Protocol()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("step_repeat=3", UnknownName, "'step_repeat'. Did you mean 'step_repeats'"),
        ("step_repeats", InvalidConfig, "'step_repeats' is not a name and a whole number"),
        ("step_repeats=1.5", InvalidConfig, "is not a name and a whole number"),
        ("step_repeats=0", InvalidConfig, "step_repeats=0 must be a whole number, 1 or more"),
        ("latency_warmup=-1", InvalidConfig, "latency_warmup=-1 must be a whole number, 0 or more"),
        ("least_repeats=1", InvalidConfig, "least_repeats=1 must be a whole number, 2 or more"),
    ],
)
def test_what_the_variable_cannot_say(
    text: str, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(error, match=message) as raised:
        Protocol.from_environment()
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_a_number_is_whole(value: Any) -> None:
    with pytest.raises(InvalidConfig, match="Protocol: step_repeats="):
        Protocol(step_repeats=value)


def test_it_comes_back_from_plain_data() -> None:
    changed = Protocol(**{each.name: 2 for each in fields(Protocol)})
    assert Protocol.from_dict(changed.to_dict()) == changed != Protocol()


class Counted(Step):
    """A training step that counts how often it was made."""

    def __init__(self, model: Any, batch: Any) -> None:
        super().__init__(model, batch)
        self.made = 0

    def __call__(self) -> None:
        self.made += 1
        super().__call__()


def test_a_profile_has_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE)
    assert request_of("lora", {}).protocol == Protocol(curve_points=0, step_repeats=4)
    assert request_of("lora", {"profile": "standard"}).protocol == Protocol()
    monkeypatch.setenv(VARIABLE, "curve_points=2")
    assert request_of("lora", {}).protocol == Protocol(curve_points=2, step_repeats=4)


def test_what_a_run_recorded_before_there_was_a_rule_has_none() -> None:
    recorded = {"step_repeats": 11, "step_warmup": 1, "latency_warmup": 2}
    assert Protocol.from_record(recorded) == EARLIER
    assert Protocol.from_record(Protocol().to_dict()) == Protocol()


def test_a_run_that_an_earlier_version_began_goes_on_by_its_numbers(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    quick = Protocol(curve_points=0, step_repeats=4)
    plan = build_plan(asked("lora", protocol=quick))
    eleven, six = (replace(quick, step_repeats=steps) for steps in (11, 6))
    for at, begun in enumerate((EARLIER, replace(eleven, general_passages=0), six)):
        open_run(plan, tmp_path / f"run{at}", replace(describe(plan), protocol=begun))
        assert as_begun(plan, tmp_path / f"run{at}").request.protocol == begun
    assert as_begun(plan, tmp_path / "other") == plan
    chosen = replace(plan, request=replace(plan.request, protocol=Protocol(step_repeats=5)))
    assert as_begun(chosen, tmp_path / "run0") == chosen


@pytest.mark.parametrize(("repeats", "warmup"), [(1, 0), (3, 2)])
def test_steps_are_timed_as_often_as_it_says(
    repeats: int, warmup: int, kit: SimpleNamespace
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    reference = Counted(kit.make_model("bert", "classify"), batch)
    dk.attach(model, dk.LoRA(), "trained")
    adapted = DeltakitModel(model, dk.LoRA())
    protocol = Protocol(step_repeats=repeats, step_warmup=warmup)
    costs.training_cost(adapted, batch, reference, torch.device("cpu"), protocol)
    assert reference.made == repeats + warmup


def test_steps_are_repeated_until_the_ratio_is_known(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    reference = Counted(kit.make_model("bert", "classify"), batch)
    dk.attach(model, dk.LoRA(), "trained")
    adapted = DeltakitModel(model, dk.LoRA())
    monkeypatch.setattr(timing, "_half_width", lambda logs: 1 / len(logs) ** 2)
    found = costs.training_cost(adapted, batch, reference, torch.device("cpu"), Protocol())
    assert found["train_step_repeats"] == reference.made == 6  # 1/36 is the first below 3 %
    low, high = found["train_step_vs_full_low"], found["train_step_vs_full_high"]
    assert low < found["train_step_vs_full"] * 1.5 and high > found["train_step_vs_full"] / 1.5


def test_passes_are_made_as_often_as_it_says(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_inputs("bert")
    dk.attach(model, dk.parse_method("adapter"), "trained")  # it does not merge
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    protocol = Protocol(latency_repeats_b1=3, latency_repeats_b8=2, latency_warmup=1)
    adapted = DeltakitModel(model, dk.parse_method("adapter"))
    costs.inference_cost(adapted, batch, batch, protocol, Role.METHOD)
    in_memory = 1  # the pass whose bytes are counted
    # With and without the delta, and each timed pass comes after an untimed one.
    assert len(calls) == 2 * 2 * ((3 + 1) + (2 + 1)) + in_memory


@pytest.mark.parametrize("method", [dk.HeadOnly(), dk.FullFineTuning()])
def test_a_pass_that_is_the_bases_own_has_a_ratio_of_one(
    method: dk.Method, kit: SimpleNamespace
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_inputs("bert")
    dk.attach(model, method, "trained")
    calls: list[int] = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    protocol = Protocol(latency_repeats_b1=3, latency_repeats_b8=2, latency_warmup=1)
    adapted = DeltakitModel(model, method)
    found = costs.inference_cost(adapted, batch, batch, protocol, method.role)
    in_memory = 1
    assert len(calls) == 2 * ((3 + 1) + (2 + 1)) + in_memory  # the base is not timed
    assert found["latency_vs_base_b1"] == found["latency_vs_base_b8"] == 1.0
    assert found["latency_vs_base_b1_low"] is found["merged_latency_vs_base_b1"] is None
    assert found["latency_b1_repeats"] == 3 and found["latency_ms_b1"] > 0


def test_a_run_is_measured_by_its_protocol_and_records_it(
    asked: Callable[..., Any], tmp_path: Path
) -> None:
    protocol = replace(Protocol.from_environment(), curve_points=2, inspected_texts=3)
    plan = build_plan(asked("lora", protocol=protocol))
    ended = run_plan(plan, tmp_path / "run")
    assert ended.run.protocol == protocol
    folder, cell = RunFolder(tmp_path / "run"), plan.cells[-1]
    assert len(folder.extras(cell.id, "pace")) == 2
    assert folder.extras(cell.id, "diagnostics")["texts"] == 3
    other = build_plan(asked("lora", protocol=replace(protocol, curve_rows=5)))
    with pytest.raises(InvalidConfig, match="measured by another protocol.*DELTAKIT_PROTOCOL"):
        run_plan(other, tmp_path / "run")
