"""A comparison before it runs: what is trained on what, as cells with stable ids.

Everything that changes a score is part of a cell's id, so a cell is never run twice and never
mistaken for another.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit._imports import Extension
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.lr_search import TUNING_SEED
from deltakit.compare.plan.request import Budget, Request
from deltakit.compare.records.protocol import Protocol
from deltakit.core.method import Method, method_to_dict
from deltakit.core.provider import AdaptedModel
from deltakit.models.source import BaseChoice, ModelSource

if TYPE_CHECKING:
    from deltakit.compare.tasks.general import GeneralText
    from deltakit.compare.tasks.task import TaskData


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: everything that decides what comes out of it.

    With several `rates` it means the best of them, which trials on the target task find.
    """

    method: Method
    task: str
    task_fingerprint: str
    model_fingerprint: str
    base: BaseChoice
    budget: Budget
    rates: tuple[float, ...]
    seed: int
    members: tuple["Member", ...] = ()
    code: tuple[str, ...] = ()
    """SHA-256 of the users' files that its method and its kind of task come from."""

    @property
    def lr(self) -> float:
        """The learning rate, where there is one."""
        (rate,) = self.rates
        return rate

    @property
    def id(self) -> str:
        """Content address: equal trainings have equal ids."""
        content = {
            "deltakit": dk.__version__,
            "method": method_to_dict(self.method),
            "task": self.task_fingerprint,
            "model": self.model_fingerprint,
            "base": dataclasses.asdict(self.base),
            "budget": dataclasses.asdict(dataclasses.replace(self.budget, max_eval_samples=None)),
            "rates": self.rates,
            "seed": self.seed,
            "members": [[m.name, m.id] for m in self.members],
            **_code(self.code),
        }
        return content_id(content)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A delta that a combining method is over: trained in the first stage, or given as a folder."""

    name: str
    training: Training | None = None
    folder: str | None = None

    @property
    def id(self) -> str:
        """Content address."""
        if self.training is not None:
            return self.training.id
        assert self.folder is not None
        return content_id([p.read_text() for p in sorted(Path(self.folder).glob("*.json"))])

    def with_training(self, change: Callable[[Training], Training]) -> "Member":
        """The member with another training; one that is given as a folder has none to change."""
        training = None if self.training is None else change(self.training)
        return dataclasses.replace(self, training=training)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of results: a method on a base at a seed.

    Without a training it is the constant prediction.
    """

    label: str
    base: str
    seed: int
    task: str
    task_fingerprint: str
    model_fingerprint: str
    max_eval_samples: int | None
    training: Training | None
    latency: tuple[str, ...] = ()
    code: tuple[str, ...] = ()
    """SHA-256 of the users' files that its kind of task and its metric come from."""
    general: str = ""
    """SHA-256 of the user's general text; empty where it is that of the package, or none."""

    @property
    def id(self) -> str:
        """Content address."""
        content = {
            "label": self.label,
            "base": self.base,
            "seed": self.seed,
            "task": self.task_fingerprint,
            "model": self.model_fingerprint,
            "max_eval_samples": self.max_eval_samples,
            "training": None if self.training is None else self.training.id,
            "latency": self.latency,
            **_code(self.code),
            **({"general": self.general} if self.general else {}),
        }
        return content_id(content)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved comparison, ready to run."""

    request: Request
    model: ModelSource
    tasks: Mapping[str, "TaskData"]
    cells: tuple[Cell, ...]
    roles: Mapping[str, str]
    notes: tuple[str, ...] = ()
    imports: tuple[Extension, ...] = ()
    general: "GeneralText | None" = None

    @property
    def id(self) -> str:
        """Content address of the whole: the same request on the same data and model."""
        return content_id([cell.id for cell in self.cells])

    @property
    def task(self) -> "TaskData":
        """The target task."""
        return self.tasks[self.cells[0].task]

    def stages(self) -> Iterator[tuple[Cell, tuple[Training, ...]]]:
        """The cells in the order in which they run, those with members last.

        With each come the trials and the first-stage trainings that no cell before it has done.
        """
        seen: set[str] = set()
        for cell in sorted(self.cells, key=_has_members):
            before = () if cell.training is None else tuple(self._before(cell.training))
            fresh = {training.id: training for training in before if training.id not in seen}
            seen |= set(fresh)
            if cell.training is not None:
                seen.add(cell.training.id)
            yield cell, tuple(fresh.values())

    def _before(self, training: Training) -> Iterator[Training]:
        """What has to be trained before a training: trials, members, and what those need."""
        for member in training.members:
            if member.training is not None:
                yield from self._before(member.training)
                yield member.training
        for trial in self.trials(training):
            yield from self._before(trial)
            yield trial

    def trials(self, training: Training) -> tuple[Training, ...]:
        """The trials that find the rate of a training: one for each rate, on the target task.

        They, and their members, are at the tuning seed. None for a training of one rate.
        """
        if len(training.rates) == 1:
            return ()
        if training.task != self.task.name:
            training = dataclasses.replace(
                training, task=self.task.name, task_fingerprint=self.task.fingerprint
            )
        tuning = at_seed(training, TUNING_SEED)
        return tuple(dataclasses.replace(tuning, rates=(rate,)) for rate in training.rates)


def with_protocol(plan: Plan, protocol: Protocol) -> Plan:
    """The plan, measured by another protocol."""
    request = dataclasses.replace(plan.request, protocol=protocol)
    general = plan.general if protocol.general_passages else None
    return dataclasses.replace(plan, request=request, general=general)


def at_seed(training: Training, seed: int) -> Training:
    """The training and its members at another seed."""
    members = (m.with_training(lambda its: at_seed(its, seed)) for m in training.members)
    return dataclasses.replace(training, seed=seed, members=tuple(members))


def _has_members(cell: Cell) -> bool:
    return cell.training is not None and bool(cell.training.members)


def _code(hashes: tuple[str, ...]) -> dict[str, Any]:
    """Nothing where all code is installed: its ids are those of earlier versions."""
    return {"code": hashes} if hashes else {}


def content_id(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


CONSTANT = "majority"
"""Label of the row that predicts what is most frequent in the training split (`Kind.constant`)."""


def given_folder(member: Member) -> Path | None:
    """The folder of a member that was not trained here; None where it was."""
    return None if member.folder is None else Path(member.folder)


def attach_all(
    model: Any, training: Training, folder_of: Callable[[Member], Path | None]
) -> AdaptedModel:
    """Attaches a training's method over its members.

    Args:
        model: the base.
        training: what is trained.
        folder_of: where a member is stored; None attaches it as it is before any training.
    """
    for member in training.members:
        folder = folder_of(member)
        if folder is not None:
            dk.load(model, folder, member.name, head=False)
        elif member.training is not None:
            dk.attach(model, member.training.method, member.name)
    adapted = adapted_model(model, training.method)
    adapted.attach()
    return adapted
