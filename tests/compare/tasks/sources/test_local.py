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


@pytest.mark.parametrize("name", ["test.csv.gz", "dev.xlsx", "Val.xml", "test"])
def test_a_split_that_cannot_be_read_is_refused(folder: Path, name: str) -> None:
    (folder / name).write_text("?")
    with pytest.raises(InvalidConfig, match=f"{name}' is called like a split.*Convert it"):
        load_task(str(folder))


def unread(place: Path) -> str:
    """The note on files that were not read."""
    (note,) = [
        note for note in load_task(str(place)).notes if note.startswith("files that are not")
    ]
    return note


def test_other_files_that_may_be_data_are_named(folder: Path) -> None:
    others = ("eval.jsonl", "heldout.xlsx", "test-00000-of-00001.parquet", "testing.csv")
    for name in (*others, "README.md", "README", "train.py", ".test.csv.swp"):
        (folder / name).write_text("?")
    assert f"{', '.join(map(repr, others))}. A split is called" in unread(folder)


@pytest.mark.parametrize("name", ["test", "dev"])
def test_a_split_as_a_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).mkdir()
    with pytest.raises(InvalidConfig, match=f"{name}' is called like a split"):
        load_task(str(folder))


def test_a_compressed_file_may_stay_beside_the_file_it_was_converted_to(folder: Path) -> None:
    (folder / "test.csv.gz").write_text("?")
    (folder / "test.csv").write_text(rows(1000, 10))
    assert len(load_task(str(folder)).test) == 10
    assert "test.csv.gz" in unread(folder)


def test_files_beside_a_train_file_that_is_given_alone_are_named(folder: Path) -> None:
    (folder / "test.tsv").write_text(rows(1000, 10, "\t"))
    assert "'test.tsv'. Give the folder" in unread(folder / "train.csv")


def test_columns_that_are_not_used_may_have_one_name(tmp_path: Path) -> None:
    file = tmp_path / "spam.csv"
    lines = [f"{('ham', 'spam')[n % 2]},message {n},,," for n in range(40)]
    file.write_text("\n".join(["v1,v2,x,x,", *lines]) + "\n")
    data = load_task(str(file), ColumnNames(text="v2", label="v1"))
    assert data.labels == ("ham", "spam")
    with pytest.raises(InvalidConfig, match="'x' occurs several times.*or choose another column"):
        load_task(str(file), ColumnNames(text="v2", label="x"))


def test_cells_after_the_header_may_be_empty(tmp_path: Path) -> None:
    file = tmp_path / "spam.csv"
    file.write_text("text,label\n" + "".join(f"message {n},{n % 2},,\n" for n in range(40)))
    assert load_task(str(file)).labels == ("0", "1")
    file.write_text("text,label,,\n" + "".join(f"message {n},{n % 2}\n" for n in range(40)))
    assert load_task(str(file)).labels == ("0", "1")


def test_cells_that_are_no_text_are_refused_where_they_are_used(tmp_path: Path) -> None:
    file = tmp_path / "notes.jsonl"
    lines = [f'{{"text": "text {n}", "label": {n % 2}, "raw": "\\ud800"}}' for n in range(40)]
    file.write_text("\n".join(lines))
    assert load_task(str(file)).labels == ("0", "1")
    with pytest.raises(InvalidConfig, match="'raw' holds half of a surrogate pair"):
        load_task(str(file), ColumnNames(text="raw"))


def test_a_parquet_column_without_values_in_python_is_refused_where_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow
    from pyarrow import parquet

    texts = [f"text {n}" for n in range(40)]
    moments = pyarrow.array([1] * 40, pyarrow.timestamp("ns"))
    table = pyarrow.table({"text": texts, "label": [n % 2 for n in range(40)], "at": moments})
    parquet.write_table(table, tmp_path / "train.parquet")
    monkeypatch.setitem(sys.modules, "pandas", None)
    assert load_task(str(tmp_path)).labels == ("0", "1")


@pytest.mark.parametrize(
    ("bad", "problem", "good"),
    [
        ("a, b,x", "3 cells where the header has 2.*written in quotes", '"a, b",x'),
        ('"a" b,x', "each quote in it twice", '"""a"" b",x'),
    ],
)
def test_the_advice_on_a_torn_row_helps(tmp_path: Path, bad: str, problem: str, good: str) -> None:
    file = tmp_path / "train.csv"
    file.write_text(rows(0, 40).replace("pos", "x").replace("neg", "y") + bad + "\n")
    with pytest.raises(InvalidConfig, match=problem):
        load_task(str(file))
    file.write_text(file.read_text().replace(bad, good))
    assert load_task(str(file)).labels == ("x", "y")


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
    (note,) = [note for note in data.notes if "different labels" in note]
    assert "20 texts occur with different labels, the first in rows 4, 5, 6" in note
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


def objects(folder: Path, line: str) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(line % (n, "ab"[n % 2]) for n in range(40)))
    return path


def test_a_field_that_an_object_has_twice_has_no_value(tmp_path: Path) -> None:
    path = objects(tmp_path, '{"text": "t%d", "label": "%s", "label": "b"}')
    with pytest.raises(InvalidConfig, match="'label' occurs several times in row 1"):
        load_task(str(path))
    unused = objects(tmp_path, '{"text": "t%d", "label": "%s", "x": 1, "x": 2}')
    assert load_task(str(unused)).labels == ("a", "b")


def test_tags_of_noughts_and_ones_are_no_flags_of_labels(tmp_path: Path) -> None:
    path = objects(tmp_path, '{"tokens": ["w%d", "%s", "c"], "ner": [0, 1, 1]}')
    for kind in (None, "tokens"):
        task = load_task(str(path), ColumnNames(label="ner"), kind=kind)
        assert task.kind.name == "tokens" and task.train[0]["label"] == [0, 1, 1]


def test_numbers_that_a_float_or_python_cannot_hold_are_no_traceback(tmp_path: Path) -> None:
    path = objects(tmp_path, '{"text": "t%d", "label": 1' + "0" * 400 + ".5%.0s}")
    with pytest.raises(InvalidConfig, match="kind|label"):
        load_task(str(path), kind="regression")
    path = objects(tmp_path, '{"text": "t%d", "label": 1' + "0" * 400 + "%.0s}")
    with pytest.raises(InvalidConfig, match="holds 1000.*not a number"):
        load_task(str(path), kind="regression")
    names = objects(tmp_path, '{"text": "t%d", "label": "%s' + "1" * 5000 + '"}')
    names.write_text(names.read_text().replace('"a', '"2').replace('"b', '"3'))
    assert [each[0] for each in load_task(str(names)).labels] == ["2", "3"]


def test_words_in_lists_that_differ_in_case_or_unicode_form_are_told(tmp_path: Path) -> None:
    pattern = '{"tokens": ["%s", "w%d"], "tags": ["A", "B"]}'
    words = {"train": "\\u00c9cole", "test": "e\\u0301cole"}
    for split, word in words.items():
        lines = [pattern % (word, n) for n in range(20 if split == "train" else 2)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    notes = load_task(str(tmp_path)).notes
    assert any("in train too but for case, spaces or Unicode form" in note for note in notes)
