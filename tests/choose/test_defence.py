"""The command that defends a choice: it reads and scores the data as the choice did."""

import shlex
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from deltakit.choose.defence import defence
from deltakit.choose.outcome import compare_command
from deltakit.choose.request import choice_request
from deltakit.cli.compare import compare


def command(**settings: Any) -> list[str]:
    asked = choice_request({"task": "reviews.csv", "model": "minilm", **settings}).compared
    asked = replace(asked, imports=("mine.py", "other,file.py"))
    rows = [SimpleNamespace(name=name, method=name) for name in ("head", "lora", "ia3")]
    outcome: Any = SimpleNamespace(rows=rows, floor="head")
    plan: Any = SimpleNamespace(request=asked)
    return shlex.split(compare_command(defence(plan, outcome)))


def test_it_has_all_that_decides_what_is_read_and_scored() -> None:
    words = command(
        metric="f1_macro",
        kind="classification",
        text_column="the review",
        label_column="stars",
        max_length=48,
    )
    options = dict(zip(words[2::2], words[3::2], strict=True))
    assert words[:2] == ["deltakit", "compare"] and options["--methods"] == "lora,ia3"
    assert options["--metric"] == "f1_macro" and options["--kind"] == "classification"
    assert options["--text-column"] == "the review" and options["--label-column"] == "stars"
    assert options["--max-length"] == "48" and "--pair-column" not in options
    given = [words[at + 1] for at, word in enumerate(words) if word == "--import"]
    assert given == ["mine.py", "other,file.py"]


def test_a_single_finalist_is_compared_with_those_that_ended_the_last_rung() -> None:
    verdicts = tuple(
        SimpleNamespace(arm=f"{name} on fp32 at 0.01", score=score, behind=1.0)
        for name, score in (("head", 0.5), ("ia3", 0.7), ("lora[rank=2]", 0.7), ("prefix", None))
    )
    rows = [SimpleNamespace(name=name, method=name) for name in ("head", "ia3")]
    rungs = [SimpleNamespace(verdicts=verdicts)]
    outcome: Any = SimpleNamespace(rows=rows, floor="head", rungs=rungs)
    plan: Any = SimpleNamespace(request=choice_request({"task": "reviews.csv"}).compared)
    assert defence(plan, outcome)["methods"] == "ia3,lora[rank=2]"


def test_every_option_is_one_of_the_commands() -> None:
    known = {name for each in compare.params for name in each.opts}
    words = command(kind="classification", positive="1", label_separator=";")
    assert {word for word in words if word.startswith("--")} <= known
