"""lm-eval on a tiny decoder and tasks that are files: its scores are those of a call by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import deltakit as dk
from deltakit.compare.api import evaluate
from deltakit.compare.store.run_folder import RunFolder

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("default")

TASKS: dict[str, dict[str, Any]] = {
    "tiny_endings": {
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "tiny_writing": {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 3},
        "metric_list": [{"metric": "exact_match"}],
    },
}


@pytest.fixture
def files(tmp_path: Path, choices: Path) -> list[str]:
    """The YAML files of the tasks."""
    paths = []
    for name, settings in TASKS.items():
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(choices / "test.jsonl")}},
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_target": "answer",
            **settings,
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        paths.append(str(path))
    return paths


def by_hand(model: Any, tokenizer: Any, files: list[str]) -> dict[str, Any]:
    """What lm-eval itself says of a model."""
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4),
        tasks=files,
        task_manager=TaskManager(include_defaults=False),
        log_samples=False,
    )
    return {
        f"{task} {key.removesuffix(',none')}": value
        for task, scores in found["results"].items()
        for key, value in scores.items()
        if key.endswith(",none")
    }


def scores(run: Path, method: str) -> dict[str, tuple[str, str]]:
    """A row's verdicts, as they are printed."""
    folder = RunFolder(run)
    (cell,) = [each for each in folder.run_record().plan.cells if each.method == method]
    return {
        each.title: (f"{each.value:.4f}", f"{each.stderr:.4f}") for each in folder.verdicts(cell.id)
    }


def test_scores_are_those_of_a_call_by_hand_merged_or_not(
    run: Path, files: list[str], decoder: Path, deltakit: Callable[..., Any]
) -> None:
    from transformers import AutoTokenizer

    both = ",".join(files)
    ended = deltakit("evaluate", run, "--with", "lm-eval", "--tasks", both)
    assert ended.code == 0, ended
    merged = deltakit(
        "evaluate", run, "--with", "lm-eval", "--tasks", both, "--rows", "lora,head", "--merged"
    )
    assert merged.code == 0, merged
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.pad_token = tokenizer.eos_token
    model = dk.load_base(decoder, task="causal")
    base = by_hand(model, tokenizer, files)
    folder = RunFolder(run)
    (cell,) = [each for each in folder.run_record().plan.cells if each.method == "lora"]
    kept = folder.kept_delta(cell.id)
    assert kept is not None
    dk.load(model, run / kept.folder)
    adapted = by_hand(model, tokenizer, files)
    names = [name for name in base if not name.endswith("_stderr")]
    assert names == ["tiny_endings acc", "tiny_endings acc_norm", "tiny_writing exact_match"]
    for name in names:
        for found, row in ((base, "head"), (adapted, "lora")):
            told = (f"{found[name]:.4f}", f"{found[f'{name}_stderr']:.4f}")
            assert scores(run, row)[f"lm-eval: {name}"] == told
            assert scores(run, row)[f"lm-eval: {name}, merged"] == told
    assert base["tiny_endings acc"] != adapted["tiny_endings acc"]
    with (run / "judged.csv").open(encoding="utf-8", newline="") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {"head", "lora", "adapter"}


def test_a_limit_is_another_column(run: Path, files: list[str]) -> None:
    found = evaluate(run, "lm-eval", files[:1], rows=("lora",), limit=5, shots=None)
    titles = {each.title for each in found.results.verdicts["lora", "fp32", 0]}
    assert titles == {f"lm-eval: tiny_endings {each}, first 5" for each in ("acc", "acc_norm")}
    (one, _) = found.results.verdicts["lora", "fp32", 0]
    assert (one.examples, one.of, one.merged) == (5, 30, False)
    assert json.loads(json.dumps(one.to_dict()))["version"] == one.version


def test_a_task_that_there_is_not(run: Path, deltakit: Callable[..., Any]) -> None:
    ended = deltakit("evaluate", run, "--with", "lm-eval", "--tasks", "none.yaml")
    assert ended.line == "deltakit: --tasks none.yaml: there is no such file."
