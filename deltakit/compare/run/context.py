"""The context of a run: models, encoded data, stores, and the device, shared by its cells."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import deltakit as dk
from deltakit.compare.measure import timing
from deltakit.compare.plan.plan import Member, Plan, Training
from deltakit.compare.plan.request import FULL_PRECISION
from deltakit.compare.records.protocol import Protocol
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.device_lock import DeviceLock, device_lock_for
from deltakit.compare.run.distributed import SingleProcess
from deltakit.compare.run.predict import collate, predict
from deltakit.compare.run.progress import Lane
from deltakit.compare.store.locks import Lock
from deltakit.compare.store.run_folder import DeltaStore, RunFolder, shared_deltas
from deltakit.compare.tasks.kinds import Kind
from deltakit.core.method import METHODS, Method, Role
from deltakit.models.processor import Processor, pad_token_of
from deltakit.models.source import BaseChoice, device

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel


@dataclass(kw_only=True)
class RunContext:
    """The parts of a run that its cells share: data, the reference for step times, the stores."""

    plan: Plan
    folder: RunFolder
    progress: Lane
    shared: DeltaStore = field(default_factory=shared_deltas)
    device_lock: DeviceLock = field(default_factory=lambda: device_lock_for(device()))
    process_group: SingleProcess = field(default_factory=SingleProcess)
    trunk: "dk.TrunkCache" = field(default_factory=lambda: dk.TrunkCache())
    _encoded: dict[tuple[str, str], "Dataset"] = field(default_factory=dict)

    @cached_property
    def processor(self) -> Processor:
        """The tokenizer of the model, or its image processor, as the task's head reads."""
        return self.plan.model.processor(self.plan.task.kind.head)

    @property
    def protocol(self) -> Protocol:
        """The measuring protocol."""
        return self.plan.request.protocol

    @property
    def device(self) -> torch.device:
        """The device of everything in the run."""
        return device()

    def kind(self, task: str) -> Kind:
        """The kind of a task."""
        return self.plan.tasks[task].kind

    def encoded(self, task: str, split: str) -> "Dataset":
        """A split of a task as the model's inputs."""
        if (task, split) not in self._encoded:
            data = getattr(self.plan.tasks[task], split)
            length = self.plan.request.budget.max_length
            encoded = self.kind(task).encode(data, self.processor, length)
            for note in self.kind(task).notes(encoded):
                self.folder.note(f"{task}, {split}: {note}")
            self._encoded[task, split] = encoded
        return self._encoded[task, split]

    def predictions(self, model: "PreTrainedModel", task: str, split: str) -> Predictions:
        """A model's predictions for a split of a task."""
        return predict(model, self.encoded(task, split), self.kind(task), self.processor)

    def base(self, task: str, seed: int, base: BaseChoice) -> "PreTrainedModel":
        """The base with a head for a task. A fresh one depends on the seed alone."""
        from transformers import set_seed

        set_seed(seed)
        loaded = self.plan.model.load(base, self.kind(task).head, pad_token_of(self.processor))
        if loaded.fresh:
            self.folder.note(
                f"{self.plan.model.name}: the checkpoint has no values for "
                f"{', '.join(loaded.fresh)}; they are drawn from the seed, and stay so in every "
                "method that freezes the base."
            )
        # As the Trainer has it, so that what comes from the store is measured like what is trained.
        loaded.model.config.use_cache = False
        set_seed(seed)  # the deltas' initialisation does not depend on what loading draws
        return loaded.model

    def first_batches(self, task: str) -> Iterator[timing.Batch]:
        """Batches of the training split in its own order, for what a method takes from data.

        Each is made when it is read, and a method reads as many as it takes.
        """
        data, kind = self.encoded(task, "train"), self.kind(task)
        size = self.plan.request.budget.batch_size
        for start in range(0, len(data), size):
            rows = data.select(range(start, min(start + size, len(data))))
            yield collate(list(rows), kind, self.processor, self.device)

    @cached_property
    def train_batch(self) -> timing.Batch:
        """A batch of typical rows of the training split, with labels."""
        return self._typical("train", self.plan.request.budget.batch_size)

    def inference_batch(self, size: int) -> timing.Batch:
        """A batch of typical rows of the test split, without labels."""
        return self.plan.task.kind.without_labels(self._typical("test", size))

    def _typical(self, split: str, size: int) -> timing.Batch:
        task = self.plan.task
        rows = middle(self.encoded(task.name, split), size, task.kind)
        return collate(rows, task.kind, self.processor, self.device)

    @cached_property
    def reference_step(self) -> timing.Step | None:
        """A training step of full fine-tuning on `train_batch`, in full precision.

        None where an accelerator has no room for it, as it may have for a large decoder in 4 bits.
        """
        try:
            model = self.base(self.plan.task.name, 0, BaseChoice(name=FULL_PRECISION))
            dk.attach(model, ceiling())
            step = timing.Step(model, self.train_batch)
            step()
        except torch.OutOfMemoryError:
            self.folder.note(
                "Full fine-tuning in full precision does not fit into the accelerator's memory: "
                "training steps have no ratio to it."
            )
            return None
        return step

    def let_trunk_go(self, label: str) -> None:
        """Frees what trainings have kept of a trunk, so that no measurement has it in memory.

        Args:
            label: of the row, for the note.
        """
        kept, self.trunk = self.trunk, dk.TrunkCache()
        passes = "training steps and evaluations" if kept.begun_in_training else "evaluations"
        shorter = " Its training time is shorter by that." if kept.begun_in_training else ""
        if kept.begun:
            self.folder.note(
                f"{label}: {passes} on rows that were seen before began at kept hidden states, "
                f"above the frozen layers without deltas ({kept.rows:,} rows, "
                f"{kept.size / 1e6:,.1f} MB).{shorter}"
            )

    def member_folder(self, member: Member) -> Path:
        """The folder of a member's trained delta."""
        if member.training is not None:
            return self.store_for(member.training).folder(member.training)
        assert member.folder is not None
        return Path(member.folder)

    def store_for(self, training: Training) -> DeltaStore:
        """Source tasks' deltas are kept between runs, the target's belong to the run."""
        return self.folder.deltas() if training.task == self.plan.task.name else self.shared

    def only_here(self, lock: Lock) -> contextlib.AbstractContextManager[None]:
        """Holds a lock; a note shows while another worker holds it."""
        return lock.held(lambda: self.progress.note("waiting for another worker"))


def ceiling() -> Method:
    """The registered method that trains everything."""
    return next(
        METHODS.get(name).build() for name in METHODS if METHODS.get(name).cls.role is Role.CEILING
    )


def middle(data: "Dataset", size: int, kind: Kind) -> "Dataset":
    """`size` rows around the median size."""
    order = sorted(range(len(data)), key=lambda row: kind.size(data[row]))
    first = max(0, (len(order) - size) // 2)
    return data.select(order[first : first + size])
