"""One cell: train (or take what is trained), evaluate, measure."""

import dataclasses
import gc
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.adapted import subject_of
from deltakit.compare.measure import hardware as machine
from deltakit.compare.measure.costs import handling_cost, inference_cost, training_cost
from deltakit.compare.measure.diagnostics import diagnose
from deltakit.compare.measure.latency_by_shape import by_shape
from deltakit.compare.plan.lr_search import TUNING_SEED, choose
from deltakit.compare.plan.plan import Cell, Plan, Training, attach_all
from deltakit.compare.plan.request import FULL_PRECISION
from deltakit.compare.records.latency import shape_of
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.records.trial import Choice, Trial
from deltakit.compare.run.context import Workshop
from deltakit.compare.run.learning_curve import JUDGED
from deltakit.compare.run.predict import predict, score
from deltakit.compare.run.train import TrainingFailed, steps_of, train
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.locks import free_first
from deltakit.compare.tasks.kinds import truths
from deltakit.core.method import Role
from deltakit.core.provider import Subject

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURE_UNITS = 30
"""What measuring a cell takes, in training steps, for the time left."""


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
