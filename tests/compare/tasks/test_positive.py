"""The positive class of two can be chosen, and is told."""

from pathlib import Path

import pytest

from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import TaskData, load_task
from deltakit.compare.tasks.positive import with_positive
from deltakit.errors import InvalidConfig, UnknownName


@pytest.fixture
def data(tmp_path: Path) -> TaskData:
    lines = [f"text number {n},{('ham', 'spam')[n % 3 == 0]}" for n in range(60)]
    (tmp_path / "mail.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    return load_task(str(tmp_path / "mail.csv"))


def test_the_second_class_is_the_positive_one(data: TaskData) -> None:
    named = with_positive(data, None)
    assert named.labels == ("ham", "spam") and "are of 'spam'" in named.notes[-1]
    assert named.fingerprint == data.fingerprint == with_positive(data, "spam").fingerprint


def test_the_first_class_can_be_it(data: TaskData) -> None:
    swapped = with_positive(data, "ham")
    assert swapped.labels == ("spam", "ham") and "are of 'ham'" in swapped.notes[-1]
    for split in ("train", "validation", "test"):
        before, after = getattr(data, split), getattr(swapped, split)
        assert before["text"] == after["text"]
        assert [data.labels[i] for i in before["label"]] == [
            swapped.labels[i] for i in after["label"]
        ]
    assert swapped.fingerprint != data.fingerprint
    f1 = METRICS.get("f1")
    labels, predicted = (1, 1, 0, 0, 0), (1, 0, 0, 0, 1)
    flipped = Predictions(
        labels=tuple(1 - n for n in labels), predicted=tuple(1 - n for n in predicted)
    )
    assert f1.value(Predictions(labels=labels, predicted=predicted)) == pytest.approx(1 / 2)
    assert f1.value(flipped) == pytest.approx(2 / 3)


def test_a_class_that_is_not_there(data: TaskData) -> None:
    with pytest.raises(UnknownName, match="'sapm'. Did you mean 'spam'"):
        with_positive(data, "sapm")


def test_more_than_two_classes(tmp_path: Path) -> None:
    lines = [f"text number {n},{'abc'[n % 3]}" for n in range(60)]
    (tmp_path / "three.csv").write_text("\n".join(["text,label", *lines]) + "\n")
    data = load_task(str(tmp_path / "three.csv"))
    assert with_positive(data, None) is data
    with pytest.raises(InvalidConfig, match="--positive a is for tasks of two classes"):
        with_positive(data, "a")
