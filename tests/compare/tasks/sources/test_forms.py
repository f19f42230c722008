"""Files as people have them: encodings, delimiters, no header, several columns, hidden labels."""

from pathlib import Path

import pytest

from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.data.files import read_columns
from deltakit.compare.tasks.data.form import FileForm
from deltakit.errors import InvalidConfig

EXAMPLES = [(f"caf\u00e9 number {n}", ("no", "yes")[n % 2]) for n in range(40)]
LINES = [f"{text},{label}" for text, label in EXAMPLES]


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes("".join(f"{line}\n" for line in lines).encode(encoding))
    return str(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_an_encoding_that_the_file_shows(tmp_path: Path, encoding: str, ending: str) -> None:
    apart = {"csv": ",", "tsv": "\t"}.get(ending)
    lines = [f'{{"text": "{text}", "label": "{label}"}}' for text, label in EXAMPLES]
    if apart:
        lines = [f"text{apart}label", *(apart.join(each) for each in EXAMPLES)]
    columns = read_columns(Path(write(tmp_path / f"data.{ending}", lines, encoding)))
    assert list(zip(*columns.values(), strict=True)) == EXAMPLES


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_an_encoding_that_must_be_named(tmp_path: Path, encoding: str) -> None:
    file = Path(write(tmp_path / "data.csv", ["text,label", *LINES], encoding))
    with pytest.raises(InvalidConfig, match="Name its encoding, for example --encoding"):
        read_columns(file)
    columns = read_columns(file, FileForm(encoding=encoding))
    assert list(zip(*columns.values(), strict=True)) == EXAMPLES


@pytest.mark.parametrize("given", [{"encoding": "utf-9"}, {"delimiter": ";;"}])
def test_forms_that_there_are_not(given: dict[str, str]) -> None:
    with pytest.raises(InvalidConfig, match="there is no such encoding|is not one character"):
        FileForm(**given)


@pytest.mark.parametrize("apart", [";", "\t", "|"])
def test_another_delimiter_is_seen(tmp_path: Path, apart: str) -> None:
    lines = [apart.join(("text", "label")), *(apart.join(each) for each in EXAMPLES)]
    columns = read_columns(Path(write(tmp_path / "data.csv", lines)))
    assert list(zip(*columns.values(), strict=True)) == EXAMPLES
    named = read_columns(tmp_path / "data.csv", FileForm(delimiter=apart))
    assert named == columns


def test_quotes_in_a_tsv_are_characters_where_they_do_not_fit(tmp_path: Path) -> None:
    rows = [('"so" he said', "1"), ('"open', "0"), ("plain", "1"), ('close"', "0")]
    lines = ["sentence\tlabel", *("\t".join(row) for row in rows)]
    columns = read_columns(Path(write(tmp_path / "a.tsv", lines)))
    assert list(zip(*columns.values(), strict=True)) == rows
    swallowed = [("one", "1"), ('"two', "0"), ("three", '1"'), ("four", "0")]
    lines = ["sentence\tlabel", *("\t".join(row) for row in swallowed)]
    columns = read_columns(Path(write(tmp_path / "b.tsv", lines)))
    assert list(zip(*columns.values(), strict=True)) == swallowed


def test_quotes_in_a_tsv_that_fit_are_quotes(tmp_path: Path) -> None:
    lines = ["sentence\tlabel", '"a\tb"\t1', '"say ""so"""\t0']
    columns = read_columns(Path(write(tmp_path / "a.tsv", lines)))
    assert columns["sentence"] == ["a\tb", 'say "so"']


def test_a_file_without_a_header(tmp_path: Path) -> None:
    glue = [f"src\t{n % 2}\t{'*' * (n % 2)}\tSentence {n}." for n in range(40)]
    place = write(tmp_path / "train.tsv", glue)
    with pytest.raises(InvalidConfig, match="its first line looks like .* --columns text,label"):
        load_task(place)
    names = ColumnNames(file=FileForm(columns=("source", "label", "mark", "text")))
    task = load_task(place, names)
    assert len(task.train) + len(task.validation) + len(task.test) == 40
    assert task.labels == ("0", "1")
    with pytest.raises(InvalidConfig, match="line 1 has 4 cells where the header has 2"):
        load_task(place, ColumnNames(file=FileForm(columns=("text", "label"))))


def test_names_of_columns_for_a_file_that_has_a_header(tmp_path: Path) -> None:
    place = write(tmp_path / "train.csv", ["text,label", *LINES])
    with pytest.raises(InvalidConfig, match="'text, label' is a header. --columns is for"):
        load_task(place, ColumnNames(file=FileForm(columns=("text", "label"))))


def test_one_hot_columns_are_classes(tmp_path: Path) -> None:
    lines = ["text,joy,anger", *(f"text {n},{n % 2},{1 - n % 2}" for n in range(40))]
    task = load_task(write(tmp_path / "data.csv", lines), ColumnNames(label="joy,anger"))
    assert task.kind.name == "classification" and task.labels == ("anger", "joy")
    for row in task.train:
        assert row["label"] == int(row["text"].split()[1]) % 2


def test_columns_with_several_ones_are_labels(tmp_path: Path) -> None:
    lines = ["text,joy,anger", *(f"text {n},{n % 2},{int(n % 3 == 0)}" for n in range(40))]
    place = write(tmp_path / "data.csv", lines)
    task = load_task(place, ColumnNames(label="joy,anger"))
    assert task.kind.name == "multilabel" and task.labels == ("anger", "joy")
    for row in task.train:
        number = int(row["text"].split()[1])
        assert row["label"] == [int(number % 3 == 0), number % 2]


def test_a_flag_that_is_neither(tmp_path: Path) -> None:
    lines = ["text,joy,anger", *(f"text {n},{n % 3},1" for n in range(40))]
    with pytest.raises(InvalidConfig, match="row 3: the column 'joy' holds '2', neither 0 nor 1"):
        load_task(write(tmp_path / "data.csv", lines), ColumnNames(label="joy,anger"))


def test_multi_hot_lists_are_positions(tmp_path: Path) -> None:
    cells = [[n % 2, 0, int(n % 3 == 0)] for n in range(40)]
    lines = [f'{{"text": "text {n}", "label": {cell}}}' for n, cell in enumerate(cells)]
    task = load_task(write(tmp_path / "data.jsonl", lines))
    assert task.kind.name == "multilabel" and task.labels == ("0", "2")
    for row in task.train:
        cell = cells[int(row["text"].split()[1])]
        assert row["label"] == [cell[0], cell[2]]


def test_two_text_columns_are_a_pair_and_three_are_refused(tmp_path: Path) -> None:
    lines = ["a,b,c,label", *(f"one {n},two {n},three {n},{n % 2}" for n in range(40))]
    place = write(tmp_path / "data.csv", lines)
    task = load_task(place, ColumnNames(text="a,b"))
    assert task.train[0]["text"].startswith("one") and task.train[0]["text_pair"].startswith("two")
    with pytest.raises(InvalidConfig, match="names 3 columns. A model reads one text or two"):
        load_task(place, ColumnNames(text="a,b,c"))


@pytest.mark.parametrize("hidden", ["-1", "", "-1.0"])
def test_hidden_labels_of_test(tmp_path: Path, hidden: str) -> None:
    folder = tmp_path / "task"
    write(folder / "train.csv", ["text,label", *LINES])
    write(folder / "test.csv", ["text,label", *(f"unseen {n},{hidden}" for n in range(9))])
    task = load_task(str(folder))
    assert (len(task.train), len(task.validation), len(task.test)) == (28, 4, 8)
    assert any("are hidden (all blank, or all -1): a test split is cut" in n for n in task.notes)
    write(folder / "dev.csv", ["text,label", *(f"other {n},yes" for n in range(5))])
    task = load_task(str(folder))
    assert (len(task.train), len(task.validation), len(task.test)) == (36, 4, 5)
    assert any("the validation split is the test split" in note for note in task.notes)


def test_the_options_of_a_form_are_for_local_files() -> None:
    names = ColumnNames(file=FileForm(encoding="latin-1"))
    with pytest.raises(InvalidConfig, match="--encoding is for data of your own"):
        load_task("rotten_tomatoes", names)
    with pytest.raises(InvalidConfig, match="--encoding is for a local file"):
        load_task("glue/sst2", names)
