"""Keys and values of a delta's own, in an attention that DeBERTa-v2 computes itself.

The attention is content with content, and content with relative positions. The delta's keys are in
the first of the two alone: they have no positions. While the module runs, two of its functions are
ours: the one that sets heads apart, which makes the keys and values longer, and the one that adds
positions, which is given the tokens' keys alone. The mask is widened in front of the module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.site import Handle
from deltakit.runtime.attention import AttentionPort
from deltakit.runtime.passes import NOTHING, Owner, current_pass

_HEADS = "transpose_for_scores"
_POSITIONS = "disentangled_attention_bias"
_MASK = "attention_mask"


@dataclass
class _Given:
    """What one run of the module adds.

    Attributes:
        memory: keys and values, ``(2, rows · heads, l, width)``.
        calls: how often heads were set apart: queries, keys, values, and then positions.
    """

    memory: Tensor
    calls: int = 0

    @property
    def length(self) -> int:
        return self.memory.shape[-2]


class DisentangledPort(AttentionPort):
    """Widens the mask in front of the module, and takes the delta's columns off its weights."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        self.module: Any = handle.module

    def begin(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> Any:
        """Before the module: its arguments with the wider mask."""
        node = self.find()
        if node is None:
            return None
        states, heads = args[0], self.module.num_attention_heads
        if node.depends:
            current_pass().held[self.key] = states
        memory, visible = self.memory(node, states.new_empty(states.shape[0], heads, 0, 0))
        given = _Given(memory.to(states.dtype).flatten(1, 2))
        current_pass().held[self.key] = given
        named = _MASK in kwargs
        wide = _widened(kwargs[_MASK] if named else args[1], visible, given.length)
        if named:
            return args, {**kwargs, _MASK: wide}
        return (args[0], wide, *args[2:]), kwargs

    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Behind it: weights of the tokens alone."""
        given = current_pass().held.pop(self.key, None)
        if given is None or output[1] is None:
            return output
        return output[0], output[1][..., given.length :]

    def running(self) -> _Given | None:
        """The keys and values of the run that has begun, or None."""
        held: _Given | None = current_pass().held.get(self.key)
        return held


def _widened(mask: Tensor, visible: Tensor | None, length: int) -> Tensor:
    """The mask ``(rows, 1, n, n)`` with columns in front for the delta's keys."""
    if visible is None:
        return F.pad(mask, (length, 0), value=1)
    columns = visible[:, None, None, :].expand(-1, 1, mask.shape[-2], -1).to(mask.dtype)
    return torch.cat([columns, mask.expand(columns.shape[0], -1, -1, -1)], dim=-1)


@dataclass(frozen=True)
class _Heads:
    """In place of the module's function that sets heads apart, ``(rows · heads, n, width)``."""

    port: DisentangledPort

    def __call__(self, x: Tensor, heads: int) -> Tensor:
        module, given = self.port.module, self.port.running()
        apart: Tensor = type(module).transpose_for_scores(module, x, heads)
        if given is None:
            return apart
        given.calls += 1
        if given.calls not in (2, 3):
            return apart
        return torch.cat([given.memory[given.calls - 2], apart], dim=1)


@dataclass(frozen=True)
class _Biases:
    """In place of the module's function that scores positions: zero for the delta's keys."""

    port: DisentangledPort

    def __call__(self, query: Tensor, key: Tensor, *rest: Any) -> Any:
        module, given = self.port.module, self.port.running()
        length = 0 if given is None else given.length
        biases = type(module).disentangled_attention_bias(module, query, key[:, length:], *rest)
        return F.pad(biases, (length, 0)) if isinstance(biases, Tensor) else biases


class Replaced:
    """Has the module call the two functions above, until it is removed."""

    def __init__(self, port: DisentangledPort) -> None:
        self.module = port.module
        vars(self.module).update({_HEADS: _Heads(port), _POSITIONS: _Biases(port)})

    def remove(self) -> None:
        """Gives the module its own functions back."""
        for name in (_HEADS, _POSITIONS):
            vars(self.module).pop(name, None)
