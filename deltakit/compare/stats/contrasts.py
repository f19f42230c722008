"""The differences between rows of a table: each against a reference, and all against all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from deltakit.compare.records.result import Predictions, Row
from deltakit.compare.stats.metrics import Metric
from deltakit.compare.stats.significance import LEVEL, Difference, compact_letter_display, holm

Seeds = Mapping[int, Predictions]
"""The predictions of a row's finished cells, by seed."""

Pair = tuple[Row, Row]


def contrasts(
    rows: Mapping[Row, Seeds], pairs: Mapping[Row, Row], metric: Metric
) -> dict[Row, Difference]:
    """Each row against its reference, p adjusted for how many rows there are (Holm).

    Args:
        rows: what each row predicted.
        pairs: from a row to its reference; a row without one, or without predictions, has no
            difference.
        metric: what is compared.
    """
    found = {
        row: _difference(rows[row], rows[other], metric)
        for row, other in pairs.items()
        if row != other and rows.get(row) and rows.get(other)
    }
    adjusted = holm({row: difference.p for row, difference in found.items()})
    return {row: replace(found[row], p=adjusted[row]) for row in found}


def told_apart(rows: Mapping[Row, Seeds], metric: Metric) -> frozenset[Pair]:
    """The pairs of rows that differ, in either order: all pairs, adjusted by Holm's method.

    Args:
        rows: what each row predicted; one without predictions differs from none.
        metric: what is compared.
    """
    p = {
        (one, other): _difference(rows[one], rows[other], metric).p
        for one, other in combinations([row for row in rows if rows[row]], 2)
    }
    found = [pair for pair, adjusted in holm(p).items() if adjusted <= LEVEL]
    return frozenset(each for pair in found for each in (pair, pair[::-1]))


def letter_display(
    rows: Mapping[Row, Seeds], ranked: Sequence[Row], metric: Metric
) -> dict[Row, str]:
    """Letters for rows that cannot be told apart, of those with several seeds.

    A row with one seed has no letter: nothing is known about its other seeds.

    Args:
        rows: what each row predicted.
        ranked: the rows, best first.
        metric: what is compared.
    """
    several = [row for row in ranked if len(rows.get(row, {})) > 1]
    different = told_apart({row: rows[row] for row in several}, metric)
    names = {row: f"{at}" for at, row in enumerate(several)}
    found = compact_letter_display(
        list(names.values()), [(names[one], names[other]) for one, other in different]
    )
    return {row: found[name] for row, name in names.items()}


def _difference(one: Seeds, other: Seeds, metric: Metric) -> Difference:
    """The difference of the scores that the table shows: of all seeds that each row has.

    Rows with the same seeds are paired by seed, and other rows are not paired.
    """
    first, second = ([row[seed] for seed in sorted(row)] for row in (one, other))
    return metric.difference(first, second, paired=one.keys() == other.keys())
