"""The costs of a trained cell, as columns of ``results.csv``."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch

from deltakit._files import weights_bytes
from deltakit.compare.measure import timing
from deltakit.compare.measure.hardware import device_peak
from deltakit.compare.measure.memory import inference_memory, training_memory
from deltakit.compare.measure.timing import Batch, Step
from deltakit.compare.records.protocol import Protocol
from deltakit.core.method import Role
from deltakit.core.provider import AdaptedModel


def training_cost(
    adapted: AdaptedModel,
    batch: Batch,
    reference: Step | None,
    device: torch.device,
    protocol: Protocol,
) -> dict[str, Any]:
    """Time and memory of a training step; nothing where there is nothing to train.

    Args:
        adapted: a model with its method.
        batch: what a step is made with.
        reference: a step of full fine-tuning on that batch, where there is one. Where it is the
            subject's own, the ratio is 1.
        device: where the model is.
        protocol: how often a step is timed.
    """
    if not any(parameter.requires_grad for parameter in adapted.model.parameters()):
        return {}
    step = Step(adapted.model, batch)
    memory = training_memory(step)
    peak = device_peak(step, device)  # it warms the step up, too
    steps = [step] if reference is None else [step, reference]
    own, *others = timing.interleave(
        steps, repeats=protocol.repeats(protocol.step_repeats), warmup=protocol.step_warmup
    )
    return {
        "train_step_ms": own.median_ms,
        "train_step_iqr_ms": own.iqr_ms,
        "train_step_repeats": len(own.times_ms),
        **_ratio("train_step_vs_full", own.ratio(others[0]) if others else None),
        "train_peak_bytes": memory.peak,
        "train_weight_bytes": memory.weights,
        "train_gradient_bytes": memory.gradients,
        "train_optimizer_bytes": memory.optimizer,
        "train_activation_bytes": memory.activations,
        "train_device_peak_bytes": peak,
    }


def inference_cost(
    adapted: AdaptedModel, one: Batch, eight: Batch, protocol: Protocol, role: Role
) -> dict[str, Any]:
    """Time and memory of a forward pass of one text, and of eight.

    Args:
        adapted: a model with its method.
        one: one text.
        eight: eight texts.
        protocol: how often a pass is timed.
        role: the method's. A pass of a floor or a ceiling is the base's own, at a ratio of 1.
    """
    latency = timing.latency if role is Role.METHOD else timing.baseline_latency
    repeats, warmup = protocol.repeats(protocol.latency_repeats_b1), protocol.latency_warmup
    of_eight = protocol.repeats(protocol.latency_repeats_b8)
    single = latency(adapted, one, repeats=repeats, warmup=warmup)
    batched = latency(adapted, eight, repeats=of_eight, warmup=warmup)
    merged = timing.merged_latency_vs_base(adapted, one, repeats=repeats, warmup=warmup)
    return {
        "infer_peak_bytes": inference_memory(adapted.model, eight),
        "latency_ms_b1": single.timing.median_ms,
        "latency_b1_iqr_ms": single.timing.iqr_ms,
        "latency_ms_b8": batched.timing.median_ms,
        "latency_b1_repeats": single.vs_base.repeats,
        "latency_b8_repeats": batched.vs_base.repeats,
        "merged_latency_b1_repeats": None if merged is None else merged.repeats,
        **_ratio("latency_vs_base_b1", single.vs_base),
        **_ratio("latency_vs_base_b8", batched.vs_base),
        **_ratio("merged_latency_vs_base_b1", merged),
    }


def _ratio(column: str, ratio: timing.Ratio | None) -> dict[str, float | None]:
    """A ratio's column, and those of its interval."""
    if ratio is None:
        return {column: None}
    return {column: ratio.value, f"{column}_low": ratio.low, f"{column}_high": ratio.high}


def handling_cost(adapted: AdaptedModel, protocol: Protocol) -> dict[str, Any]:
    """Bytes on disk, and the time to load, switch and merge."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapted.save(folder)
        repeats = protocol.handling_repeats
        handled = timing.load_and_swap(adapted, folder, repeats=repeats)
        return {
            "delta_bytes": weights_bytes(folder),
            **dataclasses.asdict(handled),
            "merge_ms": timing.merge_ms(adapted, repeats=repeats),
        }
