"""Task arithmetic: a new delta that is a weighted sum of attached ones (Zhang et al. 2023)."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltakit.core.checks import check_whole
from deltakit.core.delta import CustomSum, Reparametrised, precise
from deltakit.core.method import CombiningMethod, Method, can_be_summed, summable_names
from deltakit.errors import IncompatibleDeltas, InvalidConfig
from deltakit.inject.attach import attach
from deltakit.inject.attachments import Attached, Attachments, need_attachments
from deltakit.inject.base_names import plain_parameters
from deltakit.inject.switch import paused, snapshot_active
from deltakit.runtime.nodes import PlacedDelta

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def task_arithmetic(
    model: "PreTrainedModel",
    weights: Mapping[str, float],
    name: str = "default",
    *,
    rank: int | None = None,
) -> None:
    """Attaches the weighted sum of attached deltas of one kind, and makes it the active one.

    ``{"a": 1, "b": 1}`` adds, ``{"a": 1, "b": -1}`` subtracts, ``{"a": -1}`` negates and
    ``{"a": .5, "b": .5}`` averages. LoRA's products are summed exactly, in a LoRA whose rank is the
    sum of the ranks, (IA)³'s vectors as deviations from one, the forms of other methods parameter
    by parameter, if the method is `Summable`. What a delta trains of the base, and its task head,
    are summed as deviations from the model's own values: with weights that add up to one, the head
    is their weighted mean.

    Args:
        model: a model with deltas.
        weights: a number for each delta, taken as it is.
        name: of the new delta.
        rank: truncates each low-rank product to its best approximation of this rank; forms without
            one stay as they are.

    Raises:
        IncompatibleDeltas: no deltas, deltas of different kinds or sites, or of a method that
            combines others, is trained as more than it is, or does not say that it can be summed.
        UnknownName: a name that nothing attached has.
        NameInUse: a delta has the new name already.
        InvalidConfig: a weight that is not finite, a rank below one, or a bad name.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    terms = [(weight, attachments.get(each)) for each, weight in weights.items()]
    method, before = _method(terms, rank), snapshot_active(model, attachments)
    attach(model, method, name, dtype=_dtype(terms[0][1]))
    try:
        _fill(model, attachments, attachments.get(name), terms)
    except BaseException:
        with paused(model, attachments) as pause:
            attachments.remove(name)
            pause.then = before
        raise


_Terms = Sequence[tuple[float, Attached]]


def _method(terms: _Terms, rank: int | None) -> Method:
    if not terms:
        raise IncompatibleDeltas("a weighted sum needs at least one delta, as in {'a': 0.5}.")
    for weight, term in terms:
        if not isinstance(weight, int | float) or not math.isfinite(weight):
            raise InvalidConfig(f"the weight of {term.name!r} is {weight!r}: give a finite number.")
        if isinstance(term.method, CombiningMethod):
            raise IncompatibleDeltas(
                f"{term.name!r} combines other deltas ({type(term.method).__name__}), so it has no "
                "weighted sum. Sum its members."
            )
    first, *others = (term for _, term in terms)
    method = first.method.summed([other.method for other in others])
    for term in (first, *others):
        _check_forms(term, first)
    _check_type(first)
    if rank is None:
        return method
    check_whole(method, rank=rank)
    return method.truncated(rank)


def _check_forms(term: Attached, first: Attached) -> None:
    forms, others = dict(term.modules()), dict(first.modules())
    for key in sorted(forms.keys() ^ others.keys()):
        raise IncompatibleDeltas(
            f"a weighted sum needs deltas at the same sites, but {first.name!r} and {term.name!r} "
            f"differ at {key!r}."
        )
    for key, form in forms.items():
        if isinstance(form, Reparametrised):
            raise IncompatibleDeltas(
                f"{term.name!r} is trained through a network at {key!r}, and a sum of networks is "
                f"not the sum of what they make: deploy(model, {term.name!r}) first."
            )


def _check_type(term: Attached) -> None:
    """Parameters are summed one by one only where the method or each form says that they can."""
    own = [type(m).__name__ for _, m in term.modules() if not isinstance(m, CustomSum)]
    if own and not can_be_summed(term.method):
        raise IncompatibleDeltas(
            f"{term.name!r} has no weighted sum: {type(term.method).__name__} does not say that "
            f"the parameters of its {own[0]} add up. These methods do: "
            f"{', '.join(summable_names())}. A method of your own says so as a Summable, or its "
            "form as a CustomSum."
        )


def _dtype(term: Attached) -> torch.dtype | None:
    return next((t.dtype for _, t in term.tensors() if t.is_floating_point()), None)


@torch.no_grad()
def _fill(model: "PreTrainedModel", attachments: Attachments, new: Attached, terms: _Terms) -> None:
    for key, leaves in new.leaves.items():
        for index, leaf in enumerate(leaves):
            _fill_leaf(leaf, [(weight, term.leaves[key][index]) for weight, term in terms])
    base = plain_parameters(model, attachments)
    for key, parameter in new.own.items():
        own = [(weight, term.own[key].to(parameter.device)) for weight, term in terms]
        start = precise(base[key].data).to(parameter.device)
        total = start + _total([(weight, precise(value) - start) for weight, value in own])
        parameter.copy_(total)


def _fill_leaf(new: PlacedDelta, terms: Sequence[tuple[float, PlacedDelta]]) -> None:
    """Gives the form of `new` the values with which its change is the weighted sum of `terms`."""
    given = [
        (
            weight * leaf.scale / new.scale,
            {name: precise(tensor) for name, tensor in leaf.delta.state_dict().items()},
        )
        for weight, leaf in terms
    ]
    form = new.delta
    if isinstance(form, CustomSum):
        summed = form.weighted_sum(given)
    else:
        names = given[0][1]
        summed = {name: _total([(w, tensors[name]) for w, tensors in given]) for name in names}
    for name, tensor in form.state_dict(keep_vars=True).items():
        tensor.copy_(summed[name])


def _total(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    return torch.stack([weight * tensor for weight, tensor in terms]).sum(0)
