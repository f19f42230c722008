"""The distance of a model's answers in two passes over one batch (AdaMix, arXiv:2205.12410)."""

from collections.abc import Mapping
from typing import Any

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
    return divergence(first, second, kwargs.get("labels"))


def _logits(output: Any) -> Tensor | None:
    logits = output.get("logits") if isinstance(output, Mapping) else None
    return logits if isinstance(logits, Tensor) and logits.requires_grad else None


def divergence(first: Tensor, second: Tensor, labels: Tensor | None) -> Tensor:
    """The symmetric divergence of two tensors of logits, ``(..., classes)``.

    Args:
        first: the answers of one pass.
        second: those of another.
        labels: where these have the shape of the answers, those of -100 are left out.
    """
    one, other = (each.float().log_softmax(-1) for each in (first, second))
    apart = _towards(one, other) + _towards(other, one)
    if labels is not None and labels.shape == apart.shape:
        real = labels.ne(-100).to(apart.dtype)
        return 0.5 * (apart * real).sum() / real.sum().clamp(min=1)
    return 0.5 * apart.mean()


def _towards(answer: Tensor, target: Tensor) -> Tensor:
    """KL(target ‖ answer) of each answer, from logarithms."""
    return F.kl_div(answer, target.detach(), reduction="none", log_target=True).sum(-1)
