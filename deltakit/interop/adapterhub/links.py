"""The links between the library's tensors and deltakit's."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deltakit.errors import CheckpointError
from deltakit.interop.files import Tensors


class Packing(ABC):
    """The packing of several deltakit tensors into one of the library's."""

    @abstractmethod
    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        """The deltakit tensors. Raises `ValueError` or `RuntimeError` for a wrong shape."""

    @abstractmethod
    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The library's tensor, a new one."""


class Rows(Packing):
    """One below the other."""

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        return whole.unflatten(0, (parts, -1)).unbind()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(parts))


class Column(Packing):
    """Vectors one below the other, as a matrix of one column."""

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        if whole.shape[1:] != (1,):
            raise ValueError
        return whole.squeeze(1).unflatten(0, (parts, -1)).unbind()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(parts)).unsqueeze(1)


@dataclass(frozen=True)
class Positions(Packing):
    """Keys and values of all layers ``(2, length, d)``, position by position, as one vector."""

    length: int

    def split(self, whole: Tensor, parts: int) -> Sequence[Tensor]:
        (size,) = whole.shape
        return whole.view(self.length, parts, 2, -1).permute(1, 2, 0, 3).unbind()

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(parts)).permute(2, 0, 1, 3).flatten()


@dataclass(frozen=True, kw_only=True)
class Link:
    """One of the library's tensors, by its key in the base model, and what it holds.

    Attributes:
        theirs: the library's key.
        ours: the keys of the deltakit tensors that it holds, in their order.
        packing: how it holds them.
        copies: keys under which the library repeats it.
    """

    theirs: str
    ours: tuple[str, ...]
    packing: Packing = Rows()
    copies: tuple[str, ...] = ()


def unpack(
    tensors: Tensors, links: Iterable[Link], shapes: Mapping[str, torch.Size]
) -> dict[str, Tensor]:
    """The deltakit tensors, from the library's. Each that is read is used up.

    Raises:
        CheckpointError: one is missing or has another shape, or a copy differs.
    """
    found: dict[str, Tensor] = {}
    for link in links:
        whole = tensors.take(link.theirs)
        for copy in link.copies:
            if copy in tensors and not torch.equal(tensors.take(copy), whole):
                raise CheckpointError(
                    f"{tensors.path}: {copy!r} must repeat {link.theirs!r}, and differs from it."
                )
        try:
            parts = link.packing.split(whole, len(link.ours))
            fits = all(p.shape == shapes[key] for key, p in zip(link.ours, parts, strict=True))
        except (ValueError, RuntimeError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"{tensors.path}: {link.theirs!r} has shape {tuple(whole.shape)}, and its config "
                "describes another. Load it on a model of the size it was made for."
            )
        for key, part in zip(link.ours, parts, strict=True):
            found[key] = part.clone(memory_format=torch.contiguous_format)
    return found


def pack(tensors: Mapping[str, Tensor], links: Iterable[Link], prefix: str) -> dict[str, Tensor]:
    """The library's tensors, from deltakit's: a copy is the same tensor again.

    Raises:
        CheckpointError: two deltakit tensors have one place in the library's.
    """
    found: dict[str, Tensor] = {}
    for link in links:
        whole = link.packing.join([tensors[key].detach().cpu() for key in link.ours])
        for key in (link.theirs, *link.copies):
            if prefix + key in found:
                raise CheckpointError(
                    f"AdapterHub's library has one place for {link.ours[0]!r} and for another part "
                    "of this delta. Save them as deltas of their own."
                )
            found[prefix + key] = whole
    return found
