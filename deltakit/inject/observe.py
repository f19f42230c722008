"""Looking at what deltas do while the model runs: their changes, and what a fusion attends to."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltakit.core.delta import Attending
from deltakit.core.site import Handle, HookKind
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import need_attachments
from deltakit.inject.switch import active_nodes

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(kw_only=True, eq=False)
class FusionAttention:
    """Attention over the members of a fusion, as seen during forward passes.

    Attributes:
        members: by site, the members' names in the order of the last axis.
        weights: by site, ``(batch, tokens, members)``, of the latest pass.
    """

    members: dict[str, tuple[str, ...]]
    weights: dict[str, Tensor] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _tokens: dict[str, Tensor] = field(default_factory=dict)
    _mask: Tensor | None = None

    def mean(self) -> dict[str, dict[str, float]]:
        """By site and member, the mean over all tokens of all passes, padding left out."""
        return {
            site: dict(zip(self.members[site], (total / self._tokens[site]).tolist(), strict=True))
            for site, total in self._sums.items()
        }

    def _record(self, site: str, weights: Tensor) -> None:
        self.weights[site] = weights
        mask = self._mask
        fits = mask is not None and mask.shape == weights.shape[:-1]
        mask = mask if fits and mask is not None else weights.new_ones(weights.shape[:-1])
        mask = mask.to(weights.device, torch.float32)
        total = torch.einsum("...n,...->n", weights.float(), mask)
        self._sums[site] = self._sums.get(site, torch.zeros_like(total)) + total
        self._tokens[site] = self._tokens.get(site, mask.new_zeros(())) + mask.sum()


class _SiteHook:
    def __init__(self, seen: FusionAttention, site: str) -> None:
        self.seen, self.site = seen, site

    def __call__(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.seen._record(self.site, output.detach())


class _MaskHook:
    def __init__(self, seen: FusionAttention) -> None:
        self.seen = seen

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.seen._mask = kwargs.get("attention_mask")


@contextlib.contextmanager
def fusion_attention(model: "PreTrainedModel") -> Iterator[FusionAttention]:
    """Inside, forward passes record the attention over the active fusion's members.

    ::

        with dk.fusion_attention(model) as seen:
            model(**batch)
        seen.mean()["encoder.0.block.out"]      # {"imdb": 0.31, "news": 0.12, "target": 0.57}

    Raises:
        IncompatibleDeltas: no fusion is active.
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    attending = {
        key: combiner
        for key, node in active_nodes(attachments).items()
        for combiner in node.combiners
        if isinstance(combiner, Attending)
    }
    if not attending:
        raise IncompatibleDeltas(
            "no fusion is active, so there is no attention to record. Attach or activate one, for "
            "example attach(model, AdapterFusion('a', 'b'), name='fused')."
        )
    seen = FusionAttention(members={key: each.members for key, each in attending.items()})
    hooks = [model.register_forward_pre_hook(_MaskHook(seen), with_kwargs=True)]
    hooks += [
        combiner.attention.register_forward_hook(_SiteHook(seen, key))
        for key, combiner in attending.items()
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@dataclass(kw_only=True, eq=False)
class SiteChanges:
    """How far the active deltas move h at each site, as seen during forward passes."""

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


class _ChangeHook:
    """Holds h as it is before the deltas' hooks run, and compares it with what they leave."""

    def __init__(self, seen: SiteChanges, handle: Handle) -> None:
        self.seen, self.handle = seen, handle
        self.held: Tensor | None = None

    def hold(self, module: nn.Module, args: Any, output: Any = None) -> None:
        self.held = self._read(args if output is None else output)

    def compare(self, module: nn.Module, args: Any, output: Any = None) -> None:
        held, self.held = self.held, None
        assert held is not None, "the hook in front has not run"
        self.seen._record(self.handle.key, held, self._read(args if output is None else output))

    def _read(self, value: Any) -> Tensor:
        whole: Tensor = (value[0] if isinstance(value, tuple) else value).detach()
        return whole if self.handle.columns is None else self.handle.columns.read(whole)


@contextlib.contextmanager
def site_changes(model: "PreTrainedModel") -> Iterator[SiteChanges]:
    """Inside, forward passes record how far the active deltas move h at each of their sites.

    Positions beside a sequence (a prefix, a prompt) change no h, so nothing is said of them. Sites
    that are one module are seen together.

    Raises:
        DeltakitError: nothing is attached.
    """
    attachments = need_attachments(model)
    seen, hooks = SiteChanges(), []
    for key in active_nodes(attachments):
        handle, hook = attachments.handles[key], _ChangeHook(seen, attachments.handles[key])
        if handle.hook_kind is HookKind.INPUT:
            hooks.append(handle.module.register_forward_pre_hook(hook.hold, prepend=True))
            hooks.append(handle.module.register_forward_pre_hook(hook.compare))
        elif handle.hook_kind in (HookKind.OUTPUT, HookKind.NORM):
            hooks.append(handle.module.register_forward_hook(hook.hold, prepend=True))
            hooks.append(handle.module.register_forward_hook(hook.compare))
    try:
        yield seen
    finally:
        for each in hooks:
            each.remove()
