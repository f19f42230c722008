"""The self-contained page of a comparison: one file, nothing is fetched."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deltakit.compare.report import pareto as plots
from deltakit.compare.report.charts import HEIGHT, WIDTH, Curves, Layers
from deltakit.compare.report.columns import Column, TableCell
from deltakit.compare.report.cost_views import CostView
from deltakit.compare.report.extra_tables import TextTable
from deltakit.compare.report.number_format import MISSING
from deltakit.compare.report.published import Claim, Figure

if TYPE_CHECKING:
    from jinja2 import Environment


@dataclass(frozen=True, kw_only=True)
class TableRow:
    """One row of the page's main table; a failed one has a reason and no measured cells."""

    cells: tuple[TableCell, ...]
    failure: str | None


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One cell that failed."""

    method: str
    base: str
    seed: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """A map of layers, with what it shows."""

    title: str
    text: str
    layers: Layers


@dataclass(frozen=True, kw_only=True)
class CurveView:
    """The learning curves, and their figures as a table."""

    curves: Curves
    sheet: TextTable


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of the page.

    Attributes:
        title: what was compared.
        answer: the best method in one sentence.
        facts: the sentence fragments under the title.
        columns: the main table's columns.
        lines: its rows.
        legend: the sentences under it.
        views: score against each kind of cost.
        claims: what is published, and what this run shows of it.
        curves: the search for learning rates, where there was one.
        learning_curves: those of the trainings that were evaluated on the way.
        latency: latency by shape, where shapes were asked for.
        maps: what happens inside the models, by layer.
        limits: what this run cannot say.
        notes: what a reader of the numbers must know about this run.
        protocol: how the numbers were made, as nested data.
        failed: how much failed.
        failures: the cells that failed.
        cell_columns: the columns of the table of single cells.
        cells: its values.
        provenance: what the run was made with, as nested data.
    """

    title: str
    answer: str
    facts: Sequence[str]
    columns: Sequence[Column]
    lines: Sequence[TableRow]
    legend: Sequence[str]
    views: Sequence[CostView]
    claims: Sequence[tuple[Claim, Sequence[Figure]]]
    curves: Curves | None
    learning_curves: CurveView | None
    latency: TextTable | None
    maps: Sequence[LayerMap]
    limits: Sequence[str]
    notes: Sequence[str]
    protocol: Mapping[str, Any]
    failed: str
    failures: Sequence[Failure]
    cell_columns: Sequence[str]
    cells: Sequence[Sequence[Any]]
    provenance: Mapping[str, Any]


def render(page: Page) -> str:
    """The page as HTML. Every text in it is escaped."""
    size = {"width": WIDTH, "height": HEIGHT}
    return rendered_page("report.html.j2", page=page, missing=MISSING, chart=size)


def rendered_page(template: str, **values: object) -> str:
    """A template of the reports with values. Every text in it is escaped."""
    return _templates().get_template(template).render(**values) + "\n"


@functools.cache
def _templates() -> Environment:
    """The templates, each of which is compiled once in a process."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("deltakit.compare.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"plain": _plain, "inline": _inline}
    return environment


def _plain(value: object) -> str:
    """A single value as text: numbers short, and what is absent as a dash."""
    if value is None:
        return MISSING
    return f"{value:.6g}" if isinstance(value, float) else str(value)


_COLOURS = {
    plots.INK: "var(--ink)",
    plots.SOFT: "var(--soft)",
    plots.GRID: "var(--line)",
    plots.PAPER: "var(--paper)",
    plots.PALETTE[0]: "var(--accent)",
}
"""A plot's neutral colours follow the page's, so that it can be read in the dark too."""

_OUTSIDE_HTML = re.compile(
    r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>|\sxmlns(:\w+)?=\"[^\"]*\"", re.DOTALL
)
_NAMES = re.compile(r"(\sid=\"|href=\"#|url\(#)")


def _inline(svg: str, name: str) -> str:
    """The SVG as an element of an HTML page, which needs neither prologue nor name spaces.

    Its ids begin with `name`, as no two elements of a page may share one.
    """
    from markupsafe import Markup

    bare = _NAMES.sub(rf"\g<1>{name}-", _OUTSIDE_HTML.sub("", svg).strip())
    for colour, variable in _COLOURS.items():
        bare = bare.replace(colour, variable)
    # Only matplotlib wrote this markup, and it escapes the texts that it was given.
    return Markup(bare)  # noqa: S704
