"""Changing what is attached: dropping layers, and leaving behind what only training needs."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from deltakit.core.compose import Leaf
from deltakit.core.delta import Reparametrised
from deltakit.errors import InvalidConfig
from deltakit.inject.attach import check_layers, deactivate, reactivate, reapply
from deltakit.inject.bank import need_bank

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def drop(model: "PreTrainedModel", *, first: int = 0, layers: Iterable[int] = ()) -> None:
    """From now on, some layers run without deltas, whatever is active (Rücklé et al. 2021).

    The deltas stay attached: ``drop(model)`` brings all of them back, and saving is not affected.

    Args:
        model: a model with deltas.
        first: how many of the lowest layers, in every stack.
        layers: further layers, by their index.

    Raises:
        InvalidConfig: a layer that the model does not have.
        DeltakitError: nothing is attached, or the deltas are merged.
    """
    bank = need_bank(model)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise InvalidConfig(f"drop(first={first!r}): a whole number of layers, zero or above.")
    dropped = frozenset((*range(first), *layers))
    check_layers(bank, dropped)
    if bank.merged:
        raise InvalidConfig("the deltas are merged into the weights; unmerge, then drop layers.")
    bank.dropped = dropped
    reapply(model, bank)


def deploy(model: "PreTrainedModel", name: str = "default") -> None:
    """Turns a delta into what is kept when training is over.

    A reparametrised prefix becomes plain keys and values; what has no such part stays as it is.
    Outputs are the same up to rounding. Save before, if training is to go on from there.

    Raises:
        UnknownName: no delta has the name.
        DeltakitError: nothing is attached.
    """
    bank = need_bank(model)
    attached = bank.get(name)
    before = deactivate(model, bank)
    attached.method = attached.method.deployed()
    attached.leaves = {
        key: tuple(_deployed(leaf) for leaf in leaves) for key, leaves in attached.leaves.items()
    }
    bank.add(attached)
    reactivate(model, bank, before)


def _deployed(leaf: Leaf) -> Leaf:
    if not isinstance(leaf.delta, Reparametrised):
        return leaf
    return replace(leaf, delta=leaf.delta.deployed())
