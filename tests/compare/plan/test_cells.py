"""The cells of a plan: which rows, bases and seeds, and the members of what combines others."""

from collections.abc import Callable

import pytest

from deltakit.compare.plan.cells import delta_name
from deltakit.compare.plan.request import Request
from deltakit.compare.plan.resolve import build_plan

Asked = Callable[..., Request]


def test_each_seed_has_every_row(asked: Asked) -> None:
    plan = build_plan(asked("lora", seeds=3))
    assert [cell.seed for cell in plan.cells] == [0] * 4 + [1] * 4 + [2] * 4
    assert len({cell.id for cell in plan.cells}) == 12


def test_each_base_has_every_row_but_what_trains_all_weights(asked: Asked) -> None:
    plan = build_plan(asked("lora,fusion", bases=("fp32", "int8", "nf4")))
    assert [(cell.label, cell.base) for cell in plan.cells] == [
        ("majority", "fp32"),
        *(("head", base) for base in ("fp32", "int8", "nf4")),
        ("full", "fp32"),
        *(("lora", base) for base in ("fp32", "int8", "nf4")),
        *(("fusion", base) for base in ("fp32", "int8", "nf4")),
    ]
    assert len({cell.id for cell in plan.cells}) == len(plan.cells)
    assert plan.notes == ("full has no row on int8, nf4: quantised weights cannot be trained.",)
    for cell in plan.cells[1:]:
        training = cell.training
        assert training.base.name == cell.base
        assert training.base.dtype == ("" if cell.base == "fp32" else "float32")
        assert {m.training.base for m in training.members} <= {training.base}


def test_what_a_base_computes_in_is_part_of_what_it_is(asked: Asked) -> None:
    plans = [build_plan(asked("lora", bases=("nf4",), compute_dtype=d)) for d in (None, "bfloat16")]
    assert [plan.cells[-1].training.base.dtype for plan in plans] == ["float32", "bfloat16"]
    assert plans[0].cells[-1].training.id != plans[1].cells[-1].training.id


def test_one_rate_for_all_or_each_methods_own(asked: Asked) -> None:
    given = build_plan(asked("lora,adapter", lr=0.25)).cells[1:]
    assert {cell.training.lr for cell in given} == {0.25}
    own = build_plan(asked("lora,adapter", lr=None)).cells[1:]
    assert [cell.training.lr for cell in own] == [c.training.method.learning_rate for c in own]


def test_a_row_may_have_epochs_of_its_own(asked: Asked) -> None:
    plan = build_plan(asked("lora,lora@epochs=4,fusion@epochs=0.5", epochs=2, trials=2, lr=None))
    own = {cell.label: cell.training.budget.epochs for cell in plan.cells[1:]}
    assert own == {"head": 2, "full": 2, "lora": 2, "lora@epochs=4": 4, "fusion@epochs=0.5": 0.5}
    trials = {trial.budget.epochs for trial in plan.trials(plan.cells[4].training)}
    members = {member.training.budget.epochs for member in plan.cells[5].training.members}
    assert (trials, members) == ({4}, {2})
    assert plan.cells[3].training.method == plan.cells[4].training.method
    assert plan.notes[0] == ("lora@epochs=4 was trained for 4 epochs, rows without a number for 2.")
    usual = build_plan(asked("lora", epochs=2, trials=2, lr=None))
    assert usual.cells[3].id == plan.cells[3].id


def test_fusion_is_over_the_sources_and_the_target(asked: Asked) -> None:
    plan = build_plan(asked("fusion"))
    training = plan.cells[-1].training
    assert [member.name for member in training.members] == ["shop", "trade", "two"]
    assert training.method.names == ("shop", "trade", "two")
    assert {m.training.method for m in training.members} == {training.method.member}
    assert set(plan.tasks) == {"two", "shop", "trade"}


def test_the_targets_member_is_the_row_of_the_same_method(asked: Asked) -> None:
    plan = build_plan(asked("adapter,fusion"))
    row, fusion = plan.cells[-2:]
    assert fusion.training.members[-1].id == row.training.id


@pytest.mark.parametrize(
    ("task", "name"),
    [
        ("imdb", "imdb"),
        ("my data/reviews 2", "reviews-2"),
        ("glue/sst2", "sst2"),
        ("...", "source"),
    ],
)
def test_a_tasks_name_as_that_of_a_delta(task: str, name: str) -> None:
    assert delta_name(task) == name
