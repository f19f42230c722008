"""The run folder: finished cells and trained deltas, each whole or not there."""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deltakit._files import cache_folder, write_text
from deltakit.compare.plan import Cell, Plan, Training
from deltakit.compare.schema import SCHEMA_VERSION, CellResult, Predictions
from deltakit.compare.search import Choice, Trial
from deltakit.compare.train import TrainingRecord
from deltakit.errors import InvalidConfig

RUN = "run.json"


@dataclass(frozen=True)
class RunFolder:
    """One comparison's folder."""

    path: Path

    def cell_path(self, cell_id: str) -> Path:
        """Where a finished cell is."""
        return self.path / "cells" / f"{cell_id}.json"

    def predictions_path(self, cell_id: str) -> Path:
        """Where its per-example predictions are."""
        return self.path / "cells" / f"{cell_id}.predictions.csv"

    def write(self, cell: Cell, result: CellResult, predictions: Predictions | None) -> None:
        """Stores a cell. Its JSON comes last, so a cell that is there is whole."""
        if predictions is not None:
            write_text(self.predictions_path(cell.id), predictions.to_csv())
        content = {
            "schema_version": SCHEMA_VERSION,
            "id": cell.id,
            "training": None if cell.training is None else cell.training.id,
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "result": result.to_dict(),
        }
        write_text(self.cell_path(cell.id), json.dumps(content, indent=2) + "\n")

    def result(self, cell_id: str) -> CellResult | None:
        """A stored cell, or None."""
        path = self.cell_path(cell_id)
        if not path.is_file():
            return None
        return CellResult.from_dict(json.loads(path.read_text(encoding="utf-8"))["result"])

    def finished(self, cell_id: str) -> bool:
        """Whether the cell is done; a failed one is not, it runs again."""
        result = self.result(cell_id)
        return result is not None and result.status == "done"

    def predictions(self, cell_id: str) -> Predictions | None:
        """A stored cell's predictions, or None."""
        path = self.predictions_path(cell_id)
        if not path.is_file():
            return None
        return Predictions.from_csv(path.read_text(encoding="utf-8"))

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
        write_text(self._trial_path(training), json.dumps(content, indent=2) + "\n")
        self.deltas().discard(training)

    def _trial_path(self, training: Training) -> Path:
        return self.path / "trials" / f"{training.id}.json"

    def write_search(self, cell: Cell, choice: Choice) -> None:
        """Stores what a cell's search tried and chose."""
        write_text(self._search_path(cell.id), json.dumps(choice.to_plain(), indent=2) + "\n")

    def search(self, cell_id: str) -> Choice | None:
        """What a cell's search tried and chose, or None where there was none."""
        path = self._search_path(cell_id)
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return Choice(lr=content["lr"], trials=tuple(Trial(**t) for t in content["trials"]))

    def _search_path(self, cell_id: str) -> Path:
        return self.path / "cells" / f"{cell_id}.search.json"

    def write_diagnostics(self, cell: Cell, found: Mapping[str, Any]) -> None:
        """Stores what `diagnose` found in a cell's model; no file where that is nothing."""
        if found:
            write_text(self._diagnostics_path(cell.id), json.dumps(found, indent=2) + "\n")

    def diagnostics(self, cell_id: str) -> dict[str, Any]:
        """What `diagnose` found in a cell's model; empty where that was nothing."""
        path = self._diagnostics_path(cell_id)
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    def _diagnostics_path(self, cell_id: str) -> Path:
        return self.path / "cells" / f"{cell_id}.diagnostics.json"

    def description(self) -> dict[str, Any]:
        """What ``run.json`` says.

        Raises:
            InvalidConfig: the folder is no run folder.
        """
        try:
            content = json.loads((self.path / RUN).read_text(encoding="utf-8"))
            content["id"], content["plan"]["cells"]
        except (OSError, ValueError, KeyError, TypeError):
            raise InvalidConfig(
                f"{self.path} is no run folder: it has no readable {RUN}. Name a folder that "
                "`deltakit compare` wrote."
            ) from None
        return dict(content)

    def note(self, text: str) -> None:
        """Adds a sentence to the run's notes, once; the report prints them."""
        run = self.description()
        notes = run.setdefault("notes", [])
        if text not in notes:
            notes.append(text)
            write_text(self.path / RUN, json.dumps(run, indent=2) + "\n")

    def deltas(self) -> "DeltaStore":
        """The deltas that were trained for this comparison."""
        return DeltaStore(self.path / "deltas")


def open_run(plan: Plan, out: Path | None, run: dict[str, Any]) -> RunFolder:
    """The folder of a plan: a new one, or that of an earlier run of the same plan.

    Args:
        plan: what is going to run.
        out: where; by default ``runs/<time>-<plan>``, or the newest folder there of this plan.
        run: what ``run.json`` says, besides the plan's id.

    Raises:
        InvalidConfig: `out` belongs to another plan, or holds something else.
    """
    folder = out or _default_folder(plan)
    if (folder / RUN).is_file():
        there = RunFolder(folder).description()["id"]
        if there != plan.id:
            raise InvalidConfig(
                f"--out {folder} belongs to another plan ({there}, this one is {plan.id}): the "
                "methods, model, data, budget or seeds differ. Choose another folder, or repeat "
                "the command that made it."
            )
        return RunFolder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidConfig(
            f"--out {folder} exists and is no run folder (it has no {RUN}). Choose another one."
        )
    write_text(folder / RUN, json.dumps({"id": plan.id, **run}, indent=2) + "\n")
    return RunFolder(folder)


def _default_folder(plan: Plan) -> Path:
    runs = Path("runs")
    earlier = sorted(p.parent for p in runs.glob(f"*-{plan.id}/{RUN}"))
    return earlier[-1] if earlier else runs / f"{time.strftime('%Y%m%d-%H%M%S')}-{plan.id}"


def shared_deltas() -> "DeltaStore":
    """Deltas of source tasks, kept between runs."""
    return DeltaStore(cache_folder() / "deltas")


@dataclass(frozen=True)
class DeltaStore:
    """Trained deltas by the content address of their training."""

    path: Path

    def folder(self, training: Training) -> Path:
        """Where a delta is, or would be."""
        return self.path / training.id

    def record(self, training: Training) -> TrainingRecord | None:
        """How the delta was trained; None if it is not there."""
        path = self.folder(training) / "training.json"
        if not path.is_file():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        return TrainingRecord(**{**content, "losses": tuple(content["losses"])})

    def write(
        self, training: Training, record: TrainingRecord, save: Callable[[Path], None]
    ) -> int:
        """Stores a trained delta; its record comes last. Returns its weights' bytes on disk."""
        folder = self.folder(training)
        save(folder)
        write_text(folder / "training.json", json.dumps(asdict(record)) + "\n")
        return self.size(training)

    def size(self, training: Training) -> int:
        """Bytes on disk of a stored delta's weights."""
        return weights_bytes(self.folder(training))

    def discard(self, training: Training) -> None:
        """Removes a stored delta."""
        shutil.rmtree(self.folder(training), ignore_errors=True)


def weights_bytes(folder: Path) -> int:
    """Bytes on disk of the weights in the folder of a delta."""
    return sum(p.stat().st_size for p in folder.glob("*.safetensors"))
