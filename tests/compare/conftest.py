"""Tiny checkpoints on disk, tasks that can be learned from single words, and the command itself.

Everything is made once a session in a temporary folder; every test runs in a folder of its own,
with a store of deltas of its own.
"""

import contextlib
import csv
import io
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from deltakit.cli.main import main
from deltakit.compare.plan.request import Budget, Request
from deltakit.compare.records.protocol import VARIABLE
from deltakit.compare.report import cost_views as views
from deltakit.compare.report.pareto import Plot
from deltakit.compare.run import cell, engines
from deltakit.compare.run import queue as work
from deltakit.compare.run.progress import Silent

FILLERS = ("the", "a", "film", "story", "actor", "scene", "and", "of", "plot", "end")
WORDS: dict[str, Sequence[str]] = {
    "neg": ("awful", "boring", "weak"),
    "pos": ("great", "moving", "strong"),
    "sport": ("goal", "match", "team"),
    "tech": ("phone", "laptop", "code"),
    "money": ("bank", "market", "price"),
    "food": ("bread", "soup", "cake"),
}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
VOCABULARY = (*SPECIAL, *FILLERS, *(word for words in WORDS.values() for word in words))

WIDTH = 16
LAYERS = 2


# -------------------------------------------------------------------------------- checkpoints


def save_tokenizer(folder: Path, *, inputs: list[str], pad: bool) -> None:
    """A whole-word tokenizer; without `pad` it has no padding token, as Llama's has none."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
    )
    names = {"unk_token": "[UNK]", "bos_token": "[CLS]", "eos_token": "[SEP]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=inputs,
        **names,
        **({"pad_token": "[PAD]"} if pad else {}),
    ).save_pretrained(folder)


def save_model(folder: Path, family: str, kind: str = "AutoModel", **config: Any) -> None:
    """A model with random values everywhere, biases and norms too."""
    import transformers
    from transformers import AutoConfig

    settings = {
        "vocab_size": len(VOCABULARY),
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 32,
        "max_position_embeddings": 40,
        **config,
    }
    model = getattr(transformers, kind).from_config(AutoConfig.for_model(family, **settings))
    draw = torch.Generator().manual_seed(len(family))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            around = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw) + around)
    model.save_pretrained(folder)


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny BERT."""
    folder = tmp_path_factory.mktemp("models") / "tiny-bert"
    save_model(folder, "bert", pad_token_id=0)
    save_tokenizer(folder, inputs=["input_ids", "token_type_ids", "attention_mask"], pad=True)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny Llama: grouped queries, no padding token."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    save_model(
        folder, "llama", num_key_value_heads=2, bos_token_id=2, eos_token_id=3, pad_token_id=None
    )
    save_tokenizer(folder, inputs=["input_ids", "attention_mask"], pad=False)
    return folder


@pytest.fixture(scope="session")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder of a tiny Llama that predicts tokens, which `llama` does not."""
    folder = tmp_path_factory.mktemp("models") / "tiny-decoder"
    names = {"num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": None}
    save_model(folder, "llama", "AutoModelForCausalLM", **names)
    save_tokenizer(folder, inputs=["input_ids", "attention_mask"], pad=False)
    return folder


# -------------------------------------------------------------------------------------- tasks


def examples(classes: Sequence[str], n: int, seed: int) -> list[dict[str, str]]:
    """Sentences of 3 to 9 words, one of which gives the class away."""
    draw = random.Random(f"{classes} {seed}")
    rows = []
    for index in range(n):
        label = classes[index % len(classes)]
        words = [draw.choice(FILLERS) for _ in range(draw.randrange(2, 9))]
        words.insert(draw.randrange(len(words) + 1), draw.choice(WORDS[label]))
        rows.append({"text": " ".join(words), "label": label})
    return rows


def write_rows(path: Path, rows: Sequence[Mapping[str, str]]) -> Path:
    """The rows as CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_task(folder: Path, classes: Sequence[str], *, train: int = 48, test: int = 36) -> Path:
    """A task folder with three splits."""
    write_rows(folder / "train.csv", examples(classes, train, seed=0))
    write_rows(folder / "validation.csv", examples(classes, 12, seed=1))
    write_rows(folder / "test.csv", examples(classes, test, seed=2))
    return folder


