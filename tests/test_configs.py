"""The shipped configurations: each opens with its command and is read as that command reads it."""

import functools
import shlex
from pathlib import Path

import click
import pytest

import deltakit as dk
from deltakit.cli import shipped_plans
from deltakit.cli.compare import compare
from deltakit.cli.options import request
from deltakit.compare.plan import draft
from deltakit.compare.plan.request import Request, split_epochs
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import TASKS
from deltakit.errors import MissingExtra
from deltakit.models.shipped import SHIPPED, Shipped

ROOT = Path(__file__).parents[1]
TASK = functools.cache(draft.load_task)
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def test_there_are_configurations() -> None:
    assert CONFIGS


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def config(request: pytest.FixtureRequest) -> Path:
    path: Path = request.param
    return path


def read(path: Path, *options: str) -> Request:
    """The file through the real parser, without running the command."""
    context: click.Context = compare.make_context(
        "compare", ["--config", str(path), *options], resilient_parsing=False
    )
    beside = ("out", "engine", "workers", "retry_failed")
    return request({key: value for key, value in context.params.items() if key not in beside})


def test_a_configuration_opens_with_the_command_that_runs_it(config: Path) -> None:
    first = config.read_text(encoding="utf-8").splitlines()[0]
    assert first == f"# deltakit compare --config configs/{config.name}"


def test_a_configuration_is_a_request(config: Path) -> None:
    asked = read(config)
    assert [dk.parse_method(split_epochs(str(each))[0]) for each in asked.methods]
    assert asked.seeds >= 1
    shipped = {asked.task, *asked.source_tasks} & set(TASKS)
    assert all(name in shipped or "/" in name for name in (asked.task, *asked.source_tasks))


def test_every_command_in_a_configuration_is_a_request(config: Path) -> None:
    lines = config.read_text(encoding="utf-8").splitlines()
    commands = [shlex.split(line.lstrip("# ")) for line in lines if "deltakit compare" in line]
    for _, _, flag, file, *others in commands:
        assert (flag, file) == ("--config", f"configs/{config.name}")
        asked = read(config, *others)
        if asked.metric is not None:
            METRICS.get(asked.metric)
        if asked.model not in SHIPPED:
            assert "/" in asked.model


@pytest.fixture
def read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shipped task is read once for all configurations: it takes seconds."""
    monkeypatch.setattr(draft, "load_task", TASK)


@pytest.mark.usefixtures("read_once")
def test_a_configuration_of_what_is_here_resolves(config: Path) -> None:
    asked = read(config)
    plain = asked.model in SHIPPED and type(SHIPPED.get(asked.model)) is Shipped
    if not plain or asked.task not in TASKS:
        pytest.skip(f"{asked.model} or {asked.task} would have to be downloaded, or unpacked")
    try:
        plan = build_plan(asked)
    except MissingExtra as error:
        pytest.skip(str(error))
    assert {cell.label for cell in plan.cells} >= set(asked.methods)


def test_the_command_line_goes_before_a_configuration(config: Path) -> None:
    asked = read(config, "--methods", "head", "--seeds", "7", "--max-train-samples", "11")
    assert asked.methods == ("head",)
    assert asked.seeds == 7
    assert asked.budget.max_train_samples == 11


def test_brackets_survive_a_list(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("methods: ['lora[rank=8,targets=all]', adapter]\n")
    assert read(file).methods == ("lora[rank=8,targets=all]", "adapter")


def test_a_configuration_by_its_name(config: Path) -> None:
    assert read(Path(config.stem)) == read(config)


def test_a_wheel_carries_the_configurations_in_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "deltakit"
    (package / "_configs").mkdir(parents=True)
    (package / "_configs" / "quick.yaml").write_text("methods: head\n")
    monkeypatch.setattr(shipped_plans, "__file__", str(package / "cli" / "shipped_plans.py"))
    assert read(Path("quick")).methods == ("head",)


def test_a_configuration_that_is_not_shipped() -> None:
    with pytest.raises(dk.DeltakitError, match=r"unknown --config 'quik'\. Did you mean 'quick'"):
        read(Path("quik"))
