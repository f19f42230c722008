"""`dk.compare`: a comparison from Python, and what it returns."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.api import run_plan
from deltakit.compare.plan.request import Request, request_of
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import COLUMNS, CellResult, Predictions
from deltakit.compare.records.run import RunRecord
from deltakit.compare.report.frame import answer
from deltakit.compare.report.summary import summarise
from deltakit.core.method import CLASSES
from deltakit.errors import InvalidConfig, UnknownName


class Unregistered(dk.LoRA):
    """A class that no decorator has named, as in a notebook."""


@pytest.fixture
def own_class() -> Iterator[type[dk.Method]]:
    yield Unregistered
    if Unregistered.__name__ in CLASSES:
        CLASSES.remove(Unregistered.__name__)


@pytest.fixture
def usual(bert: Path, tasks: SimpleNamespace) -> dict[str, Any]:
    return {"model": bert, "task": tasks.two, "epochs": 1, "max_length": 24, "lr": 1e-2}


def test_five_lines_give_a_data_frame(usual: dict[str, Any], own_class: type[dk.Method]) -> None:
    methods = {"small": "lora[rank=1]", "mine": own_class(rank=2)}
    results = dk.compare(methods, out="run", seeds=2, **usual)
    frame = results.frame
    assert list(frame.columns) == list(COLUMNS) and len(frame) == 10
    assert set(frame["method"]) == {"majority", "head", "full", "small", "mine"}
    assert frame["trained_params"].dtype == "Int64" and frame["score"].dtype == "Float64"
    assert set(frame["status"]) == {"done"}, frame["reason"]
    assert frame.loc[frame["method"] == "majority", "trained_params"].isna().all()

    table = results.table.set_index("method")
    assert table.loc["small", "seeds"] == 2
    mean = 100 * frame.loc[frame["method"] == "small", "score"].mean()
    assert table.loc["small", "score"] == pytest.approx(mean)
    assert table.loc["mine", "group"] and table.loc["mine", "p_vs_floor"] <= 1

    assert results.page == Path("run/report.html") and results.page.is_file()
    assert results.answer.startswith(("small scores highest, ", "mine scores highest, "))
    shown = results._repr_html_()
    assert shown.startswith(f"<p>{results.answer}</p>") and "<table" in shown
    typed = repr(results).splitlines()
    assert typed[0] == results.answer and typed[-1].startswith("run/report.html")
    assert any(line.split()[:1] == ["small"] for line in typed)
    # The same call goes on where it stopped, and a plan is the same comparison.
    assert dk.compare(methods, out="run", seeds=2, **usual).reused == 10
    plan = build_plan(request_of(methods, {"seeds": 2, **usual}))
    assert dk.compare(plan, out="run").reused == dk.compare(plan=plan, out="run").reused == 10


def test_methods_come_in_every_form(usual: dict[str, Any]) -> None:
    def labels(methods: object) -> list[str]:
        return list(map(str, request_of(methods, usual).methods))

    assert labels("lora[rank=4], ia3") == ["lora[rank=4]", "ia3"]
    assert labels(dk.LoRA(rank=4)) == ["lora[rank=4]"]
    assert labels(["ia3", dk.LoRA(rank=4) + dk.IA3()]) == ["ia3", "lora[rank=4]+ia3"]
    assert labels({"a": "ia3", "b": dk.IA3()}) == ["a", "b"]
    for wrong in (7, [7], None):
        with pytest.raises(InvalidConfig, match=r"7|None"):
            labels(wrong)


def test_a_label_is_not_that_of_a_baseline(usual: dict[str, Any]) -> None:
    for label in ("full", "majority"):
        with pytest.raises(InvalidConfig, match=f"'{label}' is the label of a baseline"):
            dk.compare({label: dk.LoRA()}, **usual)


def test_settings_are_those_of_the_command_line(
    usual: dict[str, Any], asked: Callable[..., Request]
) -> None:
    made = request_of("lora", {**usual, "weights": ["fp32", "bf16"], "max_train_samples": "all"})
    assert made.bases == ("fp32", "bf16") and made.budget.max_train_samples is None
    assert request_of("lora", {"bases": "fp32,bf16"}).bases == ("fp32", "bf16")
    with pytest.raises(InvalidConfig, match="no setting 'seed'. Did you mean 'seeds'"):
        dk.compare("lora", seed=3)
    with pytest.raises(UnknownName, match="unknown profile 'quik'. Did you mean 'quick'"):
        dk.compare("lora", profile="quik")
    with pytest.raises(InvalidConfig, match="a plan has its methods.*Leave out seeds"):
        dk.compare(build_plan(asked()), seeds=3)
    with pytest.raises(UnknownName, match="unknown engine 'lokal'. Did you mean 'local'"):
        dk.compare("lora", engine="lokal")


@pytest.mark.parametrize(
    "first", ["", "import deltakit.compare", "from deltakit.compare.plan.request import Request"]
)
def test_the_package_and_the_function_share_their_name(first: str) -> None:
    code = (
        f"{first}\nimport deltakit as dk\nassert callable(dk.compare)\n"
        "from deltakit.compare import api\nassert dk.compare.api is api\n"
        "import inspect; assert 'plan' in inspect.signature(dk.compare).parameters"
    )
    root = str(Path(dk.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": root, "PATH": ""}, capture_output=True
    )
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------ the answer


def judged(*rows: tuple[str, int, float]) -> str:
    """The answer to rows of a method, a seed and a share of 200 examples that are right."""
    results, predictions = [], {}
    for method, seed, share in rows:
        low, high = share - 0.05, share + 0.05
        results.append(
            CellResult(
                method=method, base="fp32", task="t", seed=seed, metric="accuracy",
                score=share, score_low=low, score_high=high,
            )
        )  # fmt: skip
        labels, right = (0,) * 200, round(200 * share)
        predicted = (0,) * right + (1,) * (200 - right)
        predictions[method, "fp32", seed] = Predictions(labels=labels, predicted=predicted)
    run = RunRecord(roles={"floor": "head", "ceiling": "full"}, constant="majority")
    return answer(summarise(results, predictions, run), run)


def test_one_seed_is_said_to_be_one() -> None:
    said = judged(("head", 0, 0.5), ("full", 0, 0.99), ("a", 0, 0.9), ("b", 0, 0.88), ("c", 0, 0.6))
    assert said.startswith("a scores highest, 90.0 [85.0, 95.0] % accuracy with one seed")
    assert "cannot be told apart from b; one seed" in said and "full" not in said
    assert "the only method; one seed" in judged(("a", 0, 0.9), ("head", 0, 0.5))


def test_ties_over_seeds_are_those_of_the_letters() -> None:
    shares = {"a": 0.9, "b": 0.9, "c": 0.5}
    rows = [(name, seed, share - seed / 200) for name, share in shares.items() for seed in range(4)]
    said = judged(*rows)
    assert "with 4 seeds" in said and said.endswith("cannot be told apart from b.")
    assert judged(*rows[:4], *rows[8:]).endswith("with 4 seeds, apart from the other method.")


def test_nothing_to_say() -> None:
    assert judged(("head", 0, 0.5)).startswith("No method has a score")


def test_a_lower_score_may_be_the_better_one(asked: Callable[..., Request]) -> None:
    results = run_plan(build_plan(asked("lora", metric="log_loss")), Path("run"))
    assert results.answer.startswith("lora scores lowest, ")
