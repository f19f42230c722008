"""The page of a choice: one file that begins with the answer, and fetches nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deltakit._files import write_text
from deltakit.choose.outcome import Outcome, shown
from deltakit.compare.report.number_format import format_count, format_ratio


def write_page(
    path: Path, outcome: Outcome, answer: Sequence[str], *, python: str, command: str
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
    rows = [
        {
            "name": row.name,
            "chosen": row.name == outcome.choice.name,
            "lr": "–" if row.lr is None else f"{row.lr:g}",
            "score": shown(outcome.metric, row),
            "seeds": row.seeds,
            "deployed": format_count(row.deployed),
            "latency": "–" if row.latency is None else format_ratio(row.latency),
        }
        for row in outcome.rows
    ]
    text = template.render(
        outcome=outcome,
        headline=answer[0],
        sentences=answer[1:],
        rows=rows,
        python=python,
        command=command,
        unit=outcome.metric.unit,
    )
    write_text(path, text + "\n")
