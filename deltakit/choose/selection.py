"""The selection among the finalists and their seeds, on the validation split."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deltakit.choose.constraints import Facts, violations
from deltakit.choose.decide.certainty import choose_finalist
from deltakit.choose.finals import Trained, measured
from deltakit.choose.prepare import Prepared
from deltakit.compare.records.result import Predictions
from deltakit.compare.results import Results
from deltakit.compare.stats.metrics import Metric
from deltakit.errors import InvalidConfig


def chosen(
    prepared: Prepared, trained: Trained, broken: Mapping[tuple[str, str], Any]
) -> tuple[str, str]:
    """The choice on the validation split, of those that keep the constraints as measured."""
    left = {key: seeds for key, seeds in trained.validation.items() if not broken.get(key)}
    left = left or dict(trained.validation)
    if not left:
        reasons = "; ".join(f"{label}: {why}" for (label, _), why in trained.failed.items())
        raise InvalidConfig(f"every finalist failed ({reasons}). Name other --methods.")
    keys = {" on ".join(key): key for key in left}
    costs = {name: float(facts_of_row(prepared, key).deployed_params) for name, key in keys.items()}
    name = choose_finalist(
        {name: left[key] for name, key in keys.items()},
        costs,
        prepared.metric,
        margin=prepared.request.margin,
    )
    return keys[name]


def best_seed(validation: Mapping[int, Predictions], metric: Metric) -> int:
    """The seed with the best score on the validation split, the first of equal ones."""
    return max(validation, key=lambda seed: metric.direction.rank(metric.value(validation[seed])))


def facts_of_row(prepared: Prepared, key: tuple[str, str]) -> Facts:
    """The facts of a row of the finals, by its label and base."""
    name = " on ".join(key)
    return prepared.facts.get(name) or prepared.field.floor_facts


def broken_constraints(
    prepared: Prepared, results: Results, trained: Trained
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The constraints that each finalist breaks as measured."""
    return {
        key: tuple(
            violations(
                measured(results, key, facts_of_row(prepared, key)), prepared.request.constraints
            ).values()
        )
        for key in trained.validation
    }
