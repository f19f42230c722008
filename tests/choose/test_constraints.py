"""Constraints: what they rule out, with the figure, and what is nearest where nothing is left."""

import pytest

from deltakit.choose.constraints import (
    Constraints,
    Facts,
    amount,
    check_feasible,
    constraints_of,
    violations,
)
from deltakit.errors import InvalidConfig, UnknownName

SMALL = Facts(trained_params=1_000, deployed_params=1_000, base_params=100_000, disk_bytes=8_000)
LARGE = Facts(
    trained_params=9_000,
    deployed_params=9_000,
    base_params=100_000,
    disk_bytes=40_000,
    latency=1.4,
    abilities=("merge",),
)


@pytest.mark.parametrize(
    ("text", "number"),
    [("300k", 3e5), ("2.5M", 2.5e6), ("800MiB", 800 * 2**20), ("1.5GB", 1.5e9), ("1%", 1_000)],
)
def test_amounts(text: str, number: float) -> None:
    assert amount("--max-params", text).limit(100_000) == number


@pytest.mark.parametrize("text", ["", "many", "-1", "0", "1.2.3", "5x"])
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(InvalidConfig, match="--max-params"):
        amount("--max-params", text)


def test_each_violation_has_its_figure() -> None:
    found = violations(LARGE, constraints_of({"max_params": "5%", "max_latency": "1.1"}))
    assert found["max_params"] == "trains 9.00 k parameters (--max-params 5%)"
    assert found["max_latency"] == "has a latency of 1.40× the base's (--max-latency 1.1)"
    assert not violations(SMALL, constraints_of({"max_params": "5%", "max_latency": 1.1}))


def test_abilities() -> None:
    asked = constraints_of({"must": "merge,peft"})
    assert asked.must == ("merge", "peft")
    assert violations(LARGE, asked) == {"must": "cannot be saved for peft (--must)"}
    with pytest.raises(UnknownName, match="merge"):
        constraints_of({"must": "merg"})


def test_infeasible_constraints_name_the_nearest_figures() -> None:
    asked = constraints_of({"max_params": 500})
    with pytest.raises(InvalidConfig) as caught:
        check_feasible({"small": SMALL, "large": LARGE}, asked, {})
    assert "Nearest: small trains 1.00 k parameters (--max-params 500)" in str(caught.value)
    assert "\n" not in str(caught.value)
    check_feasible({"small": SMALL}, constraints_of({"max_params": "1%"}), {})
    with pytest.raises(InvalidConfig, match="no candidate fits the model"):
        check_feasible({}, Constraints(), {"odd": "has no such site"})


def test_constraints_as_json() -> None:
    asked = constraints_of({"max_params": "1%", "max_latency": 1.1, "must": "merge"})
    assert asked.to_dict() == {"max_params": "1%", "max_latency": 1.1, "must": ["merge"]}
