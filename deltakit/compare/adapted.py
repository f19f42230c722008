"""A model with one method on it, deltakit's or another library's, as the comparison needs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit.core.method import Method
from deltakit.core.provider import AdaptedModel, Counts, ExternalMethod
from deltakit.errors import NotMergeable

if TYPE_CHECKING:
    from torch import nn

TRAINED = "trained"
"""The name that a cell attaches its delta under."""
SECOND = "second"
"""The name of a copy of it."""


def adapted_model(model: Any, method: Method) -> AdaptedModel:
    """The model and the method, which is not put on it yet."""
    if isinstance(method, ExternalMethod):
        return method.adapted(model)
    return DeltakitModel(model, method)


class DeltakitModel(AdaptedModel):
    """A delta of deltakit's, with its members where it combines others."""

    def __init__(self, model: Any, method: Method) -> None:
        super().__init__(model)
        self.method = method

    def attach(self) -> None:
        dk.attach(self.model, self.method, TRAINED)

    def prepare(self, batches: Iterable[Mapping[str, Any]]) -> None:
        dk.prepare(self.model, batches)

    def save(self, folder: Path) -> None:
        dk.save(self.model, folder, TRAINED)

    def load(self, folder: Path) -> None:
        dk.load(self.model, folder, TRAINED)

    def counts(self) -> Counts:
        counted = dk.summary(self.model)
        return Counts(
            trained_params=counted.trained_params,
            trained_pct=counted.trained_pct,
            deployed_params=counted.deployed_params,
            head_params=counted.head_params,
            base_bytes=counted.base_bytes,
        )

    def callbacks(self) -> tuple[Any, ...]:
        return dk.step_callbacks(self.model).for_trainer()

    def kept_trunk(self, cache: Any) -> AbstractContextManager[Any]:
        return dk.kept_trunk(self.model, cache)

    def deploy(self) -> bool:
        if self.method.deployed() == self.method:
            return False
        dk.deploy(self.model, TRAINED)
        return True

    @contextmanager
    def disabled(self) -> Iterator[nn.Module]:
        with dk.disabled(self.model):
            yield self.model

    @contextmanager
    def merged(self) -> Iterator[nn.Module]:
        if not any(row.layers for row in dk.summary(self.model).rows):
            raise NotMergeable("there is nothing at any site to merge. Use the model as it is.")
        dk.merge(self.model, tolerance=math.inf)
        try:
            yield self.model
        finally:
            dk.unmerge(self.model)

    @contextmanager
    def second_copy(self, folder: Path) -> Iterator[Callable[[], None]]:
        dk.load(self.model, folder, SECOND)
        names = cycle((TRAINED, SECOND))
        try:
            yield lambda: dk.activate(self.model, next(names))
        finally:
            dk.activate(self.model, TRAINED)
            dk.detach(self.model, SECOND)
