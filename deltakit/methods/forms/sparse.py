"""The torch modules of `deltakit.methods.sparse`: forms whose matrices are kept in part.

A pruned matrix is two tensors: the numbers that are kept, which are trained, and one bit for each
number that says whether it is. The matrix itself is made when the form reads it, in each pass.

A mask whose scores come from data is random until `deltakit.prepare` chooses it. Until then the
dense start is kept next to the two tensors.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from deltakit.core.data_start import BATCHES, DataPass, DataStart, StartsFromData
from deltakit.core.delta import Delta
from deltakit.errors import InvalidConfig

KEPT, BITS = "_kept", "_bits"
"""What the names of a pruned matrix's two tensors end in."""

Scores = Callable[[Delta], dict[str, Tensor]]
"""By name, a score for each number of a form's matrices: the larger are kept."""


def pruned(form: Delta, keep: float, scores: Scores) -> Delta:
    """The form, in place, with the share `keep` of each of its matrices."""
    scored = scores(form)
    for path, module in list(form.named_modules()):
        names = [n for n, p in module.named_parameters(recurse=False) if p.ndim > 1]
        for name in names:
            score = scored[f"{path}.{name}" if path else name]
            _replace(module, name, largest(score, math.floor(keep * score.numel() + 0.5)))
        if names or module is form:
            module.__class__ = _pruned_class(type(module), tuple(names))
    return form


def awaiting(form: Delta, keep: float, start: "PrunedByData") -> Delta:
    """The form, in place, with a random mask until `start` chooses it."""
    dense = {name: p.detach().clone() for name, p in matrices(form)}
    pruned(form, keep, at_random)
    assert isinstance(form, StartsFromData)
    form.data_start = start
    vars(form)["_dense_start"] = dense
    return form


def largest(score: Tensor, count: int) -> Tensor:
    """The places of the `count` largest scores, in rising order; equal ones are taken at random.

    So a matrix that starts at zero, such as LoRA's B, has a random mask.
    """
    order = torch.randperm(score.numel(), device=score.device)
    ranked = score.flatten()[order].argsort(descending=True, stable=True)
    return order[ranked[:count]].sort().values


def _replace(module: nn.Module, name: str, places: Tensor) -> None:
    dense = module.get_parameter(name).detach()
    mask = torch.zeros(dense.numel(), dtype=torch.uint8, device=dense.device)
    module.register_parameter(name + KEPT, nn.Parameter(dense.flatten()[places]))
    module.register_buffer(name + BITS, _packed(mask.index_fill(0, places, 1)))
    del module._parameters[name]
    vars(module).setdefault("_shapes", {})[name] = dense.shape


def _packed(mask: Tensor) -> Tensor:
    """Eight bits a byte, the first the lowest."""
    flat = nn.functional.pad(mask, (0, -mask.numel() % 8)).view(-1, 8)
    return (flat << _shifts(flat)).sum(-1).to(torch.uint8)


def _unpacked(bits: Tensor, shape: torch.Size) -> Tensor:
    flat = (bits.unsqueeze(-1) >> _shifts(bits)) & 1
    return flat.flatten()[: shape.numel()].view(shape).bool()


def _shifts(like: Tensor) -> Tensor:
    return torch.arange(8, dtype=torch.uint8, device=like.device)


def _dense(module: Any, name: str) -> Tensor:
    """The matrix: the kept numbers at their places, zero elsewhere. The dense one while scored."""
    scored: Tensor | None = vars(module).get("_scored", {}).get(name)
    if scored is not None:
        return scored
    kept = getattr(module, name + KEPT)
    shape = module._shapes[name]
    mask = _unpacked(getattr(module, name + BITS), shape)
    return kept.new_zeros(shape).masked_scatter(mask, kept)


def _end_wait(module: Any) -> None:
    """Gives up the dense start."""
    StartsFromData.end_wait(module)
    vars(module).pop("_dense_start", None)


def _reduced(module: Any, protocol: Any) -> Any:
    """A pruned module for pickle: its base and names, of which its class is made again."""
    del protocol
    return _empty, module._pruned_from, module.__dict__


def _empty(base: type[nn.Module], names: tuple[str, ...]) -> nn.Module:
    cls = _pruned_class(base, names)
    made: nn.Module = cls.__new__(cls)
    return made


_CLASSES: dict[Any, type[nn.Module]] = {}
"""The classes that were made, by what they are made of: a form's class is one and the same."""


def _pruned_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """The class of modules like `base` that keep a part of each of the matrices `names`."""
    if (base, names) not in _CLASSES:
        _CLASSES[base, names] = _new_class(base, names)
    return _CLASSES[base, names]


