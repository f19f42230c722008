"""Arms that are trained: each goes on from where it stopped, bit for bit.

The learning rate warms up and stays constant after that (Hägele et al. 2024 call it the schedule
whose end need not be known), so that a shorter training is the first part of a longer one. Each
step draws its dropout from its own number, and its examples from the epoch's.

Predictions are those of averaged weights. At a constant rate the last few batches move all arms
together, often to a constant guess; a rate that falls, which the finals have, averages this out.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import deltakit as dk
from deltakit._files import atomic_path
from deltakit.choose.bench import Bench
from deltakit.choose.candidates import Candidate
from deltakit.choose.decide.arms import ArmFacts, Reading, Rung
from deltakit.compare.run.predict import predict
from deltakit.compare.run.train import TrainingFailed
from deltakit.core.provider import AdaptedModel

if TYPE_CHECKING:
    from torch import Tensor, nn

MEGABATCH = 8
"""Batches among which texts are sorted by length."""

CLIP = 1.0
"""The largest norm of all gradients together."""

DECAY = 3
"""The exponent of the averages' weights: step t counts about as t to this power, so that the last
quarter of the steps has two thirds of the weight."""


@dataclass(kw_only=True)
class TrainedArm:
    """A candidate at one learning rate.

    Attributes:
        facts: the facts that are known before it is trained.
        candidate: what is trained.
        bench: base and data.
        folder: where it is stored between rungs.
        warmup: steps in which the rate rises.
        total: steps of the last rung.
    """

    facts: ArmFacts
    candidate: Candidate
    bench: Bench
    folder: Path
    warmup: int
    total: int

    def advance(self, rung: Rung) -> Reading:
        """Trains until the rung's number of steps, and predicts its validation examples."""
        with self.bench.context.device_lock.shared():
            return self._advance(rung)

    def _advance(self, rung: Rung) -> Reading:
        clock = self.bench.clock
        started = clock.now()
        adapted = self.bench.adapted(self.candidate.method, self.candidate.base, self.bench.seed)
        try:
            self._train(adapted, rung)
        except TrainingFailed as error:
            seconds = clock.now() - started
            return Reading(steps=rung.steps, seconds=seconds, predictions=None, reason=str(error))
        task = self.bench.plan.task
        rows = self.bench.encoded("validation").select(range(rung.rows))
        made = predict(adapted.model, rows, task.kind, self.bench.context.processor)
        clock.worked(rows=rung.rows)
        return Reading(steps=rung.steps, seconds=clock.now() - started, predictions=made)

    def _train(self, adapted: AdaptedModel, rung: Rung) -> None:
        model = adapted.model
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not trained:
            return
        optimizer = torch.optim.AdamW(trained.values(), lr=self.facts.lr, weight_decay=0.0)
        state = _State(
            model=model,
            trained=trained,
            averages={name: p.detach().clone() for name, p in trained.items()},
            optimizer=optimizer,
        )
        between = dk.step_callbacks(model)
        # What a method's callbacks remember between steps is not stored: it starts again.
        done = 0 if between.bound else self._restored(state, rung)
        model.train()
        batches = batch_order(self.bench, self.total)
        for step, batch in enumerate(batches):
            if step >= rung.steps:
                break
            if step >= done:
                between_steps = (between.before_update, between.after_update)
                self._step(model, batch, optimizer, step, between_steps)
                average(state.averages, trained, step + 1)
                self.bench.clock.worked(steps=1)
        if not between.bound:
            self._store(state, rung.steps)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(state.averages[name])

    def _step(
        self, model: Any, rows: Sequence[int], optimizer: Any, step: int, between: Any
    ) -> None:
        torch.manual_seed(self.bench.seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = self.facts.lr * min(1.0, (step + 1) / self.warmup)
        train, context = self.bench.rows("train"), self.bench.context
        batch = self.bench.plan.task.kind.collate([train[row] for row in rows], context.processor)
        loss = model(**{key: value.to(context.device) for key, value in batch.items()}).loss
        if not math.isfinite(loss.item()):
            raise TrainingFailed(f"the loss is {loss.item()} at step {step + 1}")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], CLIP)
        before, after = between
        before(step, self.total)
        optimizer.step()
        after(step, self.total)
        optimizer.zero_grad()

    def state_file(self, steps: int) -> Path:
        """The file of the arm after a number of steps."""
        return self.folder / f"{steps}.safetensors"

    def _restored(self, state: _State, rung: Rung) -> int:
        """Takes the arm up where it stopped. Returns how many steps it has taken."""
        from safetensors.torch import load_file

        stored = [int(path.stem) for path in self.folder.glob("[0-9]*.safetensors")]
        done = max((steps for steps in stored if steps <= rung.steps), default=0)
        if done:
            state.take(load_file(self.state_file(done)))
        return done

    def _store(self, state: _State, steps: int) -> None:
        """Stores the arm whole, then removes its earlier states."""
        from safetensors.torch import save_file

        with atomic_path(self.state_file(steps)) as temporary:
            save_file(dict(state.tensors()), temporary)
        for path in self.folder.glob("[0-9]*.safetensors"):
            if int(path.stem) < steps:
                path.unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class _State:
    """Everything that training changes.

    Attributes:
        model: with its buffers.
        trained: the parameters, by name.
        averages: of their values after each step, by name.
        optimizer: with its moments.
    """

    model: nn.Module
    trained: dict[str, nn.Parameter]
    averages: dict[str, Tensor]
    optimizer: torch.optim.Optimizer

    def take(self, stored: Mapping[str, Tensor]) -> None:
        """Copies stored tensors into place."""
        buffers = dict(self.model.named_buffers())
        with torch.no_grad():
            for key, value in stored.items():
                kind, _, name = key.partition(":")
                if kind == "parameter":
                    self.trained[name].copy_(value)
                elif kind == "average":
                    self.averages[name].copy_(value)
                elif kind == "buffer":
                    buffers[name].copy_(value)
        for name, parameter in self.trained.items():
            moments = {
                key: stored[f"{key}:{name}"].to(parameter.device)
                for key in ("exp_avg", "exp_avg_sq")
                if f"{key}:{name}" in stored
            }
            if moments:
                self.optimizer.state[parameter] = {"step": stored[f"step:{name}"], **moments}

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by kind and name; copies, since names may share memory."""
        for name, parameter in self.trained.items():
            yield f"parameter:{name}", parameter.detach().cpu().clone()
            yield f"average:{name}", self.averages[name].detach().cpu().clone()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{key}:{name}", value.detach().cpu().clone()
        for name, buffer in self.model.named_buffers():
            if name.startswith("deltakit."):
                yield f"buffer:{name}", buffer.detach().cpu().clone()


def average(averages: dict[str, Tensor], trained: dict[str, nn.Parameter], step: int) -> None:
    """Adds the weights after a step to their averages, in place.

    These are the averages of polynomial decay (Shamir and Zhang 2013, "Stochastic gradient descent
    for non-smooth optimization"). They hold at every step, so no rung's end need be known.

    Args:
        averages: of the steps before, by name.
        trained: the weights after this step, by name.
        step: counted from 1; the average after the first step is that step's weights.
    """
    with torch.no_grad():
        for name, parameter in trained.items():
            averages[name].lerp_(parameter, (DECAY + 1) / (step + DECAY))


def batch_order(bench: Bench, steps: int) -> Iterator[list[int]]:
    """The training rows of each step: every epoch in another order, texts of like length together.

    It is the same for all arms, and a shorter training has the first part of it.
    """
    size = bench.plan.request.budget.batch_size
    kind, rows = bench.plan.task.kind, bench.rows("train")
    lengths = [kind.size(row) for row in rows]
    left = steps
    for epoch in range(steps):
        if left <= 0:
            return
        batches = shuffled_batches(lengths, size, f"{bench.seed}-{epoch}")
        yield from batches[:left]
        left -= len(batches)


def shuffled_batches(lengths: Sequence[int], size: int, seed: str) -> list[list[int]]:
    """One epoch's batches: a shuffle, sorted by length within `MEGABATCH` batches."""
    generator = random.Random(seed)
    order = list(range(len(lengths)))
    generator.shuffle(order)
    span = MEGABATCH * size
    batches: list[list[int]] = []
    for first in range(0, len(order), span):
        near = sorted(order[first : first + span], key=lambda row: -lengths[row])
        batches += [near[at : at + size] for at in range(0, len(near), size)]
    generator.shuffle(batches)
    return batches
