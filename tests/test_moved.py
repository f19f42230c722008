"""Former modules of the comparison can still be imported, with a dated warning."""

import importlib
import sys

import pytest

from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.stats.metrics import METRICS


@pytest.mark.parametrize(
    ("old", "new", "name", "thing"),
    [
        ("metrics", "stats.metrics", "METRICS", METRICS),
        ("planning", "plan.resolve", "resolve", build_plan),
    ],
)
def test_a_former_module(old: str, new: str, name: str, thing: object) -> None:
    sys.modules.pop(f"deltakit.compare.{old}", None)
    with pytest.warns(DeprecationWarning, match=f"{old} moved to deltakit.compare.{new} on 2026"):
        module = importlib.import_module(f"deltakit.compare.{old}")
    assert getattr(module, name) is thing


def test_other_names_are_unknown() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("deltakit.compare.nothing")
