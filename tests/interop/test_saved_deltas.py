"""What earlier versions saved is loaded, and answers as it did (see fixtures/saved_deltas.py)."""

import json
from pathlib import Path

import pytest
import saved_deltas
import torch

import deltakit as dk

FOLDERS = Path(__file__).with_name("saved_deltas")
DELTAS = [(version, name) for version, deltas in saved_deltas.SAVED.items() for name in deltas]


@pytest.mark.parametrize(("version", "name"), DELTAS)
def test_a_delta_of_an_earlier_version(version: str, name: str, tmp_path: Path) -> None:
    answers = json.loads((FOLDERS / version / "answers.json").read_text())
    model = saved_deltas.base()
    plain = saved_deltas.answer(model)
    dk.load(model, FOLDERS / version / name)
    found = saved_deltas.answer(model)
    torch.testing.assert_close(found, answers[name], atol=1e-5, rtol=0)
    assert found != plain
    dk.save(model, tmp_path, name)
    again = saved_deltas.base()
    dk.load(again, tmp_path)
    assert saved_deltas.answer(again) == found


def test_both_schemas_are_there() -> None:
    configs = [json.loads(path.read_text()) for path in FOLDERS.glob("*/*/delta.json")]
    assert {config["schema_version"] for config in configs} == {1, 2}
