"""The other commands, and what the first one imports."""

import importlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import deltakit as package
from deltakit.cli import sections
from deltakit.cli.main import cli
from deltakit.core.method import METHODS
from deltakit.testing.models import make_model

Run = Callable[..., Any]
importlib.import_module("deltakit.methods")  # fills METHODS
COMMANDS = (
    "compare", "plan", "report", "methods", "list", "show", "copy", "sites", "summary", "convert",
    "cite", "completion",
)  # fmt: skip


def python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter that finds the package."""
    root = str(Path(package.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )


# -------------------------------------------------------------------------------------- start


def test_it_is_a_module_too() -> None:
    ended = python("-m", "deltakit", "--version")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert package.__version__ in ended.stdout


def test_help_loads_click_and_nothing_else() -> None:
    """Modules, not seconds: what is imported decides how soon the help is there."""
    probe = (
        "import sys; before = set(sys.modules); sys.argv = ['deltakit', '--help']\n"
        "from deltakit.cli.main import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "loaded = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print('loaded:', sorted(loaded - set(sys.stdlib_module_names)))\n"
        "print('rooms:', sorted({'.'.join(name.split('.')[:2]) for name in sys.modules"
        " if name.startswith('deltakit.')}))"
    )
    ended = python("-c", probe)
    assert ended.returncode == 0, ended.stderr
    loaded, rooms = ended.stdout.splitlines()[-2:]
    assert loaded == "loaded: ['click', 'deltakit']"
    assert rooms == "rooms: ['deltakit._files', 'deltakit.cli', 'deltakit.errors']"
    assert ended.stderr == ""


def test_every_command_is_listed_and_explains_itself(deltakit: Run) -> None:
    assert set(cli.commands) >= set(COMMANDS)
    top = deltakit("--help")
    assert top.code == 0
    assert "deltakit compare --methods adapter,lora,fusion" in top.out
    for command in cli.commands:
        assert command in top.out
        ended = deltakit(command, "--help")
        assert ended.code == 0 and ended.err == ""
        assert ended.out.startswith("Usage: ")
        assert len(ended.out.splitlines()) > 4
        assert max(len(line) for line in ended.out.splitlines()) <= 100


def test_help_has_a_section_for_each_command_and_each_option_of_the_long_ones() -> None:
    assert sorted(sum(sections.COMMANDS.values(), ())) == sorted(cli.commands)
    names = sum(sections.OPTIONS.values(), ())
    known = {
        each.name for command in ("compare", "choose") for each in cli.commands[command].params
    }
    assert sorted(names) == sorted(known)


def test_the_version(deltakit: Run) -> None:
    ended = deltakit("--version")
    assert (ended.code, ended.out) == (0, f"deltakit, version {package.__version__}\n")


def test_errors_leave_no_traceback_in_a_process_of_their_own(tmp_path: Path) -> None:
    ended = python("-m", "deltakit.cli.main", "cite", "lroa")
    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1 and "Did you mean 'lora'" in ended.stderr


# ------------------------------------------------------------------------------ methods, cite


def test_methods_lists_every_method_with_its_settings(deltakit: Run) -> None:
    ended = deltakit("methods")
    assert ended.code == 0
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    assert set(METHODS) <= set(lines)
    assert "hu2022lora" in lines["lora"] and "rank=8" in ended.out and "targets=q/v" in ended.out
    assert "houlsby2019parameter" in lines["houlsby"]
    assert "peft:dora[r=8]" in ended.out.splitlines()[-1]


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_can_be_cited(name: str, deltakit: Run) -> None:
    ended = deltakit("cite", name)
    assert ended.code == 0
    entry = ended.out.strip()
    assert entry.startswith("@") and entry.endswith("}")
    assert entry.count("{") == entry.count("}")
    for field in ("title", "author", "year"):
        assert f"{field} =" in entry


def test_settings_and_sums_can_be_cited(deltakit: Run) -> None:
    assert "Hu, Edward" in deltakit("cite", "lora[rank=16]").out
    assert "Unified View" in deltakit("cite", "lora+houlsby").out


def test_tuners_of_peft_can_be_cited(deltakit: Run) -> None:
    pytest.importorskip("peft", reason="PEFT is not installed (extra 'peft')")
    assert "2402.09353" in deltakit("cite", "peft:dora[r=4]").out
    assert "Did you mean 'dora'" in deltakit("cite", "peft:doar").line


# -------------------------------------------------------------------------------------- sites


@pytest.mark.parametrize(
    ("family", "stack", "module"),
    [("bert", "encoder", "attention.self.query"), ("llama", "decoder", "self_attn.q_proj")],
)
def test_sites_of_a_known_model(
    family: str, stack: str, module: str, deltakit: Run, request: pytest.FixtureRequest
) -> None:
    ended = deltakit("sites", request.getfixturevalue(family))
    assert ended.code == 0 and ended.err == ""
    lines = [line.split() for line in ended.out.splitlines()]
    query = next(line for line in lines if "attn.q" in line)
    assert query[0] == stack and query[2].endswith(module)
    assert query[-3:] == ["16", "16", "2"]
    assert {"attn.v", "ffn.up", "block.out"} <= {line[1] for line in lines}
    tokens = next(line for line in lines if line[1] == "tokens")
    assert tokens[0] == "input" and tokens[-4:] == ["input_embeds", "16", "16", "1"]


def test_sites_of_an_unknown_model_are_its_repeated_modules(
    deltakit: Run, make: SimpleNamespace, tmp_path: Path
) -> None:
    make.model(tmp_path / "strange", "roberta-prelayernorm")
    ended = deltakit("sites", tmp_path / "strange")
    assert "roberta-prelayernorm" in ended.line and "infer_family" in ended.line
    assert "encoder.layer.*.attention.self.query" in ended.out
    assert "Linear(in_features=16, out_features=16" in ended.out


def test_sites_that_are_inferred_come_with_their_evidence(
    deltakit: Run, make: SimpleNamespace, tmp_path: Path
) -> None:
    make.model(tmp_path / "strange", "roberta-prelayernorm")
    ended = deltakit("sites", tmp_path / "strange", "--infer")
    assert ended.code == 0
    evidence, _, table = ended.out.partition("\n\n")
    assert "attn.q: attention.self.query, 16 -> 16, by its name" in evidence
    assert "block.out: the layer's output, as attention.LayerNorm is before attention" in evidence
    assert {"attn.q", "ffn.up", "block.out"} <= {line.split()[1] for line in table.splitlines()}
    assert "tokens" not in ended.out  # structure does not say how the model pools


@pytest.mark.parametrize(
    "family, kind, site, counted",
    [
        ("vit", "classify", "encoder ffn.up", "head 51"),
        ("vit", "bare", "encoder ffn.up", "head 0"),
        ("clip", "bare", "vision ffn.up", "head 0"),
        ("whisper", "seq2seq", "cross attn.q", "head 0"),
    ],
)
def test_a_model_is_opened_as_the_class_that_its_config_names(
    family: str, kind: str, site: str, counted: str, deltakit: Run, tmp_path: Path
) -> None:
    model = make_model(family, kind)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(tmp_path)
    sites = deltakit("sites", tmp_path)
    assert sites.code == 0, sites
    assert site.split() in [line.split()[:2] for line in sites.out.splitlines()]
    summary = deltakit("summary", tmp_path, "--method", "lora[rank=2]")
    assert summary.code == 0, summary
    assert summary.out.rstrip().endswith(counted)


def test_the_memory_of_a_model_of_pictures(deltakit: Run, tmp_path: Path) -> None:
    make_model("vit", "classify").config.save_pretrained(tmp_path)
    ended = deltakit("plan", "--memory", "--model", tmp_path, "--methods", "lora")
    assert ended.code == 0, ended
    assert "to classify images: batches of 32 images." in ended.out


# --------------------------------------------------------------------------- summary and plan


def test_a_summary_counts_without_weights(deltakit: Run, bert: Path, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_bytes((bert / "config.json").read_bytes())
    ended = deltakit("summary", tmp_path / "bare", "--method", "lora[rank=4]")
    assert ended.code == 0, ended
    assert "encoder attn.q" in ended.out and "encoder attn.v" in ended.out
    assert f"trained {2 * 2 * 4 * 2 * 16}" in ended.out


def test_a_plan_counts_steps_and_parameters_and_trains_nothing(
    deltakit: Run, small: list[str], tmp_path: Path, finished: Any
) -> None:
    ended = deltakit("plan", "--methods", "adapter,lora,fusion", *small)
    assert ended.code == 0 and ended.err == ""
    lines = {line.split()[0]: line for line in ended.out.splitlines() if line.strip()}
    for method, row in finished.rows.items():
        if method == "majority":
            continue
        assert f" {int(row['trained_params']):,} " in lines[method]
        assert f" {row['train_steps']} " in lines[method]
    assert "shop (6), trade (6)" in lines["fusion"]
    assert "two: 48 training and 36 test examples, 2 classes" in ended.out
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


# ------------------------------------------------------------------------------------- report


def test_a_report_writes_deleted_tables_anew(deltakit: Run, finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    names = ("results.csv", "table.md", "table.tex", "table.html")
    before = {name: (copy / name).read_bytes() for name in names}
    for name in (*names, "report.html", "pareto.png", "pareto.svg"):
        (copy / name).unlink()
    ended = deltakit("report", copy)
    assert ended.code == 0, ended
    assert "fusion" in ended.out and "Score %" in ended.out
    assert {name: (copy / name).read_bytes() for name in names} == before
    assert all((copy / name).is_file() for name in ("report.html", "pareto.png", "pareto.svg"))


def test_a_report_of_a_run_that_was_stopped(deltakit: Run, finished: Any, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished.folder, copy)
    _, *others = cells = sorted((copy / "cells").glob("????????????????.json"))
    for path in others:
        path.unlink()
    assert deltakit("report", copy).code == 0
    assert len((copy / "results.csv").read_text().splitlines()) == 2 <= len(cells)


def test_a_report_before_the_first_cell_is_finished(
    deltakit: Run, finished: Any, tmp_path: Path
) -> None:
    (tmp_path / "copy").mkdir()
    shutil.copy(finished.folder / "run.json", tmp_path / "copy")
    ended = deltakit("report", tmp_path / "copy")
    assert ended.code in (0, 2)
    assert "Traceback" not in ended.err + ended.out


def test_several_runs_are_joined_to_a_new_folder(
    deltakit: Run, finished: Any, tmp_path: Path
) -> None:
    copies = [tmp_path / "a", tmp_path / "b"]
    for copy in copies:
        shutil.copytree(finished.folder, copy)
        (copy / "report.html").unlink()
    assert "name it with --out" in deltakit("report", *copies).line
    ended = deltakit("report", *copies, "--out", tmp_path / "joined")
    assert ended.code == 0, ended
    assert (tmp_path / "joined" / "report.html").is_file()
    assert not any((copy / "report.html").exists() for copy in copies)
    assert "is the folder of a run" in deltakit("report", *copies, "--out", copies[0]).line
