"""Site laws: what each site of a family must be, checked on one model by running it.

They are derived from the sites themselves. A family file with two sites exchanged, or with one in
the wrong place, breaks one of them.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.arch.resolve import family_of, layers_of, linear_widths
from deltakit.core.site import LINEAR_SITES, Handle, HookKind, Site
from deltakit.errors import UnknownArchitecture
from deltakit.testing.case import NotApplicable
from deltakit.testing.models import generator

Inputs = Mapping[str, Tensor]
SiteLaw = Callable[[Any, Inputs], None]
Layer = Mapping[Site, Handle]


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change to h at one site, in the first call of its module."""

    handle: Handle
    apply: Callable[[Tensor], Tensor]


class Seen:
    """The inputs and outputs of all modules in one forward pass, of each module's first call.

    A layer that is used twice (ALBERT) is seen the first time. A projection that is called again
    for relative positions (DeBERTa) is seen with the hidden states.
    """

    def __init__(self, model: Any, inputs: Inputs, change: Change | None = None) -> None:
        self.given: dict[nn.Module, Any] = {}
        self.returned: dict[nn.Module, Any] = {}
        self._change = change
        hooks = [] if change is None else [self._install(change)]
        hooks += [
            m.register_forward_pre_hook(self._enter, with_kwargs=True) for m in model.modules()
        ]
        hooks += [m.register_forward_hook(self._leave) for m in model.modules()]
        try:
            with torch.no_grad():
                model(**inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def _install(self, change: Change) -> Any:
        if change.handle.hook_kind is HookKind.INPUT:
            return change.handle.module.register_forward_pre_hook(self._change_input)
        return change.handle.module.register_forward_hook(self._change_output)

    def _change_input(self, module: nn.Module, args: Any) -> Any:
        assert self._change is not None
        return args if module in self.given else (self._change.apply(args[0]), *args[1:])

    def _change_output(self, module: nn.Module, args: Any, output: Any) -> Any:
        if module in self.returned or self._change is None:
            return output
        whole, columns = _tensor(output), self._change.handle.columns
        h = whole if columns is None else columns.read(whole)
        changed = self._change.apply(h)
        changed = changed if columns is None else columns.write(whole, changed)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if module not in self.given:
            self.given[module] = _kept(args[0] if args else next(iter(kwargs.values()), None))

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if module not in self.returned:
            self.returned[module] = _kept(_tensor(output))

    def x(self, handle: Handle) -> Tensor:
        """The input that a parallel delta reads at a site."""
        return self.given[handle.reader or handle.module]

    def h(self, handle: Handle) -> Tensor:
        """The representation that is changed at a site; at a post-LN norm, the stream."""
        if handle.hook_kind is not HookKind.OUTPUT:
            return self.given[handle.module]
        whole: Tensor = self.returned[handle.module]
        return whole if handle.columns is None else handle.columns.read(whole)


def _kept(value: Any) -> Any:
    """A floating tensor as it is now: some models add to it in place (Falcon)."""
    return value.clone() if isinstance(value, Tensor) and value.is_floating_point() else value


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


def by_layer(model: Any) -> Iterator[Layer]:
    """The handles of each layer of each stack, by site."""
    layers: dict[tuple[str, int], dict[Site, Handle]] = {}
    for handle in dk.resolve(model):
        if handle.in_a_layer:
            layers.setdefault((handle.stack, handle.layer), {})[handle.site] = handle
    return iter(layers.values())


def _layers(model: Any, *sites: Site) -> list[Layer]:
    """The layers that have all of `sites`. Raises `NotApplicable` where there is none."""
    found = [layer for layer in by_layer(model) if all(site in layer for site in sites)]
    if not found:
        raise NotApplicable(f"no layer has {' and '.join(sites)}")
    return found


# ------------------------------------------------------------------------------------- attention


def check_values_are_averaged(model: Any, inputs: Inputs) -> None:
    """attn.mid is linear in attn.v, and in no other of the attention's inputs."""
    for layer in _layers(model, Site.ATTN_V, Site.ATTN_MID):
        for site in (Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V):
            linear = _is_linear_in(model, inputs, layer[site], layer[Site.ATTN_MID])
            assert linear is (site is Site.ATTN_V), f"{layer[site].key}: linear is {linear}"


def _is_linear_in(model: Any, inputs: Inputs, cause: Handle, effect: Handle) -> bool:
    """True if h at `effect` is linear in h at `cause`, up to a constant: f(h) + f(-h) = 2 f(0)."""
    signs = (torch.clone, torch.neg, torch.zeros_like)
    plus, minus, zero = (
        Seen(model, inputs, Change(handle=cause, apply=sign)).h(effect) for sign in signs
    )
    moved = not torch.allclose(plus, zero)
    return moved and torch.allclose(plus + minus, 2 * zero, atol=1e-4, rtol=1e-4)


def check_queries_are_local(model: Any, inputs: Inputs) -> None:
    """A query decides what its own token attends to; a key, what other tokens attend to."""
    plain = Seen(model, inputs)
    for layer in _layers(model, Site.ATTN_Q, Site.ATTN_K, Site.ATTN_MID):
        query, key, mid = layer[Site.ATTN_Q], layer[Site.ATTN_K], layer[Site.ATTN_MID]
        before = plain.h(mid)[0]
        # The second token: a first one that sees itself alone attends to itself in any case.
        after = Seen(model, inputs, Change(handle=query, apply=partial(_noise_at, 1))).h(mid)[0]
        moved = (after != before).any(dim=-1).nonzero().flatten().tolist()
        assert moved == [1], f"the query of token 1 at {query.key} moves the tokens {moved}"
        after = Seen(model, inputs, Change(handle=key, apply=partial(_noise_at, 0))).h(mid)[0]
        assert (after[1:] != before[1:]).any(), f"{key.key} moves no other token"


def _noise_at(token: int, h: Tensor) -> Tensor:
    """h with noise at one token of the first row."""
    assert h.ndim == 3, "the sites of attention are of shape (rows, tokens, d)"
    changed = h.clone()
    changed[0, token] += 2 * torch.randn(h.shape[-1], generator=generator("noise"))
    return changed


def check_self_and_cross(model: Any, inputs: Inputs) -> None:
    """Keys are of the same sequence as queries, but in a stack that attends across."""
    seen = Seen(model, inputs)
    for layer in _layers(model, Site.ATTN_Q, Site.ATTN_K):
        query, key = seen.x(layer[Site.ATTN_Q]), seen.x(layer[Site.ATTN_K])
        same = query.shape == key.shape and torch.equal(query, key)
        across = layer[Site.ATTN_Q].stack == "cross"
        assert same is not across, f"{layer[Site.ATTN_K].key} reads {'' if same else 'not '}x of q"


def check_attention_function(model: Any, inputs: Inputs) -> None:
    """attn.kv is there where the attention function is called, in the module that calls it."""
    calls = _attention_calls(model, inputs)
    layers = list(by_layer(model))
    if not calls:
        found = [layer[Site.ATTN_KV] for layer in layers if Site.ATTN_KV in layer]
        own = all(handle.hook_kind is HookKind.DISENTANGLED for handle in found)
        assert own, "attn.kv calls no such function"
        raise NotApplicable("the model computes its attention itself")
    for layer in layers:
        assert Site.ATTN_KV in layer, f"{_name(layer)} calls the attention function: add attn.kv"
        query, key, value = calls.get(layer[Site.ATTN_KV].path, (None, None, None))
        assert query is not None and key is not None and value is not None, (
            f"{layer[Site.ATTN_KV].key} is not the module that calls the attention function"
        )
        assert key.shape[-1] == layer[Site.ATTN_KV].d_out == layer[Site.ATTN_K].d_out
        assert value.shape[-1] == layer[Site.ATTN_V].d_out
        assert query.shape[-1] == layer[Site.ATTN_Q].d_out


def _attention_calls(model: Any, inputs: Inputs) -> dict[str, tuple[Tensor, ...]]:
    """The query, key and value of each call of the attention function, ``(rows, tokens, d)``."""
    from transformers import AttentionInterface

    calls: dict[str, tuple[Tensor, ...]] = {}
    model = copy.deepcopy(model)
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, *states: Tensor, **_: Any) -> tuple[Tensor, None]:
        calls[names[module]] = tuple(part.transpose(1, 2).flatten(2) for part in states[:3])
        return states[0].transpose(1, 2).contiguous(), None

    AttentionInterface._global_mapping[_NOTING] = note
    try:
        model.set_attn_implementation(_NOTING)
        for part in family_of(model).parts:  # whose modules hold configs of their own
            for module in model.get_submodule(part).modules():
                if "config" in vars(module):
                    module.config._attn_implementation = _NOTING
        with torch.no_grad():
            model(**inputs)
    except ValueError:  # the model knows no other attention than its own
        return {}
    finally:
        del AttentionInterface._global_mapping[_NOTING]
    return calls