def write_pairs(folder: Path) -> Path:
    """A task about pairs; the second text decides."""
    for split, n, seed in (("train", 32, 0), ("validation", 8, 1), ("test", 24, 2)):
        rows = examples(("neg", "pos"), n, seed)
        paired = [
            {"first": "the film", "second": row["text"], "verdict": row["label"]} for row in rows
        ]
        write_rows(folder / f"{split}.csv", paired)
    return folder


@pytest.fixture(scope="session")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Task folders: ``two`` and ``six`` classes, ``pairs``, and the sources ``shop``, ``trade``."""
    root = tmp_path_factory.mktemp("tasks")
    return SimpleNamespace(
        two=write_task(root / "two", ("neg", "pos")),
        six=write_task(root / "six", tuple(WORDS), train=72, test=48),
        shop=write_task(root / "shop", ("tech", "food")),
        trade=write_task(root / "trade", ("sport", "tech", "money")),
        pairs=write_pairs(root / "pairs"),
    )


# ----------------------------------------------------------------------------- ways of running


@pytest.fixture(autouse=True)
def _own_place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test in a folder of its own, its measurements repeated no more than needed."""
    place = tmp_path_factory.mktemp("place")
    (place / "cwd").mkdir()
    monkeypatch.chdir(place / "cwd")
    monkeypatch.setenv("DELTAKIT_CACHE", str(place / "cache"))
    light(monkeypatch)
    # Drawing takes longer than training these models; the session's finished run does draw.
    nothing = Plot(svg="<svg></svg>", png=b"png")
    monkeypatch.setattr(views, "pareto_plot", lambda *_, **__: nothing)


ONCE = (
    "step_repeats=1,latency_repeats_b1=1,latency_repeats_b8=1,handling_repeats=1,"
    "shape_repeats=1,inspected_repeats=1,curve_points=6"
)
"""A measuring protocol that times each thing once, and evaluates each training on its way."""


