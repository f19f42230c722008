"""From a request to cells: labels, ids, members, the order in which they run."""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.plan.plan import Plan, content_id
from deltakit.compare.plan.request import PROFILES, Budget, NamedMethod, Request, profile
from deltakit.compare.plan.resolve import build_plan
from deltakit.errors import DeltakitError, InvalidConfig, UnknownName

Asked = Callable[..., Request]


def labels(plan: Plan) -> list[str]:
    return [cell.label for cell in plan.cells]


# --------------------------------------------------------------------------------------- rows


def test_the_baselines_come_first_whatever_is_asked(asked: Asked) -> None:
    assert labels(build_plan(asked("lora"))) == ["majority", "head", "full", "lora"]


@pytest.mark.parametrize("methods", ["full,lora", "lora,majority,full"])
def test_a_baseline_that_is_asked_for_is_no_second_row(methods: str, asked: Asked) -> None:
    assert sorted(labels(build_plan(asked(methods)))) == ["full", "head", "lora", "majority"]


def test_settings_and_sums_are_rows_of_their_own(asked: Asked) -> None:
    request = dataclasses.replace(
        asked(), methods=("lora[rank=2]", "lora[rank=4,targets=q/k]", "lora+houlsby")
    )
    plan = build_plan(request)
    assert labels(plan)[3:] == list(request.methods)
    assert plan.cells[4].training.method == dk.LoRA(rank=4, targets=("q", "k"))


def test_roles_are_those_of_the_methods_and_not_of_names(asked: Asked) -> None:
    assert build_plan(asked("lora")).roles == {"floor": "head", "ceiling": "full"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bases": ("nf5",)}, "unknown base 'nf5'. Did you mean 'nf4'"),
        ({"bases": ("nf4", "nf4")}, "names 'nf4' twice"),
        ({"bases": ()}, "--bases is empty"),
        ({"bases": ("nf4",), "compute_dtype": "float8"}, "unknown --compute-dtype 'float8'"),
        ({"compute_dtype": "bfloat16"}, "is for quantised bases, and --bases names none"),
    ],
)
def test_bases_that_do_not_do(fields: dict[str, Any], message: str, asked: Asked) -> None:
    with pytest.raises(DeltakitError, match=re.escape(message)):
        build_plan(asked("lora", **fields))


@pytest.mark.parametrize(
    ("methods", "fields", "message"),
    [
        ("lora@4", {}, r"'lora@4': after '@' comes .* as in lora@epochs=4"),
        ("lora[rank=2]@epochs=0", {}, r"above zero, as in lora\[rank=2\]@epochs=4"),
        ("full@epochs=4", {}, "'full@epochs=4': a baseline has the budget of the table"),
        ("lora@epochs=4", {"match_params": 700}, "--match-params and 'lora@epochs=4' exclude"),
    ],
)
def test_epochs_that_a_row_cannot_have(
    methods: str, fields: dict[str, Any], message: str, asked: Asked
) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build_plan(asked(methods, **fields))


def test_a_delta_of_several_tasks_is_no_row(asked: Asked) -> None:
    method = dk.HyperFormer(tasks=("a", "b"), bottleneck=2)
    request = dataclasses.replace(asked(), methods=(NamedMethod("several", method),))
    with pytest.raises(InvalidConfig, match="several: it has the tasks a, b.*using_tasks"):
        build_plan(request)


# -------------------------------------------------------------------------------------- members


def test_sources_are_not_even_read_where_nothing_is_composed(asked: Asked) -> None:
    plan = build_plan(asked("lora", source_tasks=("no-such-task",)))
    assert set(plan.tasks) == {"two"}


def test_stages_put_members_before_what_composes_them_and_repeat_none(asked: Asked) -> None:
    plan = build_plan(asked("fusion,adapter,fusion[value=false]", seeds=2))
    order = list(plan.stages())
    fused = [cell.label for cell, _ in order].index("fusion")
    assert all(cell.training is None or not cell.training.members for cell, _ in order[:fused])
    first = [training for _, fresh in order for training in fresh]
    assert sorted(t.task for t in first) == ["shop", "shop", "trade", "trade"]
    assert len({t.id for t in first}) == 4
    assert {cell.id for cell, _ in order} == {cell.id for cell in plan.cells}


# ------------------------------------------------------------------------------------------ ids


def test_ids_are_short_and_repeatable(asked: Asked) -> None:
    first, again = build_plan(asked("adapter,fusion")), build_plan(asked("adapter,fusion"))
    assert first.id == again.id
    assert [cell.id for cell in first.cells] == [cell.id for cell in again.cells]
    assert all(re.fullmatch(r"[0-9a-f]{16}", cell.id) for cell in first.cells)


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 3.0},
        {"batch_size": 8},
        {"max_length": 12},
        {"max_train_samples": 20},
        {"lr": 2e-2},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_changes_a_score_changes_the_ids(change: dict[str, Any], asked: Asked) -> None:
    before, after = build_plan(asked("lora")), build_plan(asked("lora", **change))
    assert before.id != after.id
    for old, new in zip(before.cells[1:], after.cells[1:], strict=True):
        assert old.id != new.id and old.training.id != new.training.id


