"""What one finished cell of a comparison says, as typed records that survive a trip to disk."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from typing import Any, Literal

Row = tuple[str, str]
"""A method's label, and the base's name."""


SCHEMA_VERSION = 1

Status = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One row of ``results.csv``. What was not measured, or does not exist, is None.

    Times are in milliseconds or seconds as the name says, sizes in bytes. A name with ``_vs_`` is
    the median of ratios between repetitions that ran side by side in one process.
    """

    method: str
    base: str
    task: str
    seed: int
    lr: float | None = None
    status: Status = "done"
    metric: str | None = None
    score: float | None = None
    """On the test split: a fraction where people read per cent, else as the metric has it."""
    score_low: float | None = None
    """Lower end of the 95 % interval over test examples."""
    score_high: float | None = None
    n_test: int | None = None
    trained_params: int | None = None
    """Parameters that training changes, the task head left out."""
    trained_pct: float | None = None
    """`trained_params` in per cent of all parameters of the base, embeddings included."""
    deployed_params: int | None = None
    """Parameters that must be kept beside the base to run it, the task head left out."""
    head_params: int | None = None
    delta_bytes: int | None = None
    """Bytes on disk of the saved delta, the task head included."""
    base_bytes: int | None = None
    train_step_ms: float | None = None
    """Median of one forward, backward and optimiser step."""
    train_step_vs_full: float | None = None
    """Median ratio to a step of full fine-tuning, measured in alternation."""
    train_peak_bytes: int | None = None
    infer_peak_bytes: int | None = None
    latency_ms_b1: float | None = None
    latency_vs_base_b1: float | None = None
    latency_ms_b8: float | None = None
    latency_vs_base_b8: float | None = None
    merged_latency_vs_base_b1: float | None = None
    train_seconds: float | None = None
    """The whole of this cell's own training."""
    stage1_seconds: float | None = None
    """Training of the deltas that this cell composes, whether it happened in this run or before."""
    # Columns after those of the contract.
    train_weight_bytes: int | None = None
    train_gradient_bytes: int | None = None
    train_optimizer_bytes: int | None = None
    train_activation_bytes: int | None = None
    train_device_peak_bytes: int | None = None
    """The peak as the device says: what an accelerator's allocator has handed out, or the whole
    process's resident memory on a CPU. It depends on the machine and its libraries."""
    train_joules: float | None = None
    """What the machine's processors took during the training, whoever used them."""
    load_ms: float | None = None
    """Reading the saved delta and putting it on a model beside another one; median."""
    swap_ms: float | None = None
    """Making another delta that is on the model the active one; median."""
    merge_ms: float | None = None
    """Folding the delta into the weights; None where it does not fold."""
    train_steps: int | None = None
    train_examples: int | None = None
    final_loss: float | None = None
    latency_b1_iqr_ms: float | None = None
    train_step_iqr_ms: float | None = None
    lr_edge: str | None = None
    """"low" or "high" where the chosen rate is at an edge of the grid, which may be too narrow."""
    trials: int | None = None
    """Learning rates that were tried; None where there was no search."""
    trials_seconds: float | None = None
    """Training of all trials together."""
    machine: str | None = None
    """What it was trained and measured on; times of different machines do not compare."""
    reason: str | None = None
    """Why the cell failed."""

    def to_dict(self) -> dict[str, Any]:
        """All columns, in order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CellResult:
        """The inverse of `to_dict`; an unknown column raises TypeError."""
        return cls(**data)


COLUMNS = tuple(field.name for field in dataclasses.fields(CellResult))
"""The columns of ``results.csv``, in order."""


Value = int | float | str | tuple[int, ...]
"""A label or a prediction, as the kind of task has it."""


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """Per-example outcome on the test split, in the split's order."""

    labels: tuple[Value, ...]
    predicted: tuple[Value, ...]

    def to_csv(self) -> str:
        """One line an example; each value as JSON, so that it comes back bit for bit."""
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("row", "label", "predicted"))
        pairs = zip(self.labels, self.predicted, strict=True)
        writer.writerows((row, *map(_to_json, pair)) for row, pair in enumerate(pairs))
        return stream.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> Predictions:
        """The inverse of `to_csv`."""
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        return cls(
            labels=tuple(_from_json(row["label"]) for row in rows),
            predicted=tuple(_from_json(row["predicted"]) for row in rows),
        )


def _to_json(value: Value) -> str:
    return json.dumps(value, ensure_ascii=False)


def _from_json(text: str) -> Value:
    value: Any = json.loads(text)
    return tuple(value) if isinstance(value, list) else value
