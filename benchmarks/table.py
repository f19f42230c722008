"""README's table beside a plain script that trains the same cells, one after another.

    python benchmarks/table.py                          # minutes, on two cores
    python benchmarks/table.py --max-train-samples 200  # a small plan
    python benchmarks/table.py --methods lora           # one row of the table
    python benchmarks/table.py --keep parts --part compare   # one half now,
    python benchmarks/table.py --keep parts --part script    # the other half later, and the table

The plain script is `transformers`' `Trainer` alone, one process and one model after another: it
loads, trains, predicts the test split, and counts what is right. It measures nothing and writes no
report. LoRA is `peft`'s. The adapter and the fusion are attached by deltakit, because `peft` has
neither. Both get the same examples, steps, batches of like lengths, rates and seed, and both begin
with an empty store, so that the first stages are trained.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tabulate import tabulate

METHODS = "adapter,lora,fusion"
PARTS = ("compare", "script")


# --------------------------------------------------------------------------- the plain script


def plain(methods: str, settings: dict[str, Any]) -> dict[str, float]:
    """Trains every cell of the plan; accuracies on the test split by label."""
    from deltakit.compare.plan.request import request_of
    from deltakit.compare.plan.resolve import build_plan

    plan = build_plan(request_of(methods, settings))
    scores = {}
    with tempfile.TemporaryDirectory() as name:
        done: set[str] = set()
        for cell, first in plan.stages():
            for training in (*first, cell.training):
                if training is not None and training.id not in done:
                    done.add(training.id)
                    model = trained(plan, training, Path(name))
                    if training is cell.training:
                        scores[cell.label] = accuracy(plan, model, cell.task)
    return scores


def trained(plan: Any, training: Any, deltas: Path) -> Any:
    """A model with the method of a training, trained; a delta that others combine is stored."""
    from transformers import Trainer, TrainingArguments, set_seed

    import deltakit as dk

    set_seed(training.seed)
    task, tokenizer = plan.tasks[training.task], plan.model.tokenizer()
    base = plan.model.load(training.base, task.kind.head, tokenizer.pad_token_id).model
    set_seed(training.seed)
    model = adapted(base, training, deltas)
    data = task.kind.encode(task.train, tokenizer, training.budget.max_length)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            num_train_epochs=training.budget.epochs,
            per_device_train_batch_size=training.budget.batch_size,
            learning_rate=training.lr,
            warmup_steps=training.budget.warmup,
            seed=training.seed,
            data_seed=training.seed,
            train_sampling_strategy="group_by_length",
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        collate = partial(task.kind.collate, tokenizer=tokenizer)
        Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate).train()
    if type(training.method) is dk.SequentialAdapter:
        dk.save(model, deltas / training.id, name="trained")
    return model


def adapted(model: Any, training: Any, deltas: Path) -> Any:
    """The model with a method: peft's LoRA, or what deltakit attaches."""
    import deltakit as dk
    from deltakit.compare.plan.plan import attach_all

    match training.method:
        case dk.LoRA(rank=rank, alpha=alpha):
            from peft import LoraConfig, get_peft_model

            targets = ["query", "value"]
            config = LoraConfig(
                task_type="SEQ_CLS", r=rank, lora_alpha=int(alpha), target_modules=targets
            )
            return get_peft_model(model, config)
        case _:
            attach_all(model, training, lambda member: deltas / member.id)
            return model


def accuracy(plan: Any, model: Any, name: str) -> float:
    """The part of the test split that is predicted right, batched by length."""
    import torch

    task, tokenizer = plan.tasks[name], plan.model.tokenizer()
    length = plan.request.budget.max_length
    rows = sorted(
        task.kind.encode(task.test, tokenizer, length), key=lambda row: len(row["input_ids"])
    )
    model.eval()
    right = 0
    for first in range(0, len(rows), 32):
        batch = task.kind.collate(rows[first : first + 32], tokenizer=tokenizer)
        labels = batch.pop("labels")
        with torch.inference_mode():
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(rows)


# ------------------------------------------------------------------------------------ the table


