"""Many deltas on one base: the work for one does not depend on the number of the others."""

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

import deltakit as dk
from deltakit.errors import IncompatibleDeltas

CONFIG = BertConfig(
    vocab_size=20,
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=8,
    max_position_embeddings=8,
)


def model_with(number: int) -> Any:
    model = BertForSequenceClassification(CONFIG).eval()
    for index in range(number):
        dk.attach(model, dk.LoRA(rank=1), name=f"d{index}")
    return model


def calls(action: Callable[[], Any]) -> int:
    """The number of calls of Python's and C's functions in this thread."""
    count = 0

    def note(frame: Any, event: str, arg: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def one_more(model: Any, folder: Path) -> dict[str, int]:
    """Calls of each action with one delta, next to those that are attached."""
    ids = torch.ones(1, 2, dtype=torch.long)
    rows = dk.PerRow(["d0", None])

    def use() -> None:
        with dk.using(model, "d1"):
            model(input_ids=ids)

    actions: dict[str, Callable[[], Any]] = {
        "attach": lambda: dk.attach(model, dk.LoRA(rank=1), name="more"),
        "activate": lambda: dk.activate(model, "d0"),
        "rows": lambda: dk.activate(model, rows),
        "use": use,
        "run": lambda: model(input_ids=ids.expand(2, -1)),
        "save": lambda: dk.save(model, folder / "d1", name="d1"),
        "load": lambda: dk.load(model, folder / "d1", name="loaded"),
        "detach": lambda: dk.detach(model, "loaded"),
    }
    return {name: calls(action) for name, action in actions.items()}


@pytest.fixture(params=["alone", "in threads"])
def threads(request: pytest.FixtureRequest) -> Any:
    """Nothing, or another thread that runs, with which values are not put into the model."""
    if request.param == "alone":
        yield
        return
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    yield
    end.set()
    thread.join()


def test_one_delta_costs_the_same_next_to_many(tmp_path: Path, threads: None) -> None:
    one_more(model_with(2), tmp_path / "first")  # imports and caches
    few, many = (one_more(model_with(n), tmp_path / str(n)) for n in (3, 12))
    for name, count in few.items():
        assert many[name] <= count + 60, f"{name}: {count} calls next to 3, {many[name]} next to 12"


def test_all_are_taken_off_in_linear_time() -> None:
    counts = []
    for number in (4, 8, 16):
        model = model_with(number)
        counts.append(calls(lambda model=model: dk.detach(model)))
    assert counts[2] - counts[1] <= 2 * (counts[1] - counts[0]) + 20


def test_members_go_with_their_fusion_and_not_before(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    kit.attach_fusion(model)
    with pytest.raises(IncompatibleDeltas, match="'a' is a member of 'fused'; detach that first"):
        dk.detach(model, "a")
    dk.detach(model)
    assert "deltakit" not in model._modules