_NOTING = "deltakit_noting"


# --------------------------------------------------------------- projections and the feed-forward


def check_widths(model: Any, inputs: Inputs) -> None:
    """The widths of a site are those of the tensors that pass there."""
    seen = Seen(model, inputs)
    for layer in by_layer(model):
        for site, handle in layer.items():
            assert handle.d_in == seen.x(handle).shape[-1], handle.key
            if site is not Site.ATTN_KV:
                assert handle.d_out == seen.h(handle).shape[-1], handle.key


def check_projections(model: Any, inputs: Inputs) -> None:
    """attn.o is a projection of attn.mid, and ffn.down of ffn.mid."""
    seen = Seen(model, inputs)
    for layer in by_layer(model):
        for inner, outer in ((Site.ATTN_MID, Site.ATTN_O), (Site.FFN_MID, Site.FFN_DOWN)):
            if inner in layer and outer in layer:
                given, module = seen.h(layer[inner]), layer[outer].module
                assert linear_widths(module)[0] == given.shape[-1], layer[outer].key
                with torch.no_grad():
                    assert torch.equal(module(given), seen.h(layer[outer])), layer[outer].key
        for site in set(layer) & set(LINEAR_SITES):
            assert linear_widths(layer[site].module)[0] == layer[site].d_in, layer[site].key


