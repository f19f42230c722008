"""Candidates: the methods of the field, in two or three sizes, on each base."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.core.method import CombiningMethod, Method, Role, know_classes
from deltakit.core.provider import ExternalMethod
from deltakit.core.spec import format_method
from deltakit.errors import DeltakitError, InvalidConfig, first_line

if TYPE_CHECKING:
    from deltakit.core.provider import Counts
    from deltakit.models.source import BaseChoice

SIZES = (0.25, 4)
"""Trained parameters of a method's other sizes, over those of its own."""

WIDEST = 13
"""Doublings of a width that are tried."""

RATES = (1.0, 1 / 3, 3.0)
"""Learning rates over a method's own, which is the first."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A method at one size on one base.

    Attributes:
        label: the spec.
        method: what is trained.
        family: the spec that it is a size of.
        base: the base.
        counts: numbers of parameters.
        usual_size: whether the size is the method's own.
    """

    label: str
    method: Method
    family: str
    base: BaseChoice
    counts: Counts
    usual_size: bool = True

    @property
    def name(self) -> str:
        """The label and the base."""
        return f"{self.label} on {self.base.name}"

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rates of its arms, the method's own first; two digits each."""
        return tuple(float(f"{self.method.learning_rate * each:.2g}") for each in RATES)


def read_field(specs: Iterable[str | Method]) -> dict[str, Method]:
    """The methods of the field by their specs.

    Raises:
        InvalidConfig: the field is empty, names a method twice, or a baseline.
        UnknownName: a method that does not exist.
    """
    field: dict[str, Method] = {}
    for spec in specs:
        method = dk.parse_method(spec) if isinstance(spec, str) else spec
        label = spec if isinstance(spec, str) else format_method(method)
        if label in field:
            raise InvalidConfig(f"--methods names {label!r} twice. Leave one of the two out.")
        if method.role is not Role.METHOD:
            raise InvalidConfig(
                f"{label!r} is a baseline, which no choice is made of. Leave it out."
            )
        know_classes(method)
        field[label] = method
    if not field:
        raise InvalidConfig("--methods is empty. Name at least one, for example --methods lora.")
    return field


def candidates_of(
    field: Mapping[str, Method], bases: Sequence[BaseChoice], skeleton: Any
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """The candidates, and for each spec that does not fit the model the reason.

    A spec with brackets has one size. Sizes are found on a model without weights.
    """
    found: list[Candidate] = []
    misfits: dict[str, str] = {}
    for family, method in field.items():
        try:
            sizes = list(_sizes(family, method, skeleton))
        except DeltakitError as error:
            misfits[family] = first_line(error)
            continue
        found += [dataclasses.replace(each, base=base) for base in bases for each in sizes]
    return _distinct(found), misfits


def _sizes(family: str, method: Method, skeleton: Any) -> Iterator[Candidate]:
    """The sizes of one method; the base is filled in later."""
    own = counts_of(method, skeleton)
    yield _candidate(family, family, method, own)
    if "[" in family or isinstance(method, ExternalMethod):
        return
    widths = list(_doubled(method, SIZES[-1] * own.trained_params, skeleton))
    for size in SIZES if widths else ():
        sized, counts = min(widths, key=lambda each: _off(each[1], size * own.trained_params))
        # A width of what only training needs makes no other size.
        if counts.deployed_params != own.deployed_params:
            yield _candidate(format_method(sized), family, sized, counts, usual_size=False)


def _doubled(method: Method, most: float, skeleton: Any) -> Iterator[tuple[Method, Counts]]:
    """The method with widths of 1, 2, 4, ..., until it trains `most` parameters."""
    for doublings in range(WIDEST):
        sized = method.sized(1 << doublings)
        if sized is None:
            return
        counts = counts_of(sized, skeleton)
        yield sized, counts
        if counts.trained_params >= most:
            return


def _off(counts: Counts, target: float) -> float:
    """How far a size is from another one, as a logarithm."""
    return abs(math.log(max(counts.trained_params, 1) / target))


def _candidate(
    label: str, family: str, method: Method, counts: Counts, *, usual_size: bool = True
) -> Candidate:
    from deltakit.models.source import BaseChoice

    return Candidate(
        label=label,
        method=method,
        family=family,
        base=BaseChoice(name="fp32"),
        counts=counts,
        usual_size=usual_size,
    )


def counts_of(method: Method, skeleton: Any) -> Counts:
    """The numbers of parameters of a method on a model without weights."""
    adapted = adapted_model(copy.deepcopy(skeleton), method)
    adapted.attach()
    if isinstance(method, ExternalMethod) and adapted.callbacks():
        raise InvalidConfig(
            "changes itself between steps with callbacks of transformers' Trainer, which an arm "
            "that stops and goes on cannot store; deltakit compare trains it"
        )
    return adapted.counts()


def combining(
    field: Mapping[str, Method], stage_one: int, steps: int
) -> tuple[dict[str, Method], dict[str, str]]:
    """The field without the methods that combine trained deltas, and the reason of each that does.

    Args:
        field: the methods by their specs.
        stage_one: trainings before the one of such a method.
        steps: of each in full.
    """
    out = {label for label, method in field.items() if isinstance(method, CombiningMethod)}
    why = (
        f"combines deltas that are trained before it: {stage_one} trainings of {steps} steps come "
        "before its first, and no rung is as long; deltakit compare trains them"
    )
    kept = {label: method for label, method in field.items() if label not in out}
    return kept, {label: why for label in field if label in out}


def _distinct(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The first of each method and base: a small model may give two sizes one width."""
    found: dict[tuple[Method, str], Candidate] = {}
    for each in candidates:
        found.setdefault((each.method, each.base.name), each)
    return tuple(found.values())
