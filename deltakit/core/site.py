"""The places for a delta: the sites of a transformer block, and a site resolved in a model.

The names follow He et al. (2022, arXiv:2110.04366): attention and feed-forward sub-modules, their
projections, and the stream that leaves the block.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn


class Site(StrEnum):
    """A place in one transformer block, by the role it has in every architecture."""

    ATTN_Q = "attn.q"
    ATTN_K = "attn.k"
    ATTN_V = "attn.v"
    ATTN_MID = "attn.mid"
    """The heads' outputs side by side: what enters the last attention projection."""
    ATTN_O = "attn.o"
    ATTN_KV = "attn.kv"
    """The keys and values that the heads attend to, as the attention function is given them."""
    ATTN_OUT = "attn.out"
    """What the attention sub-module adds to the residual stream."""
    FFN_GATE = "ffn.gate"
    FFN_UP = "ffn.up"
    FFN_MID = "ffn.mid"
    """The inner activation: what enters the second feed-forward projection."""
    FFN_DOWN = "ffn.down"
    FFN_OUT = "ffn.out"
    """What the feed-forward sub-module adds to the residual stream."""
    FFN_STREAM = "ffn.stream"
    """The same in a pre-LN model, where x is the stream *before* the norm of the feed-forward."""
    BLOCK_OUT = "block.out"
    """The residual stream that leaves the block; in a post-LN model, around its last norm."""
    TOKENS = "tokens"
    """The sequence of input embeddings, before any block."""
    EMBED = "embed"
    """The vectors of the tokens as they leave the table of embeddings; x is the tokens' ids."""
    POSITION_IDS = "position_ids"
    """The number of each token in the sequence, of which the model makes a vector or a rotation."""
    EMBED_OUT = "embed.out"
    """What the first layer is given: the tokens' vectors with all that the embeddings add."""
    UNEMBED = "unembed"
    """What the projection to the vocabulary is given, in a model with a language-modelling head."""


LINEAR_SITES = (
    Site.ATTN_Q,
    Site.ATTN_K,
    Site.ATTN_V,
    Site.ATTN_O,
    Site.FFN_GATE,
    Site.FFN_UP,
    Site.FFN_DOWN,
)
"""The sites that are one linear projection, or some columns of one."""

INPUT_SITES = (Site.TOKENS, Site.EMBED, Site.POSITION_IDS, Site.EMBED_OUT)
"""The sites before any layer."""

OUTER_SITES = (*INPUT_SITES, Site.UNEMBED)
"""The sites in no layer."""


class HookKind(Enum):
    """The way in which a site is reached in the module that holds it."""

    OUTPUT = "output"
    """h is what the module returns (or some columns of it), x is what it was given."""
    INPUT = "input"
    """h is what the module is given."""
    NORM = "norm"
    """The module is the norm of a post-LN block: h = norm(s), and a change is made to s."""
    ATTENTION = "attention"
    """The module calls the attention function: a change is keys and values beside its own."""
    DISENTANGLED = "disentangled"
    """The same in an attention that the module computes itself, as DeBERTa-v2's does."""
    INPUT_EMBEDS = "input_embeds"
    """The module is given the sequence of tokens: a change is positions beside its own."""
    POSITION_IDS = "position_ids"
    """The module is given the number of each token in the sequence: h is these numbers."""


