"""The distance of a model's answers in two passes over one batch (AdaMix, arXiv:2205.12410)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def consistency(
    module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any
) -> Tensor | None:
    """½ (KL(p₁ ‖ p₂) + KL(p₂ ‖ p₁)), a mean over answers, from a second pass over the same batch.

    No gradient flows through the target of either divergence. None where the model returns no
    logits.
    """
    first = _logits(output)
    if first is None:
        return None
    second = _logits(module.forward(*args, **kwargs))  # not called: the first pass goes on
    assert second is not None
    return divergence(first, second, _counted(module, kwargs, first.shape[:-1]))


def _logits(output: Any) -> Tensor | None:
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) and logits.requires_grad else None


def _counted(module: Any, kwargs: Mapping[str, Any], shape: torch.Size) -> Tensor | None:
    """True for the answers that count: those with a label, or else of real tokens; None for all."""
    labels, mask = kwargs.get("labels"), kwargs.get("attention_mask")
    if isinstance(labels, Tensor) and labels.shape == shape:
        real = labels.ne(-100)
        if module.loss_type == "ForCausalLM":  # each label is compared with the token before it
            real = F.pad(real[..., 1:], (0, 1))
        return real
    return mask.ne(0) if isinstance(mask, Tensor) and mask.shape == shape else None


def divergence(first: Tensor, second: Tensor, counted: Tensor | None) -> Tensor:
    """The symmetric divergence of two tensors of logits, ``(..., classes)``, a mean over answers.

    Args:
        first: the answers of one pass.
        second: those of another.
        counted: which of them the mean is over, ``(...)``; None for all.
    """
    one, other = (each.float().log_softmax(-1) for each in (first, second))
    apart = 0.5 * (_towards(one, other) + _towards(other, one))
    if counted is None:
        return apart.mean()
    return apart.masked_fill(~counted, 0).sum() / counted.sum().clamp(min=1)


def _towards(answer: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ answer) of each answer, from logarithms."""
    return F.kl_div(answer, target.detach(), reduction="none", log_target=True).sum(-1)
