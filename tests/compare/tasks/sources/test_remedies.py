"""The advice of each refusal of the data readers, followed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.errors import InvalidConfig

Rows = list[dict[str, Any]]


def rows(number: int = 40, **columns: Callable[[int], Any]) -> Rows:
    """Rows with a text and one of two labels, and other columns in their place."""
    usual = {"text": lambda n: f"text {n}", "label": lambda n: ("no", "yes")[n % 2]}
    return [{name: make(n) for name, make in {**usual, **columns}.items()} for n in range(number)]


def write(folder: Path, **splits: Rows) -> str:
    for split, content in splits.items():
        (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, content)))
    return str(folder)


def mixed(n: int) -> str:
    return "['no']" if n == 3 else ("no", "yes")[n % 2]


def joined(n: int) -> str:
    return "no;yes" if n % 3 else "yes"


@pytest.mark.parametrize(
    ("content", "asked", "kind", "refused", "followed", "kind_then"),
    [
        pytest.param(
            rows(body=lambda n: f"body {n}", text=lambda n: n),
            ColumnNames(),
            None,
            "Correct the row, or choose a column of texts with --text-column",
            ColumnNames(text="body"),
            None,
            id="numbers as texts",
        ),
        pytest.param(
            rows(label=lambda n: None, stars=lambda n: n % 5),
            ColumnNames(),
            None,
            "or choose another column with --label-column",
            ColumnNames(label="stars"),
            None,
            id="no labels",
        ),
        pytest.param(
            rows(label=mixed),
            ColumnNames(),
            None,
            "the name of one class with --kind classification",
            ColumnNames(),
            "classification",
            id="lists and names",
        ),
        pytest.param(
            rows(label=joined),
            ColumnNames(),
            "multilabel",
            "say with --label-separator what separates them",
            ColumnNames(separator=";"),
            "multilabel",
            id="no lists",
        ),
        pytest.param(
            rows(label=lambda n: [1, 0], stars=lambda n: n % 5),
            ColumnNames(),
            None,
            "or choose another column with --label-column",
            ColumnNames(label="stars"),
            None,
            id="one set of labels",
        ),
        pytest.param(
            rows(),
            ColumnNames(separator=";"),
            "classification",
            "Leave it out, or choose another --kind",
            ColumnNames(),
            "classification",
            id="an option of another kind",
        ),
        pytest.param(
            rows(),
            ColumnNames(),
            "regression",
            "or choose another column with --label-column",
            ColumnNames(),
            "classification",
            id="names as numbers",
        ),
    ],
)
def test_another_column_or_kind(
    tmp_path: Path,
    content: Rows,
    asked: ColumnNames,
    kind: str | None,
    refused: str,
    followed: ColumnNames,
    kind_then: str | None,
) -> None:
    place = write(tmp_path, train=content)
    with pytest.raises(InvalidConfig, match=refused):
        load_task(place, asked, kind=kind)
    assert len(load_task(place, followed, kind=kind_then).train) > 0


def chat(n: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"One. Or {n}?"}, {"role": "assistant", "content": "one"}]


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        (ColumnNames(), "no column 'text'. It has: 'messages', 'label'. Take --kind chat, or"),
        (ColumnNames(text="messages"), "holds no texts.*--kind chat without --text-column, or"),
    ],
)
def test_chats_beside_labels_are_read_as_chats(
    tmp_path: Path, asked: ColumnNames, advice: str
) -> None:
    content = [{"messages": chat(n), "label": ("bad", "good")[n % 2]} for n in range(40)]
    place = write(tmp_path, train=content)
    with pytest.raises(InvalidConfig, match=advice):
        load_task(place, asked)
    assert load_task(place, kind="chat").kind.description == "chats"


def test_words_beside_other_labels_are_read_by_their_kind(tmp_path: Path) -> None:
    content = [{"tokens": ["a", f"b{n}"], "tags": ["X", "O"], "label": n % 2} for n in range(40)]
    place = write(tmp_path, train=content)
    with pytest.raises(InvalidConfig, match="no column 'text'.*Take --kind tokens, or"):
        load_task(place, kind="classification")
    assert load_task(place, kind="tokens").labels == ("O", "X")


def test_a_test_file_without_labels_is_moved_out(tmp_path: Path) -> None:
    place = write(tmp_path, train=rows(), test=[{"text": f"test {n}"} for n in range(10)])
    with pytest.raises(InvalidConfig, match="move the file of a split without labels out"):
        load_task(place)
    (tmp_path / "test.jsonl").unlink()
    assert len(load_task(place).test) == 8


def test_a_class_that_train_lacks_gets_an_example(tmp_path: Path) -> None:
    place = write(tmp_path, train=rows(), test=rows(9, label=lambda n: "maybe"))
    with pytest.raises(InvalidConfig, match="'maybe' does not occur in train.*add examples of it"):
        load_task(place)
    write(tmp_path, train=rows(41, label=lambda n: ("no", "yes", "maybe")[n % 3]))
    assert load_task(place).labels == ("maybe", "no", "yes")


def test_too_few_examples_get_splits_of_their_own(tmp_path: Path) -> None:
    few = rows(41, label=lambda n: "maybe" if n == 0 else ("no", "yes")[n % 2])
    for text in range(20):  # one of these is cut off with the only example of its class
        few[0]["text"] = f"only {text}"
        place = write(tmp_path, train=few)
        try:
            load_task(place)
        except InvalidConfig as error:
            assert "give the missing splits as files of their own" in str(error)
            break
    else:
        pytest.fail("the example was never cut off")
    write(tmp_path, validation=rows(10), test=rows(10))
    assert load_task(place).labels == ("maybe", "no", "yes")


def test_two_files_for_a_split_become_one(tmp_path: Path) -> None:
    place = write(tmp_path, train=rows(), dev=rows(10), valid=rows(10))
    with pytest.raises(InvalidConfig, match="Keep one of them"):
        load_task(place)
    (tmp_path / "dev.jsonl").unlink()
    assert len(load_task(place).validation) == 10


def test_a_file_in_another_encoding_is_written_in_utf_8(tmp_path: Path) -> None:
    file = tmp_path / "spam.csv"
    text = "text,label\n" + "".join(f"\xa3{n} for you,{n % 2}\n" for n in range(40))
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidConfig, match="in UTF-8"):
        load_task(str(file))
    file.write_text(text, encoding="utf-8")
    assert load_task(str(file)).labels == ("0", "1")
