"""The rows of a run under another library's questions: checked, asked one by one, and stored."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltakit._files import unwritable
from deltakit.compare.records.verdict import Verdict
from deltakit.compare.run.judges.base import JUDGES, Judge, Questions
from deltakit.compare.run.judges.rows import ChosenRows, JudgedRow, chosen_rows, model_of, source_of
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import first_line
from deltakit.models.loading import read_config
from deltakit.models.source import ModelSource

Tell = Callable[[str], None]
"""Told each row's outcome, on a line."""


def evaluate_rows(
    path: Path,
    judge: str,
    questions: Questions,
    *,
    rows: Sequence[str] = (),
    seed: int = 0,
    tell: Tell = lambda line: None,
) -> tuple[str, ...]:
    """Asks another library about the rows of a run, and stores what it says with their cells.

    Each row is stored when it is judged, and the same call goes on where it was stopped. A row that
    fails is told, and the others go on.

    Args:
        path: the run folder.
        judge: a name that ``--with`` takes.
        questions: the tasks, and how they are asked.
        rows: labels of rows; none are all whose delta is kept.
        seed: of the cells.
        tell: told each row's outcome.

    Returns:
        The rows that failed.

    Raises:
        DeltakitError: wrong input. Nothing was loaded then.
    """
    folder = RunFolder(path)
    asked = JUDGES.get(judge)()
    asked.version()
    asked.check_options(questions)
    chosen = chosen_rows(folder, rows, seed)
    source = source_of(folder.run_record())
    _check_model(asked, source, chosen)
    asked.check_tasks(questions.tasks)
    for line in chosen.left_out:
        tell(line)
    stopped = Stopped(folder, {"judge": judge, "seed": seed, **asdict(questions)})
    failed = []
    for row in chosen.rows:
        if row.cell.id in stopped.judged:
            tell(f"{row.name}: judged already, before the command was stopped")
        elif _judged(folder, asked, row, source, questions, tell):
            stopped.add(row.cell.id)
        else:
            failed.append(row.name)
    stopped.forget()
    return tuple(failed)


class Stopped:
    """The cells that a call has judged, until it ends.

    Args:
        folder: the run.
        asked: what tells the call from another one.
    """

    def __init__(self, folder: RunFolder, asked: Mapping[str, Any]) -> None:
        self._folder, self._asked = folder, json.loads(json.dumps(asked))
        before = folder.evaluation()
        same = before is not None and before["asked"] == self._asked
        self.judged: list[str] = before["judged"] if before is not None and same else []

    def add(self, cell_id: str) -> None:
        """Notes that a cell is judged."""
        self.judged.append(cell_id)
        self._folder.write_evaluation({"asked": self._asked, "judged": self.judged})

    def forget(self) -> None:
        """The call has ended: the next one judges all rows again."""
        self._folder.write_evaluation(None)


def _check_model(judge: Judge, source: ModelSource, chosen: ChosenRows) -> None:
    config = read_config(source.location, local_files_only=source.local_only)
    for task in {row.kept.task for row in chosen.rows}:
        judge.check_model(source.name, task, config)


def _judged(
    folder: RunFolder,
    judge: Judge,
    row: JudgedRow,
    source: ModelSource,
    questions: Questions,
    tell: Tell,
) -> bool:
    """Judges one row; False where that fails."""
    try:
        with model_of(row, source, merged=questions.merged) as model:
            verdicts = tuple(judge.judge(model, questions))
    except Exception as error:  # of the row's own model, or of the library
        if (full := unwritable(error)) is not None:  # no other row could be judged
            raise full from error
        tell(f"{row.name} failed: {type(error).__name__}: {first_line(error)}")
        return False
    folder.add_verdicts(row.cell.id, verdicts)
    tell(f"{row.name}: {_words(verdicts)}")
    return True


def _words(verdicts: Sequence[Verdict]) -> str:
    return "; ".join(f"{each.title} {each.value:.4f}" for each in verdicts)
