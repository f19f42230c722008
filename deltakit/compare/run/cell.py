"""One cell: train (or take what is trained), evaluate, measure."""

import dataclasses
import gc
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.adapted import adapted_model
from deltakit.compare.measure import hardware as machine
from deltakit.compare.measure.costs import handling_cost, inference_cost, training_cost
from deltakit.compare.measure.diagnostics import diagnose
from deltakit.compare.measure.forgetting import batches_of, forgetting, way_for
from deltakit.compare.measure.hardware import Meter
from deltakit.compare.measure.latency_by_shape import by_shape
from deltakit.compare.plan.lr_search import TUNING_SEED, choose
from deltakit.compare.plan.plan import Cell, Plan, Training, attach_all
from deltakit.compare.plan.request import FULL_PRECISION
from deltakit.compare.records.kept_delta import KeptDelta
from deltakit.compare.records.latency import shape_of
from deltakit.compare.records.result import CellResult, Predictions
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.records.trial import Choice, Trial
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.learning_curve import CurveScore
from deltakit.compare.run.predict import predict, predictions_of, score
from deltakit.compare.run.train import TrainingFailed, steps_of, train
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.locks import free_first
from deltakit.core.method import Role, method_to_dict
from deltakit.core.provider import AdaptedModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MEASURE_UNITS = 30
"""What measuring a cell takes, in training steps, for the time left."""


def step_count(plan: Plan, training: Training) -> int:
    """Steps of a training."""
    return steps_of(len(plan.tasks[training.task].train), training.budget)


def run_cell(context: RunContext, cell: Cell) -> tuple[CellResult, Predictions]:
    """One row of the results, with its predictions.

    Raises:
        DeviceBusy: it is trained, and others train on the device: it cannot be measured now.
        Exception: whatever went wrong; the caller records it.
    """
    if cell.training is None:
        return _constant(context, cell)
    training, choice = with_chosen_rate(context, cell.training)
    adapted, record = get_trained(context, training)
    context.let_trunk_go(cell.label)
    context.device_lock.upgrade()
    context.progress.note("evaluating")
    predictions = context.predictions(adapted.model, cell.task, "test")
    context.progress.note("measuring")
    forgotten = _forgotten(context, cell.task, training, adapted)
    result = dataclasses.replace(
        _scored(context, cell, predictions),
        lr=training.lr if record.steps else None,
        lr_edge=choice.edge.value or None if record.steps else None,
        trials=len(choice.trials) or None,
        trials_seconds=choice.seconds if choice.trials else None,
        train_seconds=record.seconds,
        train_joules=record.joules,
        stage1_seconds=_stage1_seconds(context, training),
        train_steps=record.steps,
        train_examples=record.examples,
        final_loss=_mean(record.losses[-10:]),
        machine=machine.joined(record.machine, machine.name()),
        **dataclasses.asdict(adapted.counts()),
        **forgotten,
        **_costs(context, adapted, training),
    )
    extras = {
        "search": choice.to_plain() if choice.trials else None,
        "delta": _kept_delta(context, training),
        **_learning_curve(record),
    }
    for kind, content in {**extras, **_extras(context, cell, adapted)}.items():
        context.folder.write_extra(cell, kind, content)
    if training.method.role is Role.CEILING:
        # As large as the base itself, and what it costs on disk is in the result.
        with context.only_here(context.folder.deltas().lock(training)):
            context.folder.deltas().discard(training)
    return result, predictions


def with_chosen_rate(context: RunContext, training: Training) -> tuple[Training, Choice]:
    """The training and its members with the rates that trials chose, and the choice.

    Raises:
        SearchFailed: every rate failed.
    """
    members = (
        m.with_training(lambda its: with_chosen_rate(context, its)[0]) for m in training.members
    )
    training = dataclasses.replace(training, members=tuple(members))
    if len(training.rates) == 1:
        return training, Choice(lr=training.lr, trials=())
    trials = [with_chosen_rate(context, trial)[0] for trial in context.plan.trials(training)]
    found = (
        _trial_locked(context, trial) for trial in free_first(trials, context.folder.trial_lock)
    )
    direction = METRICS.get(context.plan.task.metric).direction
    choice = choose(sorted(found, key=lambda trial: trial.lr), direction)
    return dataclasses.replace(training, rates=(choice.lr,)), choice


