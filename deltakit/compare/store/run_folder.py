"""The run folder: finished cells and trained deltas, each whole or not there."""

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from deltakit._files import atomic_path, cache_folder, sweep, weights_bytes, write_text
from deltakit.compare.plan.plan import Cell, Plan, Training, with_protocol
from deltakit.compare.plan.request import PROFILES
from deltakit.compare.records.kept_delta import KeptDelta
from deltakit.compare.records.protocol import EARLIER, EARLIER_QUICK_STEPS, VARIABLE, Protocol
from deltakit.compare.records.result import SCHEMA_VERSION, CellResult, Predictions, Scores
from deltakit.compare.records.run import RunRecord
from deltakit.compare.records.training import EvalPoint, TrainingRecord
from deltakit.compare.records.trial import Trial
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.store.locks import Lock
from deltakit.errors import InvalidConfig

RUN = "run.json"
EVALUATION = "evaluation.json"
LOCKS = "locks"


@dataclass(frozen=True)
class RunFolder:
    """One comparison's folder."""

    path: Path

    def cell_path(self, cell_id: str) -> Path:
        """The file of a finished cell."""
        return self.path / "cells" / f"{cell_id}.json"

    def predictions_path(self, cell_id: str) -> Path:
        """The file of its predictions, one row an example."""
        return self.path / "cells" / f"{cell_id}.predictions.csv"

    def scores_path(self, cell_id: str) -> Path:
        """The file of its probabilities, for kinds of task that have some."""
        return self.path / "cells" / f"{cell_id}.scores.npy"

    def lock(self, kind: str, unit: str) -> Lock:
        """The lock of a unit of work: a "cell", a "trial"."""
        return Lock(self.path / LOCKS / f"{kind}-{unit}.lock")

    @property
    def files_lock(self) -> Lock:
        """The lock that is held while ``run.json`` or the reports are written."""
        return self.lock("run", "files")

    def state(self, cell_id: str) -> int | None:
        """Changes whenever a cell is stored; None before the first time."""
        path = self.cell_path(cell_id)
        return path.stat().st_mtime_ns if path.is_file() else None

    def sweep_cell(self, cell_id: str) -> None:
        """Removes what a killed worker left of a cell. The cell's lock must be held."""
        sweep(self.path / "cells", cell_id)

    def write(self, cell: Cell, result: CellResult, predictions: Predictions | None) -> None:
        """Stores a cell. Its JSON comes last, so a cell that is there is whole."""
        if predictions is not None:
            self._write_predictions(cell.id, predictions)
        content = {
            "schema_version": SCHEMA_VERSION,
            "id": cell.id,
            "training": None if cell.training is None else cell.training.id,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "result": result.to_dict(),
        }
        write_text(self.cell_path(cell.id), json.dumps(content, indent=2) + "\n")

    def _write_predictions(self, cell_id: str, predictions: Predictions) -> None:
        self.scores_path(cell_id).unlink(missing_ok=True)
        if predictions.scores is not None:
            with atomic_path(self.scores_path(cell_id)) as temporary:
                temporary.write_bytes(predictions.scores.to_bytes())
        write_text(self.predictions_path(cell_id), predictions.to_csv())

    def result(self, cell_id: str) -> CellResult | None:
        """A stored cell, or None."""
        path = self.cell_path(cell_id)
        if not path.is_file():
            return None
        return CellResult.from_dict(json.loads(path.read_text(encoding="utf-8"))["result"])

    def finished(self, cell_id: str) -> bool:
        """True if the cell is done; a cell that failed is not."""
        result = self.result(cell_id)
        return result is not None and result.status == "done"

    def predictions(self, cell_id: str, classes: tuple[str, ...] = ()) -> Predictions | None:
        """A stored cell's predictions, or None.

        Args:
            cell_id: which.
            classes: the names of the task's classes or labels.
        """
        path, scores = self.predictions_path(cell_id), self.scores_path(cell_id)
        if not path.is_file():
            return None
        return replace(
            Predictions.from_csv(path.read_text(encoding="utf-8")),
            scores=Scores.from_bytes(scores.read_bytes()) if scores.is_file() else None,
            classes=classes,
        )

    def trial_lock(self, training: Training) -> Lock:
        """Held by the worker that does a trial, until it is stored."""
        return self.lock("trial", training.id)

    def trial(self, training: Training) -> Trial | None:
        """A trial that an earlier search has finished, or None."""
        path = self._trial_path(training)
        if not path.is_file():
            return None
        return Trial(**json.loads(path.read_text(encoding="utf-8"))["trial"])

    def write_trial(self, training: Training, trial: Trial) -> None:
        """Stores a trial. Its delta is not kept: only the chosen rate is trained for a report."""
        content = {
            "schema_version": SCHEMA_VERSION,
            "id": training.id,
            "method": repr(training.method),
            "base": training.base.name,
            "seed": training.seed,
            "trial": vars(trial),
        }
        sweep(self._trial_path(training).parent, training.id)
        write_text(self._trial_path(training), json.dumps(content, indent=2) + "\n")
        self.deltas().discard(training)

    def _trial_path(self, training: Training) -> Path:
        return self.path / "trials" / f"{training.id}.json"

    def write_extra(self, cell: Cell, kind: str, content: Any) -> None:
        """Stores an extra record of a cell; an empty one makes no file.

        Args:
            cell: which.
            kind: "search" (what was tried), "delta", "diagnostics", "pace" or "latency".
            content: as JSON holds it.
        """
        if content:
            write_text(self._extra_path(cell.id, kind), json.dumps(content, indent=2) + "\n")

    def extras(self, cell_id: str, kind: str) -> Any:
        """An extra record of a cell, or None."""
        path = self._extra_path(cell_id, kind)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def kept_delta(self, cell_id: str) -> KeptDelta | None:
        """The record by which a cell's delta is loaded again, or None."""
        content = self.extras(cell_id, "delta")
        return None if content is None else KeptDelta.from_dict(content)

    def verdicts(self, cell_id: str) -> tuple[Verdict, ...]:
        """The verdicts of other libraries about a cell, by judge."""
        paths = sorted((self.path / "cells").glob(f"{cell_id}.judge-*.json"))
        contents = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
        return tuple(Verdict.from_dict(each) for content in contents for each in content)

    def add_verdicts(self, cell_id: str, verdicts: Sequence[Verdict]) -> None:
        """Stores what a judge says about a cell; a verdict of the same title gives its place."""
        with self.files_lock.held():
            for judge in dict.fromkeys(each.judge for each in verdicts):
                earlier = [each for each in self.verdicts(cell_id) if each.judge == judge]
                whole = {each.title: each.to_dict() for each in (*earlier, *verdicts)}
                text = json.dumps(list(whole.values()), indent=2)
                write_text(self._extra_path(cell_id, f"judge-{judge}"), text + "\n")

    def evaluation(self) -> Any:
        """The record of an evaluation that was stopped, or None."""
        path = self.path / EVALUATION
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def write_evaluation(self, content: Any) -> None:
        """Stores the record of a running evaluation; None removes it."""
        if content is None:
            (self.path / EVALUATION).unlink(missing_ok=True)
        else:
            write_text(self.path / EVALUATION, json.dumps(content, indent=2) + "\n")

    def _extra_path(self, cell_id: str, kind: str) -> Path:
        return self.path / "cells" / f"{cell_id}.{kind}.json"

    def run_record(self) -> RunRecord:
        """The content of ``run.json``.

        Raises:
            InvalidConfig: the folder is not a run folder, or a later version of deltakit wrote it.
        """
        try:
            return RunRecord.from_dict(json.loads((self.path / RUN).read_text(encoding="utf-8")))
        except InvalidConfig as error:
            raise InvalidConfig(f"{self.path / RUN} cannot be read: {error}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise InvalidConfig(
                f"{self.path} is not a run folder: it has no readable {RUN}. Name a folder that "
                "`deltakit compare` wrote."
            ) from None

    def write_run_record(self, run: RunRecord) -> None:
        """Writes ``run.json``. `files_lock` must be held where others may write."""
        write_text(self.path / RUN, json.dumps(run.to_dict(), indent=2) + "\n")

    def note(self, *texts: str) -> None:
        """Adds sentences to the run's notes, each once; the report prints them."""
        with self.files_lock.held():
            run = self.run_record()
            notes = tuple(dict.fromkeys((*run.notes, *texts)))
            if notes != run.notes:
                self.write_run_record(replace(run, notes=notes))

    def deltas(self) -> "DeltaStore":
        """The deltas that were trained for this comparison."""
        return DeltaStore(self.path / "deltas")


