"""The rows of a run that can be judged, and their models as they were trained."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.limits import added_positions, longest_input
from deltakit.compare.records.kept_delta import KeptDelta
from deltakit.compare.records.run import CellRecord, RunRecord
from deltakit.compare.run.judges.base import JudgedModel
from deltakit.compare.store.run_folder import RunFolder
from deltakit.core.method import Method, Role, method_from_dict
from deltakit.errors import InvalidConfig, NotMergeable, unknown
from deltakit.models.loading import read_base
from deltakit.models.source import BaseChoice, ModelSource, device, find_model

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class JudgedRow:
    """A cell whose trained delta can be put on its base again.

    Attributes:
        cell: which.
        kept: what it takes.
        folder: where the delta is.
    """

    cell: CellRecord
    kept: KeptDelta
    folder: Path

    @property
    def name(self) -> str:
        """The row, in messages."""
        return f"{self.cell.method} ({self.cell.base}, seed {self.cell.seed})"

    @property
    def method(self) -> Method:
        """The method. Raises `UnknownName` where a file that defines it is not imported."""
        return method_from_dict(dict(self.kept.method))


@dataclass(frozen=True, kw_only=True)
class ChosenRows:
    """The rows that are judged, and a sentence on each that is left out."""

    rows: tuple[JudgedRow, ...]
    left_out: tuple[str, ...]


def chosen_rows(folder: RunFolder, asked: Sequence[str], seed: int) -> ChosenRows:
    """The rows that are judged: those asked for, or all whose delta is kept.

    Args:
        folder: the run.
        asked: labels; none are all.
        seed: the seed of the cells.

    Raises:
        UnknownName: the run has no such row.
        InvalidConfig: the run has no such seed, or a row that is asked for has no delta to load.
    """
    run = folder.run_record()
    cells = [cell for cell in run.plan.cells if cell.seed == seed]
    _check_seed(run, seed)
    for label in asked:
        if label not in {cell.method for cell in cells}:
            raise unknown("row", label, {cell.method for cell in cells})
    rows: list[JudgedRow] = []
    left_out: list[str] = []
    for cell in (cell for cell in cells if not asked or cell.method in asked):
        found = _row(folder, run, cell)
        if isinstance(found, JudgedRow):
            rows.append(found)
        elif asked:
            raise InvalidConfig(found)
        else:
            left_out.append(found)
    if not rows:
        raise InvalidConfig(left_out[-1])
    return ChosenRows(rows=tuple(rows), left_out=tuple(left_out))


def _check_seed(run: RunRecord, seed: int) -> None:
    seeds = sorted({cell.seed for cell in run.plan.cells})
    if seed not in seeds:
        raise InvalidConfig(f"--seed {seed}: the run has the seeds {', '.join(map(str, seeds))}.")


def _row(folder: RunFolder, run: RunRecord, cell: CellRecord) -> JudgedRow | str:
    """The row, or why it cannot be judged and what to do about it."""
    if cell.method == run.constant:
        return f"{cell.method} predicts a constant: there is no model to judge."
    if not folder.finished(cell.id):
        return f"{cell.method} is not finished: repeat the `deltakit compare` command of the run."
    if cell.method == run.role("ceiling"):
        return f"{cell.method} is not judged: its weights are as large as the base, and not kept."
    kept = folder.kept_delta(cell.id)
    if kept is None:
        return (
            f"{cell.method} has no record of its delta, as earlier versions wrote none: remove "
            f"{folder.cell_path(cell.id)} and repeat the `deltakit compare` command of the run. "
            "A delta that is there is not trained again."
        )
    for place in (folder.path, *map(Path, run.joined)):
        if (place / kept.folder).is_dir():
            return JudgedRow(cell=cell, kept=kept, folder=place / kept.folder)
    return (
        f"{cell.method} has no saved delta, {folder.path / kept.folder} is not there: remove "
        f"{folder.cell_path(cell.id)} and repeat the `deltakit compare` command, which trains and "
        "saves it."
    )


def source_of(run: RunRecord) -> ModelSource:
    """The base of a run.

    Raises:
        InvalidConfig: its name is another model's now.
        DeltakitError: it is not found.
    """
    source = find_model(run.model.name)
    if source.fingerprint != run.model.fingerprint:
        raise InvalidConfig(
            f"the model {run.model.name!r} is not the one that the run was trained on: its files "
            "differ. Put those of the run there."
        )
    return source


@contextmanager
def model_of(row: JudgedRow, source: ModelSource, *, merged: bool) -> Iterator[JudgedModel]:
    """The row's model: its base with its delta, as it is deployed.

    The floor has no delta to fold, so it is the same merged.

    Raises:
        NotMergeable: the delta cannot be folded into the weights.
        DeltakitError: the delta cannot be loaded.
    """
    from transformers import set_seed

    kept, base = row.kept, BaseChoice(name=row.kept.weights, dtype=row.kept.dtype)
    set_seed(row.cell.seed)  # what the checkpoint has no values for is drawn as in the run
    read, _ = read_base(
        source.location,
        base.name,
        task=kept.task,
        labels=kept.outputs,
        problem=kept.problem,
        dtype=base.torch_dtype,
        device=device(),
        local_files_only=source.local_only,
    )
    tokenizer = source.tokenizer()
    added = added_positions(row.method, dk.resolve(read))
    longest = longest_input(read, tokenizer, added)
    adapted = adapted_model(read, row.method)
    adapted.load(row.folder)
    adapted.deploy()

    def judged(model: nn.Module) -> JudgedModel:
        return JudgedModel(
            model=model.eval(), tokenizer=tokenizer, task=kept.task, max_length=longest, added=added
        )

    with ExitStack() as folded:
        model = adapted.model
        if merged and row.method.role is not Role.FLOOR:
            try:
                model = folded.enter_context(adapted.merged())
            except NotMergeable as error:
                why = f"{error} Or name this row in a call without --merged."
                raise NotMergeable(why) from None
        yield judged(model)
