"""Losses that depend on the data, collected while the model runs.

A router's balance loss is computed where the router runs, and belongs to what the model is trained
on. Its value joins the pass's losses. Its gradient starts at the change that the router makes, with
the weight that the pass's losses have in the backward pass. So it is there in a layer that
checkpointing recomputes, whose first run has no graph.
"""

from typing import Any

import torch
from torch import Tensor, nn

from deltakit.core.delta import AuxiliaryLoss
from deltakit.runtime.passes import current_pass


class _AttachLoss(torch.autograd.Function):
    """Returns `change`; the backward pass through it is one through `loss` too."""

    @staticmethod
    def forward(ctx: Any, weight: list[Tensor], change: Tensor, loss: Tensor) -> Tensor:
        ctx.weight, ctx.one = weight, torch.ones_like(loss)
        return change.view_as(change)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        one, weight = ctx.one, ctx.weight
        return None, grads[0], one * weight[0].to(one.device, one.dtype) if weight else one


def run_part(part: nn.Module, *inputs: Any) -> Tensor:
    """The output of a form or a combiner; in training its loss is collected too."""
    if not (isinstance(part, AuxiliaryLoss) and part.training and _is_trained(part)):
        output: Tensor = part(*inputs)
        return output
    change, loss = part.with_loss(*inputs)
    running = current_pass()
    if running.owner is not None and not running.recomputed:
        running.losses.append(loss.detach())
    if not (torch.is_grad_enabled() and loss.requires_grad):
        return change
    attached: Tensor = _AttachLoss.apply(running.loss_weight, change, loss)
    return attached


def _is_trained(part: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in part.parameters())
