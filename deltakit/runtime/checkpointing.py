"""Activation checkpointing: a layer that runs again in the backward pass runs in its own pass.

By then that pass is closed. A model's checkpointing function is wrapped, so that the layer finds
it again.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.runtime.passes import BLOCK, Pass, Stream, current_pass, running


def can_checkpoint(module: nn.Module) -> bool:
    """True for a layer that transformers can checkpoint, whether or not it does."""
    """True for a layer that transformers can checkpoint, whether or not it does."""
    return getattr(module, "gradient_checkpointing", None) is not None


class ResumingCheckpoint:
    """A checkpointing function that recomputes a layer in the pass to which it belongs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and _is_reentrant(self.function):
            if not _has_gradient(args) and not _is_trained(layer):
                return layer(*args, **kwargs)
            args = _with_gradient(args)
        return self.function(_Resumed(layer, current_pass()), *args, **kwargs)


def _is_reentrant(function: Callable[..., Any]) -> bool:
    """Whether gradients flow only through arguments that require them."""
    return bool(getattr(function, "keywords", {}).get("use_reentrant", True))


def _has_gradient(args: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Tensor) and each.requires_grad for each in args)


def _is_trained(layer: Callable[..., Any]) -> bool:
    """Whether a backward pass has to enter a layer that is checkpointed, if anything is known."""
    tables, module = current_pass().tables, _module_of(layer)
    if module is None or tables is None:
        return True
    inside = {*module.modules()}
    acts = any(each in inside for each in (*tables.blocks, *tables.own))
    return acts or any(parameter.requires_grad for parameter in module.parameters())


def _module_of(layer: Callable[..., Any]) -> nn.Module | None:
    """The module whose forward a checkpointing function is given."""
    match layer:
        case nn.Module() as module:
            return module
        case partial(args=(nn.Module() as module, *_)):
            return module
        case MethodType(__self__=nn.Module() as module):
            return module
        case _:
            return None


def _with_gradient(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, the first tensor of numbers with a gradient if none has one.

    In front of the first layer that has deltas nothing requires a gradient, and the reentrant kind
    would leave them without one.
    """
    if _has_gradient(args):
        return args
    floating = (i for i, x in enumerate(args) if isinstance(x, Tensor) and x.is_floating_point())
    first = next(floating, None)
    if first is None:
        return args
    return (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])


@dataclass(frozen=True)
class _Resumed:
    """A layer and the pass in which it ran first."""

    layer: Callable[..., Any]
    first: Pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_pass() is self.first:
            return self.layer(*args, **kwargs)
        again = self.first.again()
        stream = next((each for each in args if isinstance(each, Tensor)), None)
        if stream is not None:  # the layer's own hooks are not called again
            again.held[BLOCK] = Stream(stream)
        tables = self.first.tables
        with running(again), nullcontext() if tables is None else tables.resumed():
            return self.layer(*args, **kwargs)


def resume_in_own_pass(layer: Any) -> None:
    """Wraps the layer's checkpointing function where it has one that is not wrapped."""
    if layer.gradient_checkpointing:
        function = vars(layer).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, ResumingCheckpoint):
            layer._gradient_checkpointing_func = ResumingCheckpoint(function)


def resume_anywhere(layer: Any) -> None:
    """Gives a layer its own checkpointing function back."""
    function = vars(layer).get("_gradient_checkpointing_func")
    if isinstance(function, ResumingCheckpoint):
        layer._gradient_checkpointing_func = function.function
