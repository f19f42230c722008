"""Wrong input: exit code 2, one line that helps, nothing written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as dk

Ask = Callable[..., str]


@pytest.fixture
def refused(deltakit: Callable[..., Any], small: list[str], tmp_path: Path) -> Ask:
    """The one line that a comparison with further options ends with."""

    def ask(*options: object, methods: str = "lora") -> str:
        before = sorted(tmp_path.rglob("*"))
        ended = deltakit("compare", "--methods", methods, *small, *options)
        assert sorted(tmp_path.rglob("*")) == before, "something was written"
        assert ended.out.strip() == ""
        return ended.line

    return ask


def says(line: str, *parts: str) -> None:
    assert line.startswith("deltakit: ")
    for part in parts:
        assert part in line, line


# ------------------------------------------------------------------------------------- methods


@pytest.mark.parametrize(
    ("methods", "parts"),
    [
        ("lroa", ("'lroa'", "Did you mean 'lora'", "deltakit methods")),
        ("lora,adaptor", ("'adaptor'", "Did you mean 'adapter'")),
        ("lora[rnk=4]", ("'rnk'", "rank")),
        ("lora[rank=0]", ("rank", "0")),
        ("lora[rank=two]", ("rank", "'two'")),
        ("lora[rank=4", ("brackets", "lora[rank=4")),
        ("lora]rank=4[", ("brackets",)),
        ("lora[rank]", ("'rank'", "key=value")),
        ("lora[targets=qq]", ("'qq'",)),
        ("lora,lora", ("'lora'", "twice")),
        ("fusion[names=a/b]", ("fusion", "--source-tasks")),
        ("lora+fusion", ("AdapterFusion", "sum")),
        ("adapter[reduction=400]", ("adapter[reduction=400]", "width")),
        (",", ("--methods",)),
    ],
)
def test_methods(methods: str, parts: tuple[str, ...], refused: Ask) -> None:
    says(refused(methods=methods), *parts)


def test_a_site_that_the_model_does_not_have(refused: Ask) -> None:
    line = refused(methods="lora[targets=gate]")
    says(line, "lora[targets=gate]", "ffn.gate")


# ------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--epochs", "0"),
        ("--epochs", "nan"),
        ("--epochs", "inf"),
        ("--seeds", "0"),
        ("--lr", "-1"),
        ("--lr", "inf"),
        ("--batch-size", "0"),
        ("--max-length", "-5"),
        ("--max-train-samples", "0"),
        ("--max-eval-samples", "-1"),
    ],
)
def test_numbers_out_of_range(option: str, value: str, refused: Ask) -> None:
    says(refused(option, value), option.removeprefix("--").replace("-", "_"))


def test_an_unknown_profile(refused: Ask) -> None:
    says(refused("--profile", "papr"), "'papr'", "Did you mean 'paper'", "quick")


@pytest.mark.parametrize(("option", "value"), [("--seeds", "many"), ("--max-train-samples", "x")])
def test_what_is_no_number_at_all(
    option: str, value: str, deltakit: Callable[..., Any], small: list[str]
) -> None:
    ended = deltakit("compare", "--methods", "lora", *small, option, value)
    assert ended.code == 2 and ended.out == ""
    assert option in ended.err and value in ended.err and "Traceback" not in ended.err


def test_too_few_examples_for_every_class(refused: Ask) -> None:
    says(refused("--max-train-samples", "1"), "--max-train-samples")


# --------------------------------------------------------------------------------------- tasks


def test_an_unknown_task(refused: Ask) -> None:
    says(refused("--task", "rotten_tomatos"), "Did you mean 'rotten_tomatoes'", "imdb")


def test_a_task_folder_that_is_missing(refused: Ask, tasks: SimpleNamespace) -> None:
    says(refused("--task", f"{tasks.two}o"), str(tasks.two), "Did you mean")


def test_an_unknown_source_task(refused: Ask) -> None:
    line = refused("--source-tasks", "imbd", methods="fusion")
    says(line, "'imbd'", "Did you mean 'imdb'")


def test_a_missing_column(refused: Ask) -> None:
    says(refused("--text-column", "sentence"), "'sentence'", "'text'", "--text-column")
    says(refused("--label-column", "lable"), "'lable'", "Did you mean 'label'", "--label-column")


def test_a_form_of_files_that_there_is_not(refused: Ask) -> None:
    says(refused("--encoding", "utf-9"), "--encoding utf-9", "latin-1")
    says(refused("--delimiter", ";;"), "--delimiter", "tab")
    says(refused("--columns", "text,label"), "is a header", "--text-column")


def test_an_empty_split(refused: Ask, make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.task(tmp_path / "task", ("neg", "pos"))
    (folder / "test.csv").write_text("text,label\n")
    says(refused("--task", folder), "test", "no rows")


def test_a_label_outside_the_classes(refused: Ask, make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.task(tmp_path / "task", ("neg", "pos"))
    make.rows(folder / "test.csv", [{"text": "a film", "label": "meh"}])
    says(refused("--task", folder), "'meh'", "'neg', 'pos'", "row 1")


def test_a_source_task_that_is_the_target(refused: Ask, tasks: SimpleNamespace) -> None:
    line = refused("--source-tasks", f"{tasks.shop},{tasks.two}", methods="fusion")
    says(line, "'two'", "--source-tasks")


# -------------------------------------------------------------------------------------- models


def test_a_model_folder_that_is_missing(refused: Ask, tmp_path: Path) -> None:
    says(refused("--model", tmp_path / "nothing"), "nothing", "minilm")


def test_an_unknown_shipped_model(refused: Ask) -> None:
    says(refused("--model", "minilmm"), "Did you mean 'minilm'")


def test_a_folder_without_a_config(refused: Ask, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    says(refused("--model", tmp_path / "empty"), "empty", "config.json")


@pytest.mark.parametrize("content", ["{", "{}", '{"model_type": "brt"}', "[]"])
def test_a_config_that_is_none(content: str, refused: Ask, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text(content)
    says(refused("--model", tmp_path / "odd"), "odd")


def copy(bert: Path, folder: Path, *, without: str) -> Path:
    folder.mkdir()
    for file in bert.iterdir():
        if without not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    return folder


@pytest.mark.parametrize("part", ["safetensors", "tokenizer"])
def test_a_checkpoint_that_lacks_a_part(
    part: str, refused: Ask, bert: Path, tmp_path: Path
) -> None:
    folder = copy(bert, tmp_path / "part", without=part)
    says(refused("--model", folder), "part")


def test_an_architecture_that_is_not_known(
    refused: Ask, make: SimpleNamespace, bert: Path, tmp_path: Path
) -> None:
    folder = copy(bert, tmp_path / "strange", without="safetensors")
    (folder / "config.json").unlink()
    make.model(folder, "roberta-prelayernorm")
    says(refused("--model", folder), "roberta-prelayernorm", "deltakit sites")


def test_a_model_that_cannot_classify(
    refused: Ask, make: SimpleNamespace, bert: Path, tmp_path: Path
) -> None:
    folder = copy(bert, tmp_path / "vision", without="safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"}))
    says(refused("--model", folder), "vision", "classify")


@pytest.mark.parametrize(
    ("command", "network"),
    [
        pytest.param("compare", {"HF_HUB_OFFLINE": "1"}, marks=pytest.mark.slow),
        pytest.param("compare", {"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.slow),
        ("sites", {"HF_ENDPOINT": "http://127.0.0.1:9"}),
    ],
)
def test_a_hub_name_without_a_network_is_refused_with_no_second_try(
    command: str, network: dict[str, str], small: list[str], tmp_path: Path
) -> None:
    name = "nobody/nothing-of-the-kind"
    words = {"compare": ["--methods", "lora", *small, "--model", name], "sites": [name]}
    hidden = ("TRANSFORMERS_VERBOSITY", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")
    environment = {k: v for k, v in os.environ.items() if k not in hidden}
    environment |= {**network, "HF_HOME": str(tmp_path / "hub")}
    program = (
        "import sys, time; time.sleep = lambda seconds: sys.exit(f'sleeps for {seconds} s')\n"
        "from deltakit.cli.main import main; main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, command, *words[command]],
        env=environment | {"PYTHONPATH": str(Path(dk.__file__).parents[1])},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert ended.stdout.strip() == ""
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    says(ended.stderr, "nobody/nothing-of-the-kind", "folder")


# ------------------------------------------------------------------------------- the out folder


def test_the_out_folder_of_another_plan(refused: Ask, finished: Any) -> None:
    says(refused("--out", finished.folder), str(finished.folder), "another plan")


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_out_folder_that_is_something_else(kind: str, refused: Ask, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("precious")
    out = tmp_path / "folder" if kind == "folder" else tmp_path / "folder" / "file"
    says(refused("--out", out), str(out), "not a run folder")


# ------------------------------------------------------------------------------ source deltas


def saved(folder: Path, method: dk.Method, *, width: int = 16, layers: int = 2) -> Path:
    """A delta on a tiny BERT."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=32,
    )
    model = BertForSequenceClassification(config)
    dk.attach(model, method)
    dk.save(model, folder)
    return folder


