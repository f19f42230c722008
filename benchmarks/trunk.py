"""The cost of a training step whose lower layers have no delta, and of one that begins above them.

    python benchmarks/trunk.py                    # about three minutes on one thread
    python benchmarks/trunk.py --repeats 30

Each row is a Pfeiffer adapter in all layers, in the upper half alone, in the upper half with the
states below it kept, and a model that has no lower half. Steps are of 16 rows by 64 tokens, run in
turn on one thread, and ratios are to the adapter in all layers: the median over the turns of the
processor's time of the process. The models are of MiniLM's size with random weights, without
dropout, which a kept trunk cannot have below its deltas. The last columns are the forward pass over
the whole step, and the floor by operations without a backward pass in the lower half.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from beside_peft import DECODER, ENCODER
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

import deltakit as dk
from deltakit.compare.measure.timing import Step

LAYERS = 6


def bert(layers: int) -> Any:
    """A sentence classifier of MiniLM's size."""
    none = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = AutoConfig.for_model("bert", **{**ENCODER, **none, "num_hidden_layers": layers})
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def llama(layers: int) -> Any:
    """A small decoder with grouped queries, and a classifier."""
    config = AutoConfig.for_model("llama", **{**DECODER, "num_hidden_layers": layers})
    return AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa")


def llama_lm(layers: int) -> Any:
    """The same with the head that predicts tokens."""
    config = AutoConfig.for_model("llama", **{**DECODER, "num_hidden_layers": layers})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa")


MODELS: dict[str, Callable[[int], Any]] = {
    "BERT, classifier": bert,
    "Llama, classifier": llama,
    "Llama, language model": llama_lm,
}


def batch(model: Any) -> dict[str, Any]:
    """Random tokens; a quarter of the rows is padded to half."""
    ids = torch.randint(1, 4000, (16, 64))
    mask = torch.ones_like(ids)
    mask[::4, 32:] = 0
    labels = (
        ids.masked_fill(mask == 0, -100) if "CausalLM" in type(model).__name__ else ids[:, 0] % 2
    )
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapted(model: Any, *, first: int = 0) -> Any:
    """The model with a Pfeiffer adapter, the lowest layers left out."""
    method: dk.Method = dk.SequentialAdapter()
    dk.attach(model, dk.AdapterDrop(method, first=first) if first else method)
    return model


def forward(step: Step) -> Callable[[], None]:
    """The forward pass of a training step, with its graph."""

    def run() -> None:
        step.model.train()
        step.forward()

    return run


def ratios(actions: list[Callable[[], None]], repeats: int) -> list[float]:
    """Processor time of each action over that of the first, which all take turns with."""
    turns = [[timed(action) for action in actions] for _ in range(repeats + 2)][2:]
    return [statistics.median(turn[i] / turn[0] for turn in turns) for i in range(len(actions))]


def timed(action: Callable[[], None]) -> float:
    """Seconds of the processor."""
    start = time.process_time()
    action()
    return time.process_time() - start


def line(name: str, make: Callable[[int], Any], repeats: int) -> list[str]:
    """The row of a model."""
    models = [adapted(make(LAYERS)), *(adapted(make(LAYERS), first=LAYERS // 2) for _ in range(2))]
    given = batch(models[0])
    steps = [Step(model, given) for model in (*models, adapted(make(LAYERS // 2)))]
    with dk.kept_trunk(models[2]) as trunk:
        _, half, kept, upper, share = ratios([*steps, forward(steps[0])], repeats)
    assert trunk.computed == 1, trunk
    shown = (half, kept, upper, share, share + (1 - share) / 2)
    return [name, *(f"{ratio:.2f}" for ratio in shown)]


def main() -> None:
    """Prints the table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    chosen = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    headers = ("", "half", "half, kept", "upper half alone", "forward", "floor of half")
    table = [line(name, make, chosen.repeats) for name, make in MODELS.items()]
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print(tabulate(table, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