POSITION_KINDS = (
    HookKind.ATTENTION,
    HookKind.DISENTANGLED,
    HookKind.INPUT_EMBEDS,
    HookKind.POSITION_IDS,
)
"""The ways of reaching positions of a sequence, or their numbers, which cannot be weighed."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Some columns of a fused projection: `count` spans of `width`, one every `stride` columns.

    One span is a plain slice (GPT-2's c_attn); several are heads that are fused one by one
    (GPT-NeoX, BLOOM), in which query, key and value of each head lie side by side.
    """

    first: int
    width: int
    stride: int = 0
    count: int = 1

    @property
    def total(self) -> int:
        """The number of columns."""
        return self.width * self.count

    def read(self, whole: Tensor) -> Tensor:
        """The columns of `whole`, ``(..., d)`` to ``(..., total)``."""
        end = self.first + self.width
        if self.count == 1:
            return whole[..., self.first : end]
        spans = whole.unflatten(-1, (self.count, self.stride))
        return spans[..., self.first : end].flatten(-2)

    def write(self, whole: Tensor, part: Tensor) -> Tensor:
        """`whole` with these columns replaced by `part`."""
        end = self.first + self.width
        if self.count == 1:
            return whole.slice_scatter(part, dim=-1, start=self.first, end=end)
        spans = whole.unflatten(-1, (self.count, self.stride))
        part = part.unflatten(-1, (self.count, self.width))
        return spans.slice_scatter(part, dim=-1, start=self.first, end=end).flatten(-2)

    def __str__(self) -> str:
        end = self.first + self.width
        every = f" of each {self.stride}" if self.count > 1 else ""
        return f"[{self.first}:{end}{every}]"


class BaseLinear(ABC):
    """One linear projection of the base as it is now, or the site's columns of it."""

    @abstractmethod
    def weight(self) -> Tensor:
        """The weight ``(d_out, d_in)`` that it computes with, in single precision at least."""

    @abstractmethod
    def bias(self) -> Tensor | None:
        """The bias ``(d_out,)``, in single precision at least, or None."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Handle:
    """One site of one layer of one model, ready to be read and written.

    Attributes:
        site: the role.
        stack: which stack of layers, for example "encoder".
        layer: index of the layer in its stack.
        depth: how many layers the stack has.
        path: dotted path of `module` in the model, for messages.
        module: the module that holds the site.
        hook_kind: how the site is reached in `module`.
        reader: the module whose input is x, where that is not `module`.
        d_in: width of what a parallel delta reads.
        d_out: width of what is changed, and of what a sequential delta reads.
        dtype: the dtype the module computes in.
        device: where the module is.
        columns: the part of `module`'s output that is this site, where projections are fused.
        activation: the nonlinearity of the layer's feed-forward, by transformers' name; None where
            it is gated or not known.
        position: at the sequence of tokens, how many stay in front of those that a delta adds.
        embeddings: at the sequence of tokens, the module that turns ids into vectors.
        scale: at the table of embeddings, what it multiplies its vectors by.
        linear: at a linear projection, its weight and bias.
        relative: at keys and values, the module whose ``compute_bias`` gives the biases of relative
            positions, as T5's; None where there are none.
        limit: at the tokens' positions, how many the model has; None without an end.
        block: the layer that has the site, as a module; None before and behind all layers.
    """

    site: Site
    stack: str
    layer: int
    path: str
    module: nn.Module
    hook_kind: HookKind
    d_in: int
    d_out: int
    dtype: torch.dtype
    device: torch.device
    columns: Columns | None = None
    reader: nn.Module | None = None
    activation: str | None = None
    position: int = 0
    embeddings: nn.Module | None = None
    depth: int = 1
    scale: float = 1.0
    linear: BaseLinear | None = None
    relative: nn.Module | None = None
    limit: int | None = None
    block: nn.Module | None = None

    @property
    def in_a_layer(self) -> bool:
        """True if the site is in one of the stack's layers, not before or behind all of them."""
        return self.site not in OUTER_SITES

    @property
    def key(self) -> str:
        """The handle's name, unique in the model: ``encoder.0.attn.q``."""
        return f"{self.stack}.{self.layer}.{self.site}"


class Insertion(StrEnum):
    """The input of a delta (He et al. 2022, the column "insertion form")."""

    SEQUENTIAL = "sequential"
    """It reads h, the representation that it changes."""
    PARALLEL = "parallel"
    """It reads x, the direct input of the sub-module that produces h."""

    def width(self, handle: Handle) -> int:
        """Width of what a delta inserted this way reads at `handle`."""
        match self:
            case Insertion.SEQUENTIAL:
                return handle.d_out
            case Insertion.PARALLEL:
                return handle.d_in
            case _:
                assert_never(self)
