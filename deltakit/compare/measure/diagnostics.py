"""Diagnostics of a trained delta inside its model, on one batch: an extra record of a cell.

::

    {"texts": 8,
     "moved": {"encoder.0": 0.12},                             by block
     "changes": {"encoder.0.block.out": 0.08},                 by site
     "attention": {"encoder.0.block.out": {"imdb": 0.3}},      by site and member
     "load": {"encoder.0.attn.q": {"0": 0.4, "1": 0.6}},       tokens by site and member
     "entropy": {"encoder.0.attn.q": 0.7},                     of a token's weights, by site
     "by_dropped": {"0": 1.0, "6": 0.91},                      latency by layers dropped, and
     "by_members": {"1": 1.0, "3": 1.12}}                      by members, over the first one's

A part of which nothing can be said is left out.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import deltakit as dk
from deltakit.compare.measure import timing
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import attachments_of, need_attachments
from deltakit.inject.change import pruned
from deltakit.inject.observe import FusionAttention, site_changes
from deltakit.inject.switch import active_nodes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def diagnose(model: "PreTrainedModel", batch: timing.Batch, *, repeats: int) -> dict[str, Any]:
    """The diagnostics of the active deltas; empty where there are none.

    Args:
        model: it is left as it was, in evaluation mode.
        batch: texts of the test split, without labels. Times are of the first of them.
        repeats: how often each state is timed.
    """
    if attachments_of(model) is None:
        return {}
    model.eval()
    one = {name: value[:1] for name, value in batch.items()}
    seen = attended(model, batch)
    attention = {} if seen is None else seen.mean()
    parts = {
        "moved": moved(model, batch),
        "changes": changed(model, batch),
        "attention": attention,
        "load": {} if seen is None else seen.load(),
        "entropy": {} if seen is None else seen.entropy(),
        "by_dropped": latency_by_dropped(model, one, repeats),
        "by_members": latency_by_members(model, one, attention, repeats),
    }
    found = {name: part for name, part in parts.items() if part}
    return {"texts": len(next(iter(batch.values()))), **found} if found else {}


def changed(model: "PreTrainedModel", batch: timing.Batch) -> dict[str, float]:
    """By site, the root mean square of Δh over that of h."""
    with site_changes(model) as seen, torch.inference_mode():
        model(**batch)
    return seen.relative()


def moved(model: "PreTrainedModel", batch: timing.Batch) -> dict[str, float]:
    """By block, how far its output is from the base's, over the base's, as root mean squares.

    It holds all changes up to there, those of the base's own parameters too.
    """
    own = _states(model, batch)
    with dk.disabled(model):
        base = _states(model, batch)
    found = {
        key: float((own[key] - states).norm() / states.norm())
        for key, states in base.items()
        if own[key].shape == states.shape  # a decoder may see the positions of a prompt
    }
    return found if any(found.values()) else {}


def _states(model: "PreTrainedModel", batch: timing.Batch) -> dict[str, Tensor]:
    """What leaves each block, by stack and layer."""
    with torch.inference_mode():
        output = model(**batch, output_hidden_states=True)
    first = next(handle for handle in need_attachments(model).handles.values() if handle.in_a_layer)
    end = "hidden_states"
    return {
        f"{name.removesuffix(end).rstrip('_') or first.stack}.{layer}": states.float()
        for name in output
        if name.endswith(end)
        for layer, states in enumerate(output[name][1:])
    }


def attended(model: "PreTrainedModel", batch: timing.Batch) -> FusionAttention | None:
    """The weights of members over the batch's tokens; None where nothing weighs members."""
    try:
        with dk.fusion_attention(model) as seen, torch.inference_mode():
            model(**batch)
    except IncompatibleDeltas:
        return None
    return seen


# -------------------------------------------------------------- what layers and members cost


def latency_by_dropped(
    model: "PreTrainedModel", batch: timing.Batch, repeats: int
) -> dict[str, float]:
    """By n, a forward pass without the deltas of the lowest n layers over one with all."""
    attachments = need_attachments(model)
    handles = [attachments.handles[key] for key in active_nodes(attachments)]
    layers = sorted({handle.layer for handle in handles if handle.in_a_layer})
    if len(layers) < 2:
        return {}
    numbers = (0, layers[len(layers) // 2], 1 + layers[-1])
    states = {str(n): partial(_dropped, model, n) for n in numbers}
    return _alternated(model, batch, states, repeats)


@contextmanager
def _dropped(model: "PreTrainedModel", first: int) -> Iterator[None]:
    dk.drop(model, first=first)
    try:
        yield
    finally:
        dk.drop(model)


def latency_by_members(
    model: "PreTrainedModel",
    batch: timing.Batch,
    usage: Mapping[str, Mapping[str, float]],
    repeats: int,
) -> dict[str, float]:
    """By n, a forward pass with the n members that are used most over one with a single member.

    Args:
        model: one whose active delta combines others.
        batch: what is passed.
        usage: the mean attention by site and member; empty where nothing is combined.
        repeats: how often each number of members is timed.
    """
    attachments = need_attachments(model)
    names = () if attachments.active is None else attachments.active.names
    combined = [name for name in names if attachments.get(name).members]
    members = min((len(each) for each in usage.values()), default=0)
    if members < 2 or len(combined) != 1 or len(names) != 1:
        return {}
    (name,) = combined
    prune = partial(pruned, model, usage, name)
    numbers = sorted({1, (1 + members) // 2, members})
    states = {str(n): partial(prune, keep=n) for n in numbers}
    return _alternated(model, batch, states, repeats)


def _alternated(
    model: "PreTrainedModel", batch: timing.Batch, states: Mapping[str, Any], repeats: int
) -> dict[str, float]:
    """By state, the shortest time over the first state's, the states in turn.

    The shortest, because these differences are small, and whatever else runs only adds to a time.
    """

    def forward() -> None:
        with torch.inference_mode():
            model(**batch)

    shortest = dict.fromkeys(states, math.inf)
    for _ in range(repeats):
        for name, state in states.items():
            with state():
                (timed,) = timing.interleave([forward], repeats=1, warmup=1)
            shortest[name] = min(shortest[name], timed.median_ms)
    first = next(iter(shortest.values()))
    return {name: time / first for name, time in shortest.items()}
