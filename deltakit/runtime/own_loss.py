"""The weight of the loss that a training loop computes from a model's outputs.

A term of a delta's own has the weight of the loss: a thousand where the loss is multiplied by a
thousand, a quarter where it is divided by the four passes of one step. Where the model returns no
loss, or the loop does not use it, the loss is computed outside the model. The outputs are then
tensors that know, through any function, which scalar is computed from them first. The gradient of
that scalar is the weight.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves, tree_map

_RESHAPING = frozenset(
    (
        "__getitem__",
        "bfloat16",
        "clone",
        "contiguous",
        "cpu",
        "cuda",
        "double",
        "expand",
        "flatten",
        "float",
        "gather",
        "half",
        "index_select",
        "reshape",
        "select",
        "squeeze",
        "to",
        "type",
        "unbind",
        "unflatten",
        "unsqueeze",
        "view",
        "view_as",
    )
)
"""Functions whose result is the output itself, or a part of it, and no loss."""
_SUMS = frozenset({"sum", "nansum"})
_DIVISIONS = frozenset({"div", "true_divide", "divide", "__truediv__"})


class OwnLosses:
    """The losses that a loop computes from the outputs of one pass."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []

    def take_weight(self) -> Tensor | None:
        """The largest weight of the losses in the backward pass that runs; None without any."""
        weights, self.weights = self.weights, []
        return torch.stack([each.abs().float() for each in weights]).max() if weights else None

    def watch(self, output: Tensor) -> Tensor:
        """The same tensor, whose losses are noted. A fake one has no values, and stays as it is."""
        if isinstance(output, FakeTensor):
            return output
        watched = output.as_subclass(WatchedOutput)
        watched.losses, watched.is_sum = self, False
        return watched


class _NoteWeight(torch.autograd.Function):
    """Returns the loss, and notes its gradient in the backward pass."""

    @staticmethod
    def forward(ctx: Any, losses: OwnLosses, loss: Tensor) -> Tensor:
        ctx.losses = losses
        return loss.clone()  # a view could not be changed in place

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        ctx.losses.weights.append(grads[0])
        return None, grads[0]


class WatchedOutput(Tensor):
    """An output in training, or what was computed from it and is no scalar yet."""

    losses: OwnLosses
    is_sum: bool
    """True if it is a sum of losses, which the loop may divide by their number."""

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs, name = kwargs or {}, getattr(func, "__name__", "")
        divided = name in _DIVISIONS and args[:1] and _is_sum(args[0])
        with torch._C.DisableTorchFunctionSubclass():
            if not divided:
                args, kwargs = tree_map(_settled, (args, kwargs))
            result = func(*args, **kwargs)
            watched = [a for a in tree_leaves((args, kwargs)) if isinstance(a, WatchedOutput)]
            if not watched:
                return result
            is_sum = name in _SUMS or kwargs.get("reduction") == "sum"
            reshaped = name in _RESHAPING
            return tree_map(
                lambda each: _followed(each, watched[0].losses, is_sum=is_sum, same=reshaped),
                result,
            )


def _is_sum(value: Any) -> bool:
    return isinstance(value, WatchedOutput) and value.is_sum


def _settled(value: Any) -> Any:
    """A sum that is used otherwise than to be divided is the loss itself."""
    return _noted(value, value.losses) if _is_sum(value) else value


def _noted(loss: Tensor, losses: OwnLosses) -> Tensor:
    noted: Tensor = _NoteWeight.apply(losses, loss.as_subclass(Tensor))
    return noted


def _followed(result: Any, losses: OwnLosses, *, is_sum: bool, same: bool) -> Any:
    """A result as the loop gets it: a loss with its weight noted, or watched further."""
    if not isinstance(result, Tensor) or isinstance(result, WatchedOutput):
        return result
    if not result.requires_grad:
        return result
    if result.ndim == 0 and not is_sum and not same:
        return _noted(result, losses)
    watched = losses.watch(result)
    assert isinstance(watched, WatchedOutput)
    watched.is_sum = is_sum and result.ndim == 0
    return watched
