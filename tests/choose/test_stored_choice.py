"""The delta that a choice hands over is that of the best seed, and of no other."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deltakit.choose import choice
from deltakit.choose.journal import Journal


class Saved:
    """Writes a seed in place of a delta."""

    def __init__(self) -> None:
        self.seeds: list[int] = []

    def __call__(self, bench: Any, plan: Any, cell: Any, folder: Path) -> None:
        assert not folder.exists()
        folder.mkdir(parents=True)
        (folder / "seed").write_text(str(cell.seed))
        self.seeds.append(cell.seed)


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch) -> Saved:
    """What is saved, with everything that words and pages need left out."""
    saves = Saved()
    monkeypatch.setattr(choice, "save_choice", saves)
    for name in ("sentences", "sections", "finals_rows", "finals_headers"):
        monkeypatch.setattr(choice, name, lambda *_: ())
    monkeypatch.setattr(choice, "write_page", lambda *_, **__: None)
    monkeypatch.setattr(choice, "defence", lambda *_: {})
    monkeypatch.setattr(choice, "record", lambda outcome, **_: {"saved_seed": outcome.saved_seed})
    return saves


def store(folder: Path, seed: int) -> None:
    """Stores the choice of `lora` on fp32, whose best seed it is."""
    cells = [
        SimpleNamespace(label=label, base=base, seed=number)
        for label, base in (("head", "fp32"), ("lora", "nf4"), ("lora", "fp32"))
        for number in (20, 21)
    ]
    head = SimpleNamespace(task="classify", outputs=2)
    plan: Any = SimpleNamespace(
        cells=cells,
        task=SimpleNamespace(kind=SimpleNamespace(head=head)),
        model=SimpleNamespace(location="minilm"),
    )
    prepared: Any = SimpleNamespace(
        journal=Journal(folder),
        bench=None,
        request=SimpleNamespace(constraints=SimpleNamespace(to_dict=dict)),
    )
    row = SimpleNamespace(method="lora", lr=0.002, base="fp32")
    outcome: Any = SimpleNamespace(saved_seed=seed, choice=row)
    choice.stored_choice(prepared, outcome, plan, ("lora", "fp32"))


def test_the_best_seed_is_saved_once(saved: Saved, tmp_path: Path) -> None:
    for _ in range(2):
        store(tmp_path, 21)
    assert saved.seeds == [21]
    assert (tmp_path / "delta/seed").read_text() == "21"


def test_what_an_earlier_version_or_a_killed_command_left_is_saved_again(
    saved: Saved, tmp_path: Path
) -> None:
    (tmp_path / "delta").mkdir()  # half of a delta, and no answer yet
    store(tmp_path, 20)
    (tmp_path / "choice.json").write_text(json.dumps({"method": "lora"}))  # the first seed's, then
    store(tmp_path, 21)
    assert saved.seeds == [20, 21]
    assert (tmp_path / "delta/seed").read_text() == "21"
