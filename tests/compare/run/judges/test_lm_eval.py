"""lm-eval on a tiny decoder and tasks that are files: its scores are those of a call by hand."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import deltakit as dk
from deltakit.compare.api import evaluate
from deltakit.compare.run.judges.base import JudgedModel
from deltakit.compare.run.judges.lm_eval import _model, open_ended
from deltakit.compare.store.run_folder import RunFolder
from deltakit.core.spec import parse_method
from deltakit.testing.probes import randomise_deltas

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
    run: Path, files: list[str], decoder: Path, deltakit: Callable[..., Any], read: Any
) -> None:
    from transformers import AutoTokenizer

    both = ",".join(files)
    ended = deltakit("evaluate", run, "--with", "lm-eval", "--tasks", both)
    assert ended.code == 0, ended
    merged = deltakit(
        "evaluate", run, "--with", "lm-eval", "--tasks", both, "--rows", "lora,head", "--merged"
    )
    assert merged.code == 0, merged
    tokenizer = open_ended(AutoTokenizer.from_pretrained(decoder))
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
    for row in ("head", "lora", "adapter"):  # the questions are the comparison's own test split
        own = float(read.results(run)[row]["score"])
        assert scores(run, row)["lm-eval: tiny_endings acc"][0] == f"{own:.4f}"
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
    assert ended.line.startswith(
        "deltakit: --tasks none.yaml: there is no such file. Give the path"
    )


# ------------------------------------------------------------- one text at a time, and by hand

ASKED = (
    ("the film", " great film"),
    ("the actor and the story of the plot", " awful plot"),
    ("a", " the"),
    ("and of the scene", " story of the end"),
    ("the end", " the story"),
)
FIRST = 2  # [CLS], which this tokenizer puts before a text


def likelihood(model: Any, tokenizer: Any, prompt: str, answer: str) -> float:
    """The log-likelihood of the answer's tokens, in a text of its own without padding."""
    plain = {"add_special_tokens": False}
    before = [FIRST, *tokenizer(prompt, **plain)["input_ids"]]
    aim = tokenizer(answer, **plain)["input_ids"]
    with torch.inference_mode():
        logits = model(torch.tensor([[*before, *aim[:-1]]])).logits[0, -len(aim) :]
    each = logits.log_softmax(-1).gather(-1, torch.tensor(aim)[:, None])
    return float(each.sum())


def text(model: Any, tokenizer: Any, prompt: str) -> str:
    """Three tokens that the model writes behind the prompt alone."""
    before = [FIRST, *tokenizer(prompt, add_special_tokens=False)["input_ids"]]
    ids = torch.tensor([before])
    whole = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False
    )
    return str(tokenizer.decode(whole[0, len(before) :], skip_special_tokens=True)).strip()


@pytest.mark.parametrize("spec", ["prompt", "prefix", "mam", "lora", "unipelt", "loreft"])
def test_batches_and_positions_of_a_delta_change_no_score(spec: str, decoder: Path) -> None:
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer

    model = dk.load_base(decoder, task="causal").eval()
    tokenizer = AutoTokenizer.from_pretrained(decoder)
    tokenizer.pad_token = tokenizer.eos_token
    dk.attach(model, parse_method(spec), name="mine")
    randomise_deltas(model)
    judged = JudgedModel(model=model, tokenizer=tokenizer, task="causal", max_length=20)
    harness = _model(judged, 4)
    found = harness.loglikelihood(
        [Instance("loglikelihood", {}, pair, at) for at, pair in enumerate(ASKED)]
    )
    for (value, _), pair in zip(found, ASKED, strict=True):
        assert value == pytest.approx(likelihood(model, tokenizer, *pair), abs=1e-4)
    until = {"until": ["\n"], "max_gen_toks": 3}
    written = harness.generate_until(
        [Instance("generate_until", {}, (pair[0], until), at) for at, pair in enumerate(ASKED)]
    )
    for (prompt, _), each in zip(ASKED, written, strict=True):
        assert each.strip() == text(model, tokenizer, prompt)


def test_a_decoders_tokenizer_puts_no_token_behind_a_prompt(decoder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(decoder)
    opened = open_ended(tokenizer)
    assert tokenizer("the film")["input_ids"] == [FIRST, *opened("the film")["input_ids"][1:], 3]
    assert opened("the film")["input_ids"][0] == FIRST
    assert open_ended(opened) is opened
