"""One cell: train (or take what is trained), evaluate, measure."""

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import deltakit as dk
from deltakit.compare import machine, measure
from deltakit.compare.costs import handling_cost, inference_cost, training_cost
from deltakit.compare.crew import Solo
from deltakit.compare.desk import Desk, desk_of
from deltakit.compare.diagnose import diagnose
from deltakit.compare.evaluate import collate, predict, score
from deltakit.compare.locks import Lock, free_first
from deltakit.compare.metrics import METRICS
from deltakit.compare.model import BaseChoice, device
from deltakit.compare.pace import JUDGED
from deltakit.compare.plan import FULL_PRECISION, Cell, Member, Plan, Training, attach_all
from deltakit.compare.progress import Lane
from deltakit.compare.schema import CellResult, Predictions
from deltakit.compare.search import TUNING_SEED, Choice, Trial, choose
from deltakit.compare.shapes import by_shape, shape_of
from deltakit.compare.store import DeltaStore, RunFolder, shared_deltas
from deltakit.compare.subject import subject_of
from deltakit.compare.tasks.kinds import Kind, truths
from deltakit.compare.train import TrainingFailed, TrainingRecord, steps_of, train
from deltakit.core.foreign import Subject
from deltakit.core.method import METHODS, Method, Role

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MEASURE_UNITS = 30
"""What measuring a cell takes, in training steps, for the time left."""


@dataclass(kw_only=True)
class Workshop:
    """What the cells of one run share: encoded data, the reference for step times, the stores."""

    plan: Plan
    folder: RunFolder
    progress: Lane
    shared: DeltaStore = field(default_factory=shared_deltas)
    desk: Desk = field(default_factory=lambda: desk_of(device()))
    crew: Solo = field(default_factory=Solo)
    _encoded: dict[tuple[str, str], "Dataset"] = field(default_factory=dict)

    @cached_property
    def tokenizer(self) -> "PreTrainedTokenizerBase":
        """The model's tokenizer."""
        return self.plan.model.tokenizer()

    @property
    def device(self) -> torch.device:
        """Where everything runs."""
        return device()

    def kind(self, task: str) -> Kind:
        """The kind of a task."""
        return self.plan.tasks[task].kind

    def encoded(self, task: str, split: str) -> "Dataset":
        """A split of a task as tokens."""
        if (task, split) not in self._encoded:
            data = getattr(self.plan.tasks[task], split)
            length = self.plan.request.budget.max_length
            self._encoded[task, split] = self.kind(task).encode(data, self.tokenizer, length)
        return self._encoded[task, split]

    def predictions(self, model: "PreTrainedModel", task: str, split: str) -> Predictions:
        """What a model says of a split of a task."""
        return predict(model, self.encoded(task, split), self.kind(task), self.tokenizer)

    def base(self, task: str, seed: int, base: BaseChoice) -> "PreTrainedModel":
        """The base with a head for a task. A fresh one depends on the seed alone."""
        from transformers import set_seed

        set_seed(seed)
        loaded = self.plan.model.load(base, self.kind(task).head, self.tokenizer.pad_token_id)
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

    @cached_property
    def train_batch(self) -> measure.Batch:
        """A batch of typical rows of the training split, with labels."""
        return self._typical("train", self.plan.request.budget.batch_size)

    def inference_batch(self, size: int) -> measure.Batch:
        """A batch of typical rows of the test split, without labels."""
        batch = self._typical("test", size)
        del batch["labels"]
        return batch

    def _typical(self, split: str, size: int) -> measure.Batch:
        task = self.plan.task
        rows = middle(self.encoded(task.name, split), size)
        return collate(rows, task.kind, self.tokenizer, self.device)

    @cached_property
    def reference_step(self) -> measure.Step | None:
        """A training step of full fine-tuning on `train_batch`, in full precision.

        None where an accelerator has no room for it, as it may have for a large decoder in 4 bits.
        """
        try:
            model = self.base(self.plan.task.name, 0, BaseChoice(name=FULL_PRECISION))
            dk.attach(model, ceiling())
            step = measure.Step(model, self.train_batch)
            step()
        except torch.OutOfMemoryError:
            self.folder.note(
                "Full fine-tuning in full precision does not fit into the accelerator's memory: "
                "training steps have no ratio to it."
            )
            return None
        return step

    def member_folder(self, member: Member) -> Path:
        """Where a member's trained delta is."""
        if member.training is not None:
            return self.store_for(member.training).folder(member.training)
        assert member.folder is not None
        return Path(member.folder)

    def store_for(self, training: Training) -> DeltaStore:
        """Source tasks' deltas are kept between runs, the target's belong to the run."""
        return self.folder.deltas() if training.task == self.plan.task.name else self.shared

    def only_here(self, lock: Lock) -> contextlib.AbstractContextManager[None]:
        """Holds a lock, and says so while another worker has it."""
        return lock.held(lambda: self.progress.note("waiting for another worker"))