def _trial_locked(context: RunContext, training: Training) -> Trial:
    """The trial: run now, or taken from the store."""
    with context.only_here(context.folder.trial_lock(training)):
        return _run_trial(context, training)


def _run_trial(context: RunContext, training: Training) -> Trial:
    """A training that fails is a result."""
    stored = context.folder.trial(training)
    if stored is not None:
        return stored
    try:
        adapted, record = get_trained(context, training)
    except TrainingFailed as error:
        trial = Trial(lr=training.lr, score=None, reason=error_line(error))
    else:
        with adapted.kept_trunk(context.trunk):
            predictions = context.predictions(adapted.model, training.task, "validation")
        judged = METRICS.get(context.plan.tasks[training.task].metric).value(predictions)
        trial = Trial(lr=training.lr, score=judged, seconds=record.seconds)
    context.folder.write_trial(training, trial)
    return trial


def get_trained(context: RunContext, training: Training) -> tuple[AdaptedModel, TrainingRecord]:
    """The model with a trained method on it: trained now, or taken from the store.

    Raises:
        TrainingFailed: the loss became infinite or NaN, or a member could not be trained.
    """
    members = [member.training for member in training.members if member.training is not None]
    for member in free_first(members, lambda its: context.store_for(its).lock(its)):
        ensure_trained(context, member)
    with context.only_here(context.store_for(training).lock(training)):
        return _load_or_train(context, training)


def _load_or_train(context: RunContext, training: Training) -> tuple[AdaptedModel, TrainingRecord]:
    store = context.store_for(training)
    model = context.base(training.task, training.seed, training.base)
    record = store.record(training)
    if record is not None:
        adapted = adapted_model(model, training.method)
        adapted.load(store.folder(training))
        return adapted, record
    context.process_group.broadcast(training)
    adapted, record = train_now(context, training, model)
    store.write(training, record, adapted.save)
    return adapted, record


def train_now(
    context: RunContext, training: Training, model: "PreTrainedModel"
) -> tuple[AdaptedModel, TrainingRecord]:
    """Trains a method on a fresh base, over members that are in the store.

    Raises:
        TrainingFailed: the loss became infinite or NaN.
    """
    adapted = attach_all(model, training, context.member_folder)
    for note in adapted.notes:
        context.folder.note(note)
    curve = _curve(context, adapted, training)
    context.progress.note("training")
    meter = Meter()
    adapted.prepare(context.first_batches(training.task))
    with adapted.kept_trunk(context.trunk):
        record = train(
            adapted.model,
            context.encoded(training.task, "train"),
            context.kind(training.task),
            context.processor,
            budget=training.budget,
            lr=training.lr,
            seed=training.seed,
            progress=context.progress,
            callbacks=adapted.callbacks(),
            curve=curve,
            meter=meter,
        )
    return adapted, record


def _curve(context: RunContext, adapted: AdaptedModel, training: Training) -> CurveScore | None:
    """The learning curve of a training on the target task; trials have none."""
    trial = training.seed == TUNING_SEED
    if trial or training.task != context.plan.task.name or not context.protocol.curve_points:
        return None
    metric = METRICS.get(context.plan.task.metric)
    whole = context.encoded(training.task, "validation")
    rows = whole.select(range(min(len(whole), context.protocol.curve_rows)))
    kind = context.kind(training.task)
    return CurveScore(
        score=lambda: metric.value(predict(adapted.model, rows, kind, context.processor)),
        points=context.protocol.curve_points,
    )


def ensure_trained(context: RunContext, training: Training) -> TrainingRecord:
    """A first-stage delta in the store, trained if it is not there."""
    record = context.store_for(training).record(training)
    return get_trained(context, training)[1] if record is None else record


def _kept_delta(context: RunContext, training: Training) -> dict[str, Any] | None:
    """The record by which the delta is loaded again; None for the ceiling's, which is not kept."""
    if training.method.role is Role.CEILING:
        return None
    head, folder = context.kind(training.task).head, context.folder.deltas().folder(training)
    return KeptDelta(
        folder=folder.relative_to(context.folder.path).as_posix(),
        method=method_to_dict(training.method),
        weights=training.base.name,
        dtype=training.base.dtype,
        task=head.task,
        outputs=head.outputs,
        problem=head.problem,
    ).to_dict()


