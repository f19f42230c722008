r"""Prefix tuning (Li & Liang 2021, arXiv:2101.00190).

    head = softmax(Q [P_k; K]ᵀ / √d) [P_v; V] = (1 - λ) head_without + λ softmax(Q P_kᵀ / √d) P_v

with λ the share of the softmax that the l prefix keys take (He et al. 2022, eq. 7): a gated change.

=================  ==============================================================
axis               value
=================  ==============================================================
functional form    softmax(Q P_kᵀ) P_v, with P_k and P_v learned, l of each
insertion          parallel: it reads the query of the attention
modified           the output of each head, in every attention that the model has
composition        (1 - λ) h + λ Δh, which the concatenation does by itself
=================  ==============================================================

It is trained through a small network, P = tanh(E W_1 + b_1) W_2 + b_2, whose E and W_1 all layers
of a stack share, and deployed without it: `deploy` keeps 2 l d numbers a layer.

Where the sources differ. Keys and values enter behind the projection, the rotation and the cache,
as in `adapters`, so no position is shifted. PEFT passes them as a cache, so its tokens' positions
begin at l, which shortens the context by l: that is ``positions="shifted"``, h + l at the site of
the tokens' positions. PEFT's encoder-decoder models have prefixes in the decoder's self-attention
alone, where the paper and this have them in all three. E starts from N(0, 1) in all of them.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deltakit.core.checks import check_choice, check_fraction, check_whole
from deltakit.core.delta import Delta, ExtraPositions, Reparametrised
from deltakit.core.method import InitialOutput, Method, Paper, Placement, Summable, register_method
from deltakit.core.site import Handle, Insertion, Site


class Prefix(ExtraPositions):
    """Keys and values as they are. Shape of the change: ``(2, length, d_kv)``."""

    def __init__(self, length: int, d_kv: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.length = length
        self.dropout = dropout
        self.memory = nn.Parameter(torch.randn(2, length, d_kv))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(self.memory, self.dropout, self.training) if self.dropout else self.memory


class Trunk(nn.Module):
    """The part that the layers of a stack share: tanh(E W_1 + b_1), ``(length, bottleneck)``."""

    def __init__(self, length: int, d: int, bottleneck: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(length, d))
        self.down = nn.Linear(d, bottleneck)

    def forward(self) -> Tensor:
        return torch.tanh(self.down(self.embedding))


class _Kept(NamedTuple):
    """A result, and the values of the parameters it was made from."""

    values: tuple[Tensor, ...]
    memory: Tensor


def _same(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


class ReparametrisedPrefix(ExtraPositions, Reparametrised):
    """One layer's keys and values, as the network makes them: ``(2, length, d_kv)``.

    The first layer of a stack has the trunk among its modules; the others refer to it. On a CPU,
    the result of an evaluation is kept, with the values it was made from.
    """

    def __init__(self, trunk: Trunk, d_kv: int, *, owner: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.length, bottleneck = trunk.embedding.shape[0], trunk.down.out_features
        self.up = nn.Linear(bottleneck, 2 * d_kv)
        self.dropout = dropout
        self._trunk = (trunk,)  # in a tuple, so that its parameters are counted once
        if owner:
            self.trunk = trunk
        self._kept: _Kept | None = None

    def forward(self, x: Tensor) -> Tensor:
        memory = self._memory() if self._may_change() else self._kept_memory()
        return F.dropout(memory, self.dropout, self.training) if self.dropout else memory

    def _may_change(self) -> bool:
        """Whether nothing is kept: in training, in a graph, on a device that would have to wait."""
        accelerated = self.up.weight.device.type != "cpu"
        return accelerated or torch.is_grad_enabled() or torch.compiler.is_compiling()

    def _kept_memory(self) -> Tensor:
        """The memory in evaluation, made once for the same values of the parameters.

        Autograd does not count writes through ``p.data``, so the values themselves are compared.
        """
        kept, own = self._kept, (*self._trunk[0].parameters(), *self.up.parameters())
        if kept is None or not all(map(_same, own, kept.values)):
            kept = self._kept = _Kept(tuple(p.detach().clone() for p in own), self._memory())
        return kept.memory

    def _memory(self) -> Tensor:
        hidden = self._trunk[0]().to(self.up.weight.device)
        return self.up(hidden).unflatten(-1, (2, -1)).transpose(0, 1)

    def deployed(self) -> Delta:
        with torch.no_grad():
            memory = self._memory().contiguous()
        with torch.device(memory.device):
            plain = Prefix(self.length, memory.shape[-1], dropout=self.dropout).to(memory.dtype)
        plain.memory.data = memory
        return plain


class Shift(Delta):
    """The same number for every token. Shapes: ``(rows, tokens)`` to ``(rows, tokens)``."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.length)