def check_inner_activation(model: Any, inputs: Inputs) -> None:
    """ffn.mid is f(up), or f(gate) · up: linear in up, unit by unit."""
    from transformers.activations import ACT2FN

    plain = Seen(model, inputs)
    for layer in _layers(model, Site.FFN_UP, Site.FFN_MID):
        up, mid = layer[Site.FFN_UP], layer[Site.FFN_MID]
        before = plain.h(mid)
        after = Seen(model, inputs, Change(handle=up, apply=_first_unit)).h(mid)
        assert torch.equal(after[..., 1:], before[..., 1:]), f"{up.key} moves other units"
        gated = Site.FFN_GATE in layer
        for site in (Site.FFN_UP, Site.FFN_GATE) if gated else (Site.FFN_UP,):
            linear = _is_linear_in(model, inputs, layer[site], mid)
            assert linear is (gated and site is Site.FFN_UP), f"{layer[site].key}: {linear}"
        if not gated and mid.activation is not None:
            torch.testing.assert_close(before, ACT2FN[mid.activation](plain.h(up)))


def _first_unit(h: Tensor) -> Tensor:
    changed = h.clone()
    changed[..., 0] += 1.0
    return changed


def check_every_projection_is_a_site(model: Any, inputs: Inputs) -> None:
    """Each projection of a layer's tokens is a site, but those of which the layer chooses some.

    Chosen are experts, and the modules of a `ModuleDict`.
    """
    seen = Seen(model, inputs)
    handles = dk.resolve(model)
    covered = {handle.module for handle in handles}
    tokens = {seen.x(h).shape[:-1] for h in handles if h.site in LINEAR_SITES}
    for root, dense in _roots(model, handles):
        chosen = [f"{name}." for name, m in root.named_modules() if isinstance(m, nn.ModuleDict)]
        for name, module in root.named_modules():
            if module not in seen.given or not _is_linear(module):
                continue
            always = not name.startswith(tuple(chosen)) and (dense or "attn" in name)
            if always and seen.given[module].shape[:-1] in tokens:
                assert module in covered, f"the projection {name} of a layer is not a site"


