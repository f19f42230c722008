"""Compositions of names, and the nodes that they become."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import deltakit as dk
from deltakit.core.composition import One
from deltakit.core.site import Insertion
from deltakit.errors import InvalidConfig
from deltakit.runtime.compile import compile_composition
from deltakit.runtime.nodes import PlacedDelta, SequentialNode, Signal, SumNode
from deltakit.runtime.port_kinds import AddingPort


class Times(dk.Delta):
    """Δh = factor · what it reads."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * x


class Projected(dk.Delta):
    """Δh = a projection of what it reads, in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.projection = torch.nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


class Plain(AddingPort):
    """h and stream are one; x stays."""

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.h + change
        return Signal(signal.x, h, h)


X, H = torch.tensor([2.0], dtype=torch.float64), torch.tensor([3.0], dtype=torch.float64)
SIGNAL = Signal(X, H, H)
FACTORS = st.lists(st.floats(-2, 2), min_size=1, max_size=5)


def leaf(
    factor: float, insertion: Insertion = Insertion.SEQUENTIAL, scale: float = 1.0
) -> PlacedDelta:
    return PlacedDelta(Times(factor), insertion, scale)


def test_a_leaf_reads_what_its_insertion_says() -> None:
    assert leaf(5, Insertion.SEQUENTIAL, 0.5).change(SIGNAL, Plain()).item() == 7.5
    assert leaf(5, Insertion.PARALLEL, 0.5).change(SIGNAL, Plain()).item() == 5.0
    assert leaf(5, Insertion.PARALLEL).reads_input
    assert not leaf(5, Insertion.SEQUENTIAL).reads_input


def test_a_leaf_answers_in_the_dtype_of_the_stream() -> None:
    form = Projected()
    half = Signal(X.bfloat16(), H.bfloat16(), H.bfloat16())
    changed = PlacedDelta(form, Insertion.SEQUENTIAL).change(half, Plain())
    assert changed.dtype is torch.bfloat16
    torch.testing.assert_close(changed, form(H.float()).bfloat16())


@given(FACTORS)
def test_a_chain_multiplies(factors: list[float]) -> None:
    change = SequentialNode(tuple(leaf(f) for f in factors)).change(SIGNAL, Plain())
    expected = 3.0 * torch.tensor([1 + f for f in factors], dtype=torch.float64).prod() - 3.0
    torch.testing.assert_close(change.squeeze(), expected, atol=1e-9, rtol=1e-9)


@given(FACTORS)
def test_a_chain_of_parallel_deltas_adds(factors: list[float]) -> None:
    parts = tuple(leaf(f, Insertion.PARALLEL) for f in factors)
    assert SequentialNode(parts).change(SIGNAL, Plain()).item() == pytest.approx(
        2 * sum(factors), abs=1e-9
    )


@given(FACTORS, st.data())
def test_a_total_is_linear_in_its_weights(factors: list[float], data: Any) -> None:
    size = {"min_size": len(factors), "max_size": len(factors)}
    weights = data.draw(st.lists(st.floats(-3, 3), **size))
    node = SumNode(tuple(leaf(f) for f in factors), tuple(weights))
    expected = 3 * sum(w * f for w, f in zip(weights, factors, strict=True))
    assert node.change(SIGNAL, Plain()).item() == pytest.approx(expected, abs=1e-9)


def test_a_mean_weighs_by_name_where_a_part_is_absent() -> None:
    mean = dk.Mean("a", "b", "c", weights=[1.0, 10.0, 100.0])
    node = compile_composition(mean, {"a": leaf(1), "c": leaf(1)}.get)
    assert node.change(SIGNAL, Plain()).item() == pytest.approx(303.0)


def test_names_and_default_weights() -> None:
    assert dk.Mean("a", "b").weights == (0.5, 0.5)
    assert dk.Stack("a", "b").names == ("a", "b")
    assert One("a") == One("a") and dk.Stack("a") != dk.Stack("b")
    node = leaf(1)
    assert compile_composition(One("a"), {"a": node}.get) is node
    stacked = compile_composition(dk.Stack("a", "b"), {"a": node, "b": node}.get)
    assert stacked is not None and stacked.leaves == (node, node)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dk.Stack(), "Stack needs at least one name"),
        (lambda: dk.Mean(), "Mean needs at least one name"),
        (lambda: dk.Stack("a", "a"), "Stack names a delta twice: a, a"),
        (lambda: dk.Mean("a", "b", "a"), "Mean names a delta twice: a, b, a"),
        (lambda: dk.Mean("a", "b", weights=[1]), r"2 deltas \(a, b\) and 1 weights"),
        (lambda: dk.Mean("a", weights=[]), r"1 deltas \(a\) and 0 weights"),
    ],
)
def test_messages(build: Any, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        build()