def _new_class(base: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class like `base` that makes its matrices `names` from what is kept of them.

    It has a `forward` of its own, so the base's quicker ways, which read parameters by their
    names, are not taken.
    """

    def forward(self: Any, *inputs: Any, **named: Any) -> Any:
        if self.data_start is not None and self.training and torch.is_grad_enabled():
            raise InvalidConfig(
                f"Sparse(score={self.data_start.score!r}): the mask is not chosen yet. Call "
                "deltakit.prepare(model, batches) before training."
            )
        return base.forward(self, *inputs, **named)

    members: dict[str, Any] = {
        name: property(functools.partial(_dense, name=name)) for name in names
    }
    members |= {"forward": forward, "_pruned_from": (base, names), "__module__": __name__}
    members |= {"__reduce_ex__": _reduced, "end_wait": _end_wait}
    return type(f"Pruned{base.__name__}", (base, StartsFromData), members)


# ---------------------------------------------------------------------------------------- scores


def matrices(form: Delta) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters of a form with two axes or more, by name."""
    return ((name, p) for name, p in form.named_parameters() if p.ndim > 1)


def at_random(form: Delta) -> dict[str, Tensor]:
    """Scores from a normal distribution."""
    return {name: torch.randn_like(p) for name, p in matrices(form)}


def by_magnitude(form: Delta) -> dict[str, Tensor]:
    """|θ|."""
    return {name: p.detach().abs() for name, p in matrices(form)}


def by_flow(form: Delta, d: int) -> dict[str, Tensor]:
    """|θ ∂R/∂θ|, R the mean output for an input of ones, with every θ replaced by |θ| (SynFlow)."""
    named = dict(matrices(form))
    signed = {name: p.detach().clone() for name, p in named.items()}
    first = next(iter(named.values()))
    with torch.enable_grad():
        _assign(named, {name: value.abs() for name, value in signed.items()})
        output = form(torch.ones(1, d, dtype=first.dtype, device=first.device)).mean()
        flows = torch.autograd.grad(output, list(named.values()), allow_unused=True)
    _assign(named, signed)
    return {
        name: torch.zeros_like(value) if flow is None else (value * flow).abs()
        for (name, value), flow in zip(signed.items(), flows, strict=True)
    }


@torch.no_grad()
def _assign(named: dict[str, nn.Parameter], values: dict[str, Tensor]) -> None:
    for name, value in values.items():
        named[name].copy_(value)


# ------------------------------------------------------------------------------- scores from data

WARM = 0.01
"""The root mean square of a matrix of zeros, such as LoRA's B, while scores are taken."""


@dataclass(frozen=True)
class PrunedByData(DataStart):
    """Masks by scores from gradients. H is the Hessian and g the gradient of the loss.

    SNIP has |θ ⊙ g|, and GraSP θ ⊙ Hg. A matrix of zeros would have no score, and would hide the
    one before it; while scores are taken it is a step against its gradient.
    """

    score: Literal["snip", "grasp"]
    taken: int = BATCHES

    @property
    def batches(self) -> int:
        return self.taken

    def give(self, forms: Sequence[Delta], data: DataPass) -> None:
        places = [each for form in forms for each in _starts(form)]
        dense = [start.to(module.get_parameter(name + KEPT)) for module, name, start in places]
        scored = self._scores(places, dense, data)
        for (module, name, _), start, score in zip(places, dense, scored, strict=True):
            _choose(module, name, start, score)

    def _scores(
        self, places: "list[_Place]", dense: list[Tensor], data: DataPass
    ) -> tuple[Tensor, ...]:
        tensors = [start.clone().requires_grad_() for start in dense]
        with _scored(places, tensors):
            _warm(tensors, data)
            slopes = data.gradients(tensors)
            if self.score == "grasp":
                slopes = data.hessian_product(tensors, slopes)
        products = (t.detach() * slope for t, slope in zip(tensors, slopes, strict=True))
        return tuple(p if self.score == "grasp" else p.abs() for p in products)


_Place = tuple[nn.Module, str, Tensor]
"""A pruned module, the name of one of its matrices, and the matrix's dense start."""


def _starts(form: Delta) -> Iterator[_Place]:
    for path, start in vars(form)["_dense_start"].items():
        owner, _, name = path.rpartition(".")
        yield form.get_submodule(owner), name, start


@contextmanager
def _scored(places: list[_Place], tensors: list[Tensor]) -> Iterator[None]:
    """Inside, the modules compute with the dense `tensors`."""
    try:
        for (module, name, _), tensor in zip(places, tensors, strict=True):
            vars(module).setdefault("_scored", {})[name] = tensor
        yield
    finally:
        for module, _, _ in places:
            vars(module).pop("_scored", None)


def _warm(tensors: list[Tensor], data: DataPass) -> None:
    zeros = [tensor for tensor in tensors if not tensor.any()]
    slopes = data.gradients(zeros) if zeros else ()
    with torch.no_grad():
        for tensor, slope in zip(zeros, slopes, strict=True):
            size = slope.square().mean().sqrt()
            if size > 0:
                tensor.copy_(slope * (-WARM / size))


@torch.no_grad()
def _choose(module: nn.Module, name: str, dense: Tensor, score: Tensor) -> None:
    kept, bits = module.get_parameter(name + KEPT), module.get_buffer(name + BITS)
    places = largest(score, kept.numel())
    kept.copy_(dense.flatten()[places])
    mask = torch.zeros(dense.numel(), dtype=torch.uint8, device=dense.device)
    bits.copy_(_packed(mask.index_fill(0, places, 1)))
