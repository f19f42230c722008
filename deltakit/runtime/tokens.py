"""Positions of a delta's own in the sequence of input embeddings (prompt tuning).

They are put in where the model is given its tokens, and taken out of what it returns, so what
stands behind the model sees as many positions as there are tokens. Inside, they are tokens like any
other: they have positions, so the model's context is shorter by as many. A row that is padded on
the left has them behind its padding, so that a sliding window counts no padding between them and
the row's tokens.
"""

import inspect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.nodes import Node, Signal
from deltakit.runtime.passes import NOTHING, Owner, current_pass
from deltakit.runtime.port_kinds import PositionsPort, SitePort


@dataclass(frozen=True)
class Places:
    """The place of a delta's positions among the tokens.

    Attributes:
        position: how many tokens are in front of them.
        length: how many they are.
        starts: ``(rows, 1)``, where they begin in each row; None where that is `position` in all.
    """

    position: int
    length: int
    starts: Tensor | None

    def inserted(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` with the columns of `part` at these places."""
        if self.starts is None:
            return torch.cat([whole[:, : self.position], part, whole[:, self.position :]], dim=1)
        size = whole.shape[1]
        place = torch.arange(size + self.length, device=whole.device)[None]
        inside = place - self.starts
        order = torch.where(inside < 0, place, place - self.length)
        order = torch.where((inside >= 0) & (inside < self.length), size + inside, order)
        return _pick(torch.cat([whole, part], dim=1), order)

    def widened(self, mask: Tensor) -> Tensor:
        """A padding mask with these places seen."""
        return self.inserted(mask, mask.new_ones(mask.shape[0], self.length))

    def removed(self, states: Any) -> Any:
        """States, or tuples of them, without these places."""
        if isinstance(states, tuple):
            return tuple(self.removed(each) for each in states)
        if not isinstance(states, Tensor) or states.ndim != 3:
            return states
        if self.starts is None:
            end = self.position + self.length
            return torch.cat([states[:, : self.position], states[:, end:]], dim=1)
        place = torch.arange(states.shape[1] - self.length, device=states.device)[None]
        return _pick(states, torch.where(place < self.starts, place, place + self.length))


def _starts(position: int, mask: Tensor | None) -> Tensor | None:
    """``(rows, 1)``: where the positions begin in each row, behind its padding on the left."""
    if mask is None:
        return None
    seen = mask.ne(0).cumsum(1)
    return position + (seen == 0).sum(1, keepdim=True) * (seen[:, -1:] > 0)


class TokensPort(SitePort, PositionsPort):
    """The change is ``(l, d)``: embeddings, after the first `position` tokens of each row."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        assert handle.embeddings is not None
        self.position = handle.position
        self.embeddings = handle.embeddings
        self.kept = handle.reader is not None

    def lengthen(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> Any:
        """Before the module runs: its arguments with the delta's positions among the tokens."""
        node = self.find()
        if node is None:
            return None
        given = named_arguments(module, args, kwargs)
        change = self._change(node)
        places = Places(self.position, change.shape[0], _starts(self.position, _mask(given)))
        running = current_pass()
        begun = _has_begun(given.get("past_key_values"), places.length)
        _check_room(given, places.length, begun)
        running.held[self.key] = places, begun, given.get("past_key_values")
        given |= dict(_later(given, places)) if begun else self._begin(given, places, change)
        for name in running.inputs.keys() & given.keys():
            running.inputs[name] = given[name]
        return (), given

    def _begin(self, given: dict[str, Any], places: Places, change: Tensor) -> dict[str, Any]:
        """What a sequence begins with: the tokens' vectors with the delta's among them."""
        tokens, embedded = given.pop("input_ids", None), given.get("inputs_embeds")
        if embedded is None:
            embedded = self.embeddings(tokens)
        rows = change.to(embedded.dtype).expand(embedded.shape[0], -1, -1)
        return {**dict(_first(given, places)), "inputs_embeds": places.inserted(embedded, rows)}

    def shorten(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        """Behind it: its states without them, unless another module attends to them."""
        held, output = current_pass().held.pop(self.key, None), rest[-1]
        if self.kept or held is None:
            return output
        places, begun, cache = held
        _count_tokens(_cache_of(output) if cache is None else cache, places.length)
        if begun:
            return output
        if isinstance(output, tuple):
            return places.removed(output)
        for key in ("last_hidden_state", "hidden_states"):
            if output.get(key) is not None:
                output[key] = places.removed(output[key])
        return output

    def widen(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> Any:
        """Before the module that attends to the output: its mask has the positions too."""
        if self.find() is None:
            return None
        given = named_arguments(module, args, kwargs)
        mask, states = given.get("encoder_attention_mask"), given.get("encoder_hidden_states")
        if mask is None or states is None or mask.shape[1] == states.shape[1]:
            return None
        length = states.shape[1] - mask.shape[1]
        places = Places(self.position, length, _starts(self.position, mask))
        return (), {**given, "encoder_attention_mask": places.widened(mask)}

    def _change(self, node: Node) -> Tensor:
        weight = next(self.embeddings.parameters())
        nothing = weight.new_empty(0)
        return node.change(Signal(nothing, nothing, nothing), self)


def _first(given: dict[str, Any], places: Places) -> Iterator[tuple[str, Tensor]]:
    """What goes with the tokens, for a pass that begins a sequence."""
    mask, numbers = _mask(given), given.get("position_ids")
    kinds = given.get("token_type_ids")
    if mask is not None:
        yield "attention_mask", places.widened(mask)
    if numbers is not None:
        yield "position_ids", _renumbered(numbers, places)
    if kinds is not None:
        kind = kinds[:, :1].expand(-1, places.length)
        yield "token_type_ids", places.inserted(kinds, kind)


def _renumbered(numbers: Tensor, places: Places) -> Tensor:
    """The tokens' numbers, with those of the new positions among them."""
    first, length = places.position, places.length
    start = numbers[:, first - 1 : first] + 1 if first else 0
    new = start + torch.arange(length, device=numbers.device).expand(numbers.shape[0], -1)
    later = torch.cat([numbers[:, :first], numbers[:, first:] + length], 1)
    return places.inserted(later, new)


def _later(given: dict[str, Any], places: Places) -> Iterator[tuple[str, Tensor]]:
    """What goes with the tokens, for a pass that goes on with a cached sequence."""
    mask, numbers = _mask(given), given.get("position_ids")
    if mask is not None:
        yield "attention_mask", places.widened(mask)
    if numbers is not None:
        yield "position_ids", numbers + places.length


def _pick(whole: Tensor, order: Tensor) -> Tensor:
    """``(rows, n)`` or ``(rows, n, d)`` with the columns of each row in the given order."""
    if whole.ndim == 3:
        order = order.unsqueeze(-1).expand(-1, -1, whole.shape[-1])
    return whole.expand(order.shape[0], *whole.shape[1:]).gather(1, order)


def named_arguments(module: nn.Module, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call of the module, by name."""
    bound = inspect.signature(module.forward).bind_partial(*args, **kwargs)
    named = dict(bound.arguments)
    for parameter in bound.signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(parameter.name, {})
    return named


class TokenCount:
    """The length of a cache without a delta's positions, as outside the model it is counted.

    `generate` cuts off as many tokens as a cache has positions. While the model runs, the cache
    has its own count, which its layers and masks go by.
    """

    def __init__(self, cache: Any, length: int) -> None:
        self.cache = cache
        self.length = length

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.whole(*args, **kwargs) - self.length

    def whole(self, *args: Any, **kwargs: Any) -> Any:
        """The number of all its positions."""
        return type(self.cache).get_seq_length(self.cache, *args, **kwargs)


class Closed:
    """The update of a cache that has a delta's positions, while the delta does not act.

    The plain model would number the tokens as if these positions were not there.
    """

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise IncompatibleDeltas(
            f"the cache was filled with {self.length} positions of a delta that is not active now. "
            "Begin with an empty cache, or activate the delta that filled this one."
        )


def _count_tokens(cache: Any, length: int) -> None:
    """Makes a cache that the model has filled count tokens alone, and closes it."""
    if cache is not None and not torch.compiler.is_compiling():
        cache.get_seq_length = TokenCount(cache, length)
        cache.update = Closed(length)


def _has_begun(cache: Any, length: int) -> bool:
    """Whether a cache goes on with a sequence that has the delta's positions; counts all again.

    Raises:
        IncompatibleDeltas: the sequence has not as many of them.
    """
    if cache is None:
        return False
    counted = vars(cache).get("get_seq_length")
    if counted is not None:
        del cache.get_seq_length, cache.update
    begun = bool(cache.get_seq_length() > 0)
    has = counted.length if isinstance(counted, TokenCount) else 0
    if begun and has != length and not torch.compiler.is_compiling():
        raise IncompatibleDeltas(
            f"the cache was filled with {has} positions of a delta, and the active one has "
            f"{length}. Begin with an empty cache, or activate the delta that filled this one."
        )
    return begun


def _check_room(given: dict[str, Any], length: int, begun: bool) -> None:
    """Raises `IncompatibleDeltas` for a static cache that the delta's positions do not fit into.

    `generate` makes it as long as the tokens will be, and some models pad their mask to its length.
    """
    from transformers import StaticCache

    cache, mask = given.get("past_key_values"), _mask(given)
    if not isinstance(cache, StaticCache) or torch.compiler.is_compiling():
        return
    tokens = _tokens(given)
    held = int(cache.get_seq_length())
    padded = mask is not None and mask.shape[1] > tokens + held
    if padded or held + tokens + (0 if begun else length) > _size(cache):
        raise IncompatibleDeltas(
            f"a static cache has no room for the {length} positions of a delta. Generate with "
            "cache_implementation='dynamic', or give a longer cache and a mask of the tokens alone."
        )


def _tokens(given: dict[str, Any]) -> int:
    """How many tokens a call has."""
    both = (given.get("input_ids"), given.get("inputs_embeds"))
    return next((each.shape[1] for each in both if each is not None), 0)


def _size(cache: Any) -> float:
    """How many positions a static cache can hold; layers with a window take any number."""
    whole = (layer.max_cache_len for layer in cache.layers if not layer.is_sliding)
    return min(whole, default=math.inf)


def _cache_of(output: Any) -> Any:
    """The cache that a module returns, or None."""
    from transformers import Cache

    values = output if isinstance(output, tuple) else output.values()
    return next((each for each in values if isinstance(each, Cache)), None)


def _mask(given: dict[str, Any]) -> Tensor | None:
    mask: Tensor | None = given.get("attention_mask")
    if mask is None or (isinstance(mask, Tensor) and mask.ndim == 2):
        return mask
    kind = f"of {mask.ndim} axes" if isinstance(mask, Tensor) else f"in a {type(mask).__name__}"
    raise IncompatibleDeltas(
        f"an attention_mask {kind} cannot be widened by a delta's positions. A static cache makes "
        "such masks: generate with cache_implementation='dynamic'. Elsewhere, give a mask of shape "
        "(rows, tokens)."
    )
