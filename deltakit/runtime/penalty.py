"""The regularisers' terms, added to what a model is trained on."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from deltakit.core.delta import Regularised


class PenaltyPort:
    """Adds the regularisers' terms to what is trained on, in any training loop.

    A model that returns a loss returns it with the terms added, so they are logged, scaled and
    averaged with it. Where the loop computes its own loss from the outputs, the terms' gradient
    joins the backward pass with weight one. Where the loop accumulates gradients and says how many
    items the whole step has (transformers' Trainer does), each pass adds its share.
    """

    def __init__(self, parts: tuple[Regularised, ...]) -> None:
        self.parts = parts

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return output
        penalty = sum((part.penalty() for part in self.parts[1:]), self.parts[0].penalty())
        return _with_penalty(output, penalty * _share(module, kwargs))


def _share(model: Any, kwargs: dict[str, Any]) -> Tensor | float:
    """This pass's part of an optimiser step, counted as the Trainer counts: by labels."""
    items, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
    if items is None or labels is None:
        return 1.0
    if "shift_labels" in kwargs:
        labels = kwargs["shift_labels"]
    elif model.loss_type == "ForCausalLM":  # each label is compared with the token before it
        labels = labels[..., 1:]
    return labels.ne(-100).sum() / items


class _JoinBackward(torch.autograd.Function):
    """Adds `penalty` to `loss`, or to the backward pass of `carriers` where `loss` is not used."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor, loss: Tensor | None, *carriers: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(penalty)
        joined = None if loss is None else loss + penalty.to(loss.device, loss.dtype)
        return joined, *(carrier.view_as(carrier) for carrier in carriers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_loss, *of_carriers = grads
        (penalty,) = ctx.saved_tensors
        one = torch.ones_like(penalty)
        of_penalty = one if of_loss is None else of_loss.to(one.device, one.dtype)
        return of_penalty, of_loss, *of_carriers


def _with_penalty(output: Any, penalty: Tensor) -> Any:
    leaves, shape = tree_flatten(output)
    trained = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    loss = next((i for i in trained if leaves[i].ndim == 0), None)
    carriers = [i for i in trained if i != loss]
    joined = _JoinBackward.apply(
        penalty, None if loss is None else leaves[loss], *(leaves[i] for i in carriers)
    )
    if loss is not None:
        leaves[loss] = joined[0]
    for index, carrier in zip(carriers, joined[1:], strict=True):
        leaves[index] = carrier
    return tree_unflatten(leaves, shape)


def install_penalty(model: nn.Module, parts: tuple[Regularised, ...]) -> RemovableHandle:
    """Makes the regularisers of the active deltas part of the model's loss."""
    return model.register_forward_hook(PenaltyPort(parts), with_kwargs=True)
