"""The terms that deltas add to what a model is trained on: regularisers, and losses of the data."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.hooks import RemovableHandle

from deltakit.core.delta import AuxiliaryLoss, DrawnInTraining, Regularised
from deltakit.runtime.consistency import consistency
from deltakit.runtime.own_loss import OwnLosses
from deltakit.runtime.passes import current_pass


class PenaltyPort:
    """Adds the deltas' terms to what is trained on, in any training loop.

    A model that returns a loss returns it with the terms added, so they are logged, scaled and
    averaged with it. Where the loop computes its own loss from the outputs, the terms' gradient
    joins the backward pass with that loss's weight (`deltakit.runtime.own_loss`). Where the loop
    accumulates gradients and says how many items the whole step has (transformers' Trainer does),
    each pass adds its share.
    """

    def __init__(self, parts: tuple[Regularised, ...], *, consistency: float = 0.0) -> None:
        self.parts = parts
        self.consistency = consistency

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return output
        running = current_pass()
        terms = [part.penalty() for part in self.parts] + running.losses
        apart = consistency(module, args, kwargs, output) if self.consistency else None
        if apart is not None:
            terms.append(self.consistency * apart)
        if not terms:
            return output
        device = terms[0].device
        total = torch.stack([term.to(device, torch.float32) for term in terms]).sum()
        return _with_penalty(output, total, _Step(_share(module, kwargs), running.loss_weight))


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


class _Step:
    """The weight of one pass's terms in its backward pass."""

    def __init__(self, share: Tensor | float, weight: list[Tensor]) -> None:
        self.share = share
        self.weight = weight
        self.own = OwnLosses()

    def begin(self, of_loss: Tensor | None, like: Tensor) -> Tensor:
        """Begins the backward pass: the weight of all terms, which the layers will use too."""
        own = self.own.take_weight()
        given = of_loss if of_loss is not None else own
        one = torch.ones_like(like)
        weight = (one if given is None else given.to(like.device, like.dtype)) * self.share
        self.weight[:] = [weight]
        return weight


class _JoinBackward(torch.autograd.Function):
    """Adds `penalty` to `loss`, and to the backward pass of `loss` and of `carriers`."""

    @staticmethod
    def forward(
        ctx: Any, step: _Step, penalty: Tensor, loss: Tensor | None, *carriers: Tensor
    ) -> Any:
        ctx.set_materialize_grads(False)
        ctx.step, ctx.like = step, torch.empty_like(penalty)
        added = penalty * step.share
        joined = None if loss is None else loss + added.to(loss.device, loss.dtype)
        return joined, *(carrier.view_as(carrier) for carrier in carriers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_loss, *of_carriers = grads
        return None, ctx.step.begin(of_loss, ctx.like), of_loss, *of_carriers


def _with_penalty(output: Any, penalty: Tensor, step: _Step) -> Any:
    leaves, shape = tree_flatten(output)
    trained = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    loss = next((i for i in trained if leaves[i].ndim == 0), None)
    carriers = [i for i in trained if i != loss]
    joined = _JoinBackward.apply(
        step, penalty, None if loss is None else leaves[loss], *(leaves[i] for i in carriers)
    )
    if loss is not None:
        leaves[loss] = joined[0]
    for index, carrier in zip(carriers, joined[1:], strict=True):
        leaves[index] = _watched(carrier, step.own)
    return tree_unflatten(leaves, shape)


def _watched(output: Tensor, own: OwnLosses) -> Tensor:
    """An output from which the loop may compute its loss; a cache's keys have four axes."""
    if torch.compiler.is_compiling() or output.ndim > 3:
        return output
    return own.watch(output)


def install_penalty(model: nn.Module, parts: tuple[nn.Module, ...]) -> list[RemovableHandle]:
    """Makes the terms of the trained deltas' modules part of the model's loss."""
    regularised = tuple(part for part in parts if isinstance(part, Regularised))
    weight = max((p.consistency for p in parts if isinstance(p, DrawnInTraining)), default=0.0)
    if not regularised and not weight and not any(isinstance(p, AuxiliaryLoss) for p in parts):
        return []
    port = PenaltyPort(regularised, consistency=weight)
    return [model.register_forward_hook(port, with_kwargs=True)]
