"""How far the comparison's measurements differ from run to run.

    python benchmarks/repeat.py               # about three minutes on two cores
    python benchmarks/repeat.py --runs 10

Every run is a fresh process that measures each method as a cell of a comparison does: a training
step beside one of full fine-tuning, a forward pass beside the bare base's. Bytes must be the same
in all runs. Of ratios the table says how far apart the lowest and the highest are, in per cent of
the median; they should stay below ten on a machine that does nothing else.
"""

import argparse
import multiprocessing
import statistics
import sys
from typing import Any

import torch
from tabulate import tabulate
from transformers import AutoConfig, AutoModelForSequenceClassification

import deltakit as dk
from deltakit.compare.adapted import TRAINED, adapted_model
from deltakit.compare.measure.costs import inference_cost, training_cost
from deltakit.compare.measure.timing import Step
from deltakit.compare.records.protocol import Protocol

ENCODER = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "intermediate_size": 1536,
    "vocab_size": 30522,
    "num_labels": 2,
}
PROTOCOL = Protocol()
METHODS = ("adapter", "lora", "ia3", "prefix", "mam")
RATIOS = (
    "train_step_vs_full",
    "latency_vs_base_b1",
    "latency_vs_base_b8",
    "merged_latency_vs_base_b1",
)


def model() -> Any:
    """An encoder of MiniLM's size with random weights."""
    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", **ENCODER))


def batch(rows: int, *, labels: bool = False) -> dict[str, torch.Tensor]:
    """Random tokens, as long as the sentences of the shipped task are."""
    torch.manual_seed(rows)
    ids = torch.randint(1000, 30000, (rows, 28))
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {**found, "labels": torch.randint(2, (rows,))} if labels else found


def measured(spec: str) -> dict[str, Any]:
    """Everything that a cell measures of a method, in this process."""
    full = model()
    dk.attach(full, dk.FullFineTuning())
    adapted = adapted_model(model(), dk.parse_method(spec))
    adapted.attach()
    train, device = batch(32, labels=True), torch.device("cpu")
    assert list(adapted.model.deltakit.attached) == [TRAINED]
    found = training_cost(adapted, train, Step(full, train), device, PROTOCOL)
    adapted.deploy()
    role = dk.parse_method(spec).role
    return found | inference_cost(adapted, batch(1), batch(8), PROTOCOL, role)


def spread(values: list[float]) -> str:
    """The lowest and the highest value, and how far apart they are."""
    low, high = min(values), max(values)
    apart = 100 * (high - low) / statistics.median(values)
    return f"{low:.3f} to {high:.3f} ({apart:.1f} %)"


def line(spec: str, runs: list[dict[str, Any]]) -> list[str]:
    """A method's row of the table."""
    exact = [key for key in runs[0] if key.endswith("_bytes") and "device" not in key]
    differing = [key for key in exact if len({run[key] for run in runs}) > 1]
    bytes_said = "differ: " + ", ".join(differing) if differing else f"{len(exact)} identical"
    known = [key for key in RATIOS if runs[0][key] is not None]
    words = {key: spread([run[key] for run in runs]) for key in known}
    return [spec, bytes_said, *(words.get(key, "–") for key in RATIOS)]


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    found: dict[str, list[dict[str, Any]]] = {spec: [] for spec in METHODS}
    context = multiprocessing.get_context("spawn")
    for number in range(runs):
        for spec in METHODS:
            with context.Pool(1) as pool:
                found[spec].append(pool.apply(measured, (spec,)))
        print(f"run {number + 1} of {runs}", file=sys.stderr)
    print(tabulate([line(*each) for each in found.items()], ["method", "bytes", *RATIOS]))


if __name__ == "__main__":
    main()