def _roots(model: Any, handles: Sequence[Handle]) -> Iterator[tuple[nn.Module, bool]]:
    """The layers, and whether each has a feed-forward with sites of its own."""
    family = family_of(model)
    for part in family.parts:
        part_handles = [h for h in handles if h.path.startswith(f"{part}.")]
        yield from _roots(model.get_submodule(part), part_handles)
    dense = {h.module for h in handles if h.site in _INSIDE_FFN}
    for stack in family.stacks:
        for layer in layers_of(model, stack) if stack.name != "cross" else ():
            yield layer, not dense.isdisjoint(layer.modules())


_INSIDE_FFN = (Site.FFN_GATE, Site.FFN_UP, Site.FFN_MID, Site.FFN_DOWN)


def _is_linear(module: nn.Module) -> bool:
    try:
        linear_widths(module)
    except UnknownArchitecture:
        return False
    return True


def check_fused_columns(model: Any, inputs: Inputs) -> None:
    """The sites that share a fused projection cover each of its columns once."""
    del inputs
    shared: dict[nn.Module, list[Handle]] = {}
    for handle in dk.resolve(model):
        if handle.columns is not None:
            shared.setdefault(handle.module, []).append(handle)
    if not shared:
        raise NotApplicable("no projection is fused")
    for module, handles in shared.items():
        width = linear_widths(module)[1]
        spans = [h.columns.read(torch.arange(width)) for h in handles if h.columns is not None]
        assert torch.cat(spans).sort().values.tolist() == list(range(width)), handles[0].path


# ---------------------------------------------------------------------------- the residual stream


def check_inputs_of_submodules(model: Any, inputs: Inputs) -> None:
    """x of attn.out is what the query projection reads, x of ffn.out what the first of the FFN."""
    seen = Seen(model, inputs)
    for layer in by_layer(model):
        for site, first in ((Site.ATTN_OUT, Site.ATTN_Q), (Site.FFN_OUT, Site.FFN_UP)):
            if site in layer and first in layer:
                x, given = seen.x(layer[site]), seen.x(layer[first])
                assert torch.equal(x.reshape(given.shape), given), layer[site].key


def check_reach(model: Any, inputs: Inputs) -> None:
    """A change inside a sub-module reaches what the sub-module adds, and nothing before it."""
    plain = Seen(model, inputs)
    for layer in _layers(model, Site.ATTN_OUT, Site.FFN_OUT):
        attn, ffn = layer[Site.ATTN_OUT], layer[Site.FFN_OUT]
        inside = Seen(model, inputs, Change(handle=layer[Site.ATTN_V], apply=_noisy))
        assert not torch.equal(inside.h(attn), plain.h(attn)), f"{attn.key} is not the attention's"
        inside = Seen(model, inputs, Change(handle=layer.get(Site.FFN_UP, ffn), apply=_noisy))
        assert not torch.equal(inside.h(ffn), plain.h(ffn)), f"{ffn.key} is not the feed-forward's"
        assert torch.equal(inside.h(attn), plain.h(attn)), f"{attn.key} is behind {ffn.key}"


def _noisy(h: Tensor) -> Tensor:
    return h + torch.randn(h.shape, generator=generator("noise"))


def check_stream(model: Any, inputs: Inputs) -> None:
    """Pre-LN: block.out = block's input + attn.out + ffn.out. Post-LN: each norm's input is a sum.

    What a stack across adds in the same block is part of the sum.
    """
    seen = Seen(model, inputs)
    cross = [layer[Site.ATTN_OUT] for layer in by_layer(model) if Site.BLOCK_OUT not in layer]
    for layer in _layers(model, Site.BLOCK_OUT, Site.ATTN_OUT, Site.FFN_OUT):
        if layer[Site.BLOCK_OUT].hook_kind is HookKind.NORM:
            _check_post_norm(layer, seen)
        else:
            _check_pre_norm(layer, cross, seen)


