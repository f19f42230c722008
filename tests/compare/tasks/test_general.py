"""The general text: the shipped one, a user's file, and its part in a run's identity."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.protocol import VARIABLE, Protocol
from deltakit.compare.records.run import RunRecord
from deltakit.compare.run.description import describe
from deltakit.compare.tasks.general import FILE, general_text, identity_of
from deltakit.errors import InvalidConfig


def test_the_shipped_text_is_the_same_everywhere() -> None:
    text = general_text(None, 64)
    assert len(text.passages) == len(set(text.passages)) == 64
    assert 10_000 < FILE.stat().st_size < 20_000
    assert all(30 <= len(passage.split()) <= 60 for passage in text.passages)
    assert all(passage.isascii() for passage in text.passages)
    assert text.fingerprint == FINGERPRINT
    assert general_text(None, 3).passages == text.passages[:3]
    assert general_text(None, 99).passages == text.passages


FINGERPRINT = "215197d5b5357b53f6f5af54629e00ef9f96f997c1c8c2080dac8b7f1b435b67"
"""Another text would be another measurement: changing it takes another version of deltakit."""


def test_a_file_has_passages_between_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_bytes("\ufeffone  two\r\nthree\r\n \t\r\n\r\nfour é\r\n".encode())
    text = general_text(str(file), 64)
    assert text.passages == ("one two three", "four é") and text.name == str(file)
    assert (text.max_length, text.cut(20).max_length, text.cut(999).max_length) == (128, 20, 128)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read: No such file or directory. Name a text file"),
        (b"\xff\xfe\xfa", "is not a text in UTF-8. Name a text file"),
        (b" \n\n", "has no text. Name a text file in UTF-8 with a blank line between passages."),
    ],
)
def test_a_file_that_is_no_text(content: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidConfig, match=message) as raised:
        general_text(str(file), 64)
    assert str(raised.value).startswith(f"--general {file} ")
    assert len(str(raised.value).splitlines()) == 1


def test_another_text_is_another_plan(asked: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n\ntwo")
    (tmp_path / "b.txt").write_text("one\n\n\n two \n")
    (tmp_path / "c.txt").write_text("one\n\nthree")
    protocol = replace(Protocol.from_environment(), general_passages=8)
    plans = {
        name: build_plan(asked("lora", protocol=protocol, general=name and str(tmp_path / name)))
        for name in (None, "a.txt", "b.txt", "c.txt")
    }
    ids = {name: plan.id for name, plan in plans.items()}
    assert ids["a.txt"] == ids["b.txt"] and len(set(ids.values())) == 3
    assert identity_of(plans[None].general) == identity_of(None) == ""
    trainings = {plan.cells[-1].training.id for plan in plans.values() if plan.cells[-1].training}
    assert len(trainings) == 1  # what is trained does not depend on it


def test_a_run_records_its_text(asked: Callable[..., Any]) -> None:
    protocol = replace(Protocol.from_environment(), general_passages=8)
    plan = build_plan(asked("lora", protocol=protocol))
    assert plan.general is not None and len(plan.general.passages) == 8
    record = describe(plan)
    assert asdict(record)["general"] == {
        "name": "shipped",
        "fingerprint": plan.general.fingerprint,
        "passages": 8,
        "max_length": 40,  # positions of the tiny model
    }
    assert str(record.general) == "8 passages of deltakit's general text"
    assert RunRecord.from_dict(record.to_dict()).general == record.general
    none = build_plan(asked("lora", protocol=replace(protocol, general_passages=0)))
    assert none.general is None and describe(none).general is None and none.id == plan.id


def test_a_text_that_no_passage_is_read_of(
    asked: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(VARIABLE, "general_passages=0")
    protocol = Protocol.from_environment()
    with pytest.raises(InvalidConfig, match="and general_passages=0 in DELTAKIT_PROTOCOL exclude"):
        build_plan(asked("lora", protocol=protocol, general=str(tmp_path)))


def test_a_missing_file_ends_the_command_before_it_trains(
    deltakit: Callable[..., Any], small: list[str]
) -> None:
    ended = deltakit("compare", "--methods", "lora", *small, "--general", "no.txt")
    assert "--general no.txt cannot be read: No such file or directory." in ended.line
