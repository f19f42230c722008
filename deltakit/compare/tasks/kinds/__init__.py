"""The kinds of tasks: classification, regression, several labels, texts, short answers.

A kind is one file beside this one; everything in which kinds differ is in it.
"""

from deltakit.compare.tasks.data.columns import ColumnNames
from deltakit.compare.tasks.data.files import Columns
from deltakit.compare.tasks.kinds.answers import Answers
from deltakit.compare.tasks.kinds.base import Kind, ParsedLabels, references
from deltakit.compare.tasks.kinds.causal import Causal
from deltakit.compare.tasks.kinds.classification import Classification
from deltakit.compare.tasks.kinds.multilabel import MultiLabel
from deltakit.compare.tasks.kinds.regression import Regression
from deltakit.errors import InvalidConfig, unknown

__all__ = [
    "KINDS",
    "Answers",
    "Causal",
    "Classification",
    "Kind",
    "MultiLabel",
    "ParsedLabels",
    "Regression",
    "kind_of",
    "references",
]

KINDS: tuple[type[Kind], ...] = (Answers, MultiLabel, Regression, Classification, Causal)
"""In the order in which they are asked whether data suits them."""


def kind_of(asked: str | None, columns: Columns, names: ColumnNames) -> type[Kind]:
    """The kind that ``--kind`` names, or that the columns of the training split look like.

    Raises:
        UnknownName: there is no such kind.
        InvalidConfig: the kind has no use for an option that was given.
    """
    known = {kind.name: kind for kind in KINDS}
    if asked is not None and asked not in known:
        raise unknown("--kind", asked, known)
    kind = known[asked] if asked else next(k for k in KINDS if k.matches(columns, names))
    for option, name in names.given().items():
        if option not in kind.options:
            raise InvalidConfig(
                f"{option} {name} is not for the kind {kind.name!r}, which takes "
                f"{', '.join(sorted(kind.options))}. Leave it out, or choose another --kind."
            )
    return kind