def as_begun(plan: Plan, out: Path | None) -> Plan:
    """The plan, by the protocol of an earlier version where that version's defaults began its run.

    It goes on by these numbers. A protocol that the user has chosen stays.

    Args:
        plan: what is going to run.
        out: where, as `open_run` takes it.
    """
    path = out or _default_folder(plan)
    defaults = [Protocol.from_dict(profile.measured) for _, profile in PROFILES.items()]
    if not (path / RUN).is_file() or plan.request.protocol not in defaults:
        return plan
    before, protocol = RunFolder(path).run_record(), plan.request.protocol
    earlier = [EARLIER] + [
        replace(protocol, step_repeats=steps, general_passages=passages)
        for steps in (EARLIER.step_repeats, EARLIER_QUICK_STEPS, protocol.step_repeats)
        for passages in (0, protocol.general_passages)
    ]
    if before.id != plan.id or before.protocol is None or before.protocol not in earlier:
        return plan
    return with_protocol(plan, before.protocol)


def open_run(plan: Plan, out: Path | None, run: RunRecord) -> RunFolder:
    """The folder of a plan: a new one, or that of an earlier run of the same plan.

    Args:
        plan: what is going to run.
        out: where; by default ``runs/<time>-<plan>``, or the newest folder there of this plan.
        run: what ``run.json`` holds where the folder is a new one. An earlier run's record stays,
            with a note on what differs.

    Raises:
        InvalidConfig: `out` belongs to another plan, was measured by another protocol, or holds
            something else; or the cache cannot be written.
    """
    check_cache()
    folder = RunFolder(out or _default_folder(plan))
    check_ours(folder.path)
    with folder.files_lock.held():
        sweep(folder.path)
        if not (folder.path / RUN).is_file():
            folder.write_run_record(run)
    before = folder.run_record()
    _check_same_run(folder, before, run)
    folder.note(*differences("The cells were run with", (before, run)))
    return folder


