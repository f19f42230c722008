"""The choice that was made, and its files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from deltakit._files import write_text
from deltakit.choose.answer import Section, sections, sentences
from deltakit.choose.defence import defence
from deltakit.choose.finals import save_choice
from deltakit.choose.finals_table import finals_headers, finals_rows
from deltakit.choose.outcome import Outcome, compare_command, python_lines, record
from deltakit.choose.page import write_page
from deltakit.choose.prepare import Prepared
from deltakit.compare.plan.plan import Plan


@dataclass(frozen=True, kw_only=True, repr=False)
class Choice:
    """A choice that was made.

    Attributes:
        folder: what is stored of it.
        method: the spec that was chosen.
        lr: its learning rate.
        base: the base's name.
        answer: the answer in words, one sentence each.
        sections: the same, by the question that they answer.
        finals: the table of the finals, its headers first.
        record: the content of ``choice.json``.
        delta: the folder of the trained delta.
        python: five lines that load it.
        command: the comparison that defends it.
    """

    folder: Path
    method: str
    lr: float | None
    base: str
    answer: tuple[str, ...]
    sections: tuple[Section, ...]
    finals: tuple[tuple[str, ...], ...]
    record: Mapping[str, Any]
    delta: Path
    python: str
    command: str

    @property
    def page(self) -> Path:
        """The report, one page that needs no other file."""
        return self.folder / "report.html"

    @property
    def probability(self) -> float:
        """The share of resamples in which the choice is within the margin of the best."""
        return float(self.record["probability"])

    def __repr__(self) -> str:
        return "\n\n".join(map(str, self.sections))

    def _repr_html_(self) -> str:
        return "\n".join(map(_html, self.sections))


def _html(section: Section) -> str:
    title = f"<b>{escape(section.title)}</b><br>" if section.title else ""
    return f"<p>{title}{escape(' '.join(section.sentences))}</p>"


def stored_choice(
    prepared: Prepared, outcome: Outcome, plan: Plan, choice: tuple[str, str]
) -> Choice:
    """Saves the delta, then the answer; ``choice.json`` comes last."""
    path = prepared.journal.path
    delta = path / "delta"
    before = prepared.journal.read("choice.json") or {}
    if before.get("saved_seed") != outcome.saved_seed:
        cell = next(
            each
            for each in plan.cells
            if (each.label, each.base, each.seed) == (*choice, outcome.saved_seed)
        )
        shutil.rmtree(delta, ignore_errors=True)
        save_choice(prepared.bench, plan, cell, delta)
    answer, parts = sentences(outcome), sections(outcome)
    content = record(
        outcome,
        answer=answer,
        delta=str(delta.resolve()),
        constraints=prepared.request.constraints.to_dict(),
    )
    head = plan.task.kind.head
    python = python_lines(plan.model.location, choice[1], head.task, head.outputs, str(delta))
    command = compare_command(defence(plan, outcome))
    write_page(path / "report.html", outcome, parts, python=python, command=command)
    write_text(path / "choice.json", json.dumps(content, indent=2) + "\n")
    return Choice(
        folder=path,
        method=outcome.choice.method,
        lr=outcome.choice.lr,
        base=outcome.choice.base,
        answer=answer,
        sections=parts,
        finals=(finals_headers(outcome), *finals_rows(outcome)),
        record=content,
        delta=delta,
        python=python,
        command=command,
    )