def ceiling() -> Method:
    """The registered method that trains everything."""
    return next(
        METHODS.get(name).build() for name in METHODS if METHODS.get(name).cls.role is Role.CEILING
    )


def middle(data: "Dataset", size: int) -> "Dataset":
    """`size` rows around the median length."""
    order = sorted(range(len(data)), key=lambda row: len(data[row]["input_ids"]))
    first = max(0, (len(order) - size) // 2)
    return data.select(order[first : first + size])


def units(plan: Plan, training: Training) -> int:
    """Steps of a training."""
    return steps_of(len(plan.tasks[training.task].train), training.budget)


def run_cell(shop: Workshop, cell: Cell) -> tuple[CellResult, Predictions]:
    """Everything that one row of the results says.

    Raises:
        Occupied: it is trained, and others train on the device: it cannot be measured now.
        Exception: whatever went wrong; the caller records it.
    """
    if cell.training is None:
        return _constant(shop, cell)
    training, choice = resolved(shop, cell.training)
    subject, record = trained(shop, training)
    shop.desk.alone()
    shop.progress.note("evaluating")
    predictions = shop.predictions(subject.model, cell.task, "test")
    shop.progress.note("measuring")
    result = dataclasses.replace(
        _scored(shop, cell, predictions),
        lr=training.lr if record.steps else None,
        lr_edge=choice.edge.value or None if record.steps else None,
        trials=len(choice.trials) or None,
        trials_seconds=choice.seconds if choice.trials else None,
        train_seconds=record.seconds,
        train_joules=record.joules,
        stage1_seconds=_stage1_seconds(shop, training),
        train_steps=record.steps,
        train_examples=record.examples,
        final_loss=_mean(record.losses[-10:]),
        machine=machine.joined(record.machine, machine.name()),
        **dataclasses.asdict(subject.counts()),
        **_costs(shop, subject, training),
    )
    beside = {"search": choice.to_plain() if choice.trials else None, **_pace(record)}
    for kind, content in {**beside, **_beside(shop, cell, subject)}.items():
        shop.folder.write_beside(cell, kind, content)
    if training.method.role is Role.CEILING:
        # As large as the base itself, and what it costs on disk is in the result.
        with shop.only_here(shop.folder.deltas().lock(training)):
            shop.folder.deltas().discard(training)
    return result, predictions


def resolved(shop: Workshop, training: Training) -> tuple[Training, Choice]:
    """The training and its members with the rates that trials chose, and the choice.

    Raises:
        SearchFailed: every rate failed.
    """
    members = (m.with_training(lambda its: resolved(shop, its)[0]) for m in training.members)
    training = dataclasses.replace(training, members=tuple(members))
    if len(training.rates) == 1:
        return training, Choice(lr=training.lr, trials=())
    trials = [resolved(shop, trial)[0] for trial in shop.plan.trials(training)]
    found = (_tried(shop, trial) for trial in free_first(trials, shop.folder.trial_lock))
    better = METRICS.get(shop.plan.task.metric).better
    choice = choose(sorted(found, key=lambda trial: trial.lr), better)
    return dataclasses.replace(training, rates=(choice.lr,)), choice


def _tried(shop: Workshop, training: Training) -> Trial:
    """The trial: run now, or taken from the store."""
    with shop.only_here(shop.folder.trial_lock(training)):
        return _trial(shop, training)


def _trial(shop: Workshop, training: Training) -> Trial:
    """A training that fails is a result."""
    stored = shop.folder.trial(training)
    if stored is not None:
        shop.progress.advance(units(shop.plan, training))
        return stored
    try:
        subject, record = trained(shop, training)
    except TrainingFailed as error:
        trial = Trial(lr=training.lr, score=None, reason=reason(error))
    else:
        predictions = shop.predictions(subject.model, training.task, "validation")
        judged = METRICS.get(shop.plan.tasks[training.task].metric).value(predictions)
        trial = Trial(lr=training.lr, score=judged, seconds=record.seconds)
    shop.folder.write_trial(training, trial)
    return trial


def trained(shop: Workshop, training: Training) -> tuple[Subject, TrainingRecord]:
    """The model with a trained method on it: trained now, or taken from the store.

    Raises:
        TrainingFailed: the loss became infinite or NaN, or a member could not be trained.
    """
    members = [member.training for member in training.members if member.training is not None]
    for member in free_first(members, lambda its: shop.store_for(its).lock(its)):
        ensure(shop, member)
    with shop.only_here(shop.store_for(training).lock(training)):
        return _trained(shop, training)


def _trained(shop: Workshop, training: Training) -> tuple[Subject, TrainingRecord]:
    store = shop.store_for(training)
    model = shop.base(training.task, training.seed, training.base)
    record = store.record(training)
    if record is not None:
        subject = subject_of(model, training.method)
        subject.load(store.folder(training))
        shop.progress.advance(record.steps)
        return subject, record
    shop.crew.announce(training)
    subject, record = train_here(shop, training, model)
    store.write(training, record, subject.save)
    return subject, record


def train_here(
    shop: Workshop, training: Training, model: "PreTrainedModel"
) -> tuple[Subject, TrainingRecord]:
    """Trains a method on a fresh base, over members that are in the store.

    Raises:
        TrainingFailed: the loss became infinite or NaN.
    """
    subject = attach_all(model, training, shop.member_folder)
    for note in subject.notes:
        shop.folder.note(note)
    shop.progress.note("training")
    record = train(
        subject.model,
        shop.encoded(training.task, "train"),
        shop.kind(training.task),
        shop.tokenizer,
        budget=training.budget,
        lr=training.lr,
        seed=training.seed,
        progress=shop.progress,
        callbacks=subject.callbacks(),
        judge=_judge(shop, subject, training),
    )
    return subject, record


def _judge(shop: Workshop, subject: Subject, training: Training) -> Callable[[], float] | None:
    """How good the target's model is on the way; trials are judged at their end alone."""
    if training.task != shop.plan.task.name or training.seed == TUNING_SEED:
        return None
    metric = METRICS.get(shop.plan.task.metric)
    whole = shop.encoded(training.task, "validation")
    rows = whole.select(range(min(len(whole), JUDGED)))
    kind = shop.kind(training.task)
    return lambda: metric.value(predict(subject.model, rows, kind, shop.tokenizer))


def ensure(shop: Workshop, training: Training) -> TrainingRecord:
    """A first-stage delta in the store, trained if it is not there."""
    record = shop.store_for(training).record(training)
    return trained(shop, training)[1] if record is None else record


def _pace(record: TrainingRecord) -> dict[str, Any]:
    return {"pace": [dataclasses.asdict(each) for each in record.pace]}


def _constant(shop: Workshop, cell: Cell) -> tuple[CellResult, Predictions]:
    train, test = (shop.encoded(cell.task, split) for split in ("train", "test"))
    constant = shop.kind(cell.task).constant(train, test, shop.tokenizer)
    predictions = Predictions(labels=truths(test), predicted=tuple(constant))
    shop.progress.advance(1)
    return _scored(shop, cell, predictions), predictions


def _scored(shop: Workshop, cell: Cell, predictions: Predictions) -> CellResult:
    result = score(predictions, shop.plan.tasks[cell.task].metric)
    return CellResult(
        method=cell.label,
        base=cell.base,
        task=cell.task,
        seed=cell.seed,
        metric=result.metric,
        score=result.value,
        score_low=result.low,
        score_high=result.high,
        n_test=result.n,
    )


def _stage1_seconds(shop: Workshop, training: Training) -> float | None:
    """None where nothing is composed, or where a member's training is not known."""
    trainings = [member.training for member in training.members]
    records = [None if t is None else shop.store_for(t).record(t) for t in trainings]
    known = [record.seconds for record in records if record is not None]
    return sum(known) if records and len(known) == len(records) else None


def _costs(shop: Workshop, subject: Subject, training: Training) -> dict[str, Any]:
    """Everything that is measured, training first: in the end the method is as it is deployed."""
    ceiling = training.method.role is Role.CEILING
    own_reference = ceiling and training.base.name == FULL_PRECISION
    reference = None if own_reference else shop.reference_step
    found = training_cost(subject, shop.train_batch, reference, shop.device)
    if own_reference:
        found["train_step_vs_full"] = 1.0
    subject.deploy()
    found |= inference_cost(subject, shop.inference_batch(1), shop.inference_batch(8))
    if ceiling:  # loading it is loading a model
        return {**found, "delta_bytes": shop.store_for(training).size(training)}
    return found | handling_cost(subject)


def _beside(shop: Workshop, cell: Cell, subject: Subject) -> dict[str, Any]:
    """What is recorded of a deployed method beside its row."""
    shapes = [shape_of(text) for text in cell.latency]
    head, data = shop.kind(cell.task).head, shop.encoded(cell.task, "test")
    times = by_shape(subject, head, data, shapes, shop.device)
    return {
        "latency": [dataclasses.asdict(each) for each in times],
        "diagnostics": diagnose(subject.model, shop.inference_batch(8)),
    }


def failed(cell: Cell, error: Exception) -> CellResult:
    """The row of a cell that came to nothing."""
    return CellResult(
        method=cell.label,
        base=cell.base,
        task=cell.task,
        seed=cell.seed,
        lr=_given_rate(cell),
        status="failed",
        reason=reason(error),
    )


def _given_rate(cell: Cell) -> float | None:
    """The rate, where it was given and not searched for."""
    if cell.training is None or len(cell.training.rates) > 1:
        return None
    return cell.training.lr


def reason(error: Exception) -> str:
    """One line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(error, TrainingFailed):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"


def clean_up() -> None:
    """Gives the memory of a finished cell back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
