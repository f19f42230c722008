"""Pictures: folders, tables of paths or bytes, the processor, and pictures that are none."""

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from pyarrow import parquet

from deltakit.compare.run.predict import predict
from deltakit.compare.tasks import ColumnNames, load_task
from deltakit.compare.tasks.data.pictures import opened
from deltakit.compare.tasks.positive import with_positive
from deltakit.compare.tasks.shipped.digits import png
from deltakit.compare.tasks.sources.hub import hub_task
from deltakit.errors import InvalidConfig
from deltakit.models.heads import ImageHead
from deltakit.models.source import BaseChoice, find_model
from deltakit.testing.models import make_model

CLASSES = ("cat", "dog")
SIDE = 8


def picture(number: int) -> bytes:
    return png(np.random.default_rng(number).integers(0, 17, (SIDE, SIDE + number % 3)))


def write_folder(place: Path, numbers: range) -> Path:
    for number in numbers:
        folder = place / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03}.png").write_bytes(picture(number))
    return place


def write_csv(path: Path, rows: list[tuple[str, str]], header: tuple[str, str]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def rows_of(task: Any) -> set[tuple[bytes, int]]:
    splits = (task.train, task.validation, task.test)
    return {(row["image"], row["label"]) for split in splits for row in split}


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ViT with a head of three classes, and its processor."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    place = tmp_path_factory.mktemp("vit")
    make_model("vit", "classify").save_pretrained(place)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(place)
    return place


# ---------------------------------------------------------------------------------- where from


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    task = load_task(str(write_folder(tmp_path, range(30))))
    assert task.kind.name == "images" and task.labels == CLASSES
    assert (len(task.train), len(task.validation), len(task.test)) == (21, 3, 6)
    assert rows_of(task) == {(picture(n), n % 2) for n in range(30)}
    assert any("in the order of the pictures' SHA-256" in note for note in task.notes)


def test_folders_of_splits(tmp_path: Path) -> None:
    for split, numbers in (("train", range(20)), ("val", range(20, 26)), ("test", range(26, 30))):
        write_folder(tmp_path / split, numbers)
    (tmp_path / "train" / "cat" / "about.txt").write_text("a cat")
    task = load_task(str(tmp_path))
    assert (len(task.train), len(task.validation), len(task.test)) == (20, 6, 4)
    assert any("files that are not read: 'cat/about.txt'" in note for note in task.notes)


@pytest.mark.parametrize("header", [("image", "label"), ("path", "kind")])
def test_a_table_of_paths(tmp_path: Path, header: tuple[str, str]) -> None:
    write_folder(tmp_path / "pictures", range(30))
    rows = [(f"pictures/{CLASSES[n % 2]}/{n:03}.png", CLASSES[n % 2]) for n in range(30)]
    write_csv(tmp_path / "data.csv", rows, header)
    named = ColumnNames(image="path", label="kind") if header[0] == "path" else None
    task = load_task(str(tmp_path / "data.csv"), named)
    assert task.kind.name == "images"
    assert rows_of(task) == {(picture(n), n % 2) for n in range(30)}


@pytest.mark.parametrize("nested", [False, True])
def test_a_table_of_bytes(tmp_path: Path, nested: bool) -> None:
    cells: list[Any] = [picture(n) for n in range(30)]
    if nested:  # as the Hub saves pictures
        cells = [{"bytes": each, "path": None} for each in cells]
    table = pa.table({"image": cells, "label": [CLASSES[n % 2] for n in range(30)]})
    parquet.write_table(table, tmp_path / "data.parquet")
    task = load_task(str(tmp_path / "data.parquet"))
    assert rows_of(task) == {(picture(n), n % 2) for n in range(30)}


def test_a_data_set_of_the_hub() -> None:
    features = Features({"img": Image(), "label": ClassLabel(names=list(CLASSES))})
    rows = {"img": [{"bytes": picture(n), "path": None} for n in range(30)]}
    data = Dataset.from_dict({**rows, "label": [n % 2 for n in range(30)]}, features=features)
    task = hub_task("owner/pets", {"train": data}, ColumnNames())
    assert task.kind.name == "images"
    assert rows_of(task) == {(picture(n), n % 2) for n in range(30)}


def test_the_positive_class_of_pictures(tmp_path: Path) -> None:
    task = load_task(str(write_folder(tmp_path, range(30))))
    swapped = with_positive(task, "cat")
    assert swapped.kind.name == "images" and swapped.labels == ("dog", "cat")


def test_digits_are_pictures() -> None:
    task = load_task("digits")
    assert (len(task.train), len(task.validation), len(task.test)) == (1257, 180, 360)
    first = opened(task.test[0]["image"])
    assert (first.size, first.mode) == ((8, 8), "RGB")


# ------------------------------------------------------------------------------------- misuse


def cut_short(folder: Path) -> None:
    (folder / "cat" / "000.png").write_bytes(picture(0)[:60])


def no_picture(folder: Path) -> None:
    (folder / "cat" / "000.png").write_text("<html>404</html>")


def empty_class(folder: Path) -> None:
    (folder / "horse").mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (cut_short, r"row 1: 'cat/000.png' cannot be opened as a picture: "),
        (no_picture, r"row 1: 'cat/000.png' cannot be opened as a picture: its format is not"),
        (empty_class, r"the class folder '.*horse' has no picture. Add some"),
    ],
)
def test_folders_that_are_wrong(harm: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    harm(write_folder(tmp_path, range(6)))
    with pytest.raises(InvalidConfig, match=message):
        load_task(str(tmp_path))


def test_pictures_without_folders_of_classes(tmp_path: Path) -> None:
    (tmp_path / "flat").mkdir()
    for place in (tmp_path / "flat", tmp_path / "split" / "train"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "a.png").write_bytes(picture(0))
    for name in ("flat", "split"):
        with pytest.raises(InvalidConfig, match=r"has pictures \('a.png', ...\) and no folder for"):
            load_task(str(tmp_path / name))


def tiff(values: Any, kind: str) -> bytes:
    """A TIFF of one channel."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.asarray(values, dtype=kind)).save(file, "TIFF")
    return file.getvalue()


def test_pictures_of_16_bits_keep_their_greys(tmp_path: Path) -> None:
    greys = np.arange(64).reshape(8, 8) * 1000
    read = np.asarray(opened(tiff(greys, "uint16")))
    assert (read == (greys // 256)[..., None]).all()
    place = write_folder(tmp_path, range(6))
    for kind in ("float32", "int32"):
        (place / "cat" / "000.tif").write_bytes(tiff(greys, kind))
        with pytest.raises(
            InvalidConfig, match=r"'cat/000.tif' has pixels of 32 bits \(mode '[IF]'"
        ):
            load_task(str(place))


def test_a_path_without_a_file(tmp_path: Path) -> None:
    rows = [(f"{n}.png", CLASSES[n % 2]) for n in range(6)]
    write_csv(tmp_path / "data.csv", rows, ("image", "label"))
    with pytest.raises(InvalidConfig, match=r"row 1: '0.png' is not a file. Give paths that are"):
        load_task(str(tmp_path / "data.csv"))


def test_an_empty_cell_among_pictures_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "pictures", range(6))
    rows = [(f"pictures/{CLASSES[n % 2]}/{n:03}.png", CLASSES[n % 2]) for n in range(6)]
    rows[3] = ("", CLASSES[1])
    write_csv(tmp_path / "data.csv", rows, ("image", "label"))
    with pytest.raises(InvalidConfig, match=r"row 4: .* is not a file. Give paths"):
        load_task(str(tmp_path / "data.csv"))


def test_pictures_have_no_text_column(tmp_path: Path) -> None:
    place = write_folder(tmp_path, range(6))
    with pytest.raises(InvalidConfig, match="--text-column name is not for the kind 'images'"):
        load_task(str(place), ColumnNames(text="name"))


def test_a_model_of_texts_is_refused(tmp_path: Path) -> None:
    make_model("bert").config.save_pretrained(tmp_path)
    with pytest.raises(InvalidConfig, match="cannot classify images"):
        find_model(str(tmp_path)).skeleton(ImageHead(outputs=2))


def test_a_general_text_is_not_for_pictures(
    vit: Path, tmp_path: Path, deltakit: Callable[..., Any]
) -> None:
    place = write_folder(tmp_path / "pets", range(30))
    (tmp_path / "mine.txt").write_text("one film\n\ntwo plots")
    given = ("--methods", "head", "--model", vit, "--task", place)
    ended = deltakit("plan", *given, "--general", tmp_path / "mine.txt")
    assert "mine.txt is for models of texts, and the task 'pets' has images." in ended.line
    assert deltakit("plan", *given).code == 0


# ------------------------------------------------------------------------------------ the model


def test_batches_change_no_prediction(vit: Path, tmp_path: Path) -> None:
    task = load_task(str(write_folder(tmp_path, range(30))))
    source, kind = find_model(str(vit)), task.kind
    processor = source.processor(kind.head)
    torch.manual_seed(0)
    model = source.load(BaseChoice(name="fp32"), kind.head, None).model
    data = kind.encode(task.train, processor, 8)
    together = predict(model, data, kind, processor)
    assert together.scores is not None
    for row in range(len(data)):
        alone = predict(model, data.select([row]), kind, processor)
        assert alone.scores is not None and alone.predicted[0] == together.predicted[row]
        np.testing.assert_allclose(
            alone.scores.array, together.scores.array[row : row + 1], atol=1e-6
        )


def test_pixels_are_those_of_the_processor(vit: Path, tmp_path: Path) -> None:
    task = load_task(str(write_folder(tmp_path, range(30))))
    processor = find_model(str(vit)).processor(task.kind.head)
    batch = task.kind.collate(list(task.kind.encode(task.test, processor, 8)), processor)
    for row, pixels in zip(task.test, batch["pixel_values"], strict=True):
        own = processor(opened(row["image"]), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(own, pixels)


def test_a_head_for_other_classes_is_drawn_freshly(vit: Path) -> None:
    torch.manual_seed(0)
    loaded = find_model(str(vit)).load(BaseChoice(name="fp32"), ImageHead(outputs=5), None)
    assert loaded.fresh == ()
    assert loaded.model.classifier.weight.shape == (5, 16)
    before = make_model("vit", "classify").state_dict()
    for key, value in loaded.model.state_dict().items():
        assert key.startswith("classifier") or torch.equal(value, before[key]), key


def test_two_folders_for_a_split_are_refused(tmp_path: Path) -> None:
    for name in ("train", "dev", "val"):
        write_folder(tmp_path / name, range(6))
    with pytest.raises(InvalidConfig, match="has 2 folders for validation: 'dev', 'val'. Keep one"):
        load_task(str(tmp_path))


def test_what_lies_beside_the_folders_of_pictures_is_told(tmp_path: Path) -> None:
    write_folder(tmp_path / "train", range(40))
    write_folder(tmp_path / "heldout", range(4))
    for name in ("test.csv", "README.md", "train/stray.png", "train/labels.csv"):
        (tmp_path / name).write_text("?")
    notes = load_task(str(tmp_path)).notes
    assert "files that are not read: 'heldout', 'test.csv'." in notes
    assert "train: files that are not read: 'labels.csv', 'stray.png'." in notes
