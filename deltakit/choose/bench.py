"""The bench of a choice: the base, the data, and untrained deltas that are measured on them."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit._imports import code_of
from deltakit.choose.candidates import Candidate
from deltakit.choose.clock import Clock, WallClock
from deltakit.choose.constraints import Constraints, Facts
from deltakit.compare.adapted import TRAINED, adapted_model
from deltakit.compare.measure import timing
from deltakit.compare.measure.memory import inference_memory, training_memory
from deltakit.compare.measure.predicted_memory import Load, predicted_memory
from deltakit.compare.plan.plan import Plan, Training
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.predict import predict, predictions_of
from deltakit.core.method import Method, can_be_summed
from deltakit.core.provider import AdaptedModel, ExternalMethod
from deltakit.errors import DeltakitError
from deltakit.models.processor import pad_token_of
from deltakit.models.source import BaseChoice

if TYPE_CHECKING:
    from datasets import Dataset

TIMED_STEPS = 3
"""Training steps that are timed after one that is not; the quickest counts."""

TIMED_ROWS = 64
"""Validation examples whose evaluation is timed."""

LATENCY_REPEATS = 15
"""Timed forward passes, in alternation with the base's."""

FLOAT_BYTES = 4
"""Bytes of a trained parameter on disk."""


@dataclass(kw_only=True)
class Bench:
    """The shared parts of all arms.

    Attributes:
        plan: the task, the model, the bases and the budget, without methods.
        context: data as tokens.
        seed: of the arms' heads, deltas and order of data.
        clock: what all times are read from.
    """

    plan: Plan
    context: RunContext
    seed: int
    clock: Clock = field(default_factory=WallClock)
    _bases: dict[tuple[BaseChoice, int], Any] = field(default_factory=dict)
    _rows: dict[str, list[Any]] = field(default_factory=dict)

    @property
    def bases(self) -> dict[str, BaseChoice]:
        """The bases by name."""
        return {
            cell.base: cell.training.base for cell in self.plan.cells if cell.training is not None
        }

    @cached_property
    def base_params(self) -> int:
        """Parameters of the model without a head."""
        skeleton = self.plan.model.skeleton(self.plan.task.kind.head)
        return sum(each.numel() for each in skeleton.base_model.parameters())

    def encoded(self, split: str) -> Dataset:
        """A split as tokens."""
        return self.context.encoded(self.plan.task.name, split)

    def rows(self, split: str) -> list[Any]:
        """A split's encoded rows in memory."""
        if split not in self._rows:
            self._rows[split] = list(self.encoded(split))
        return self._rows[split]

    def majority(self, number: int) -> Predictions:
        """The majority's prediction for the first `number` validation examples."""
        kind, rows = self.plan.task.kind, self.encoded("validation").select(range(number))
        constant = kind.majority_prediction(self.encoded("train"), rows, self.context.processor)
        return predictions_of(kind, rows, constant)

    def adapted(self, method: Method, base: BaseChoice, seed: int) -> AdaptedModel:
        """A method, attached to a fresh base. It depends on the seed alone."""
        from transformers import set_seed

        model = self._fresh(base, seed)
        set_seed(seed)
        adapted = adapted_model(model, method)
        adapted.attach()
        adapted.prepare(self.context.first_batches(self.plan.task.name))
        return adapted

    def _fresh(self, base: BaseChoice, seed: int) -> Any:
        """A copy of the base, read from disk once."""
        from transformers import set_seed

        if (base, seed) not in self._bases:
            set_seed(seed)
            pad = pad_token_of(self.context.processor)
            loaded = self.plan.model.load(base, self.plan.task.kind.head, pad)
            loaded.model.config.use_cache = False
            self._bases[base, seed] = loaded.model
        return copy.deepcopy(self._bases[base, seed])

    def training(self, candidate: Candidate, rates: tuple[float, ...], seed: int) -> Training:
        """A training of the candidate, as a comparison has it."""
        template = next(
            cell.training
            for cell in self.plan.cells
            if cell.training is not None and cell.base == candidate.base.name
        )
        return replace(
            template,
            method=candidate.method,
            rates=rates,
            seed=seed,
            code=code_of(candidate.method, self.plan.task.kind),
        )