def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures each thing once, and leaves the garbage of small models where it is."""
    monkeypatch.setenv(VARIABLE, ONCE)
    monkeypatch.setattr(work, "free_memory", lambda: None)
    monkeypatch.setattr(engines, "DEFAULT", "local")  # starting a process takes longer than a cell


@pytest.fixture(autouse=True, scope="session")
def _one_thread(_threads: None) -> Iterator[None]:
    """Two threads that wait for each other are slower than one on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Ended:
    """What a command did: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def line(self) -> str:
        """The one line of stderr that wrong input gets, with exit code 2."""
        assert self.code == 2, f"exit code {self.code}: {self.out}{self.err}"
        assert len(self.err.splitlines()) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return self.err.strip()


def run_command(*arguments: object) -> Ended:
    """``deltakit ARGUMENTS`` in this process, exit code and both streams included."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["deltakit", *map(str, arguments)])
        patch.setenv("COLUMNS", "140")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main()
            except SystemExit as end:
                code = 0 if end.code is None else end.code
    assert isinstance(code, int), code
    return Ended(code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def deltakit() -> Callable[..., Ended]:
    """Runs the command line in this process."""
    return run_command


SMALL = Budget(epochs=2.0, batch_size=16, max_length=24, lr=1e-2)


@pytest.fixture
def asked(bert: Path, tasks: SimpleNamespace) -> Callable[..., Request]:
    """A request on the tiny BERT; ``methods`` as on the command line, budget fields as they are."""

    def request(methods: str = "lora", **changes: Any) -> Request:
        budget = {key: changes.pop(key) for key in list(changes) if key in vars(SMALL)}
        fields = {
            "model": str(bert),
            "task": str(tasks.two),
            "source_tasks": (str(tasks.shop), str(tasks.trade)),
            "budget": Budget(**{**vars(SMALL), **budget}),
            **changes,
        }
        return Request(methods=tuple(methods.split(",")), **fields)

    return request


@pytest.fixture(scope="session")
def small(bert: Path, tasks: SimpleNamespace) -> list[str]:
    """The options of a small comparison on the tiny BERT."""
    options = {
        "--model": bert,
        "--task": tasks.two,
        "--source-tasks": f"{tasks.shop},{tasks.trade}",
        "--max-train-samples": "all",
        "--max-eval-samples": "all",
        "--epochs": SMALL.epochs,
        "--batch-size": SMALL.batch_size,
        "--max-length": SMALL.max_length,
        "--lr": SMALL.lr,
    }
    return [str(part) for pair in options.items() for part in pair]


@dataclass
class Trainings:
    """Counts the trainings of a run, and lets one of them end badly.

    Attributes:
        count: trainings that were begun.
        bad: by number (the first is 1), what is raised in that training's second step.
    """

    count: int = 0
    bad: dict[int, BaseException] = field(default_factory=dict)

    def wrap(self, train: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, progress: Any, **kwargs: Any) -> Any:
            self.count += 1
            watched = _Raising(self.bad[self.count]) if self.count in self.bad else progress
            return train(*args, progress=watched, **kwargs)

        return counted


class _Raising(Silent):
    def __init__(self, error: BaseException) -> None:
        self.error, self.steps = error, 0

    def advance(self, units: int = 1) -> None:
        self.steps += units
        if self.steps >= 2:
            raise self.error


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    """Watches every training from now on."""
    watch = Trainings()
    monkeypatch.setattr(cell, "train", watch.wrap(cell.train))
    return watch


@contextlib.contextmanager
def apart_in(root: Path) -> Iterator[pytest.MonkeyPatch]:
    """Inside, runs are light, in this process, and have their stores and locks under `root`."""
    with pytest.MonkeyPatch.context() as patch:
        light(patch)
        patch.setenv("DELTAKIT_CACHE", str(root / "cache"))
        yield patch


@pytest.fixture(scope="session")
def apart() -> Callable[[Path], contextlib.AbstractContextManager[pytest.MonkeyPatch]]:
    """For runs that several tests read: `apart_in`."""
    return apart_in


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small: list[str]) -> Iterator[Any]:
    """The main job, undisturbed: adapter, lora and fusion over two source tasks.

    ``.folder`` is its run folder, ``.cache`` the store of first-stage deltas, ``.ended`` what the
    command did, ``.trainings`` how many trainings it took, ``.rows`` its results.csv. Read only.
    """
    root = tmp_path_factory.mktemp("finished")
    watch = Trainings()
    with apart_in(root) as patch:
        patch.setattr(cell, "train", watch.wrap(cell.train))
        ended = run_command(
            "compare", "--methods", "adapter,lora,fusion", *small, "--out", root / "run"
        )
    yield SimpleNamespace(
        folder=root / "run",
        cache=root / "cache",
        ended=ended,
        trainings=watch.count,
        rows=read_results(root / "run"),
    )


def read_results(folder: Path) -> dict[str, dict[str, str]]:
    """The rows of results.csv by method; for one seed."""
    with (folder / "results.csv").open(encoding="utf-8", newline="") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def read_predictions(folder: Path) -> dict[str, str]:
    """The prediction files by name."""
    return {path.name: path.read_text() for path in (folder / "cells").glob("*.predictions.csv")}


def leftovers(folder: Path) -> list[Path]:
    """Temporary files that an interrupted write would leave."""
    return [path for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.fixture(scope="session")
def read() -> SimpleNamespace:
    """How to read a run folder."""
    return SimpleNamespace(results=read_results, predictions=read_predictions, leftovers=leftovers)


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """How the checkpoints and the tasks are made, for tests that need one of their own."""
    return SimpleNamespace(
        model=save_model,
        tokenizer=save_tokenizer,
        task=write_task,
        rows=write_rows,
        lines=write_lines,
        examples=examples,
        vocabulary=VOCABULARY,
    )
