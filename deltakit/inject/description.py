"""The description of a model's deltas in its state dict.

A state dict holds tensors alone, and so do the checkpoints that training loops save. One more
tensor holds the deltas' methods, as the bytes of a JSON text.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from deltakit.core.checkpoint import Part, part_to_plain
from deltakit.core.composition import Composition


def described(deltas: Iterable[Mapping[str, Any]], active: Composition | None) -> dict[str, Any]:
    """All deltas of a model, and which of them are active."""
    plain = None if active is None else active.to_plain()
    return {"format": "deltakit", "deltas": list(deltas), "active": plain}


def delta_to_plain(part: Part, members: Iterable[str], keys: Iterable[str]) -> dict[str, Any]:
    """One delta without its tensors.

    Args:
        part: what it is.
        members: the deltas that it composes.
        keys: of its modules.
    """
    return {**part_to_plain(part), "members": list(members), "modules": list(keys)}


def as_tensor(content: Mapping[str, Any]) -> Tensor:
    """Data as the bytes of a JSON text, shape ``(bytes,)``; other values by their `repr`."""
    return torch.tensor(list(json.dumps(content, default=repr).encode()), dtype=torch.uint8)


def from_tensor(tensor: Tensor) -> Any:
    """The inverse of `as_tensor`. Raises `ValueError` for other bytes."""
    if tensor.dtype is not torch.uint8 or tensor.dim() != 1:
        raise ValueError("no text")
    return json.loads(bytes(tensor.tolist()).decode())