@pytest.mark.parametrize(
    ("method", "shape", "part"),
    [
        (dk.SequentialAdapter(), {"width": 32}, "encoder width=32"),
        (dk.SequentialAdapter(), {"layers": 1}, "encoder layers=1"),
        (dk.SequentialAdapter(placement="houlsby"), {}, "mine"),
        (dk.LoRA(), {}, "mine"),
    ],
    ids=["width", "layers", "placement", "method"],
)
def test_a_source_delta_of_another_shape(
    method: dk.Method, shape: dict[str, int], part: str, refused: Ask, tmp_path: Path
) -> None:
    folder = saved(tmp_path / "delta", method, **shape)
    line = refused("--source-tasks", f"mine={folder}", methods="fusion")
    says(line, "fusion", part)


def test_a_source_delta_that_is_not_there(refused: Ask, tmp_path: Path) -> None:
    line = refused("--source-tasks", f"mine={tmp_path}/none", methods="fusion")
    says(line, "none", "does not exist")


# ------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("epoch: 3\n", "Did you mean 'epochs'"),
        ("- lora\n", "must hold keys"),
        ("methods: [lora\n", "cannot be read"),
        ("", "must hold keys"),
        ("config: other.yaml\n", "'config'"),
        ("epochs: -2\n", "epochs"),
    ],
)
def test_a_config_that_does_not_do(
    content: str, part: str, deltakit: Callable[..., Any], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    says(deltakit("compare", "--methods", "lora", "--config", file).line, part)


def test_a_config_that_is_missing(deltakit: Callable[..., Any], tmp_path: Path) -> None:
    says(deltakit("compare", "--config", tmp_path / "none.yaml").line, "none.yaml")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        (("--bases", "int9"), ("'int9'", "Did you mean 'int8'", "nf4")),
        (("--bases", "fp32,int8", "--compute-dtype", "float8"), ("'float8'", "bfloat16")),
        (("--compute-dtype", "bfloat16"), ("--compute-dtype bfloat16", "add int8, nf4 or fp4")),
    ],
)
def test_bases(options: tuple[str, ...], parts: tuple[str, ...], refused: Ask) -> None:
    says(refused(*options), *parts)


