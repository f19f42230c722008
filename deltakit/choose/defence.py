"""The comparison that defends a choice."""

from __future__ import annotations

from deltakit.choose.outcome import Outcome
from deltakit.choose.request import ChoiceRequest
from deltakit.compare.plan.plan import Plan

DEFENCE = {"seeds": 5, "trials": 4}
"""Seeds and rates of the comparison that defends a choice."""


def defence(request: ChoiceRequest, plan: Plan, outcome: Outcome) -> dict[str, object]:
    """The options of a comparison of the finalists with more seeds and a search for each rate."""
    budget = plan.request.budget
    methods = [row.method for row in outcome.rows if row.name != outcome.floor]
    return {
        "methods": ",".join(dict.fromkeys(methods)),
        "model": plan.request.model,
        "task": plan.request.task,
        "bases": ",".join(plan.request.bases),
        "max_train_samples": budget.max_train_samples or "all",
        "max_eval_samples": budget.max_eval_samples or "all",
        "epochs": f"{budget.epochs:g}",
        "batch_size": budget.batch_size,
        "max_length": budget.max_length,
        **DEFENCE,
    }
