"""Several run folders as one: the cells of one plan, or other methods under the same conditions.

What does not compare is not joined: a table would not show that its rows were made differently.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from deltakit._files import atomic_path
from deltakit.compare.plan.plan import content_id
from deltakit.compare.records.protocol import EARLIER, Protocol
from deltakit.compare.records.run import CellRecord, RunRecord
from deltakit.compare.store.run_folder import RUN, RunFolder, check_ours, differences
from deltakit.errors import InvalidConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Condition:
    """Something that must be the same in all runs of a table. A mapping is compared by key."""

    name: str
    of: Callable[[RunRecord], Any]


CONDITIONS = (
    Condition(name="the version of deltakit", of=lambda run: run.versions["deltakit-peft"]),
    Condition(name="the model", of=lambda run: run.model.fingerprint),
    Condition(name="the task", of=lambda run: run.task.name),
    Condition(name="the metric", of=lambda run: run.task.metric),
    Condition(name="the number of test examples", of=lambda run: run.target.test),
    Condition(name="the budget", of=lambda run: run.plan.budget),
    Condition(name="the number of trials", of=lambda run: run.plan.trials),
    Condition(name="the grid of learning rates", of=lambda run: run.plan.lr_grid),
    Condition(name="the compute dtype", of=lambda run: run.plan.compute_dtype),
    Condition(name="the examples of the task", of=lambda run: run.target.fingerprint),
    Condition(name="the measuring protocol", of=lambda run: _protocol(run.protocol)),
    Condition(name="the general text", of=lambda run: _general(run)),
)


def _protocol(known: Protocol | None) -> Mapping[str, int]:
    """The numbers; a file of the first layout does not say them."""
    return (known or EARLIER).to_dict()


def _general(run: RunRecord) -> Mapping[str, Any]:
    """The text, whatever its file is called."""
    return {} if run.general is None else {**asdict(run.general), "name": ""}


def join(folders: Sequence[Path], out: Path) -> RunFolder:
    """Copies the finished cells of several run folders to a new one, and describes them.

    A cell that several folders have is taken from the first in which it is done.

    Args:
        folders: what `deltakit compare` wrote.
        out: a folder that is not there, is empty, or was joined before.

    Raises:
        InvalidConfig: a folder is none of a run, the runs do not compare, or `out` is in use.
    """
    runs = {RunFolder(folder): RunFolder(folder).run_record() for folder in folders}
    first = RunFolder(folders[0])
    for other in runs:
        _check_comparable((first, runs[first]), (other, runs[other]))
    cells = _cells(runs)
    target = _target_folder(out)
    for source, cell in cells:
        _copy(source, target, cell.id)
    joined = _joined(list(runs.values()), [cell for _, cell in cells], folders)
    target.write_run_record(joined)
    return target


def _check_comparable(
    first: tuple[RunFolder, RunRecord], other: tuple[RunFolder, RunRecord]
) -> None:
    for condition in CONDITIONS:
        ours, theirs = (condition.of(run) for _, run in (first, other))
        if ours != theirs:
            raise InvalidConfig(
                f"{first[0].path} and {other[0].path} do not compare: {condition.name} differs "
                f"({_words(ours, theirs)} and {_words(theirs, ours)}). Report them apart, or run "
                "one of them again as the other was."
            )
    _check_sources(first, other)


def _check_sources(first: tuple[RunFolder, RunRecord], other: tuple[RunFolder, RunRecord]) -> None:
    """Raises `InvalidConfig` where a task that both runs have has other examples."""
    ours, theirs = (run.tasks for _, run in (first, other))
    for name in sorted(ours.keys() & theirs.keys()):
        if ours[name].fingerprint != theirs[name].fingerprint:
            raise InvalidConfig(
                f"{first[0].path} and {other[0].path} do not compare: the examples of the task "
                f"{name!r} differ. Report them apart, or run one of them again as the other was."
            )


def _imported(runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """A note on each user's file of which the runs had different versions."""
    found: dict[str, set[str]] = {}
    for each in (each for run in runs for each in run.imports):
        found.setdefault(each.name, set()).add(each.sha256)
    return tuple(
        f"The joined runs imported different versions of {name}."
        for name, versions in found.items()
        if len(versions) > 1
    )


