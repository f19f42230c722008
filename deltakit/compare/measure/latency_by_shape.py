"""Latency by shape: the number of texts in a batch, and the tokens of each.

A model that gives numbers for a text makes one forward pass. One that continues texts makes two
kinds, which cost differently: it reads the prompt (prefill), then it generates token by token
(decode). Both are timed as transformers' `generate` makes them, with its cache.
"""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from deltakit.compare.measure.timing import (
    Batch,
    Call,
    ModelState,
    Timing,
    forward,
    in_states,
    merge_ms,
    unmerged,
)
from deltakit.compare.records.latency import Shape, ShapeTime
from deltakit.compare.records.protocol import Protocol
from deltakit.core.provider import AdaptedModel
from deltakit.models.heads import Head, WritingHead

if TYPE_CHECKING:
    from datasets import Dataset


def filled(data: "Dataset", shape: Shape, device: torch.device) -> Batch:
    """A batch of a shape, without padding: the texts of an encoded split, one after the other."""
    needed = shape.texts * shape.tokens
    ids = [token for row in data["input_ids"] for token in row]
    ids = (ids * math.ceil(needed / len(ids)))[:needed]
    batch = torch.tensor(ids, device=device).view(shape.texts, shape.tokens)
    return {"input_ids": batch, "attention_mask": torch.ones_like(batch)}


def by_shape(
    adapted: AdaptedModel,
    head: Head,
    data: "Dataset",
    shapes: Sequence[Shape],
    device: torch.device,
    protocol: Protocol,
) -> tuple[ShapeTime, ...]:
    """Times every phase of every shape, unmerged and, where that exists, merged.

    Args:
        adapted: a model with its method.
        head: what it was loaded for; it decides the phases.
        data: an encoded split, for tokens that occur.
        shapes: what is asked for.
        device: where the model is.
        protocol: how often a pass is timed, and how many tokens are generated.
    """
    adapted.model.eval()
    states: list[ModelState] = [adapted.disabled, unmerged(adapted)]
    if shapes and merge_ms(adapted) is not None:
        states.append(adapted.merged)
    return tuple(
        _row(shape, phase, timings)
        for shape in shapes
        for phase, timings in _timed(head, states, filled(data, shape, device), protocol)
    )


def _timed(
    head: Head, states: Sequence[ModelState], batch: Batch, protocol: Protocol
) -> Iterator[tuple[str, list[Timing]]]:
    repeats = protocol.repeats(protocol.shape_repeats)
    timed = partial(in_states, states, repeats=repeats, warmup=protocol.latency_warmup)
    if not isinstance(head, WritingHead):
        yield "forward", timed(forward(batch))
        return
    tokens = protocol.generated_tokens
    first, whole = timed(_generation(batch, 1)), timed(_generation(batch, 1 + tokens))
    yield "prefill", first
    yield "decode", [_each(*pair, tokens) for pair in zip(first, whole, strict=True)]


def _each(first: Timing, whole: Timing, tokens: int) -> Timing:
    """One token after the first: the time of all, less the typical first, shared by the rest."""
    return Timing(times_ms=tuple((time - first.median_ms) / tokens for time in whole.times_ms))


def _generation(batch: Batch, tokens: int) -> Call:
    def run(model: Any) -> None:
        model.generate(
            **batch,
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
        )

    return run


def _row(shape: Shape, phase: str, timings: Sequence[Timing]) -> ShapeTime:
    base, own, *merged = timings
    return ShapeTime(
        shape=str(shape),
        phase=phase,
        ms=own.median_ms,
        iqr_ms=own.iqr_ms,
        vs_base=own.over(base),
        merged_vs_base=merged[0].over(base) if merged else None,
    )
