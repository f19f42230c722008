"""The page of a choice: one file that begins with the answer, and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltakit._files import write_text
from deltakit.choose.answer import Section
from deltakit.choose.finals_table import finals_headers, finals_rows
from deltakit.choose.outcome import Outcome


def write_page(
    path: Path, outcome: Outcome, answer: Sequence[Section], *, python: str, command: str
) -> None:
    """Writes the page. Every text in it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltakit.choose"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("choice.html.j2")
    text = template.render(
        outcome=outcome,
        headline=" ".join(answer[0].sentences),
        sections=answer[1:],
        headers=finals_headers(outcome),
        rows=finals_rows(outcome),
        python=python,
        command=command,
        unit=outcome.metric.unit,
    )
    write_text(path, text + "\n")
