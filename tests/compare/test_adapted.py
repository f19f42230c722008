"""PEFT's tuners as rows of a comparison: trained, measured, stored and taken up again."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.report import cost_views as views
from deltakit.compare.report.pareto import Plot
from deltakit.errors import InvalidConfig

peft = pytest.importorskip("peft", reason="PEFT is not installed (extra 'peft')")

Asked = Callable[..., Any]
OURS, THEIRS = "lora[rank=4,alpha=8,initialisation=kaiming]", "peft:lora[r=4]"
PROMPT = "peft:p_tuning[num_virtual_tokens=3,encoder_hidden_size=8]"
ADALORA = "peft:adalora[init_r=4,target_r=2]"
LATE = "peft:adalora[init_r=4,target_r=2,tinit=500]"
NORMS = "peft:ln_tuning"
METHODS = (OURS, THEIRS, PROMPT, ADALORA, NORMS, LATE)


@pytest.fixture(scope="module")
def ran(
    tmp_path_factory: pytest.TempPathFactory,
    apart: Callable[..., Any],
    deltakit: Callable[..., Any],
    small: list[str],
    read: SimpleNamespace,
) -> Iterator[SimpleNamespace]:
    """One comparison of all of them, with how to run it again. Read only."""
    root = tmp_path_factory.mktemp("peft")

    def compare(folder: Path) -> Any:
        return deltakit("compare", "--methods", ",".join(METHODS), *small, "--out", folder)

    with apart(root) as patch:
        nothing = Plot(svg="<svg></svg>", png=b"png")
        patch.setattr(views, "pareto_plot", lambda *_, **__: nothing)
        ended = compare(root / "run")
    yield SimpleNamespace(
        folder=root / "run", ended=ended, compare=compare, rows=read.results(root / "run")
    )


@pytest.fixture
def asked_for(asked: Asked) -> Asked:
    """As `asked`, with the methods one by one: their settings have commas."""
    return lambda *methods, **changes: dataclasses.replace(asked(**changes), methods=methods)


def test_a_lora_of_theirs_is_measured_as_ours_is(ran: SimpleNamespace) -> None:
    ours, theirs = ran.rows[OURS], ran.rows[THEIRS]
    alike = ("trained_params", "trained_pct", "deployed_params", "head_params", "base_bytes", "lr",
             "n_test", "train_steps", "train_examples", "train_gradient_bytes",
             "train_optimizer_bytes", "train_activation_bytes")  # fmt: skip
    assert {c: theirs[c] for c in alike} == {c: ours[c] for c in alike}
    assert {c for c in theirs if not theirs[c]} == {c for c in ours if not ours[c]}
    assert float(theirs["merged_latency_vs_base_b1"]) > 0
    # Both keep the head that the model came with beside the one that is trained.
    assert theirs["train_weight_bytes"] == ours["train_weight_bytes"]
    assert json.loads((ran.folder / "run.json").read_text())["versions"]["peft"]


def test_a_row_that_cannot_be_trained_fails_alone(ran: SimpleNamespace) -> None:
    assert ran.ended.code == 1
    assert [method for method, row in ran.rows.items() if row["status"] == "failed"] == [LATE]
    assert "tinit=500 and tfinal=0 leave none of the 6 steps" in ran.rows[LATE]["reason"]


def test_what_peft_warns_of_and_what_was_chosen_is_in_the_notes(ran: SimpleNamespace) -> None:
    notes = json.loads((ran.folder / "run.json").read_text())["notes"]
    assert any(f"{NORMS}: PEFT has no target modules for" in note for note in notes)
    assert any(f"{NORMS}: PEFT warns: Unsupported layer type" in note for note in notes)


def test_what_only_training_needs_is_not_deployed(ran: SimpleNamespace) -> None:
    row = ran.rows[PROMPT]
    assert int(row["deployed_params"]) == 3 * 16 < int(row["trained_params"])
    assert row["merged_latency_vs_base_b1"] == ""
    pruned = ran.rows[ADALORA]
    assert int(pruned["deployed_params"]) < int(pruned["trained_params"])


def test_a_training_that_is_over_is_not_repeated(
    ran: SimpleNamespace, trainings: Any, tmp_path: Path, read: SimpleNamespace
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(ran.folder, folder)
    ran.compare(folder)
    assert trainings.count == 0  # one had failed, and is not tried again unasked
    shutil.rmtree(folder / "cells")  # stopped after the trainings, before all evaluations
    ran.compare(folder)
    assert trainings.count == 2  # that one and full fine-tuning, which is not kept
    again = read.results(folder)
    for method in (OURS, THEIRS, PROMPT, ADALORA, NORMS):
        for column in ("status", "score", "trained_params", "deployed_params", "head_params",
                       "delta_bytes", "train_gradient_bytes", "final_loss"):  # fmt: skip
            assert again[method][column] == ran.rows[method][column], (method, column)
    assert read.predictions(folder) == read.predictions(ran.folder)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("peft:lora[r=many]", r"^peft:lora\[r=many\]: PEFT refuses it"),
        ("peft:vblora[vector_length=5]", "^peft:vblora.*must be divisible"),
        ("peft:lora+lora", "^peft:lora.lora: peft:lora is put on a model by peft"),
        ("fusion[member=peft:lora]", "^fusion.*peft:lora is put on a model by peft"),
    ],
)
def test_a_wrong_setting_is_told_before_anything_is_trained(
    method: str, message: str, asked_for: Asked
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build_plan(asked_for(method))
    assert list(Path.cwd().iterdir()) == []


def test_widths_are_solved_for_a_number_of_parameters(asked_for: Asked) -> None:
    plan = build_plan(asked_for("lora[alpha=8]", "peft:lora", "peft:ia3", match_params=512))
    labels = [each.label for each in plan.cells]
    assert labels[-3:] == ["lora[rank=4,alpha=4.0]", "peft:lora[lora_alpha=4.0,r=4]", "peft:ia3"]


@pytest.mark.parametrize("base", ["int8", "nf4"])
def test_on_other_bases(base: str, asked_for: Asked, tmp_path: Path, read: SimpleNamespace) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quant')")
    plan = build_plan(asked_for(OURS, THEIRS, "peft:hra", bases=(base,)))
    (failure,) = run_plan(plan, tmp_path / "run").failures
    assert failure.method == "peft:hra" and "no layers of it for quantised" in str(failure.reason)
    rows = read.results(tmp_path / "run")
    for column in ("trained_params", "base_bytes", "train_gradient_bytes", "head_params"):
        assert rows[THEIRS][column] == rows[OURS][column], column


def test_the_plan_counts_them(deltakit: Callable[..., Any], small: list[str]) -> None:
    ended = deltakit("plan", "--methods", "lora[rank=4],peft:lora[r=4]", *small)
    assert ended.code == 0, ended.err
    lines = {line.split()[0]: line.split() for line in ended.out.splitlines() if line.strip()}
    assert lines["peft:lora[r=4]"][-2:] == lines["lora[rank=4]"][-2:]
    assert deltakit("plan", "--methods", "peft:lora[r=-1]", *small).line.startswith(
        "deltakit: peft"
    )
