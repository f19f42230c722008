"""Observation of running deltas: their changes, and the attention of a fusion."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from deltakit.core.delta import Attending
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import need_attachments
from deltakit.inject.switch import active_nodes
from deltakit.runtime.nodes import Node
from deltakit.runtime.passes import current_pass
from deltakit.runtime.recording import record_changes, record_output, recorded

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(kw_only=True, eq=False)
class FusionAttention:
    """Attention over members, as seen during forward passes: of a fusion, or of a router's experts.

    Attributes:
        members: by site, the members' names in the order of the last axis. The second module that
            weighs members at one site has ``#1`` after the site.
        weights: by site, ``(batch, tokens, members)``, of the latest pass.
    """

    members: dict[str, tuple[str, ...]]
    weights: dict[str, Tensor] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _tokens: dict[str, Tensor] = field(default_factory=dict)
    _first: dict[str, Tensor] = field(default_factory=dict)
    _entropies: dict[str, Tensor] = field(default_factory=dict)

    def mean(self) -> dict[str, dict[str, float]]:
        """By site and member, the mean over all tokens of all passes, padding left out."""
        return {
            site: dict(zip(self.members[site], (total / self._tokens[site]).tolist(), strict=True))
            for site, total in self._sums.items()
        }

    def load(self) -> dict[str, dict[str, float]]:
        """By site and member, the share of the tokens whose largest weight is the member's.

        A member with a share of zero is dead: no token needs it. Padding is left out.
        """
        return {
            site: dict(zip(self.members[site], (first / self._tokens[site]).tolist(), strict=True))
            for site, first in self._first.items()
        }

    def entropy(self) -> dict[str, float]:
        """By site, the mean entropy of a token's weights, over that of equal weights.

        It is 1 where all members weigh the same, and 0 where each token has one member.
        """
        return {
            site: float(total / self._tokens[site] / math.log(max(len(self.members[site]), 2)))
            for site, total in self._entropies.items()
        }

    def _record(self, site: str, weights: Tensor) -> None:
        self.weights[site] = weights
        mask = current_pass().attention_mask(site.partition(".")[0])
        fits = mask is not None and mask.shape == weights.shape[:-1]
        mask = mask if fits and mask is not None else weights.new_ones(weights.shape[:-1])
        mask = mask.to(weights.device, torch.float32)
        total = torch.einsum("...n,...->n", weights.float(), mask)
        self._sums[site] = self._sums.get(site, torch.zeros_like(total)) + total
        self._tokens[site] = self._tokens.get(site, mask.new_zeros(())) + mask.sum()
        largest = torch.nn.functional.one_hot(weights.argmax(-1), weights.shape[-1])
        first = torch.einsum("...n,...->n", largest.float(), mask)
        self._first[site] = self._first.get(site, torch.zeros_like(first)) + first
        share = weights.float() / weights.float().sum(-1, keepdim=True).clamp(min=1e-12)
        entropies = (torch.special.entr(share).sum(-1) * mask).sum()
        self._entropies[site] = self._entropies.get(site, torch.zeros_like(entropies)) + entropies


@contextlib.contextmanager
def fusion_attention(model: "PreTrainedModel") -> Iterator[FusionAttention]:
    """Inside, forward passes record the weights that the active deltas give to members.

    These are a fusion's attention over its members, and the weights of any other module that is
    `Attending`, such as a router inside a form.

    ::

        with dk.fusion_attention(model) as seen:
            model(**batch)
        seen.mean()["encoder.0.block.out"]      # {"imdb": 0.31, "news": 0.12, "target": 0.57}

    Raises:
        IncompatibleDeltas: nothing active weighs members.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    attending = {
        f"{key}#{index}" if index else key: module
        for key, node in active_nodes(attachments).items()
        for index, module in enumerate(_attending(node))
    }
    if not attending:
        raise IncompatibleDeltas(
            "no fusion is active, so there is no attention to record. Attach or activate one, for "
            "example attach(model, AdapterFusion('a', 'b'), name='fused')."
        )
    seen = FusionAttention(members={key: each.members for key, each in attending.items()})
    hooks = [
        record_output(each.attention, partial(seen._record, key)) for key, each in attending.items()
    ]
    with recorded(hooks):
        yield seen


def _attending(node: Node) -> list[Attending]:
    """The modules of a node that weigh members, each once; combiners first."""
    parts = (*node.combiners, *(leaf.delta for leaf in node.leaves))
    modules = dict.fromkeys(module for part in parts for module in part.modules())
    return [module for module in modules if isinstance(module, Attending)]


@dataclass(kw_only=True, eq=False)
class SiteChanges:
    """The movement of h by the active deltas at each site, recorded during forward passes."""

    _sums: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def relative(self) -> dict[str, float]:
        """By site, the root mean square of Δh over that of h, over all tokens of all passes."""
        return {
            site: float((change / before).sqrt()) for site, (change, before) in self._sums.items()
        }

    def _record(self, site: str, before: Tensor, after: Tensor) -> None:
        change = (after.float() - before.float()).square().sum()
        zero = torch.zeros_like(change)
        sums = self._sums.get(site, (zero, zero))
        self._sums[site] = (sums[0] + change, sums[1] + before.float().square().sum())


@contextlib.contextmanager
def site_changes(model: "PreTrainedModel") -> Iterator[SiteChanges]:
    """Inside, forward passes record how far the active deltas move h at each of their sites.

    Further positions of a sequence (a prefix, a prompt) change no h, so they are left out. Sites
    that are one module are seen together.

    Raises:
        DeltakitError: nothing is attached.
    """
    attachments, seen = need_attachments(model), SiteChanges()
    handles = [attachments.handles[key] for key in active_nodes(attachments)]
    hooks = [
        hook
        for handle in handles
        for hook in record_changes(handle, partial(seen._record, handle.key))
    ]
    with recorded(hooks):
        yield seen