def _check_same_run(folder: RunFolder, before: RunRecord, run: RunRecord) -> None:
    """Raises `InvalidConfig` where the cells of both would not belong into one table."""
    if before.id != run.id:
        raise InvalidConfig(
            f"--out {folder.path} belongs to another plan ({before.id}, this one is {run.id}): the "
            "methods, model, data, budget or seeds differ. Choose another folder, or repeat "
            "the command that made it."
        )
    if None not in (before.protocol, run.protocol) and before.protocol != run.protocol:
        raise InvalidConfig(
            f"--out {folder.path} was measured by another protocol: its {RUN} has other numbers "
            f"than {VARIABLE} gives now. Choose another folder, or set the variable as it was."
        )


def differences(start: str, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """A sentence on the code and on each library, where the runs had several versions of it.

    Args:
        start: how the sentences begin.
        runs: what one of them has no entry for is left out.
    """
    found = {"deltakit's code": [str(run.code) for run in runs if run.code is not None]}
    for name in runs[0].versions:
        if all(name in run.versions for run in runs):
            found[name] = [str(run.versions[name]) for run in runs]
    return tuple(
        f"{start} different versions of {name}: {', '.join(dict.fromkeys(versions))}."
        for name, versions in found.items()
        if len({*versions}) > 1
    )


def check_ours(folder: Path) -> None:
    """Raises `InvalidConfig` where something else is. A run that was killed early left locks."""
    if not folder.exists() or (folder / RUN).is_file():
        return
    if not folder.is_dir() or any(
        path.name != LOCKS and not path.name.startswith(f".{RUN}") for path in folder.iterdir()
    ):
        raise InvalidConfig(
            f"--out {folder} exists and is not a run folder (it has no {RUN}). Choose another one."
        )


def _default_folder(plan: Plan) -> Path:
    runs = Path("runs")
    earlier = sorted(p.parent for p in runs.glob(f"*-{plan.id}/{RUN}"))
    return earlier[-1] if earlier else runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.id}"


def check_cache() -> None:
    """Raises `InvalidConfig` where the user's cache, which has the locks, cannot be written."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidConfig(
            f"the cache {str(folder)!r} cannot be written: {error.strerror}. Set DELTAKIT_CACHE to "
            "a folder that can be."
        ) from None


def shared_deltas() -> "DeltaStore":
    """Deltas of source tasks, kept between runs."""
    return DeltaStore(cache_folder() / "deltas")


@dataclass(frozen=True)
class DeltaStore:
    """Trained deltas by the content address of their training."""

    path: Path

    def folder(self, training: Training) -> Path:
        """The folder of a delta, whether it exists or not."""
        return self.path / training.id

    def lock(self, training: Training) -> Lock:
        """The lock that is held while the delta is made, read or removed."""
        return Lock(self.path.parent / LOCKS / f"training-{training.id}.lock")

    def record(self, training: Training) -> TrainingRecord | None:
        """The record of the delta's training; None if the delta is not stored."""
        path = self.folder(training) / "training.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        curve = tuple(EvalPoint(**each) for each in content.pop("pace", ()))
        losses = tuple(content.pop("losses"))
        return TrainingRecord(**content, losses=losses, learning_curve=curve)

    def write(
        self, training: Training, record: TrainingRecord, save: Callable[[Path], None]
    ) -> int:
        """Stores a trained delta; its record comes last. Returns its weights' bytes on disk."""
        folder = self.folder(training)
        sweep(folder)
        save(folder)
        content = asdict(record)
        content["pace"] = content.pop("learning_curve")
        write_text(folder / "training.json", json.dumps(content) + "\n")
        return self.size(training)

    def size(self, training: Training) -> int:
        """Bytes on disk of a stored delta's weights."""
        return weights_bytes(self.folder(training))

    def discard(self, training: Training) -> None:
        """Removes a stored delta."""
        shutil.rmtree(self.folder(training), ignore_errors=True)
