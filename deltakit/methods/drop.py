"""AdapterDrop: no deltas in some layers (Rücklé et al. 2021, arXiv:2010.11918).

A modifier of any method. *Specialised*: the layers are fixed, ``first=5`` or ``layers=(0, 2)``, and
their deltas are never made. *Robust*: all layers have deltas, and every training batch leaves the
lowest n out, n drawn from 0 to ``random_up_to``, so that any number of them can be dropped later:
`deltakit.drop` sets it while the model is in use.

In training, no gradient flows below the lowest layer that has a delta.

Where the sources differ. The paper draws n from {0, ..., 11} for 12 layers; the notebook of
`adapters` from {0, ..., 10}, and the library has no such training of its own.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from deltakit.core.checks import check_whole
from deltakit.core.method import (
    CombiningMethod,
    Method,
    MethodWrapper,
    Paper,
    Placement,
    register_method,
    why_no_sum,
)
from deltakit.core.site import OUTER_SITES
from deltakit.errors import IncompatibleDeltas, InvalidConfig
from deltakit.methods.adapter import SequentialAdapter

DEEPEST = 10_000
"""More layers than any model has."""


@register_method("adapterdrop")
@dataclass(frozen=True, kw_only=True, init=False)
class AdapterDrop(MethodWrapper):
    """A method without its deltas in some layers or stacks (Rücklé et al. 2021).

    ``AdapterDrop(SequentialAdapter(), first=5)``. Layers are counted in every stack of the model.

    Args:
        method: what is dropped; a SequentialAdapter by default.
        first: how many of the lowest layers have no delta; 2 if no layer is given.
        layers: layers that have no delta, wherever they are.
        stacks: stacks that have no delta: "encoder", "decoder" or, for the attention from one to
            the other, "cross". `deltakit.resolve` lists a model's.
        random_up_to: each training batch also leaves the lowest n layers out, n drawn uniformly
            from 0 to this.

    Raises:
        InvalidConfig: a value out of range, or a method that has no layers.
    """

    method: Method
    first: int
    layers: tuple[int, ...]
    stacks: tuple[str, ...]
    random_up_to: int

    paper: ClassVar[Paper] = Paper(
        key="ruckle2021adapterdrop",
        title="AdapterDrop: On the Efficiency of Adapters in Transformers",
        authors="Rücklé, Andreas and Geigle, Gregor and Glockner, Max and Beck, Tilman and "
        "Pfeiffer, Jonas and Reimers, Nils and Gurevych, Iryna",
        year=2021,
        venue="Conference on Empirical Methods in Natural Language Processing",
        arxiv="2010.11918",
    )

    def __init__(
        self,
        method: Method | None = None,
        *,
        first: int | None = None,
        layers: int | Iterable[int] = (),
        stacks: str | Iterable[str] = (),
        random_up_to: int = 0,
    ) -> None:
        chosen = (layers,) if isinstance(layers, int) else tuple(layers)
        names = (stacks,) if isinstance(stacks, str) else tuple(stacks)
        if first is None:
            first = 0 if chosen or names or random_up_to else 2
        object.__setattr__(self, "method", SequentialAdapter() if method is None else method)
        object.__setattr__(self, "first", first)
        object.__setattr__(self, "layers", chosen)
        object.__setattr__(self, "stacks", names)
        object.__setattr__(self, "random_up_to", random_up_to)
        self._check()

    def _check(self) -> None:
        if not isinstance(self.method, Method) or isinstance(self.method, CombiningMethod):
            raise InvalidConfig(
                f"AdapterDrop(method={self.method!r}): a method that puts deltas into layers, for "
                "example SequentialAdapter(). Layers of a fusion are dropped with deltakit.drop."
            )
        if not any(placement.site not in OUTER_SITES for placement in self.method.placements()):
            raise InvalidConfig(
                f"AdapterDrop({type(self.method).__name__}()): it puts nothing into any layer, so "
                "there is nothing to drop."
            )
        for name, value in (("first", self.first), ("random_up_to", self.random_up_to)):
            if value != 0:
                check_whole(self, **{name: value})
        for layer in self.layers:
            if layer != 0:
                check_whole(self, layers=layer)
        for stack in self.stacks:
            if not isinstance(stack, str) or not stack:
                raise InvalidConfig(
                    f"AdapterDrop(stacks={self.stacks!r}): names of stacks, such as 'decoder'."
                )
        largest = max(self.first, self.random_up_to, *self.layers, 0)
        if largest > DEEPEST:  # a file may say any number, and all layers up to it are listed
            raise InvalidConfig(f"AdapterDrop: no model has {largest:,} layers. Drop fewer.")

    @property
    def wrapped(self) -> tuple[Method, ...]:
        return (self.method,)

    def rewrapped(self, methods: tuple[Method, ...]) -> Method:
        (method,) = methods
        return replace(self, method=method)

    def placements(self) -> tuple[Placement, ...]:
        omitted = frozenset((*range(self.first), *self.layers))
        return tuple(
            replace(
                placement,
                omitted=placement.omitted | omitted,
                omitted_stacks=placement.omitted_stacks | {*self.stacks},
                drop_up_to=max(placement.drop_up_to, self.random_up_to),
            )
            for placement in super().placements()
        )

    def summed(self, others: Sequence[Method]) -> Method:
        """All of them must leave the same layers out."""
        for other in others:
            if isinstance(other, AdapterDrop) and replace(other, method=self.method) != self:
                raise IncompatibleDeltas(why_no_sum(self, replace(other, method=self.method)))
        return super().summed(others)
