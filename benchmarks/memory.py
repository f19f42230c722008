"""Predicted memory next to measured memory, on the shipped models with their weights.

    python benchmarks/memory.py --models minilm,smollm2 --methods lora,adapter,ia3,prefix

Each line is a method on a base, with or without gradient checkpointing: the peak of a training step
and of a forward pass as `deltakit plan --memory` predicts them, and over these the bytes of real
tensors. Batches are 4 texts of 64 tokens.
"""

import argparse
import gc
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from tabulate import tabulate

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure.memory import inference_memory, training_memory
from deltakit.compare.measure.predicted_memory import Load, predicted_memory
from deltakit.compare.measure.timing import Step
from deltakit.compare.report.number_format import format_bytes
from deltakit.core.method import Method
from deltakit.models.heads import Head, LanguageHead, SequenceHead
from deltakit.models.source import BaseChoice, ModelSource, find_model

HEADERS = ("model", "method", "base", "checkpointed", "training peak", "measured over it")
HEADERS = (*HEADERS, "inference peak", "measured over it")


def real_peaks(
    source: ModelSource, method: Method, base: BaseChoice, head: Head, load: Load
) -> tuple[int, int]:
    """The peak of a training step and of a forward pass on tensors with values."""
    torch.manual_seed(0)
    model: Any = source.load(base, head, pad_token_id=0).model
    model.config.use_cache = False
    ids = torch.randint(5, 1000, (load.batch_size, load.max_length))
    batch = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": head.labels_like(ids),
    }
    adapted = adapted_model(model, method)
    adapted.attach()
    if load.gradient_checkpointing:
        adapted.model.gradient_checkpointing_enable()
    training = training_memory(Step(adapted.model, batch)).peak
    adapted.deploy()
    del batch["labels"]
    return training, inference_memory(adapted.model, batch)


def rows(models: list[str], methods: list[str], bases: list[str]) -> Iterator[tuple[str, ...]]:
    """The lines of the table."""
    for model, label, base, again in itertools.product(models, methods, bases, (False, True)):
        gc.collect()
        gc.disable()  # when cycles are collected would show in a peak
        held = BaseChoice(name=base, dtype="float32" if base == "nf4" else "")
        head: Head = SequenceHead(outputs=2) if model == "minilm" else LanguageHead()
        load = Load(batch_size=4, max_length=64, gradient_checkpointing=again)
        source, method = find_model(model), dk.parse_method(label)
        found = predicted_memory(source, method, held, head, load)
        training, inference = real_peaks(source, method, held, head, load)
        yield (
            *(model, label, base, "yes" if again else "no"),
            *(format_bytes(found.training_peak), f"{training / found.training_peak:.3f}"),
            *(format_bytes(found.inference_peak), f"{inference / found.inference_peak:.3f}"),
        )
        gc.enable()


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--models", default="minilm,smollm2")
    parser.add_argument("--methods", default="lora,adapter,ia3,prefix")
    parser.add_argument("--bases", default="fp32,bf16,nf4")
    asked = parser.parse_args()
    named = (value.split(",") for value in (asked.models, asked.methods, asked.bases))
    found = []
    for row in rows(*named):
        found.append(row)
        print(*row, flush=True)
    print(tabulate(found, HEADERS, tablefmt="pipe", disable_numparse=True))


if __name__ == "__main__":
    main()