def test_a_bound_on_the_test_split_keeps_the_trainings(asked: Asked) -> None:
    before, after = (
        build_plan(asked("lora")).cells[-1],
        build_plan(asked("lora", lr=1e-2)).cells[-1],
    )
    assert before.id == after.id
    bounded = dataclasses.replace(before, max_eval_samples=10)
    assert bounded.id != before.id
    assert bounded.training.id == before.training.id


def test_shapes_keep_the_trainings_and_are_tried_before_them(
    asked: Asked, bert: Path, tmp_path: Path
) -> None:
    plain, timed = (build_plan(asked("lora", latency=shapes)) for shapes in ((), ("2x24",)))
    for one, other in zip(plain.cells, timed.cells, strict=True):
        assert one.id != other.id, "a cell that was not timed so is another one"
        if one.training is not None and other.training is not None:
            assert one.training.id == other.training.id
    shutil.copytree(bert, tmp_path / "short")
    settings = tmp_path / "short" / "tokenizer_config.json"
    content = {**json.loads(settings.read_text()), "model_max_length": 20}
    settings.write_text(json.dumps(content))
    with pytest.raises(InvalidConfig, match="--latency 2x24: model .* takes 20 tokens at most"):
        build_plan(asked("lora", model=str(tmp_path / "short"), latency=("1x20", "2x24")))


def test_the_same_number_written_otherwise_is_the_same_plan() -> None:
    assert content_id(vars(Budget(epochs=2))) == content_id(vars(Budget(epochs=2.0)))


def test_an_example_that_changes_changes_the_ids(
    asked: Asked, make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = make.task(tmp_path / "mine", ("neg", "pos"))
    before = build_plan(asked("lora", task=str(folder)))
    rows = make.examples(("neg", "pos"), 48, seed=0)
    rows[7]["text"] += " end"
    make.rows(folder / "train.csv", rows)
    after = build_plan(asked("lora", task=str(folder)))
    assert {c.id for c in before.cells}.isdisjoint(c.id for c in after.cells)


def test_other_weights_change_the_ids(
    asked: Asked, make: SimpleNamespace, bert: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for file in bert.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    same = build_plan(asked("lora", model=str(folder)))
    assert same.id == build_plan(asked("lora")).id
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][0, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert build_plan(asked("lora", model=str(folder))).id != same.id


# ------------------------------------------------------------------------------------- budgets


def test_profiles_by_name() -> None:
    for name, found in PROFILES.items():
        assert profile(name) is found
    with pytest.raises(UnknownName, match="Did you mean 'quick'"):
        profile("quik")


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 0},
        {"epochs": -1.0},
        {"epochs": float("nan")},
        {"epochs": float("inf")},
        {"batch_size": 0},
        {"max_length": -3},
        {"max_train_samples": 0},
        {"max_eval_samples": 0},
        {"lr": 0.0},
        {"lr": -1.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
    ],
    ids=str,
)
def test_a_budget_out_of_range_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match=next(iter(change))):
        Budget(**change)


@pytest.mark.parametrize("seeds", [0, -1])
def test_there_is_at_least_one_seed(seeds: int, asked: Asked) -> None:
    with pytest.raises(InvalidConfig, match="seeds"):
        build_plan(asked("lora", seeds=seeds))


def test_at_least_one_method_is_named(asked: Asked) -> None:
    with pytest.raises(InvalidConfig, match="--methods"):
        build_plan(dataclasses.replace(asked(), methods=()))


# ----------------------------------------------------------------------------- two of one name


def test_two_source_tasks_of_one_name_are_refused(
    asked: Asked, tasks: SimpleNamespace, make: SimpleNamespace, tmp_path: Path
) -> None:
    other = make.task(tmp_path / "shop", ("food", "money"))
    with pytest.raises(DeltakitError, match="shop"):
        build_plan(asked("fusion", source_tasks=(str(tasks.shop), str(other))))


def test_a_given_delta_and_a_source_task_of_one_name_are_refused(
    finished: Any, asked: Asked, tasks: SimpleNamespace
) -> None:
    folder = next((finished.cache / "deltas").iterdir())
    with pytest.raises(DeltakitError, match="shop"):
        build_plan(asked("fusion", source_tasks=(str(tasks.shop), f"shop={folder}")))


def test_nothing_is_written_by_resolving(asked: Asked) -> None:
    build_plan(asked("adapter,lora,fusion"))
    assert list(Path.cwd().iterdir()) == []