def _words(value: Any, other: Any) -> str:
    """A value, short; of several that belong together those that differ from the others."""
    if isinstance(value, Mapping) and isinstance(other, Mapping):
        keys = [key for key in value if value[key] != other.get(key)]
        return ", ".join(f"{key} {value[key]}" for key in keys) or "nothing of it"
    return str(value)[:16]


def _cells(runs: Mapping[RunFolder, RunRecord]) -> list[tuple[RunFolder, CellRecord]]:
    """Every row's cell once, and the folder that it is taken from."""
    chosen: dict[tuple[str, str, int], tuple[RunFolder, CellRecord]] = {}
    rows: dict[tuple[str, str], tuple[RunFolder, CellRecord]] = {}
    for folder, run in runs.items():
        for cell in run.plan.cells:
            key = (cell.method, cell.base, cell.seed)
            there, known = chosen.setdefault(key, (folder, cell))
            if known.id != cell.id:
                raise _made_differently(there, folder, cell)
            first, like = rows.setdefault((cell.method, cell.base), (folder, cell))
            if (like.config, like.rates) != (cell.config, cell.rates):  # at another seed
                raise _made_differently(first, folder, cell)
            if not there.finished(cell.id) and folder.result(cell.id) is not None:
                chosen[key] = (folder, cell)
    return list(chosen.values())


def _made_differently(one: RunFolder, other: RunFolder, cell: CellRecord) -> InvalidConfig:
    return InvalidConfig(
        f"{one.path} and {other.path} do not compare: both have the row {cell.method} "
        f"({cell.base}, seed {cell.seed}), made differently (other settings, rates or members). "
        "Report them apart."
    )


def _target_folder(out: Path) -> RunFolder:
    check_ours(out)
    target = RunFolder(out)
    if (out / RUN).is_file() and not target.run_record().joined:
        raise InvalidConfig(
            f"--out {out} is the folder of a run. Choose another one: what is joined is copied."
        )
    return target


def _copy(source: RunFolder, target: RunFolder, cell_id: str) -> None:
    """All files of a cell, its result last."""
    result = source.cell_path(cell_id)
    if not result.is_file():
        return
    extras = sorted(set(result.parent.glob(f"{cell_id}.*")) - {result})
    for file in (*extras, result):
        with atomic_path(target.path / "cells" / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _joined(
    runs: Sequence[RunRecord], cells: Sequence[CellRecord], folders: Sequence[Path]
) -> RunRecord:
    """The first run's record, with what the others add."""
    methods = dict.fromkeys(method for run in runs for method in run.plan.methods)
    notes = dict.fromkeys(note for run in runs for note in run.notes)
    return replace(
        runs[0],
        id=content_id([cell.id for cell in cells]),
        plan=replace(runs[0].plan, methods=tuple(methods), cells=tuple(cells)),
        roles={role: row for run in reversed(runs) for role, row in run.roles.items()},
        tasks={name: task for run in reversed(runs) for name, task in run.tasks.items()},
        full_precision=next(filter(None, (run.full_precision for run in runs)), None),
        notes=(*notes, *differences("The joined runs had", runs), *_imported(runs)),
        protocol=_common([run.protocol for run in runs]),
        statistics=_common([run.statistics for run in runs]),
        code=_common([run.code for run in runs]),
        machines=tuple(machine for run in runs for machine in run.machines),
        joined=tuple(str(folder) for folder in folders),
    )


def _common(values: Sequence[T | None]) -> T | None:
    """The value that all runs have; None where they differ, or where one has none."""
    return values[0] if all(value == values[0] for value in values) else None
