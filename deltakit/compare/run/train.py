"""Training, the same for every method: transformers' Trainer under one budget."""

import math
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.measure import hardware as machine
from deltakit.compare.measure.hardware import Meter
from deltakit.compare.plan.request import Budget
from deltakit.compare.records.training import TrainingRecord
from deltakit.compare.run import distributed
from deltakit.compare.run.learning_curve import CurveScore, IntermediateEval
from deltakit.compare.run.progress import Lane
from deltakit.errors import DeltakitError
from deltakit.models.processor import Processor
from deltakit.models.source import device

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel

    from deltakit.compare.tasks.kinds import Kind


class TrainingFailed(DeltakitError, RuntimeError):
    """A training that failed, for instance by a loss that is not finite."""


def steps_of(examples: int, budget: Budget) -> int:
    """The number of optimiser steps in the budget."""
    return max(1, math.ceil(math.ceil(examples / budget.batch_size) * budget.epochs))


def train(
    model: "PreTrainedModel",
    data: "Dataset",
    kind: "Kind",
    processor: Processor,
    *,
    budget: Budget,
    lr: float,
    seed: int,
    progress: Lane,
    callbacks: Sequence[Any] = (),
    curve: CurveScore | None = None,
    meter: Meter | None = None,
) -> TrainingRecord:
    """Trains all parameters that require a gradient. Without any it takes no step.

    Args:
        model: with its deltas attached.
        data: as its kind encodes it.
        kind: makes the batches.
        processor: of the model; the kind makes batches with it.
        budget: steps, batch size, schedule.
        lr: the peak learning rate; it warms up, then falls linearly to zero.
        seed: of the order of the examples and of dropout.
        progress: advanced by one at each step.
        callbacks: transformers' callbacks, for methods that do something between steps.
        curve: makes the points of the learning curve; None leaves them out.
        meter: what the training has cost already; by default nothing.

    Raises:
        TrainingFailed: the loss became infinite or NaN.
    """
    from transformers import PrinterCallback

    if not any(parameter.requires_grad for parameter in model.parameters()):
        return TrainingRecord(seconds=0.0, steps=0, examples=0, losses=())
    trainer_class = _trainer_class(progress)
    steps = steps_of(len(data), budget)
    meter = Meter() if meter is None else meter
    with tempfile.TemporaryDirectory(prefix="deltakit-") as scratch:
        with meter.paused():
            trainer = trainer_class(
                model=model,
                args=_arguments(scratch, data, budget, lr, seed),
                train_dataset=data,
                data_collator=lambda rows: kind.collate(rows, processor),
                callbacks=list(callbacks),
            )
            trainer.remove_callback(PrinterCallback)
        watch = None if curve is None else IntermediateEval(steps, curve, meter)
        if watch is not None:
            trainer.add_callback(_watching(watch))
        trainer.train()
        seconds, joules = meter.seconds(), meter.joules()
    return TrainingRecord(
        seconds=seconds,
        joules=joules,
        learning_curve=() if watch is None else tuple(watch.points),
        steps=steps,
        examples=len(data),
        losses=tuple(trainer.losses),
        machine=machine.name(),
    )


def _arguments(folder: str, data: "Dataset", budget: Budget, lr: float, seed: int) -> Any:
    """The settings of the Trainer: the schedule of the budget; nothing is saved or logged."""
    from transformers import TrainingArguments

    steps = steps_of(len(data), budget)
    return TrainingArguments(
        output_dir=folder,
        use_cpu=device().type == "cpu",
        max_steps=steps,
        per_device_train_batch_size=distributed.per_rank_batch_size(budget),
        learning_rate=lr,
        lr_scheduler_type="linear",
        warmup_steps=round(budget.warmup * steps),
        weight_decay=0.0,
        seed=seed,
        data_seed=seed,
        train_sampling_strategy=_sampling(data),
        # A kind's `collate` picks what the model is given.
        remove_unused_columns=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        # It multiplies losses by the number of processes that are a mean already.
        average_tokens_across_devices=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
    )


def _sampling(data: "Dataset") -> str:
    """Texts of like length share a batch: half the padding, the same for every method."""
    return "group_by_length" if "input_ids" in data.column_names else "random"


def _watching(watch: IntermediateEval) -> Any:
    from transformers import TrainerCallback

    class Watching(TrainerCallback):
        """Calls the watch after every step."""

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch.after(state.global_step)

    return Watching()


def _trainer_class(progress: Lane) -> Any:
    """Made in a function, so that importing this file does not import transformers."""
    from transformers import Trainer

    class HarnessTrainer(Trainer):
        """Keeps the losses, stops at the first that is not finite, advances the progress."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments)
            self.losses: list[float] = []

        def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            loss = super().training_step(*args, **kwargs)
            # Of all processes that train together, so that they stop together.
            value = float(self.accelerator.reduce(loss.clone(), reduction="mean"))
            if not math.isfinite(value):
                raise TrainingFailed(
                    f"the loss is {value} at step {len(self.losses) + 1}; try a lower --lr."
                )
            self.losses.append(value)
            progress.advance()
            return loss

    return HarnessTrainer
