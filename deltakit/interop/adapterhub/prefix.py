"""Prefixes. The library has one network for all layers of a stack, and repeats it in each layer.

Its attention is wrong with a prefix on decoders under SDPA (slots are masked out, or tokens do not
see themselves), and on DistilBERT where a batch is padded. What it computes with eager attention is
its formula, which deltakit computes in either. In T5 its layers share the biases of relative
positions, which are lost where a layer has no prefix and another has one.
"""

from collections.abc import Iterator
from typing import Any, Literal

from deltakit.core.site import Handle, Site
from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub.layout import Host, Term
from deltakit.interop.adapterhub.links import Link, Packing, Positions, Rows
from deltakit.interop.adapterhub.settings import GATES, Settings
from deltakit.methods.prefix import PrefixTuning

DEFAULTS: dict[str, Any] = {
    "architecture": "prefix_tuning",
    "encoder_prefix": True,
    "cross_prefix": True,
    "leave_out": [],
    "flat": False,
    "prefix_length": 30,
    "bottleneck_size": 512,
    "non_linearity": "tanh",
    "dropout": 0.0,
    "use_gating": False,
    "shared_gating": True,
    "init_weights_seed": None,
}
_STACKS = {"encoder_prefix": "encoder", "cross_prefix": "cross"}
"""The stack that each key of the config is about."""
_TRUNK = {
    "wte.weight": "embedding",
    "control_trans.0.weight": "down.weight",
    "control_trans.0.bias": "down.bias",
}


def read(settings: Settings, host: Host) -> tuple[Term, ...]:
    """The method of one config."""
    settings.only("use_gating", False, GATES)
    flat = settings.flag("flat")
    if not flat:
        settings.only("non_linearity", "tanh", "deltakit's network of a prefix has a tanh")
    flags = _STACKS if host.crosses else {}
    stacks = frozenset(stack for key, stack in flags.items() if not settings.flag(key))
    method = PrefixTuning(
        length=settings.whole("prefix_length"),
        bottleneck=None if flat else settings.whole("bottleneck_size"),
        dropout=settings.number("dropout"),
        positions=_positions(host),
    )
    if host.layout.counted:
        settings.only("leave_out", [], "the library loses the relative positions of T5 there")
    omitted = host.omitted(settings.layers("leave_out"), settings.origin)
    return (Term(method=method, omitted=omitted, stacks=stacks),)


def write(terms: tuple[Term, ...], host: Host) -> dict[str, Any]:
    """The config of one method."""
    (term,) = terms
    method = term.method
    assert isinstance(method, PrefixTuning)
    if term.stacks - {*_STACKS.values()}:
        raise CheckpointError(
            "prefixes without those of the decoder's own attention have no words in AdapterHub's "
            "format. Save it as format='deltakit'."
        )
    if method.positions != _positions(host):
        raise CheckpointError(
            f"PrefixTuning(positions={method.positions!r}) has no words in AdapterHub's format: "
            f"in this {host.kind} its library has positions={_positions(host)!r}. Save it as "
            "format='deltakit' or 'peft'."
        )
    if host.layout.counted and term.omitted:
        raise CheckpointError(
            "AdapterHub's library loses the relative positions of a T5 that has prefixes in some "
            "layers alone. Save it as format='deltakit'."
        )
    return {
        **DEFAULTS,
        **{key: stack not in term.stacks for key, stack in _STACKS.items()},
        "flat": method.bottleneck is None,
        "prefix_length": method.length,
        "bottleneck_size": method.bottleneck or DEFAULTS["bottleneck_size"],
        "dropout": float(method.dropout),
        "leave_out": host.numbered(term.omitted),
    }


def _positions(host: Host) -> Literal["kept", "counted"]:
    return "counted" if host.layout.counted else "kept"


def links(term: Term, host: Host, name: str) -> Iterator[Link]:
    """The names of its tensors; those of all layers of a stack are one."""
    assert isinstance(term.method, PrefixTuning)
    stacks: dict[str, list[Handle]] = {}
    for handle in host.at(term):
        stacks.setdefault(handle.stack, []).append(handle)
    for stack, handles in stacks.items():
        for theirs, ours, packing in _network(term.method, handles):
            place = f"prefix_tunings.{name}.{host.layout.stacks[stack].prefix}.{theirs}"
            yield Link(
                theirs=f"prefix_tuning.{place}",
                ours=ours,
                packing=packing,
                copies=tuple(
                    f"{host.path(each)}.prefix_tuning.pool.{place}"
                    for each in host.handles
                    if each.site is Site.ATTN_KV
                ),
            )


def _network(
    method: PrefixTuning, handles: list[Handle]
) -> Iterator[tuple[str, tuple[str, ...], Packing]]:
    """The tensors of one stack: the library's, and the deltakit tensors that it holds."""
    if method.bottleneck is None:
        ours = tuple(f"{handle.key}.memory" for handle in handles)
        yield "control_trans", ours, Positions(method.length)
        return
    for theirs, mine in _TRUNK.items():
        yield theirs, (f"{handles[0].key}.trunk.{mine}",), Rows()
    for kind in ("weight", "bias"):
        ups = tuple(f"{handle.key}.up.{kind}" for handle in handles)
        yield f"control_trans.2.{kind}", ups, Rows()