@dataclass
class _Network:
    """Makes the layers' deltas one by one, the first of each stack with the trunk."""

    method: "PrefixTuning"
    trunks: dict[str, Trunk] = field(default_factory=dict)

    def form(self, handle: Handle) -> Delta:
        method, owner = self.method, handle.stack not in self.trunks
        assert method.bottleneck is not None
        if owner:
            self.trunks[handle.stack] = Trunk(method.length, handle.d_in, method.bottleneck)
        return ReparametrisedPrefix(
            self.trunks[handle.stack], handle.d_out, owner=owner, dropout=method.dropout
        )


@register_method("prefix")
@dataclass(frozen=True, kw_only=True)
class PrefixTuning(Summable):
    """Learned keys and values in front of those of every attention (Li & Liang 2021).

    Args:
        length: l, how many keys and values in each layer.
        bottleneck: width of the network that they are trained through; None trains them directly.
        dropout: on the keys and values, in training.
        positions: of the tokens: "kept", or "shifted" by l, as if the prefix were tokens (PEFT).

    Raises:
        InvalidConfig: a value out of range.
    """

    length: int = 30
    bottleneck: int | None = 512
    dropout: float = 0.0
    positions: Literal["kept", "shifted"] = "kept"

    paper: ClassVar[Paper] = Paper(
        key="li2021prefix",
        title="Prefix-Tuning: Optimizing Continuous Prompts for Generation",
        authors="Li, Xiang Lisa and Liang, Percy",
        year=2021,
        venue="Annual Meeting of the Association for Computational Linguistics",
        arxiv="2101.00190",
    )
    learning_rate: ClassVar[float] = 3e-3
    starts: ClassVar[InitialOutput] = InitialOutput.ELSEWHERE

    def __post_init__(self) -> None:
        check_whole(self, length=self.length)
        check_fraction(self, dropout=self.dropout)
        check_choice(self, ("kept", "shifted"), positions=self.positions)
        if self.bottleneck is not None:
            check_whole(self, bottleneck=self.bottleneck)

    def placements(self) -> tuple[Placement, ...]:
        form = self.form if self.bottleneck is None else _Network(self).form
        prefix = Placement(site=Site.ATTN_KV, make_delta=form, insertion=Insertion.PARALLEL)
        shift = Placement(
            site=Site.POSITION_IDS, make_delta=self.shift, insertion=Insertion.SEQUENTIAL
        )
        return (prefix,) if self.positions == "kept" else (prefix, shift)

    def form(self, handle: Handle) -> Delta:
        """The plain keys and values of one layer."""
        return Prefix(self.length, handle.d_out, dropout=self.dropout)

    def shift(self, handle: Handle) -> Delta:
        """The number that is added to the tokens' positions."""
        del handle
        return Shift(self.length)

    def deployed(self) -> Method:
        return replace(self, bottleneck=None)

    def sized(self, width: int) -> Method:
        """Another bottleneck of the network, or another length where there is none."""
        if self.bottleneck is None:
            return replace(self, length=width)
        return replace(self, bottleneck=width)
