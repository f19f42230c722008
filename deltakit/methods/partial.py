"""Partial fine-tuning: train some of the base's own parameters, and nothing else.

Which ones is said by name, with * and ? for any letters: ``("*.query.bias", "embeddings.*")``. Like
BitFit it puts no module anywhere (`Method.trains_base_parameter`). Lee et al. (2019,
arXiv:1911.03090) train the last quarter of the layers alone and keep nine tenths of the quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, ClassVar

from deltakit.core.method import Paper, Summable, register_method
from deltakit.errors import InvalidConfig, nearest

if TYPE_CHECKING:
    from torch import nn


@register_method("partial")
@dataclass(frozen=True, kw_only=True)
class PartialFineTuning(Summable):
    """Trains the base's parameters whose names match (Lee et al. 2019).

    Args:
        parameters: patterns of names as in ``model.named_parameters()``; each must match one, and
            tied parameters are asked for by all their names. Everything by default.

    Raises:
        InvalidConfig: no pattern, or one that is not text.
    """

    parameters: tuple[str, ...] = ("*",)

    paper: ClassVar[Paper] = Paper(
        key="lee2019elsa",
        title="What Would Elsa Do? Freezing Layers During Transformer Fine-Tuning",
        authors="Lee, Jaejun and Tang, Raphael and Lin, Jimmy",
        year=2019,
        venue="arXiv preprint",
        arxiv="1911.03090",
    )
    learning_rate: ClassVar[float] = 1e-4

    def __post_init__(self) -> None:
        given = (self.parameters,) if isinstance(self.parameters, str) else self.parameters
        if not given or not all(isinstance(pattern, str) and pattern for pattern in given):
            raise InvalidConfig(
                f"PartialFineTuning(parameters={self.parameters!r}): name parameters of the "
                "model, for example ('*.query.bias',)."
            )
        object.__setattr__(self, "parameters", tuple(given))

    def trains_base_parameter(self, name: str, owner: nn.Module) -> bool:
        del owner
        return any(fnmatchcase(name, pattern) for pattern in self.parameters)

    def check_names(self, names: Sequence[tuple[str, ...]]) -> None:
        known = [name for each in names for name in each]
        for pattern in self.parameters:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise InvalidConfig(
                    f"PartialFineTuning: no parameter of this model matches {pattern!r}."
                    f"{nearest(pattern, known)} model.named_parameters() lists them."
                )
        for each in names:
            _check_tied({name: any(fnmatchcase(name, p) for p in self.parameters) for name in each})


def _check_tied(asked: dict[str, bool]) -> None:
    """One parameter may not be trained under one of its names and stay as it is under another."""
    if len(set(asked.values())) > 1:
        one, other = (
            next(n for n, named in asked.items() if named is is_) for is_ in (True, False)
        )
        raise InvalidConfig(
            f"PartialFineTuning: {one!r} is {other!r} too (tied), so both would be trained. Name "
            "both, or untie them first."
        )