def _check_post_norm(layer: Layer, seen: Seen) -> None:
    block, attn, ffn = layer[Site.BLOCK_OUT], layer[Site.ATTN_OUT], layer[Site.FFN_OUT]
    stream = seen.h(block)
    torch.testing.assert_close((seen.x(ffn) + seen.h(ffn)).reshape(stream.shape), stream)
    total = seen.x(attn) + seen.h(attn)
    norms = [x for m, x in seen.given.items() if "Norm" in type(m).__name__]
    assert any(total.shape == x.shape and torch.allclose(total, x) for x in norms), attn.key


def _check_pre_norm(layer: Layer, cross: Sequence[Handle], seen: Seen) -> None:
    block = layer[Site.BLOCK_OUT]
    parts = [layer[Site.ATTN_OUT], layer[Site.FFN_OUT]]
    parts += [other for other in cross if other.path.startswith(f"{block.path}.")]
    given: Tensor = seen.given[block.module]
    total = sum((seen.h(part).reshape(given.shape) for part in parts), given)
    torch.testing.assert_close(total, seen.h(block), msg=lambda text: f"{block.key}: {text}")
    if Site.FFN_STREAM in layer:
        stream = layer[Site.FFN_STREAM]
        torch.testing.assert_close(seen.x(stream) + seen.h(stream), seen.h(block))


def _name(layer: Layer) -> str:
    handle = next(iter(layer.values()))
    return f"{handle.stack}.{handle.layer}"


# ---------------------------------------------------------------------------- before the layers


def check_tables(model: Any, inputs: Inputs) -> None:
    """The embed sites are all tables that the vocabulary's ids are looked up in, and only scale."""
    seen = Seen(model, inputs)
    handles = [handle for handle in dk.resolve(model) if handle.site is Site.EMBED]
    for handle in handles:
        assert not handle.in_a_layer and isinstance(handle.module, nn.Embedding)
        plain = handle.module.weight[seen.given[handle.module]]
        torch.testing.assert_close(seen.returned[handle.module], handle.scale * plain)
    known = {handle.module for handle in handles}
    for name, module in model.named_modules():
        if type(module) is nn.Embedding and seen.given.get(module) is inputs.get("input_ids", ()):
            assert module in known, f"ids are looked up in {name}, which is not a site"


def check_tokens(model: Any, inputs: Inputs) -> None:
    """The token site is given the vectors of the model's input embeddings."""
    found = [handle for handle in dk.resolve(model) if handle.site is Site.TOKENS]
    if not found:
        raise NotApplicable("there is no token site")
    seen = Seen(model, inputs)
    for handle in found:
        assert isinstance(handle.embeddings, nn.Embedding) and handle.embeddings in seen.given
        assert handle.embeddings.weight is model.get_input_embeddings().weight
        assert handle.d_in == handle.d_out == handle.embeddings.embedding_dim
        assert handle.hook_kind is HookKind.INPUT_EMBEDS and handle.position in (0, 1)


def check_position_ids(model: Any, inputs: Inputs) -> None:
    """The position site is a module that the model calls; a learned table has an end."""
    found = [handle for handle in dk.resolve(model) if handle.site is Site.POSITION_IDS]
    if not found:
        raise NotApplicable("there is no site of position ids")
    seen = Seen(model, inputs)
    for handle in found:
        assert handle.hook_kind is HookKind.POSITION_IDS and not handle.in_a_layer
        assert handle.module in seen.given
        learned = isinstance(handle.module, nn.Embedding)
        assert (handle.limit is not None) is learned


SITE_LAWS: tuple[SiteLaw, ...] = (
    check_widths,
    check_values_are_averaged,
    check_queries_are_local,
    check_self_and_cross,
    check_attention_function,
    check_projections,
    check_inner_activation,
    check_every_projection_is_a_site,
    check_fused_columns,
    check_inputs_of_submodules,
    check_reach,
    check_stream,
    check_tables,
    check_tokens,
    check_position_ids,
)
"""All site laws, in the order in which a wrong family is best told."""
