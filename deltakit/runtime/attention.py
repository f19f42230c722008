"""Keys and values of a delta's own, added in the attention function.

While a prefix is active, its attention modules call a function registered here instead of the one
that the config names. It puts the delta's keys and values in front of the module's, which are then
final: projected, rotated and out of the cache. So no position shifts and no context is lost. The
mask is widened by columns that all tokens see, and the original function does the rest.
"""

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.delta import Reparametrised, ShiftsKeys
from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.generation import kept_values
from deltakit.runtime.nodes import Node, Signal
from deltakit.runtime.passes import Owner, current_pass
from deltakit.runtime.port_kinds import PositionsPort, SitePort

_SLOT = "_deltakit_attention"
_MARK = "deltakit_"
_ORIGINALS = ("sdpa", "eager")


class AttentionPort(SitePort, PositionsPort):
    """The change is ``(2, l, d_kv)``, or ``(2, rows, l, d_kv)``: keys and values."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        self.relative: Any = handle.relative
        self.stack = handle.stack

    def bias(self, node: Node, given: Tensor, length: int) -> Tensor:
        """The biases of relative positions, with columns for the delta's keys in front.

        They are zero, unless the delta's keys are counted.
        """
        if not any(isinstance(leaf.delta, ShiftsKeys) for leaf in node.leaves):
            return F.pad(given, (length, 0))
        if self.relative is None:  # attention across has no biases
            return F.pad(given, (length, 0))
        queries, keys = given.shape[-2:]
        wide: Tensor = self.relative.compute_bias(
            queries,
            keys + length,
            device=given.device,
            past_seen_tokens=current_pass().past(self.stack),
        )
        return wide.to(given.dtype)

    def memory(self, node: Node, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """The delta's ``(2, rows, heads, l, width)``, and which of it each row sees (or None)."""
        node = node.fitted(key.shape[0])
        change = self._change(node, key.new_empty(0))
        visible = node.visible(key.device)
        heads = change.unflatten(-1, (key.shape[1], -1)).transpose(-2, -3)
        if heads.ndim == 4:
            heads = heads.unsqueeze(1)
        return heads.expand(-1, key.shape[0], -1, -1, -1), visible

    def _change(self, node: Node, nothing: Tensor) -> Tensor:
        """The node's change; while `generate` runs without gradients, it is kept."""
        x = current_pass().held.pop(self.key, None)
        if x is not None:
            return node.change(Signal(x, x, nothing), self)
        kept = None if torch.is_grad_enabled() else kept_values()
        if kept is None or not any(isinstance(x.delta, Reparametrised) for x in node.leaves):
            return node.change(Signal(nothing, nothing, nothing), self)
        if (node, nothing.dtype) not in kept:
            kept[node, nothing.dtype] = node.change(Signal(nothing, nothing, nothing), self)
        return kept[node, nothing.dtype]


@dataclass(frozen=True)
class _Attend:
    """The attention function that is registered in addition to `original`."""

    original: str

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        attend = _function(type(module), self.original)
        port = vars(module).get(_SLOT)
        node = None if port is None else port.find()
        if port is None or node is None:
            return attend(module, query, key, value, attention_mask, **kwargs)
        memory, visible = port.memory(node, key)
        length = memory.shape[-2]
        causal = self.original == "sdpa" and _is_causal(module, kwargs)
        mask = _explicit(attention_mask, query, key, causal=causal)
        if mask is None and visible is not None:
            mask = self._all_seen(query, key)
        if kwargs.get("position_bias") is not None:
            bias = kwargs["position_bias"][..., : key.shape[2]]
            kwargs["position_bias"] = port.bias(node, bias, length)
        output, weights = attend(
            module,
            query,
            torch.cat([memory[0].to(key.dtype), key], dim=2),
            torch.cat([memory[1].to(value.dtype), value], dim=2),
            _widened(mask, visible, length, query),
            **kwargs,
        )
        return output, None if weights is None else weights[..., length:]

    def _all_seen(self, query: Tensor, key: Tensor) -> Tensor:
        """A mask that hides nothing; eager attention adds it to the scores."""
        shape = (1, 1, 1, key.shape[2])
        if self.original == "eager":
            return query.new_zeros(shape)
        return torch.ones(shape, dtype=torch.bool, device=query.device)


def _function(kind: type, name: str) -> Any:
    """The attention function called `name` in the file that defines the attention module."""
    for each in kind.__mro__:
        scope = vars(sys.modules[each.__module__])
        if "eager_attention_forward" in scope:
            eager = scope["eager_attention_forward"]
            return scope["ALL_ATTENTION_FUNCTIONS"].get_interface(name, eager)
    raise IncompatibleDeltas(
        f"{kind.__name__} has no attention function of transformers' interface in its file, so "
        "keys and values cannot be added to it."
    )


def _is_causal(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the function itself masks the future where it is given no mask."""
    given = kwargs.get("is_causal")
    return bool(vars(module).get("is_causal", True) if given is None else given)


def _explicit(mask: Tensor | None, query: Tensor, key: Tensor, *, causal: bool) -> Tensor | None:
    """The mask over the module's own keys; None where all of them are seen."""
    queries, keys = query.shape[2], key.shape[2]
    if mask is not None:
        return mask[..., :keys]
    if not causal or queries == 1:
        return None
    return torch.ones(1, 1, queries, keys, dtype=torch.bool, device=query.device).tril()


def _widened(
    mask: Tensor | None, visible: Tensor | None, length: int, query: Tensor
) -> Tensor | None:
    """The mask with `length` columns in front, which every row sees unless `visible` is False."""
    if mask is None:
        return None
    if visible is None:
        return F.pad(mask, (length, 0), value=mask.dtype == torch.bool)
    mask = mask.expand(query.shape[0], -1, query.shape[2], -1)
    columns = visible[:, None, None, :].expand(-1, mask.shape[1], query.shape[2], -1)
    if mask.dtype != torch.bool:
        hidden = torch.finfo(mask.dtype).min
        columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, hidden)
    return torch.cat([columns, mask], dim=-1)


class Switch:
    """Makes one attention module call the function above, until it is removed.

    As a hook in front of the module it also follows `model.set_attn_implementation`.
    """

    def __init__(self, module: nn.Module, port: AttentionPort) -> None:
        self.module = module
        self.config: Any = module.config
        self()
        vars(module)[_SLOT] = port

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        _register()  # the process that unpickles a model may have attached nothing yet

    def __call__(self, *args: Any) -> None:
        name: str = self.config._attn_implementation
        if not name.startswith(_MARK):
            _register()
            self.config._attn_implementation_internal = f"{_MARK}{_known(name)}"

    def remove(self) -> None:
        """Gives the module and its config back."""
        vars(self.module).pop(_SLOT, None)
        name: str = self.config._attn_implementation
        self.config._attn_implementation_internal = name.removeprefix(_MARK)


def _known(name: str) -> str:
    if name not in _ORIGINALS:
        raise IncompatibleDeltas(
            f"the model's attention is {name!r}; keys and values can be added to "
            f"{' and '.join(_ORIGINALS)}. Call model.set_attn_implementation('sdpa') first."
        )
    return name


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    for name in _ORIGINALS:
        AttentionInterface.register(f"{_MARK}{name}", _Attend(name))
        AttentionMaskInterface.register(f"{_MARK}{name}", ALL_MASK_ATTENTION_FUNCTIONS[name])
