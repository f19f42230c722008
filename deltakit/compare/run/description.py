"""The record of a run that begins: its plan, data, protocol, code and machine."""

import dataclasses
import time
from typing import Any

from deltakit.compare.measure.hardware import this_machine
from deltakit.compare.measure.provenance import code_version, library_versions
from deltakit.compare.plan.plan import CONSTANT, Cell, Plan
from deltakit.compare.plan.request import FULL_PRECISION
from deltakit.compare.records.forgotten import GeneralRecord
from deltakit.compare.records.run import (
    ImportRecord,
    ModelRecord,
    PlanRecord,
    RunRecord,
    Statistics,
    TargetRecord,
    TaskRecord,
)
from deltakit.compare.stats.significance import CONFIDENCE, DRAWS, LEVEL, POWER
from deltakit.compare.tasks.task import TaskData


def describe(plan: Plan) -> RunRecord:
    """The record of a run that starts now: the plan, its data, the protocol, code and machine."""
    task = plan.task
    return RunRecord(
        id=plan.id,
        plan=_plan_record(plan),
        roles=dict(plan.roles),
        constant=CONSTANT,
        full_precision=FULL_PRECISION if FULL_PRECISION in plan.request.bases else None,
        model=ModelRecord(name=plan.model.name, fingerprint=plan.model.fingerprint),
        tasks={name: _task_record(data) for name, data in plan.tasks.items()},
        task=TargetRecord(name=task.name, metric=task.metric, citation=task.citation),
        notes=(
            *(f"{data.name}: {note}" for data in plan.tasks.values() for note in data.notes),
            *plan.notes,
        ),
        protocol=plan.request.protocol,
        statistics=Statistics(
            confidence=CONFIDENCE, level=LEVEL, power=POWER, bootstrap_draws=DRAWS
        ),
        code=code_version(),
        versions=library_versions(),
        machines=(this_machine(),),
        imports=tuple(
            ImportRecord(name=each.name, path=each.path, sha256=each.sha256)
            for each in plan.imports
        ),
        general=_general_record(plan),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )


def _general_record(plan: Plan) -> GeneralRecord | None:
    text = plan.general
    if text is None:
        return None
    return GeneralRecord(
        name=text.name,
        fingerprint=text.fingerprint,
        passages=len(text.passages),
        max_length=text.max_length,
    )


def _plan_record(plan: Plan) -> PlanRecord:
    request = dataclasses.asdict(plan.request)
    del request["protocol"]
    request["methods"] = list(map(str, plan.request.methods))
    return PlanRecord.from_dict({**request, "cells": map(_cell_record, plan.cells)})


def _cell_record(cell: Cell) -> dict[str, Any]:
    return {
        "id": cell.id,
        "method": cell.label,
        "base": cell.base,
        "seed": cell.seed,
        "rates": None if cell.training is None else cell.training.rates,
        "config": None if cell.training is None else repr(cell.training.method),
    }


def _task_record(data: TaskData) -> TaskRecord:
    return TaskRecord(
        fingerprint=data.fingerprint,
        kind=data.kind.name,
        labels=data.labels,
        train=len(data.train),
        validation=len(data.validation),
        test=len(data.test),
    )
