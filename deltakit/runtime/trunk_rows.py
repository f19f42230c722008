"""The rows of a batch as a trunk is given them: a key for each, and the places of its real tokens.

A key is a digest of all that enters the trunk for a row, without the padding behind it. So a row is
found again in a shuffled batch, and in one that is padded to another length.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ROWS = ("input_ids", "token_type_ids", "position_ids", "pixel_values", "bool_masked_pos")
"""Arguments that have a row for each row of the batch, and enter the trunk."""
_APART = ("attention_mask", "labels", "num_items_in_batch", "return_dict", "use_cache")
"""Arguments that are read otherwise, or that change no hidden state."""


class Refused(Exception):
    """The reason why a pass computes its trunk as without a cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TrunkRows:
    """The rows of one batch.

    Attributes:
        keys: of each row.
        seen: ``(rows, tokens)``, the real tokens; None where a row has no padding.
    """

    keys: tuple[bytes, ...]
    seen: Any

    def parts(self, states: Tensor, places: list[int]) -> list[tuple[bytes, Tensor]]:
        """Some rows of the states, ``(rows, tokens, d)``, without their padding, by their keys."""
        if self.seen is None:
            return [(self.keys[row], states[row]) for row in places]
        real = (torch.from_numpy(self.seen[row].nonzero()[0]) for row in places)
        return [
            (self.keys[row], states[row].index_select(0, index.to(states.device)))
            for row, index in zip(places, real, strict=True)
        ]

    def whole(self, kept: list[Tensor]) -> Tensor:
        """The states of all rows, ``(rows, tokens, d)``, zero at padding."""
        if self.seen is None or self.seen.all():
            return torch.stack(kept)
        flat = torch.cat(kept)
        index = torch.from_numpy(np.flatnonzero(self.seen)).to(flat.device)
        states = flat.new_zeros(self.seen.size, flat.shape[-1]).index_copy_(0, index, flat)
        return states.unflatten(0, self.seen.shape)


def trunk_rows(given: Mapping[str, Any]) -> TrunkRows:
    """The rows of a call of the base, from its arguments by name.

    Raises:
        Refused: an argument whose part in the hidden states is not known.
    """
    _check(given)
    main = given.get("input_ids", given.get("pixel_values"))
    if not isinstance(main, Tensor):
        raise Refused("the model is given neither input_ids nor pixel_values")
    seen = _seen(given, main)
    values = {name: _array(name, given[name], main) for name in _ROWS if _has(given, name)}
    keys = tuple(_key(values, seen, row) for row in range(main.shape[0]))
    return TrunkRows(keys=keys, seen=seen)


def _has(given: Mapping[str, Any], name: str) -> bool:
    return given.get(name) is not None


def _check(given: Mapping[str, Any]) -> None:
    if given.get("use_cache"):
        raise Refused("use_cache=True")
    for name, value in given.items():
        if name not in (*_ROWS, *_APART) and value is not None and value is not False:
            raise Refused(f"the argument {name}")


def _seen(given: Mapping[str, Any], main: Tensor) -> Any:
    """The real tokens of each row."""
    mask = given.get("attention_mask")
    if mask is None:
        return None if main.ndim > 2 else np.ones(tuple(main.shape), dtype=bool)
    if not isinstance(mask, Tensor) or mask.shape != main.shape:
        raise Refused("an attention_mask that is not (rows, tokens)")
    seen = mask.detach().ne(0).cpu().numpy()
    if not seen.any(1).all():
        raise Refused("a row without tokens")
    return seen


def _array(name: str, value: Any, main: Tensor) -> Any:
    """An argument's rows; those of a token each are ``(rows, tokens)``."""
    if not isinstance(value, Tensor) or value.shape[0] not in (1, main.shape[0]):
        raise Refused(f"{name} without a row for each row")
    whole = value.detach().expand(main.shape[0], *value.shape[1:]).contiguous()
    if whole.is_floating_point():  # NumPy has no bfloat16
        whole = whole.flatten(1).view(torch.uint8)
    return whole.cpu().numpy()


def _key(values: Mapping[str, Any], seen: Any, row: int) -> bytes:
    made = hashlib.blake2b(digest_size=16)
    if seen is not None:  # padding in front may shift positions, so it counts
        made.update(np.trim_zeros(seen[row], "b").tobytes())
    for name, value in values.items():
        by_token = seen is not None and value[row].shape == seen[row].shape
        part = value[row][seen[row]] if by_token else value[row]
        made.update(f"{name} {part.shape} ".encode() + part.tobytes())
    return made.digest()