def facts_of(candidate: Candidate, base_params: int) -> Facts:
    """The facts that counting gives, without a model in memory."""
    counts = candidate.counts
    return Facts(
        trained_params=counts.trained_params,
        deployed_params=counts.deployed_params,
        base_params=base_params,
        disk_bytes=FLOAT_BYTES * (counts.deployed_params + counts.head_params),
        abilities=("merge", "compose", "peft", "adapterhub"),
    )


def measured_facts(
    bench: Bench, candidate: Candidate, facts: Facts, constraints: Constraints
) -> Facts:
    """The facts that the constraints ask for, measured on the untrained delta."""
    adapted = bench.adapted(candidate.method, candidate.base, bench.seed)
    found: dict[str, Any] = {}
    if constraints.must:
        found["abilities"] = abilities_of(adapted, candidate.method)
    if constraints.max_memory is not None:
        found["train_peak_bytes"] = _training_peak(bench, candidate, adapted)
    if constraints.max_infer_memory is not None:
        eight = bench.context.inference_batch(8)
        found["infer_peak_bytes"] = inference_memory(adapted.model, eight)
    if constraints.max_latency is not None:
        one = bench.context.inference_batch(1)
        timed = timing.latency(adapted, one, repeats=LATENCY_REPEATS, warmup=2)
        found["latency"] = timed.vs_base
    return replace(facts, **found)


def _training_peak(bench: Bench, candidate: Candidate, adapted: AdaptedModel) -> int:
    """The predicted bytes of a step on a batch of the longest texts; measured where it cannot be.

    It is predicted on fake tensors, as ``deltakit plan`` does.
    """
    budget, head = bench.plan.request.budget, bench.plan.task.kind.head
    load = Load(batch_size=budget.batch_size, max_length=budget.max_length)
    try:
        found = predicted_memory(
            bench.plan.model,
            candidate.method,
            candidate.base,
            head,
            load,
            device=bench.context.device,
        )
    except DeltakitError:
        return training_memory(timing.Step(adapted.model, bench.context.train_batch)).peak
    return found.training_peak


def abilities_of(adapted: AdaptedModel, method: Method) -> tuple[str, ...]:
    """The abilities of an attached delta, each tried on it.

    It composes where deltas of its kind have a weighted sum.
    """
    external = isinstance(method, ExternalMethod)
    tried = {
        "merge": timing.merge_ms(adapted) is not None,
        "compose": not external and can_be_summed(method),
        "peft": external or _saves(adapted, "peft"),
        "adapterhub": not external and _saves(adapted, "adapterhub"),
    }
    return tuple(name for name, can in tried.items() if can)


def _saves(adapted: AdaptedModel, form: str) -> bool:
    with tempfile.TemporaryDirectory(prefix="deltakit-") as folder:
        try:
            dk.save(adapted.model, Path(folder) / "delta", TRAINED, format=form)
        except DeltakitError:
            return False
    return True


def timed(bench: Bench, method: Method, base: BaseChoice) -> dict[str, float]:
    """Seconds of the untrained delta: ``fixed`` to attach it, a training ``step``, a ``row``."""
    bench.adapted(method, base, bench.seed)  # the first one reads the base from disk
    clock = bench.clock
    started = clock.now()
    adapted = bench.adapted(method, base, bench.seed)
    fixed = 2 * (clock.now() - started)  # what it takes to store an arm is about as much
    step = 0.0
    if any(parameter.requires_grad for parameter in adapted.model.parameters()):
        once = timing.Step(adapted.model, bench.context.train_batch)
        once()  # the first one is slower
        step = min(_step_seconds(once, clock) for _ in range(TIMED_STEPS))
    kind = bench.plan.task.kind
    validation = bench.encoded("validation")
    rows = validation.select(range(min(TIMED_ROWS, len(validation))))
    started = clock.now()
    predict(adapted.model, rows, kind, bench.context.processor)
    clock.worked(rows=len(rows))
    return {
        "fixed": fixed,
        "step": step,
        "row": (clock.now() - started) / max(1, len(rows)),
    }


def _step_seconds(once: timing.Step, clock: Clock) -> float:
    started = clock.now()
    timing.interleave([once], repeats=1, warmup=0)  # waits for the device too
    clock.worked(steps=1)
    return clock.now() - started
