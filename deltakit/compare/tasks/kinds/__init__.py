"""The kinds of tasks: classification, regression, several labels, tags, texts, generation.

A kind is one file in this folder, or of your own; everything in which kinds differ is in it.
"""

from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks.data.columns import ColumnNames
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.kinds.answers import Answers
from deltakit.compare.tasks.kinds.base import (
    KINDS,
    Kind,
    Outputs,
    ParsedLabels,
    references,
    register_kind,
)
from deltakit.compare.tasks.kinds.causal import Causal
from deltakit.compare.tasks.kinds.chat import Chat
from deltakit.compare.tasks.kinds.choice import Choice
from deltakit.compare.tasks.kinds.classification import Classification
from deltakit.compare.tasks.kinds.generation import Generation
from deltakit.compare.tasks.kinds.images import Images
from deltakit.compare.tasks.kinds.multilabel import MultiLabel
from deltakit.compare.tasks.kinds.regression import Regression
from deltakit.compare.tasks.kinds.spans import Spans
from deltakit.compare.tasks.kinds.tokens import Tokens
from deltakit.errors import InvalidConfig

__all__ = [
    "KINDS",
    "Answers",
    "Causal",
    "Chat",
    "Choice",
    "Classification",
    "Generation",
    "Images",
    "Kind",
    "MultiLabel",
    "Outputs",
    "ParsedLabels",
    "Regression",
    "Spans",
    "Tokens",
    "fitting_metrics",
    "kind_of",
    "references",
    "register_kind",
]


def kind_of(asked: str | None, columns: Columns, names: ColumnNames) -> type[Kind]:
    """The kind that ``--kind`` names, or that the columns of the training split look like.

    Raises:
        UnknownName: the kind is not registered.
        InvalidConfig: the kind has no use for an option that was given.
    """
    kind = KINDS.get(asked) if asked else _looks_like(columns, names)
    for option, name in names.given().items():
        if option not in kind.options:
            known = ", ".join(sorted(kind.options)) or "none of them"
            raise InvalidConfig(
                f"{option} {name} is not for the kind {kind.name!r}, which takes {known}. Leave it "
                "out, or choose another --kind."
            )
    return kind


def fitting_metrics(kind: Kind) -> tuple[str, ...]:
    """The metrics that fit a kind: its own, the usual one first, then those that name the kind."""
    others = (name for name, metric in METRICS.items() if kind.name in metric.kinds)
    return (*kind.metrics, *(name for name in others if name not in kind.metrics))


def _looks_like(columns: Columns, names: ColumnNames) -> type[Kind]:
    """The first kind that matches, those with the highest precedence first."""
    kinds = sorted((kind for _, kind in KINDS.items()), key=lambda kind: -kind.precedence)
    return next(kind for kind in kinds if kind.matches(columns, names))
