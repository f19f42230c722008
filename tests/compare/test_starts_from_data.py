"""Rows that take their start from data: given it once before training, and its cost counted."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.adapted import DeltakitModel
from deltakit.compare.run import cell

SNIP = dk.Sparse(dk.LoRA(rank=2), keep=0.5, score="snip", batches=2)


@pytest.fixture
def usual(bert: Path, tasks: SimpleNamespace) -> dict[str, Any]:
    return {"model": bert, "task": tasks.two, "epochs": 1, "max_length": 24, "lr": 1e-2}


def test_each_is_trained_from_its_start(usual: dict[str, Any], monkeypatch: Any) -> None:
    given: list[int] = []
    prepare = DeltakitModel.prepare

    def counted(self: DeltakitModel, batches: Any) -> None:
        read: list[Any] = []
        prepare(self, (read.append(batch) or batch for batch in batches))
        given.append(len(read))

    monkeypatch.setattr(DeltakitModel, "prepare", counted)
    results = dk.compare({"snip": SNIP}, out="run", seeds=2, batch_size=4, **usual)
    assert set(results.frame["status"]) == {"done"}, results.frame["reason"]
    assert sorted(given) == [0, 0, 0, 0, 2, 2], "once for each row and seed, as many as it takes"


def test_a_mixture_is_a_row_and_its_experts_load_is_on_the_page(usual: dict[str, Any]) -> None:
    mixture = dk.Mixture(dk.LoRA(rank=2), experts=3)
    results = dk.compare({"mixture": mixture}, out="run", seeds=1, **usual)
    assert set(results.frame["status"]) == {"done"}, results.frame["reason"]
    assert "Where the tokens go" in results.page.read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pefts_starts_are_rows(usual: dict[str, Any]) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (extra 'peft')")
    starts = ("eva", "corda", "lora_ga")
    specs = [f"peft:lora[r=2,init_lora_weights={start}]" for start in starts]
    results = dk.compare(specs, out="run", seeds=1, **usual)
    frame = results.frame
    assert set(frame["status"]) == {"done"}, list(frame["reason"])
    assert frame[frame["method"].isin(specs)]["trained_params"].nunique() == 1


def test_its_time_is_the_trainings(usual: dict[str, Any], monkeypatch: Any) -> None:
    clock = [0.0]

    class Meter(cell.Meter):
        def seconds(self) -> float:
            return super().seconds() + clock[0]

    def slow(self: DeltakitModel, batches: Any) -> None:
        del self, batches
        clock[0] += 1000.0

    monkeypatch.setattr(cell, "Meter", Meter)
    monkeypatch.setattr(DeltakitModel, "prepare", slow)
    results = dk.compare({"lora": dk.LoRA(rank=2)}, out="run", seeds=1, **usual)
    assert results.frame["train_seconds"].dropna().min() >= 1000.0
