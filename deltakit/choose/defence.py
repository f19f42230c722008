"""The comparison that defends a choice."""

from __future__ import annotations

from deltakit.choose.outcome import Outcome, finalists_of, last_rung
from deltakit.compare.plan.plan import Plan
from deltakit.compare.plan.request import Request

DATA_OPTIONS = (
    "compute_dtype",
    "kind",
    "metric",
    "positive",
    "text_column",
    "pair_column",
    "label_column",
    "label_separator",
)
"""Settings of a request that decide what is read and scored; None is what the data tell."""

DEFENCE = {"seeds": 5, "trials": 4}
"""Seeds and rates of the comparison that defends a choice."""


def defence(plan: Plan, outcome: Outcome) -> dict[str, object]:
    """The options of a comparison of the finalists with more seeds and a search for each rate."""
    asked, budget = plan.request, plan.request.budget
    return {
        "methods": ",".join(dict.fromkeys(_rivals(outcome))),
        "model": plan.request.model,
        "task": plan.request.task,
        "bases": ",".join(plan.request.bases),
        "max_train_samples": budget.max_train_samples or "all",
        "max_eval_samples": budget.max_eval_samples or "all",
        "epochs": f"{budget.epochs:g}",
        "batch_size": budget.batch_size,
        "max_length": budget.max_length,
        **_data_options(asked),
        **DEFENCE,
    }


def _rivals(outcome: Outcome) -> list[str]:
    """The specs of the finalists; with a single one, also those that ended the last rung."""
    finalists = [row.method for row in finalists_of(outcome)]
    if len(finalists) > 1:
        return finalists
    return finalists + [each.arm.rpartition(" on ")[0] for each in last_rung(outcome)]


def _data_options(asked: Request) -> dict[str, object]:
    """The options that say how the data are read and scored, where they were given."""
    named = {name: getattr(asked, name) for name in DATA_OPTIONS}
    given = {name: value for name, value in named.items() if value is not None}
    # One option for each file: a path may have a comma.
    return {**given, **({"import": asked.imports} if asked.imports else {})}
