"""Local files: every file is read, refused or named, and only used columns have to be right."""

import subprocess
import sys
from pathlib import Path

import pytest

import deltakit as dk
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.errors import InvalidConfig


def rows(first: int, number: int, sep: str = ",") -> str:
    lines = [f"text {n}{sep}{('neg', 'pos')[n % 2]}" for n in range(first, first + number)]
    return "\n".join([f"text{sep}label", *lines]) + "\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "train.csv").write_text(rows(0, 60))
    return tmp_path


def test_a_test_file_in_another_format_is_the_test_split(folder: Path) -> None:
    (folder / "test.tsv").write_text(rows(1000, 10, "\t"))
    assert sorted(load_task(str(folder)).test["text"]) == [f"text {1000 + n}" for n in range(10)]


@pytest.mark.parametrize("name", ["test.csv.gz", "dev.xlsx", "Val.txt", "train.csv.bak"])
def test_a_split_that_cannot_be_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("?")
    with pytest.raises(InvalidConfig, match=f"{name}' is called like a split.*Convert it"):
        load_task(str(folder))


def test_other_files_of_rows_are_named(folder: Path) -> None:
    for name in ("testing.csv", "eval.jsonl", "README.md"):
        (folder / name).write_text("?")
    (note,) = [note for note in load_task(str(folder)).notes if note.startswith("not read")]
    assert "'eval.jsonl', 'testing.csv'" in note and "README" not in note


def test_columns_that_are_not_used_may_have_one_name(tmp_path: Path) -> None:
    file = tmp_path / "spam.csv"
    lines = [f"{('ham', 'spam')[n % 2]},message {n},,," for n in range(40)]
    file.write_text("\n".join(["v1,v2,x,x,", *lines]) + "\n")
    data = load_task(str(file), ColumnNames(text="v2", label="v1"))
    assert data.labels == ("ham", "spam")
    with pytest.raises(InvalidConfig, match="several columns 'x'.*or choose another one"):
        load_task(str(file), ColumnNames(text="v2", label="x"))


def test_lists_as_text_are_several_labels(tmp_path: Path) -> None:
    file = tmp_path / "emotions.csv"
    lines = [f'text {n},"{["a", "b"] if n % 3 else ["b"]}"' for n in range(40)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    for asked in (ColumnNames(), ColumnNames(separator=",")):
        data = load_task(str(file), asked)
        assert data.kind.name == "multilabel" and data.labels == ("a", "b")


def test_conflicting_labels_are_settled_and_told(tmp_path: Path) -> None:
    file = tmp_path / "annotators.csv"
    lines = [f"text {n},{label}" for n in range(40) for label in ("x", "x", "xy"[n % 2])]
    file.write_text("\n".join(["text,label", *lines, *(f"other {n},y" for n in range(20))]) + "\n")
    data = load_task(str(file))
    assert any("20 texts occur with different labels" in note for note in data.notes)
    for split in (data.train, data.validation, data.test):
        for text, label in zip(split["text"], split["label"], strict=True):
            assert data.labels[label] == ("x" if text.startswith("text") else "y")


def test_labels_1_and_01_have_one_order(tmp_path: Path) -> None:
    file = tmp_path / "codes.csv"
    labels = ("1", "01", "2")
    lines = [f"text number {n},{labels[n % 3]}" for n in range(60)]
    file.write_text("\n".join(["text,label", *lines]) + "\n")
    code = f"from deltakit.compare.tasks import load_task; d = load_task({str(file)!r}); "
    code += "print(d.labels, d.fingerprint)"
    found = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONPATH": str(Path(dk.__file__).parents[1]), "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(found) == 1 and "('01', '1', '2')" in found.pop()
