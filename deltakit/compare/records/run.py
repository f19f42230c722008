"""The record of a run, ``run.json``: what was run, on what, how it was measured, by which code."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltakit.compare.records.forgotten import GeneralRecord
from deltakit.compare.records.protocol import Protocol
from deltakit.errors import InvalidConfig

RUN_SCHEMA = 2
"""The layout of ``run.json``. Files of the first layout have no such number."""


@dataclass(frozen=True, kw_only=True)
class CellRecord:
    """A cell of the plan: a method on a base at a seed.

    Attributes:
        id: its content address, and the name of its files.
        method: its label in the table.
        base: the weight format of its base.
        seed: its seed.
        rates: the learning rates that are tried; None for the constant prediction.
        config: the method as Python writes it; None for the constant prediction.
    """

    id: str
    method: str
    base: str
    seed: int
    rates: tuple[float, ...] | None = None
    config: str | None = None

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CellRecord:
        """A cell as JSON holds it."""
        rates = data.get("rates")
        return cls(**{**data, "rates": None if rates is None else tuple(rates)})


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The request, and the cells that it resolved to.

    Attributes:
        methods: the specs that were asked for.
        budget: what every method got, by name.
        trials: learning rates tried for every method.
        lr_grid: the lowest and the highest of them.
        compute_dtype: what quantised bases computed in; None for the default.
        cells: in the order of the table.
        settings: the request's other settings by name. The report prints them.
    """

    methods: tuple[str, ...] = ()
    budget: Mapping[str, Any] = field(default_factory=dict)
    trials: int = 1
    lr_grid: tuple[float, ...] = ()
    compute_dtype: str | None = None
    cells: tuple[CellRecord, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it: the settings and the typed fields side by side."""
        typed = dataclasses.asdict(self)
        settings = typed.pop("settings")
        cells = typed.pop("cells")
        return {"methods": typed.pop("methods"), **settings, **typed, "cells": list(cells)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PlanRecord:
        """The inverse of `to_dict`."""
        names = {each.name for each in dataclasses.fields(cls)} - {"settings"}
        return cls(
            methods=tuple(data["methods"]),
            budget=dict(data["budget"]),
            trials=data["trials"],
            lr_grid=tuple(data["lr_grid"]),
            compute_dtype=data["compute_dtype"],
            cells=tuple(map(CellRecord.from_dict, data["cells"])),
            settings={name: _frozen(each) for name, each in data.items() if name not in names},
        )


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """The pretrained model: its name, and a fingerprint of its files."""

    name: str = ""
    fingerprint: str | None = None


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """The data of a task: a fingerprint of all examples, and their number in each split."""

    fingerprint: str
    kind: str
    labels: tuple[str, ...]
    train: int
    validation: int
    test: int

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskRecord:
        """A task as JSON holds it."""
        return cls(**{**data, "labels": tuple(data["labels"])})


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """The task that rows are scored on, its metric, and the BibTeX of its data."""

    name: str = ""
    metric: str = ""
    citation: str | None = None


@dataclass(frozen=True, kw_only=True)
class Machine:
    """The machine of a run. `name` is what times depend on."""

    name: str
    python: str
    platform: str
    processor: str
    cores: int | None
    threads: int
    accelerator: str | None


@dataclass(frozen=True, kw_only=True)
class CodeVersion:
    """The checkout that deltakit ran from.

    Attributes:
        commit: the full hash of its commit.
        clean: whether the package's files were those of the commit.
    """

    commit: str
    clean: bool

    def __str__(self) -> str:
        return self.commit[:12] + ("" if self.clean else " with changes")


@dataclass(frozen=True, kw_only=True)
class ImportRecord:
    """A user's file that was imported for the run.

    Attributes:
        name: as the user typed it.
        path: the file, absolute.
        sha256: of its bytes, in hex.
    """

    name: str
    path: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The constants of the intervals and tests.

    Attributes:
        confidence: of every interval.
        level: rows with an adjusted p of at most this are told apart.
        power: how often a difference of the detectable size is found.
        bootstrap_draws: resamples of the test examples for a metric that is not a mean.
    """

    confidence: float
    level: float
    power: float
    bootstrap_draws: int


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """The content of ``run.json``. Parts that a file does not hold have their defaults.

    Attributes:
        id: the content address of the plan.
        plan: the request and its cells.
        roles: by "floor", "ceiling" and "baseline" the label of the row that is compared with.
        constant: the label of the constant prediction.
        full_precision: the base that other bases are compared with; None where it is not a row.
        model: the pretrained model.
        tasks: the data of every task by its name, source tasks included.
        task: the task that rows are scored on.
        notes: what a reader must know; the report prints it.
        protocol: the measuring protocol; None where the file does not hold one.
        statistics: the constants of the tests; None where the file does not hold them.
        code: the checkout; None for an installed package, and where the file does not hold one.
        versions: of each library, None where it was not installed.
        machines: where the run was started; several where runs were joined.
        created: when it was started, in UTC.
        joined: the folders that were joined to this one.
        imports: the users' files that registered methods, metrics, tasks or kinds.
        general: the text on which what was forgotten is measured; None where it is not measured,
            and where the file does not hold one.
    """

    id: str = ""
    plan: PlanRecord = field(default_factory=PlanRecord)
    roles: Mapping[str, str] = field(default_factory=dict)
    constant: str | None = None
    full_precision: str | None = None
    model: ModelRecord = field(default_factory=ModelRecord)
    tasks: Mapping[str, TaskRecord] = field(default_factory=dict)
    task: TargetRecord = field(default_factory=TargetRecord)
    notes: tuple[str, ...] = ()
    protocol: Protocol | None = None
    statistics: Statistics | None = None
    code: CodeVersion | None = None
    versions: Mapping[str, str | None] = field(default_factory=dict)
    machines: tuple[Machine, ...] = ()
    created: str = ""
    joined: tuple[str, ...] = ()
    imports: tuple[ImportRecord, ...] = ()
    general: GeneralRecord | None = None

    @property
    def target(self) -> TaskRecord:
        """The data of the task that rows are scored on."""
        return self.tasks[self.task.name]

    def notes_on(self, task: str) -> tuple[str, ...]:
        """The notes on the data of a task, without its name."""
        start = f"{task}: "
        return tuple(note.removeprefix(start) for note in self.notes if note.startswith(start))

    def role(self, name: str) -> str | None:
        """The label of the "floor", the "ceiling" or the "baseline", if the run has one."""
        return self.roles.get(name)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON holds it."""
        plain = dataclasses.asdict(self)
        machines, joined = plain.pop("machines"), plain.pop("joined")
        return {
            "schema_version": RUN_SCHEMA,
            **plain,
            "plan": self.plan.to_dict(),
            "machine": list(machines) if joined or len(machines) != 1 else machines[0],
            **({"joined": list(joined)} if joined else {}),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunRecord:
        """The inverse of `to_dict`; it reads the first layout too.

        Raises:
            InvalidConfig: a later version of deltakit wrote it.
            KeyError: a part is missing that every layout has.
            TypeError: a part is not what it should be.
        """
        if data.get("schema_version", 1) > RUN_SCHEMA:
            raise InvalidConfig(
                f"it was written by a later version of deltakit (layout {data['schema_version']}, "
                f"this one reads {RUN_SCHEMA}). Update deltakit."
            )
        return cls(
            id=data["id"],
            plan=PlanRecord.from_dict(data["plan"]),
            roles=dict(data["roles"]),
            constant=data["constant"],
            full_precision=data["full_precision"],
            model=ModelRecord(**data["model"]),
            tasks={name: TaskRecord.from_dict(each) for name, each in data["tasks"].items()},
            task=TargetRecord(**data["task"]),
            notes=tuple(data.get("notes", ())),
            protocol=_optional(Protocol.from_record, data.get("protocol")),
            statistics=_optional(lambda each: Statistics(**each), data.get("statistics")),
            code=_optional(lambda each: CodeVersion(**each), data.get("code")),
            versions=dict(data["versions"]),
            machines=tuple(Machine(**each) for each in _flat(data["machine"])),
            created=data["created"],
            joined=tuple(data.get("joined", ())),
            imports=tuple(ImportRecord(**each) for each in data.get("imports", ())),
            general=_optional(lambda each: GeneralRecord(**each), data.get("general")),
        )


def _optional(read: Any, value: Any) -> Any:
    return None if value is None else read(value)


def _frozen(value: Any) -> Any:
    """The value with tuples for lists, which JSON does not tell apart."""
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


def _flat(value: Any) -> Sequence[Mapping[str, Any]]:
    """Machines come as one, as several, or as lists of those of joined runs."""
    if isinstance(value, Mapping):
        return [value]
    return [machine for each in value for machine in _flat(each)]