def in_a_process(command: list[str]) -> tuple[float, str]:
    """Seconds that a command takes with an empty store of deltas, and what it prints."""
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "DELTAKIT_CACHE": cache}
        start = time.perf_counter()
        done = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        )
        return time.perf_counter() - start, done.stdout


def kept(folder: Path | None, part: str, measure: Callable[[], Any]) -> Any:
    """What a part has measured: now, or in an earlier call that kept it in the folder."""
    file = None if folder is None else folder / f"{part}.json"
    if file is not None and file.exists():
        return json.loads(file.read_text(encoding="utf-8"))
    found = measure()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found), encoding="utf-8")
    return found


def ours(options: list[str]) -> tuple[float, float, dict[str, float]]:
    """Seconds of the command, those of its trainings, and the scores."""
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "run"
        deltakit = [sys.executable, "-m", "deltakit", "compare", "--out", str(out)]
        seconds, _ = in_a_process([*deltakit, *options])
        return seconds, *trainings(out)


def trainings(out: Path) -> tuple[float, dict[str, float]]:
    """Seconds that a run folder's trainings took, and the scores by label."""
    from deltakit.compare.store.run_folder import RunFolder

    folder = RunFolder(out)
    found = (folder.result(cell.id) for cell in folder.run_record().plan.cells)
    rows = {row.method: row for row in found if row is not None and row.train_steps is not None}
    each = {
        row.method: (row.train_seconds or 0.0) + (row.stage1_seconds or 0.0)
        for row in rows.values()
    }
    # A fusion's first stage holds the training of the adapter that is a row itself.
    twice = rows["adapter"].train_seconds or 0.0 if {"adapter", "fusion"} <= {*rows} else 0.0
    return sum(each.values()) - twice, {label: row.score or 0.0 for label, row in rows.items()}


def main() -> None:
    """Runs both and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--max-train-samples", type=int)
    parser.add_argument("--max-eval-samples", type=int)
    parser.add_argument("--plain", action="store_true", help="run the plain script alone")
    parser.add_argument("--part", choices=PARTS, help="measure one of the two alone [both]")
    parser.add_argument("--keep", type=Path, help="a folder that keeps what each part measures")
    given = parser.parse_args()
    if given.part and given.keep is None:
        parser.error("--part needs --keep FOLDER, which the other part reads.")
    limits = {key: getattr(given, key) for key in ("max_train_samples", "max_eval_samples")}
    settings = {key: value for key, value in limits.items() if value is not None}
    if given.plain:
        print(json.dumps(plain(given.methods, settings)))
        return
    options = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    options.append(f"--methods={given.methods}")
    script = [sys.executable, __file__, "--plain", *options]
    measures = {"compare": lambda: ours(options), "script": lambda: in_a_process(script)}
    parts = [given.part] if given.part else [*PARTS]
    found = {part: kept(given.keep, part, measures[part]) for part in parts}
    if given.part and (given.keep / f"{other(given.part)}.json").exists():
        found |= {other(given.part): kept(given.keep, other(given.part), list)}
    if len(found) == len(PARTS):
        report(found["compare"], found["script"])


def other(part: str) -> str:
    """The other of the two parts."""
    return PARTS[1 - PARTS.index(part)]


def report(found: tuple[float, float, dict[str, float]], script: tuple[float, str]) -> None:
    """Prints seconds, shares and scores side by side."""
    seconds, trainings, scores = found
    alone, printed = script
    theirs = json.loads(printed.splitlines()[-1])
    percent: Callable[[float], str] = lambda score: f"{100 * score:.1f} %"  # noqa: E731
    lines = [
        ["seconds", f"{seconds:.0f}", f"{alone:.0f}"],
        ["over the script", f"{seconds / alone:.2f}", "1"],
        ["trainings, of the seconds", f"{trainings / seconds:.2f}", ""],
        *([label, percent(scores[label]), percent(theirs[label])] for label in theirs),
    ]
    print(tabulate(lines, ["", "deltakit compare", "plain script"]))


if __name__ == "__main__":
    main()
