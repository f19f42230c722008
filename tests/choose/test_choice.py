"""A whole choice on a tiny model: its answer, its files, and how it goes on when it was killed."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_choice as tiny

from deltakit.choose import prepare
from deltakit.choose.journal import Journal
from deltakit.errors import InvalidConfig

KEYS = [
    "method", "lr", "base", "score", "score_low", "score_high", "metric", "task", "constraints",
    "probability", "cost_share", "delta",
]  # fmt: skip
"""The keys of ``choice.json`` that programs rely on, in their order."""


class Killed(BaseException):
    """The process was killed."""


@pytest.fixture(autouse=True)
def _light(light: None) -> None:
    """Every choice here is small."""


def test_too_small_a_budget_is_told_before_it_starts(bert: Path, reviews: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"--minutes 0\.001 is too small .* would do"):
        tiny.choose(bert, reviews, minutes=0.001)
    assert not list(Path("choice").glob("arms/*"))


def test_infeasible_constraints_are_one_line(bert: Path, reviews: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"Nearest: lora\[rank=4,alpha=8\] on fp32 trains"):
        tiny.choose(bert, reviews, max_params=5)


def test_a_folder_that_was_begun_with_other_rungs_is_refused(
    bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidConfig, match="Nearest"):
        tiny.choose(bert, reviews, max_params=5)  # it has begun its folder
    before = Path("choice/request.json").read_bytes()
    monkeypatch.setattr(prepare, "FIRST_STEPS", 12)
    with pytest.raises(InvalidConfig, match="a version with other rungs began it"):
        tiny.choose(bert, reviews, max_params=5)
    assert Path("choice/request.json").read_bytes() == before


@pytest.mark.slow
def test_a_choice_that_was_killed_ends_as_one_that_was_not(
    bert: Path, reviews: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.choose(bert, reviews)
    content = json.loads(Path("choice/choice.json").read_text())
    assert list(content)[: len(KEYS)] == KEYS
    assert content["method"] in ("lora[rank=4,alpha=8]", "head")
    assert content["score_low"] <= content["score"] <= content["score_high"]
    assert 0 <= content["probability"] <= 1 and content["cost_share"] > 0
    page = Path("choice/report.html").read_text()
    assert page.index("test examples that were not used") < page.index("<h2>")
    namespace: dict[str, object] = {}
    exec(whole.python, namespace)  # the five lines
    assert len(whole.python.splitlines()) == 5
    assert whole.command.startswith("deltakit compare --methods")

    Path("choice").rename("undisturbed")
    times = json.loads(Path("undisturbed/times.json").read_text())
    keep, left = Journal.keep, 0

    def dying(self: Journal, arm: str, rung: int, reading: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        keep(self, arm, rung, reading)  # type: ignore[arg-type]

    for moment in (0, 3, 8):
        monkeypatch.setattr(Journal, "keep", dying)
        left = moment
        if not Path("choice/times.json").exists():
            Path("choice").mkdir()
            for name in ("request.json", "times.json"):
                Path("choice", name).write_text(Path("undisturbed", name).read_text())
        with pytest.raises(Killed):
            tiny.choose(bert, reviews)
    monkeypatch.setattr(Journal, "keep", keep)
    again = tiny.choose(bert, reviews)
    assert json.loads(Path("choice/times.json").read_text()) == times
    assert (again.method, again.lr, again.base) == (whole.method, whole.lr, whole.base)
    assert again.record["score"] == whole.record["score"]
    assert again.probability == whole.probability


MOMENTS = ("request.json", "times.json", "arms/*/rung-1.json", "arms/final-*/rung-0.json", "delta")
"""What exists in the folder when the process is killed."""


@pytest.mark.slow
def test_killed_for_real_at_five_moments_it_ends_with_the_same_choice(
    bert: Path, reviews: Path
) -> None:
    whole = tiny.choose(bert, reviews, out="undisturbed")
    Path("choice").mkdir()
    for name in ("request.json", "times.json"):  # decisions follow from the times
        Path("choice", name).write_text(Path("undisturbed", name).read_text())
    for moment in MOMENTS:
        command = [sys.executable, tiny.__file__, str(bert), str(reviews), "choice"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not list(Path("choice").glob(moment)):
            time.sleep(0.002)
        process.kill()
        process.wait()
    again = tiny.choose(bert, reviews)
    assert (again.method, again.lr, again.base) == (whole.method, whole.lr, whole.base)
    assert again.record["score"] == whole.record["score"]
    assert again.probability == whole.probability
    assert [rung["arms"] for rung in again.record["rungs"]] == [
        rung["arms"] for rung in whole.record["rungs"]
    ]
