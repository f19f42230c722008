"""Kinds of one's own, each in one place: numbers for inputs, and tags of different lengths."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value

from deltakit.compare.api import report_folder, run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import METRICS, RatioMetric, register_metric
from deltakit.compare.tasks import load_task
from deltakit.compare.tasks.data.columns import NUMBERS, WORDS, CellType, ColumnNames, RawSplit
from deltakit.compare.tasks.data.splits import Examples, carve
from deltakit.compare.tasks.kinds import KINDS, Kind, Outputs, ParsedLabels, register_kind
from deltakit.compare.tasks.kinds.base import padded
from deltakit.compare.tasks.kinds.classification import in_order
from deltakit.compare.tasks.sources.hub import _name as named_class
from deltakit.compare.tasks.sources.hub import hub_task
from deltakit.errors import InvalidConfig
from deltakit.models.heads import Head, SequenceHead

WIDTH = 16
"""Of the tiny models."""


# ------------------------------------------------------------------------- numbers for inputs


@dataclass(frozen=True, kw_only=True)
class Waves(Kind):
    """Does a series of numbers rise or fall? A model is given one embedding for each number."""

    options: ClassVar[frozenset[str]] = frozenset({"--label-column"})
    text_column: ClassVar[str | None] = None
    label_column: ClassVar[str | None] = "trend"
    inputs: ClassVar[Mapping[str, CellType]] = {"signal": NUMBERS}
    classes: tuple[str, ...]

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        names = classes or in_order(splits["train"].labels)
        read = {
            split: Examples(inputs=rows.inputs, labels=[names.index(each) for each in rows.labels])
            for split, rows in splits.items()
        }
        return ParsedLabels(cls(classes=names), read)

    @property
    def description(self) -> str:
        return "trends"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.classes

    @property
    def head(self) -> Head:
        return SequenceHead(outputs=len(self.classes))

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("accuracy", "roc_auc")

    def encode(self, data: Dataset, tokenizer: Any, max_length: int) -> Dataset:
        del tokenizer
        return Dataset.from_dict(
            {
                "signal": [signal[:max_length] for signal in data["signal"]],
                "labels": data["label"],
                "truth": data["label"],
            }
        )

    def size(self, example: Mapping[str, Any]) -> int:
        return len(example["signal"])

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
        del tokenizer
        series = [torch.tensor(row["signal"]) for row in rows]
        numbers = torch.nn.utils.rnn.pad_sequence(series, batch_first=True)
        mask = torch.arange(numbers.shape[1]) < torch.tensor([[len(each)] for each in series])
        return {
            "inputs_embeds": numbers[..., None] * torch.linspace(-1, 1, WIDTH),
            "attention_mask": mask.long(),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }

    def predict(self, model: Any, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Outputs:
        batch = self.collate(rows, tokenizer)
        del batch["labels"]
        chances = model(**batch).logits.double().softmax(-1)
        return Outputs(chances.argmax(-1).tolist(), chances.numpy())

    def label_frequencies(self, counted: Mapping[Any, int]) -> Sequence[float]:
        return [counted[index] / sum(counted.values()) for index in range(len(self.classes))]


def series(n: int, seed: int) -> dict[str, list[Any]]:
    """Random walks with a drift, of 4 to 12 numbers."""
    draw = np.random.default_rng(seed)
    trends = [("fall", "rise")[index % 2] for index in range(n)]
    signals = [
        np.cumsum(draw.normal(0.5 if trend == "rise" else -0.5, 0.2, draw.integers(4, 13))).tolist()
        for trend in trends
    ]
    return {"signal": signals, "trend": trends}


# --------------------------------------------------------------- tags of different lengths


@dataclass(frozen=True, kw_only=True)
class TagHead(Head):
    """A fresh linear over each token."""

    task: ClassVar[str] = "classify_tokens"
    purpose: ClassVar[str] = "tag tokens"
    outputs: int

    def configure(self, model: Any, pad_token_id: int | None) -> None:
        del model, pad_token_id

    def newly_initialised(self, missing: Any, model: Any) -> tuple[str, ...]:
        return tuple(sorted(key for key in missing if not key.startswith("classifier")))


@dataclass(frozen=True, kw_only=True)
class Tags(Kind):
    """A tag for each word."""

    options: ClassVar[frozenset[str]] = frozenset({"--label-column"})
    text_column: ClassVar[str | None] = None
    label_column: ClassVar[str | None] = "tags"
    inputs: ClassVar[Mapping[str, CellType]] = {"words": WORDS}
    tags: tuple[str, ...]

    @classmethod
    def parse_labels(
        cls, splits: Mapping[str, RawSplit], classes: tuple[str, ...] | None
    ) -> ParsedLabels:
        names = classes or in_order(tag for row in splits["train"].labels for tag in row)
        read = {}
        for split, rows in splits.items():
            for row, (words, tags) in enumerate(
                zip(rows.inputs["words"], rows.labels, strict=True), start=1
            ):
                if len(words) != len(tags):
                    problem = f"has {len(tags)} tags for {len(words)} words"
                    raise rows.wrong(row, problem, "Give each word a tag")
            labels = [tuple(names.index(tag) for tag in tags) for tags in rows.labels]
            read[split] = Examples(inputs=rows.inputs, labels=labels)
        return ParsedLabels(cls(tags=names), read)

    @property
    def description(self) -> str:
        return f"{len(self.tags)} tags"

    @property
    def labels(self) -> tuple[str, ...]:
        return self.tags

    @property
    def head(self) -> Head:
        return TagHead(outputs=len(self.tags))

    @property
    def metrics(self) -> tuple[str, ...]:
        return ("tag_f1",)

    def encode(self, data: Dataset, tokenizer: Any, max_length: int) -> Dataset:
        del max_length
        rows = [tokenizer(words, is_split_into_words=True) for words in data["words"]]
        firsts = [
            [at for at, word in enumerate(row.word_ids()) if word is not None] for row in rows
        ]
        labels = []
        for row, first, tags in zip(rows, firsts, data["label"], strict=True):
            aims = [-100] * len(row["input_ids"])
            for at, tag in zip(first, tags, strict=True):
                aims[at] = tag
            labels.append(aims)
        ids = [row["input_ids"] for row in rows]
        return Dataset.from_dict(
            {"input_ids": ids, "labels": labels, "first": firsts, "truth": data["label"]}
        )

    def collate(self, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> dict[str, torch.Tensor]:
        return {
            "input_ids": padded([row["input_ids"] for row in rows], tokenizer.pad_token_id),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": padded([row["labels"] for row in rows], -100),
        }

    def predict(self, model: Any, rows: Sequence[Mapping[str, Any]], tokenizer: Any) -> Outputs:
        batch = self.collate(rows, tokenizer)
        del batch["labels"]
        best = model(**batch).logits.argmax(-1).tolist()
        firsts = [row["first"] for row in rows]
        return Outputs(
            [tuple(row[at] for at in first) for row, first in zip(best, firsts, strict=True)]
        )

    def majority_prediction(self, train: Dataset, test: Dataset, tokenizer: Any) -> Outputs:
        counted = Counter(tag for tags in train["truth"] for tag in tags)
        ((most, _),) = counted.most_common(1)
        return Outputs([(most,) * len(tags) for tags in test["truth"]])


def tag_counts(predictions: Predictions) -> np.ndarray:
    """For each example: twice the hits, and the tags there are plus those that are predicted.

    The tag that is called "O" does not count.
    """
    outside = predictions.classes.index("O")
    counted = []
    for truth, made in zip(predictions.labels, predictions.predicted, strict=True):
        assert isinstance(truth, tuple) and isinstance(made, tuple)
        hits = sum(a == b != outside for a, b in zip(truth, made, strict=True))
        met = sum(tag != outside for tag in (*truth, *made))
        counted.append((2 * hits, met))
    return np.array(counted, dtype=float)


def f1(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / np.maximum(sums[..., 1], 1)


TAG_OF = {"great": "GOOD", "moving": "GOOD", "awful": "BAD", "boring": "BAD"}


def sentences(n: int, seed: int) -> dict[str, list[Any]]:
    """Sentences of 3 to 8 words, some of which have a tag."""
    draw = np.random.default_rng(seed)
    choices = [*TAG_OF, "the", "film", "plot", "scene"]
    words = [[str(each) for each in draw.choice(choices, draw.integers(3, 9))] for _ in range(n)]
    return {"words": words, "tags": [[TAG_OF.get(each, "O") for each in row] for row in words]}


# ------------------------------------------------------------------------------------ the tests


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    register_kind("waves")(Waves)
    register_kind("tags")(Tags)
    register_metric("tag_f1", RatioMetric, title="tag F1", ratio=f1)(tag_counts)
    yield
    KINDS.remove("waves")
    KINDS.remove("tags")
    METRICS.remove("tag_f1")


def written(folder: Path, make: SimpleNamespace, rows: Callable[[int, int], Any]) -> Path:
    """A task folder of JSON lines."""
    for seed, (split, n) in enumerate((("train", 48), ("validation", 12), ("test", 20))):
        columns = rows(n, seed)
        lines = [
            dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)
        ]
        make.lines(folder / f"{split}.jsonl", lines)
    return folder


@pytest.mark.parametrize(
    ("kind", "rows", "metric"), [("waves", series, "roc_auc"), ("tags", sentences, "tag_f1")]
)
def test_it_is_compared_as_any_other(
    kind: str,
    rows: Any,
    metric: str,
    asked: Callable[..., Any],
    make: SimpleNamespace,
    tmp_path: Path,
) -> None:
    folder = written(tmp_path / kind, make, rows)
    asks = {"task": str(folder), "kind": kind, "metric": metric, "latency": ("1x8",)}
    plan = build_plan(asked("lora", epochs=8.0, source_tasks=(), **asks))
    ended = run_plan(plan, tmp_path / "run")
    assert not ended.failures, ended.failures
    scores = {row.method: row.score for row in ended.results}
    assert len(scores) == 4 and all(s is not None and math.isfinite(s) for s in scores.values())
    assert scores["full"] > scores["majority"]
    notes = " ".join(ended.run.notes)
    assert ("Latency by shape is of tokens" in notes) == (kind == "waves")
    for row in ended.results:
        found = ended.predictions[row.method, row.base, row.seed]
        assert row.score == METRICS.get(metric).value(found)
        assert found.classes == ended.run.target.labels
        if kind == "tags":
            lengths = [len(each) for each in found.labels]  # type: ignore[arg-type]
            assert len({*lengths}) > 1
            assert lengths == [len(each) for each in found.predicted]  # type: ignore[arg-type]
    assert report_folder(tmp_path / "run").predictions == ended.predictions
    assert "lora" in (tmp_path / "run" / "table.md").read_text()


@pytest.mark.parametrize(("kind", "rows"), [("waves", series), ("tags", sentences)])
def test_missing_splits_are_cut_from_train(
    kind: str, rows: Any, make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = written(tmp_path / kind, make, rows)
    (folder / "test.jsonl").unlink()
    data = load_task(str(folder), kind=kind)
    (column,) = KINDS.get(kind).inputs
    assert set(data.train.column_names) == {column, "label"}
    seen = {str(value) for value in data.train[column]}
    assert not seen & {str(value) for value in data.test[column]}
    again = load_task(str(folder), kind=kind)
    assert again.fingerprint == data.fingerprint


def test_an_example_is_known_by_its_inputs() -> None:
    source = Examples(inputs={"signal": [[1.0], [2.0], [1.0], [3.0]]}, labels=[0, 1, 0, 1])
    assert len(source) == 4 and source.text_keys()[0] == source.text_keys()[2]
    splits = carve(source, test=1, validation=1)
    assert sorted(len(part) for part in splits) == [1, 1, 1]
    assert splits.train.dataset().features["signal"] == List(Value("float64"))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("1.5", "row 2: the column 'signal' holds '1.5', not a list of numbers"),
        ([], "holds [], not a list of numbers"),
        ([1, None], "holds [1, None], not a list of numbers"),
        ([1, "2"], "not a list of numbers"),
        ([True], "not a list of numbers"),
        ([float("inf")], "not a list of numbers"),
    ],
)
def test_a_cell_of_another_type_is_refused_by_its_row(
    cell: Any, message: str, make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = written(tmp_path / "waves", make, series)
    rows = [{"signal": [1, 2], "trend": "rise"}, {"signal": cell, "trend": "fall"}]
    make.lines(folder / "train.jsonl", rows)
    with pytest.raises(InvalidConfig) as error:
        load_task(str(folder), kind="waves")
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_column_that_is_missing_and_an_option_that_is_not_for_the_kind(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = written(tmp_path / "waves", make, lambda n, seed: sentences(n, seed))
    with pytest.raises(InvalidConfig, match="no column 'signal'.*'words', 'tags'"):
        load_task(str(folder), kind="waves")
    with pytest.raises(InvalidConfig, match="--text-column words is not for the kind 'tags'"):
        load_task(str(folder), ColumnNames(text="words"), kind="tags")


def test_the_hubs_class_names_are_those_of_the_kinds_own_label_column() -> None:
    names = ClassLabel(names=["rise", "fall"])  # not in the order of the alphabet
    features = Features({"signal": List(Value("float64")), "trend": names})
    columns = series(20, 0)
    columns["signal"][3] = None
    train = Dataset.from_dict(columns, features=features)
    test = Dataset.from_dict(series(6, 1), features=features)
    data = hub_task("somewhere/waves", {"train": train, "test": test}, ColumnNames(), "waves")
    assert data.labels == ("rise", "fall")
    assert data.test["label"] == [1, 0, 1, 0, 1, 0]
    assert len(data.train) + len(data.validation) == 19
    assert any("1 rows without an input or a label were left out" in note for note in data.notes)


def test_a_hidden_class_among_several_hides_them_all() -> None:
    """-1 is no class: from the end of the names it would be the last one."""
    names = ("O", "GOOD", "BAD")
    assert named_class([2, 0], names) == ["BAD", "O"]
    assert named_class([2, -1], names) is None
    assert named_class([None], names) is None
    assert named_class(-1, names) is None and named_class(1, names) == "GOOD"
    assert named_class([], names) == []


def test_the_hubs_tags_are_named() -> None:
    tags = List(ClassLabel(names=["O", "GOOD", "BAD"]))
    features = Features({"words": List(Value("string")), "tags": tags})
    splits = {
        split: Dataset.from_dict(sentences(n, seed), features=features)
        for seed, (split, n) in enumerate((("train", 20), ("validation", 5), ("test", 5)))
    }
    data = hub_task("somewhere/tags", splits, ColumnNames(), "tags")
    assert data.labels == ("O", "GOOD", "BAD")
    first = splits["test"][0]
    assert data.test[0] == {"label": first["tags"], "words": first["words"]}