def _learning_curve(record: TrainingRecord) -> dict[str, Any]:
    return {"pace": [dataclasses.asdict(each) for each in record.learning_curve]}


def _constant(context: RunContext, cell: Cell) -> tuple[CellResult, Predictions]:
    train, test = (context.encoded(cell.task, split) for split in ("train", "test"))
    kind = context.kind(cell.task)
    constant = kind.majority_prediction(train, test, context.processor)
    predictions = predictions_of(kind, test, constant)
    context.progress.advance(1)
    return _scored(context, cell, predictions), predictions


def _scored(context: RunContext, cell: Cell, predictions: Predictions) -> CellResult:
    result = score(predictions, context.plan.tasks[cell.task].metric)
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


def _stage1_seconds(context: RunContext, training: Training) -> float | None:
    """None where nothing is composed, or where a member's training is not known."""
    trainings = [member.training for member in training.members]
    records = [None if t is None else context.store_for(t).record(t) for t in trainings]
    known = [record.seconds for record in records if record is not None]
    return sum(known) if records and len(known) == len(records) else None


def _costs(context: RunContext, adapted: AdaptedModel, training: Training) -> dict[str, Any]:
    """Everything that is measured, training first: in the end the method is as it is deployed."""
    role, protocol = training.method.role, context.protocol
    ceiling = role is Role.CEILING
    own_reference = ceiling and training.base.name == FULL_PRECISION
    reference = None if own_reference else context.reference_step
    found = training_cost(adapted, context.train_batch, reference, context.device, protocol)
    if own_reference:
        found["train_step_vs_full"] = 1.0
    adapted.deploy()
    one, eight = context.inference_batch(1), context.inference_batch(8)
    found |= inference_cost(adapted, one, eight, protocol, role)
    if ceiling:  # loading it is loading a model
        return {**found, "delta_bytes": context.store_for(training).size(training)}
    return found | handling_cost(adapted, protocol)


def _forgotten(
    context: RunContext, task: str, training: Training, adapted: AdaptedModel
) -> dict[str, Any]:
    """How the general text is read with the delta and without it, before anything is merged."""
    text, tokenizer = context.plan.general, context.processor
    if text is None:
        return {}
    try:
        head = context.kind(task).head
        way = way_for(head, context.plan.model, training.base, tokenizer)
        found = forgetting(adapted, way, batches_of(way, text, tokenizer, context.device))
    except torch.OutOfMemoryError:
        context.folder.note(
            "The general text does not fit into the accelerator's memory: what some rows have "
            "forgotten is not known."
        )
        return {}
    return {} if found is None else found.columns()


def _extras(context: RunContext, cell: Cell, adapted: AdaptedModel) -> dict[str, Any]:
    """The extra records of a deployed method."""
    protocol = context.protocol
    head, data = context.kind(cell.task).head, context.encoded(cell.task, "test")
    shapes = [shape_of(text) for text in cell.latency]
    if shapes and "input_ids" not in data.column_names:
        context.folder.note("Latency by shape is of tokens: this kind of task has none.")
        shapes = []
    times = by_shape(adapted, head, data, shapes, context.device, protocol)
    inspected = context.inference_batch(protocol.inspected_texts)
    return {
        "latency": [dataclasses.asdict(each) for each in times],
        "diagnostics": diagnose(adapted.model, inspected, repeats=protocol.inspected_repeats),
    }


def failed(cell: Cell, error: Exception) -> CellResult:
    """The row of a cell that failed."""
    return CellResult(
        method=cell.label,
        base=cell.base,
        task=cell.task,
        seed=cell.seed,
        lr=_given_rate(cell),
        status="failed",
        reason=error_line(error),
    )


def _given_rate(cell: Cell) -> float | None:
    """The rate, where it was given and not searched for."""
    if cell.training is None or len(cell.training.rates) > 1:
        return None
    return cell.training.lr


def error_line(error: Exception) -> str:
    """The reason on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    if isinstance(error, TrainingFailed):
        return text
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in text:
        return f"out of memory: {text}"
    return f"{type(error).__name__}: {text}"


def free_memory() -> None:
    """Gives the memory of a finished cell back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
