"""The cells of a comparison: every row on every base at every seed, with what trains it."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit._imports import code_of
from deltakit.compare.plan.draft import Draft
from deltakit.compare.plan.lr_search import rates
from deltakit.compare.plan.plan import CONSTANT, Cell, Member, Training
from deltakit.compare.records.latency import shape_of
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks.general import identity_of
from deltakit.core.method import CombiningMethod, Method, Role
from deltakit.models.source import BaseChoice, ModelSource
from deltakit.models.weights import Floating

if TYPE_CHECKING:
    from deltakit.compare.tasks.task import TaskData
    from deltakit.models.weights import WeightFormat


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Rows by bases by seeds.

    Attributes:
        draft: what was asked for, fitted to the model.
        model: the pretrained model.
        bases: the weight formats that it is held in.
    """

    draft: Draft
    model: ModelSource
    bases: Mapping[BaseChoice, "WeightFormat"]

    def cells(self) -> Iterator[Cell]:
        """All cells, seed by seed, the constant prediction first."""
        for seed in range(self.draft.request.seeds):
            yield self._cell(CONSTANT, next(iter(self.bases)), seed)
            for label, method in self.draft.methods.items():
                for base in self._bases_of(method):
                    yield self._cell(label, base, seed, self._row(label, base, seed))

    def _bases_of(self, method: Method) -> Iterator[BaseChoice]:
        return (choice for choice, base in self.bases.items() if has_row(method, base))

    def _cell(
        self, label: str, base: BaseChoice, seed: int, training: Training | None = None
    ) -> Cell:
        request, target = self.draft.request, self.draft.target
        return Cell(
            label=label,
            base=base.name,
            seed=seed,
            task=target.name,
            task_fingerprint=target.fingerprint,
            model_fingerprint=self.model.fingerprint,
            max_eval_samples=request.budget.max_eval_samples,
            training=training,
            latency=tuple(str(shape_of(text)) for text in request.latency),
            code=code_of(target.kind, METRICS.get(target.metric)),
            general=identity_of(self.draft.general),
        )

    def _row(self, label: str, base: BaseChoice, seed: int) -> Training:
        """The training of a row, on the target task for the row's own number of epochs."""
        budget = self.draft.request.budget
        budget = dataclasses.replace(budget, epochs=self.draft.epochs.get(label, budget.epochs))
        method = self.draft.methods[label]
        members: tuple[Member, ...] = ()
        if isinstance(method, CombiningMethod):
            members = tuple(self._members(method.member, base, seed))
            method = dataclasses.replace(method, names=tuple(each.name for each in members))
        training = self._training(method, base, self.draft.target, seed)
        return dataclasses.replace(training, budget=budget, members=members)

    def _members(self, method: Method, base: BaseChoice, seed: int) -> Iterator[Member]:
        """The deltas that are trained already, and one for each first-stage task."""
        for name, folder in self.draft.folders.items():
            yield Member(name=delta_name(name), folder=folder)
        for data in (*self.draft.sources.values(), self.draft.target):
            training = self._training(method, base, data, seed)
            yield Member(name=delta_name(data.name), training=training)

    def _training(self, method: Method, base: BaseChoice, data: "TaskData", seed: int) -> Training:
        """A training under the table's budget."""
        request = self.draft.request
        searched = rates(request.trials, request.lr_grid) if request.trials > 1 else ()
        return Training(
            method=method,
            task=data.name,
            task_fingerprint=data.fingerprint,
            model_fingerprint=self.model.fingerprint,
            base=base,
            budget=request.budget,
            rates=searched or (request.budget.lr or method.learning_rate,),
            seed=seed,
            code=code_of(method, data.kind),
        )


def has_row(method: Method, base: "WeightFormat") -> bool:
    """True if the method can train on the base: what trains all weights needs them as numbers."""
    return method.role is not Role.CEILING or isinstance(base, Floating)


def delta_name(task: str) -> str:
    """A task's name as the name of a delta."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(task).name).strip("-") or "source"
