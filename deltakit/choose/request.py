"""The request of a choice, before anything of it is looked up."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from deltakit.choose.constraints import NAMES, Constraints, constraints_of
from deltakit.choose.decide.halving import MARGIN
from deltakit.compare.plan.request import Request, request_of
from deltakit.core.method import Method
from deltakit.core.spec import split_outside_brackets
from deltakit.errors import InvalidConfig, nearest

DEFAULT_MINUTES = 20.0
DEFAULT_FIELD = ("lora", "adapter", "ia3", "bitfit", "parallel", "prefix")
"""As in ``configs/choose.yaml``, in the order in which they have room."""

COMPARED = (
    "model",
    "task",
    "bases",
    "compute_dtype",
    "kind",
    "metric",
    "positive",
    "text_column",
    "pair_column",
    "label_column",
    "label_separator",
    "image_column",
    "columns",
    "encoding",
    "delimiter",
    "max_train_samples",
    "max_eval_samples",
    "epochs",
    "batch_size",
    "max_length",
    "imports",
)
"""The settings that are those of a comparison."""

USUAL = {"max_train_samples": "all", "max_eval_samples": 1000, "epochs": 3.0}
"""Their defaults, where they differ from a comparison's."""

SHORT_MINUTES, SHORT_ROWS = 15, 500
"""A budget of fewer minutes evaluates on fewer examples, so that more of it is for training."""


@dataclass(frozen=True, kw_only=True)
class ChoiceRequest:
    """The request of a user.

    Attributes:
        methods: the field: specs or methods.
        constraints: what the result must keep.
        minutes: the budget of time.
        seed: of the arms and of the finals.
        margin: points of the score that do not matter.
        compared: the task, the model, the bases and the data, as a comparison is asked for them.
    """

    methods: tuple[str | Method, ...]
    constraints: Constraints
    minutes: float
    seed: int
    margin: float
    compared: Request


def choice_request(settings: Mapping[str, Any]) -> ChoiceRequest:
    """The request that the command line's options, or Python's keywords, ask for.

    Args:
        settings: by name; None is the default.

    Raises:
        InvalidConfig: a setting that does not exist, or a value out of range.
        UnknownName: an ability that does not exist.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    known = {*COMPARED, *NAMES, "methods", "minutes", "seed", "margin", "weights"}
    for name in given:
        if name not in known:
            raise InvalidConfig(
                f"a choice has no setting {name!r}.{nearest(name, known)} It has: "
                f"{', '.join(sorted(known))}."
            )
    minutes = _above_zero("--minutes", given.get("minutes", DEFAULT_MINUTES))
    margin = _above_zero("--margin", given.get("margin", MARGIN))
    if "weights" in given:
        given["bases"] = given["weights"]
    rows = SHORT_ROWS if minutes < SHORT_MINUTES else USUAL["max_eval_samples"]
    compared = {
        **USUAL,
        "max_eval_samples": rows,
        **{name: given[name] for name in COMPARED if name in given},
    }
    return ChoiceRequest(
        methods=_field(given.get("methods", DEFAULT_FIELD)),
        constraints=constraints_of(given),
        minutes=minutes,
        seed=int(given.get("seed", 0)),
        margin=margin,
        compared=request_of(("majority",), compared),
    )


def _above_zero(option: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InvalidConfig(f"{option} {value}: give a number above zero.")
    return number


def _field(methods: object) -> tuple[str | Method, ...]:
    if isinstance(methods, str):
        return tuple(each.strip() for each in split_outside_brackets(methods, ",") if each.strip())
    if isinstance(methods, Method):
        return (methods,)
    if not isinstance(methods, Iterable):
        raise InvalidConfig(f"methods={methods!r}: give specs such as 'lora', or methods.")
    return tuple(methods)
