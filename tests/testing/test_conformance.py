"""Every law, for every method on every family: some of the pairs each time, all with `-m slow`."""

import functools
import itertools
import re
from pathlib import Path
from typing import Any

import pytest

from deltakit.arch.resolve import family_of
from deltakit.testing.case import Case, NotApplicable
from deltakit.testing.checks import LAWS, Law, check_compiles
from deltakit.testing.fresh import check_loads_elsewhere
from deltakit.testing.loops import LOOP_LAWS
from deltakit.testing.matrix import matrix, page, refusal, subjects
from deltakit.testing.models import MODEL_TYPES, make_model
from deltakit.testing.states import STATE_LAWS, check_compiled_first

METHODS = subjects()
TRACED = (check_compiles, check_compiled_first)
IN_TURN = tuple(law for law in (*LOOP_LAWS, *STATE_LAWS) if law not in TRACED)
QUICK = tuple(law for law in LAWS if law not in (*TRACED, *IN_TURN))
ONE_IN = 20
"""Each family has one method in twenty by default, others than the next one, and their laws."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:None of the inputs have requires_grad=True:UserWarning",  # the checkpointed embeddings
    "ignore:The .grad attribute of a Tensor:UserWarning",  # the tracer's
)


@functools.lru_cache(maxsize=len(METHODS))  # family by family: all at once would fill the memory
def case(method: str, model_type: str) -> Case:
    return Case.of(METHODS[method], model_type)


def sample(model_type: str) -> list[str]:
    """Some of the methods: others for each family, the same for each law, which share a case."""
    first = MODEL_TYPES.index(model_type)
    return [m for index, m in enumerate(METHODS) if (first + index) % ONE_IN == 0]


def broken(law: Law, model_type: str, methods: list[str]) -> list[str]:
    """A line for each method with which the law does not hold on the family."""
    found = []
    for method in methods:
        try:
            law(case(method, model_type))
        except NotApplicable:
            continue
        except Exception as error:
            if str(error) == refusal(case(method, model_type)):
                continue  # a refusal in the pass, which the page has
            found.append(f"{method} on {model_type}: {type(error).__name__}: {error}")
    return found


def name(what: Law | str) -> str:
    return what if isinstance(what, str) else what.__name__.removeprefix("check_")


@pytest.mark.parametrize(("model_type", "law"), [*itertools.product(MODEL_TYPES, QUICK)], ids=name)
def test_law(model_type: str, law: Law) -> None:
    assert broken(law, model_type, sample(model_type)) == []


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("model_type", "law"), [*itertools.product(MODEL_TYPES, LAWS)], ids=name)
def test_law_on_all_pairs(model_type: str, law: Law) -> None:
    assert broken(law, model_type, list(METHODS)) == []


@functools.cache
def families() -> tuple[str, ...]:
    """A model type for each family."""
    return tuple({family_of(make_model(t)).name: t for t in MODEL_TYPES}.values())


KNOWN_FAULTS = {
    # A model without a head begins its pass outside the graph, which cannot read the mask there.
    ("compiles", "mola", "clip_text_model"),
    ("compiles", "unipelt", "clip_text_model"),
    ("compiles", "loreft", "clip_text_model"),
    ("compiles", "mixture[route=sequence]", "clip_text_model"),
}
NOWHERE = {
    ("labels", "prefix[positions=counted]"),  # for T5 alone, whose tiny model has no classes
}


def hold_on_one(law: Law, method: str) -> None:
    """Holds a law on one family with the method: the next one that it applies to, in turn."""
    first = list(METHODS).index(method)  # for each law the same, so that a case is made once
    for offset in range(len(families())):
        family = families()[(first + offset) % len(families())]
        if (name(law), method, family) in KNOWN_FAULTS:
            continue
        try:
            law(case(method, family))
        except NotApplicable:
            continue
        return
    if (name(law), method) not in NOWHERE:
        pytest.fail(f"{name(law)} applies to no family with {method}")


ALIKE = (
    "mov",
    "houlsby",
    "prefix[positions=shifted]",
    "lora[targets=embed]",
    "invertible+adapter",
    "partial",
    "sparse[method=lora]",
    "mola",
    "molora",
    "adamix",
    "compacter++",
    "phm",
    "adapterdrop[method=prefix]",
    "fusion[member=lora]",
    "fusion[member=parallel]",
    "unipelt",
    "prefix[positions=counted]",
    "prefix+lora+parallel",
)
"""Methods whose forms and sites are those of others in the list: the slow run has them all."""
TRACED_ALIKE = (
    *ALIKE,
    "lora[targets=all]",
    "parallel[learned_scale=true]",
    "prefix[bottleneck=none]",
    "adapterdrop",
    "mam",
    "norms",
    "head",
    "pfeiffer",
    "mixture",
    "gated",
    "moa",
    "full",
    "learned_mean",
)
"""Methods whose graph is of the same parts as another's."""


def slow_if_in(alike: tuple[str, ...]) -> list[Any]:
    """The methods, as parameters of a test; those of `alike` are in the slow run."""
    return [pytest.param(m, marks=[pytest.mark.slow] * (m in alike)) for m in METHODS]


@pytest.mark.parametrize("law", IN_TURN, ids=name)
@pytest.mark.parametrize("method", slow_if_in(ALIKE))
def test_law_in_turn(law: Law, method: str) -> None:
    hold_on_one(law, method)


@pytest.mark.parametrize("method", slow_if_in(TRACED_ALIKE))
def test_compiles(method: str) -> None:
    """Tracing takes seconds."""
    hold_on_one(check_compiles, method)


def test_all_that_are_traced_alike_are_methods() -> None:
    assert set(TRACED_ALIKE) <= set(METHODS)


@pytest.mark.parametrize(
    "method",
    ["parallel", *(pytest.param(each, marks=pytest.mark.slow) for each in ("prompt", "norms"))],
)
def test_compiled_first(method: str) -> None:
    """Some of the ways in which deltas reach a model: at sites, as positions, as parameters."""
    hold_on_one(check_compiled_first, method)


def test_loads_elsewhere() -> None:
    check_loads_elsewhere([case(m, f) for f in MODEL_TYPES for m in sample(f)])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_all_load_elsewhere(model_type: str) -> None:
    check_loads_elsewhere([case(method, model_type) for method in METHODS])


def cells(text: str) -> dict[str, dict[str, str]]:
    """The page's outcomes by family and method: a check mark, or why it is refused."""
    lines = text.splitlines()
    reasons = dict(line.split(". ", 1) for line in lines if re.match(r"\d+\. ", line))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    (_, *labels), _, *families = (row for row in rows if len(row) > 10)
    return {
        family: dict(zip(labels, (reasons.get(cell, cell) for cell in row), strict=True))
        for family, *row in families
    }


COMMITTED = Path(__file__).parents[2] / "docs" / "methods-and-families.md"


@pytest.mark.slow
def test_the_page_is_what_the_models_say() -> None:
    assert COMMITTED.read_text(encoding="utf-8") == page(matrix())


def test_some_lines_of_the_page_are_what_the_models_say() -> None:
    said = cells(COMMITTED.read_text(encoding="utf-8"))
    assert {*said} == {f"`{family}`" for family in MODEL_TYPES}
    for family in MODEL_TYPES[::16]:
        outcomes = {f"`{m}`": refusal(case(m, family)) or "✓" for m in METHODS}
        assert said[f"`{family}`"] == outcomes
