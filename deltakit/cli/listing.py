"""``deltakit list``: everything that goes by a name, plugins and ``--import`` included."""

import inspect
import json
from collections.abc import Callable, Iterator
from typing import Any

import click

from deltakit.cli.options import import_option
from deltakit.cli.shipped_plans import described, shipped_plans

Entry = dict[str, Any]
"""What is listed of one thing: its name first, then plain values."""


def _methods() -> Iterator[Entry]:
    from deltakit.core.method import METHODS

    for name, entry in METHODS.items():
        built = entry.build()
        yield {"name": name, "description": entry.summary, "paper": built.paper.key}


def _tasks() -> Iterator[Entry]:
    from deltakit.compare.tasks import TASKS

    for name, task in TASKS.items():
        yield {"name": name, "description": task.description, "version": task.version}


def _kinds() -> Iterator[Entry]:
    from deltakit.compare.tasks.kinds import KINDS

    for name, kind in KINDS.items():
        columns = (kind.text_column, kind.label_column)
        yield {
            "name": name,
            "description": _summary(kind),
            "columns": [column for column in columns if column is not None],
        }


def _metrics() -> Iterator[Entry]:
    from deltakit.compare.stats.metrics import METRICS

    for name, metric in METRICS.items():
        better = metric.direction.name.lower()
        yield {
            "name": name,
            "title": metric.title,
            "better": better,
            "takes": metric.takes.value,
        }


def _models() -> Iterator[Entry]:
    from deltakit.models.shipped import SHIPPED

    for name, model in SHIPPED.items():
        yield {"name": name, "package": model.package.replace("_", "-")}


def _families() -> Iterator[Entry]:
    from deltakit.arch.family import FAMILIES

    families = {id(family): family for _, family in FAMILIES.items()}
    for family in sorted(families.values(), key=lambda each: each.name):
        yield {"name": family.name, "model_types": list(family.model_types)}


def _formats() -> Iterator[Entry]:
    from deltakit.interop.formats import FORMATS

    for name, each in FORMATS.items():
        yield {"name": name, "title": each.title, "recognised_by": each.markers}


def _judges() -> Iterator[Entry]:
    from deltakit.compare.run.judges import JUDGES

    for name, judge in JUDGES.items():
        yield {"name": name, "description": _summary(judge), "install": judge.install}


def _plans() -> Iterator[Entry]:
    for name, file in sorted(shipped_plans().items()):
        yield {"name": name, "description": described(file)}


LISTS: dict[str, Callable[[], Iterator[Entry]]] = {
    "methods": _methods,
    "tasks": _tasks,
    "kinds": _kinds,
    "metrics": _metrics,
    "models": _models,
    "families": _families,
    "formats": _formats,
    "judges": _judges,
    "plans": _plans,
}
"""What can be listed, and how."""


def _summary(cls: type) -> str:
    """The first line of a class's docstring."""
    return (inspect.getdoc(cls) or "").partition("\n")[0]


@click.command(
    "list",
    epilog="""\b
Examples:
  deltakit list metrics
  deltakit list methods --import my_method.py
  deltakit list plans --json""",
)
@click.argument("what", type=click.Choice(list(LISTS)), metavar="WHAT")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array of objects.")
@import_option
def list_names(what: str, as_json: bool) -> None:
    """List methods, tasks, kinds, metrics, models, families, formats, judges or plans."""
    from tabulate import tabulate

    entries = list(LISTS[what]())
    if as_json:
        click.echo(json.dumps(entries, indent=2, ensure_ascii=False))
        return
    rows = [[_words(value) for value in entry.values()] for entry in entries]
    headers = [key.replace("_", " ") for key in entries[0]] if entries else []
    click.echo(tabulate(rows, headers, maxcolwidths=[None, 70] + [None] * len(headers)))


def _words(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
