"""The results of a finished cell, as typed records that come back from disk unchanged."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from deltakit.errors import InvalidConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike, NDArray

Row = tuple[str, str]
"""A method's label, and the base's name."""


SCHEMA_VERSION = 1

Status = Literal["done", "failed"]


@dataclass(frozen=True, kw_only=True)
class CellResult:
    """One row of ``results.csv``. What was not measured, or does not exist, is None.

    Times are in milliseconds or seconds, as in the name, sizes in bytes. A name with ``_vs_`` is
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
    """Parameters that must be kept in addition to the base, the task head left out."""
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
    """The peak that the device reports: what an accelerator's allocator has handed out, or all the
    resident memory of the process on a CPU. It depends on the machine and its libraries."""
    train_joules: float | None = None
    """Energy that the machine's processors took during the training, other programs included."""
    load_ms: float | None = None
    """Reading the saved delta and attaching it to a model that has another one; median."""
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
    # How often a ratio was measured, and its 95 % interval over the repetitions.
    train_step_repeats: int | None = None
    train_step_vs_full_low: float | None = None
    train_step_vs_full_high: float | None = None
    latency_b1_repeats: int | None = None
    latency_vs_base_b1_low: float | None = None
    latency_vs_base_b1_high: float | None = None
    latency_b8_repeats: int | None = None
    latency_vs_base_b8_low: float | None = None
    latency_vs_base_b8_high: float | None = None
    merged_latency_b1_repeats: int | None = None
    merged_latency_vs_base_b1_low: float | None = None
    merged_latency_vs_base_b1_high: float | None = None
    forgotten: float | None = None
    """The change that the delta makes to how a general text is read; higher is worse."""
    forgotten_low: float | None = None
    """Lower end of the 95 % interval over passages."""
    forgotten_high: float | None = None
    forgotten_kind: str | None = None
    """The measure: a key of `deltakit.compare.records.forgotten.MEASURES`."""
    forgotten_base: float | None = None
    """The loss of the base alone, of which `forgotten` is the change."""

    def to_dict(self) -> dict[str, Any]:
        """All columns, in order."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CellResult:
        """The inverse of `to_dict`; an unknown column raises TypeError."""
        return cls(**data)


COLUMNS = tuple(field.name for field in dataclasses.fields(CellResult))
"""The columns of ``results.csv``, in order."""


Value = int | float | str | tuple[int | float | str, ...]
"""A label or a prediction, as the kind of task has it. Tuples may differ in length."""


class Scores:
    """The probabilities of classes or labels, one row an example. It is hashable, and read-only.

    Args:
        rows: numbers of shape (examples, classes).

    Raises:
        InvalidConfig: they have another shape.
    """

    array: NDArray[np.float64]

    def __init__(self, rows: ArrayLike) -> None:
        import numpy as np

        # A training that diverges gives NaN, which is reported where its loss is looked at.
        self.array = np.array(rows, dtype=np.float64)
        self.array.setflags(write=False)
        if self.array.ndim != 2:
            raise InvalidConfig(
                f"scores of shape {self.array.shape} are not one number for each example and "
                "class. Give an array of shape (examples, classes)."
            )

    def __len__(self) -> int:
        return len(self.array)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Scores) or self.array.shape != other.array.shape:
            return False
        return self.array.tobytes() == other.array.tobytes()

    @cached_property
    def _hash(self) -> int:
        return hash((self.array.shape, self.array.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __repr__(self) -> str:
        return f"Scores(<{self.array.shape[0]} x {self.array.shape[1]}>)"

    def to_bytes(self) -> bytes:
        """The content of a ``.npy`` file, from which they come back bit for bit."""
        import numpy as np

        stream = io.BytesIO()
        np.save(stream, self.array, allow_pickle=False)
        return stream.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Scores:
        """The inverse of `to_bytes`; other content raises ValueError."""
        import numpy as np

        return cls(np.load(io.BytesIO(content), allow_pickle=False))


@dataclass(frozen=True, kw_only=True)
class Predictions:
    """The outcome for each example of the test split, in the split's order.

    Attributes:
        labels: what is right.
        predicted: what the model predicts.
        scores: the probabilities of the classes or labels; None where the kind of task has none,
            and in folders of deltakit 0.1 before it kept them.
        classes: the names of the classes or labels, in the order of their ids.

    Raises:
        InvalidConfig: `scores` are not of as many examples.
    """

    labels: tuple[Value, ...]
    predicted: tuple[Value, ...]
    scores: Scores | None = None
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.scores is not None and len(self.scores) != len(self.labels):
            raise InvalidConfig(
                f"scores of {len(self.scores)} examples do not fit {len(self.labels)} labels. Run "
                "this cell again: its files are not from one evaluation."
            )

    def to_csv(self) -> str:
        """The labels and predictions, one line an example.

        Each value is written as JSON, so that it comes back bit for bit.
        """
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("row", "label", "predicted"))
        pairs = zip(self.labels, self.predicted, strict=True)
        writer.writerows((row, *map(_to_json, pair)) for row, pair in enumerate(pairs))
        return stream.getvalue()

    @classmethod
    def from_csv(cls, text: str) -> Predictions:
        """The inverse of `to_csv`, without scores."""
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
