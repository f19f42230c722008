"""One call of `generate`: how many rows it was given, and what is kept until it returns.

`generate` runs a model many times, and repeats each row for its beams and returned sequences. No
argument of those calls says so. While deltas need to know it, the model's `generate` is a callable
that notes it for the calling thread.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from deltakit.runtime.passes import THREAD, Generation

GIVEN = ("inputs", "input_ids", "inputs_embeds", "input_features", "input_values", "pixel_values")
"""The arguments of `generate` that have a row for each row of the batch."""


def kept_values() -> dict[Any, Tensor] | None:
    """The state of the running call of `generate`; None outside any."""
    generation = THREAD.generation
    return None if generation is None else generation.kept


class NotedGenerate:
    """A model's `generate`, which notes itself in the calling thread."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.before = vars(model).get("generate")
        vars(model)["generate"] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        generate = self.before or partial(_class_generate(self.model), self.model)
        before = THREAD.generation
        THREAD.generation = Generation(model=self.model, rows=_rows(args, kwargs))
        try:
            return generate(*args, **kwargs)
        finally:
            THREAD.generation = before

    def remove(self) -> None:
        """Gives the model its own `generate` back."""
        if vars(self.model).get("generate") is self:
            del vars(self.model)["generate"]
            if self.before is not None:
                vars(self.model)["generate"] = self.before


def _class_generate(model: Any) -> Callable[..., Any]:
    generate: Callable[..., Any] = type(model).generate
    return generate


def _rows(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    given = (*args[:1], *(kwargs.get(name) for name in GIVEN))
    return next((each.shape[0] for each in given if isinstance(each, Tensor)), None)


def install_generation(model: nn.Module) -> Iterator[NotedGenerate]:
    """Makes calls of the model's `generate` known to its ports."""
    if callable(getattr(type(model), "generate", None)):
        yield NotedGenerate(model)
