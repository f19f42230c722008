"""Training: the same steps for every method, repeatable, and stopped by a loss that explodes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.compare.plan.request import Budget
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.train import TrainingFailed, steps_of, train
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.kinds import Classification
from deltakit.errors import DeltakitError
from deltakit.models.source import BaseChoice, find_model

FP32 = BaseChoice(name="fp32")

BUDGET = Budget(epochs=1.5, batch_size=16, max_length=24)


class Steps(Silent):
    """Counts what it is told."""

    def __init__(self) -> None:
        self.units = 0

    def advance(self, units: int = 1) -> None:
        self.units += units


@pytest.fixture
def go(bert: Any, tasks: SimpleNamespace) -> Callable[..., tuple[Any, TrainingRecord]]:
    """Trains a method on the two-class task."""
    source = find_model(str(bert))
    tokenizer = source.tokenizer()
    task = load_task(str(tasks.two))
    data = task.kind.encode(task.train, tokenizer, 24)

    def start(
        method: dk.Method, *, seed: int = 0, lr: float = 1e-2, progress: Any = None
    ) -> tuple[Any, TrainingRecord]:
        torch.manual_seed(0)
        model = source.load(FP32, task.kind.head, tokenizer.pad_token_id).model
        dk.attach(model, method)
        record = train(
            model,
            data,
            task.kind,
            tokenizer,
            budget=BUDGET,
            lr=lr,
            seed=seed,
            progress=progress or Silent(),
        )
        return model, record

    return start


@pytest.mark.parametrize(
    ("examples", "batch_size", "epochs", "steps"),
    [
        (48, 16, 2, 6),
        (49, 16, 2, 8),
        (48, 16, 1.5, 5),
        (48, 16, 0.01, 1),
        (1, 32, 1, 1),
        (4000, 32, 3, 375),
    ],
)
def test_steps_of_a_budget(examples: int, batch_size: int, epochs: float, steps: int) -> None:
    assert steps_of(examples, Budget(batch_size=batch_size, epochs=epochs)) == steps


def test_a_record_says_how_it_went(go: Callable[..., Any]) -> None:
    told = Steps()
    _, record = go(dk.LoRA(), progress=told)
    assert record.steps == len(record.losses) == told.units == 5
    assert record.examples == 48
    assert record.seconds > 0
    assert all(loss > 0 for loss in record.losses)


def test_training_changes_the_delta_and_the_head_and_nothing_else(go: Callable[..., Any]) -> None:
    before, _ = go(dk.LoRA(), lr=1e-30)
    after, _ = go(dk.LoRA())
    moved = {
        name
        for (name, old), (_, new) in zip(
            before.named_parameters(), after.named_parameters(), strict=True
        )
        if not torch.equal(old, new)
    }
    assert any(name.startswith("deltakit.") for name in moved)
    assert "classifier.weight" in moved
    assert not any(name.startswith("bert.") for name in moved)


def test_equal_seeds_give_equal_weights(go: Callable[..., Any]) -> None:
    (first, one), (second, two) = go(dk.FullFineTuning()), go(dk.FullFineTuning())
    assert one.losses == two.losses
    for (name, a), (_, b) in zip(first.named_parameters(), second.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_another_seed_shuffles_otherwise(go: Callable[..., Any]) -> None:
    (_, one), (_, two) = go(dk.FullFineTuning()), go(dk.FullFineTuning(), seed=1)
    assert one.losses != two.losses


def test_every_method_sees_the_same_batches(
    go: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, ...]]] = []
    collate = Classification.collate

    def watched(kind: Any, rows: Any, tokenizer: Any) -> Any:
        seen.append([tuple(row["input_ids"]) for row in rows])
        return collate(kind, rows, tokenizer)

    monkeypatch.setattr(Classification, "collate", watched)
    go(dk.HeadOnly())
    first = list(seen)
    seen.clear()
    go(dk.LoRA())
    assert seen == first


def test_nothing_is_left_on_disk(go: Callable[..., Any], tmp_path: Any) -> None:
    go(dk.HeadOnly())
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_loss_that_explodes_stops_the_training(go: Callable[..., Any]) -> None:
    told = Steps()
    with pytest.raises(TrainingFailed, match=r"loss is (nan|inf) at step \d.*--lr") as caught:
        go(dk.FullFineTuning(), lr=1e30, progress=told)
    assert isinstance(caught.value, DeltakitError)
    assert "\n" not in str(caught.value)
    assert told.units < 5


def test_texts_are_cut_and_pairs_are_joined(bert: Any, tasks: SimpleNamespace) -> None:
    tokenizer = find_model(str(bert)).tokenizer()
    two = load_task(str(tasks.two))
    single = two.kind.encode(two.test, tokenizer, 6)
    assert max(len(row) for row in single["input_ids"]) == 6
    inputs = {"input_ids", "token_type_ids", "attention_mask"}
    assert set(single.column_names) == {*inputs, "labels", "truth"}
    columns = ColumnNames(text="first", pair="second", label="verdict")
    pairs = load_task(str(tasks.pairs), columns)
    encoded = pairs.kind.encode(pairs.test, tokenizer, 24)
    assert all(1 in row for row in encoded["token_type_ids"])