def test_a_base_whose_package_is_missing(refused: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deltakit.models.weights.find_spec", lambda name: None)
    says(refused("--bases", "fp32,nf4"), "'nf4'", "bitsandbytes", 'pip install -e ".[quant]"')


@pytest.mark.parametrize("method", ["gptq", "bitsandbytes"])
def test_a_checkpoint_that_is_quantised_already(
    method: str, deltakit: Callable[..., Any], bert: Path, tmp_path: Path, tasks: SimpleNamespace
) -> None:
    folder = tmp_path / "quantised"
    shutil.copytree(bert, folder)
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": method, "load_in_8bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    ended = deltakit("compare", "--methods", "lora", "--model", folder, "--task", tasks.two)
    assert ended.code == 2 and ended.out.strip() == ""
    says(ended.line, *(("'gptq'", "int8") if method == "gptq" else ("'int8'", "cannot become")))


@pytest.mark.parametrize("value", ["2.5", "[1, 2]", "true"])
def test_a_number_of_seeds_that_is_not_whole(
    value: str, deltakit: Callable[..., Any], small: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"methods: lora\nseeds: {value}\n")
    ended = deltakit("plan", "--config", file, *small)
    assert ended.code == 2, ended.out
    assert "seeds" in ended.err


# ---------------------------------------------------------------------------- other commands


@pytest.mark.parametrize(
    ("command", "part"),
    [
        (("cite", "lroa"), "Did you mean 'lora'"),
        (("summary", "{bert}", "--method", "lroa"), "Did you mean 'lora'"),
        (("summary", "{bert}", "--method", "fusion"), "fusion"),
        (("summary", "{bert}", "--method", "peft:lora"), "a row of a comparison"),
        (("summary", "nothing", "--method", "lora"), "'nothing'"),
        (("sites", "nothing"), "'nothing'"),
        (("report", "{bert}"), "not a run folder"),
        (("report", "nowhere"), "not a run folder"),
        (("plan", "--methods", "lroa"), "Did you mean 'lora'"),
    ],
)
def test_other_commands(
    command: tuple[str, ...], part: str, deltakit: Callable[..., Any], bert: Path
) -> None:
    line = deltakit(*(each.format(bert=bert) for each in command)).line
    assert part.lower() in line.lower(), line


@pytest.mark.parametrize(
    "command", [("comapre",), ("compare",), ("compare", "--metods", "lora"), ("sites",)]
)
def test_usage(command: tuple[str, ...], deltakit: Callable[..., Any]) -> None:
    ended = deltakit(*command)
    assert ended.code == 2
    assert ended.err.strip() and "Traceback" not in ended.err


# ------------------------------------------------------------------ folders that cannot be written


@pytest.mark.parametrize("out", ["file.txt/run", "file.txt"])
def test_a_file_in_the_way_of_the_run_folder(
    deltakit: Callable[..., Any], small: list[str], tmp_path: Path, out: str
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    ended = deltakit("compare", "--methods", "head", *small, "--out", tmp_path / out)
    says(ended.line, "file.txt")
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_a_read_only_disk_is_one_line(
    deltakit: Callable[..., Any],
    small: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from deltakit.compare.store import run_folder

    def read_only(target: Path, text: str) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(target))

    monkeypatch.setattr(run_folder, "write_text", read_only)
    ended = deltakit("compare", "--methods", "head", *small, "--out", tmp_path / "run")
    says(ended.line, "Read-only file system", "run.json", "--out")
