"""AdapterFusion over sequential bottlenecks.

The library applies the *model's* attention dropout to scores where the config has none. It adds
the residual twice where parallel adapters are fused, so those are neither read nor written.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from deltakit.core.method import Method
from deltakit.core.site import Handle
from deltakit.errors import CheckpointError, InvalidConfig
from deltakit.interop.adapterhub.layout import Host
from deltakit.interop.adapterhub.links import Link
from deltakit.interop.adapterhub.methods import terms_of
from deltakit.interop.adapterhub.settings import Settings
from deltakit.methods.adapter import SequentialAdapter
from deltakit.methods.fusion import AdapterFusion
from deltakit.methods.invertible import InvertibleAdapter

DEFAULTS: dict[str, Any] = {
    "key": True,
    "query": True,
    "value": True,
    "query_before_ln": False,
    "regularization": True,
    "residual_before": False,
    "temperature": False,
    "value_before_softmax": True,
    "value_initialized": True,
    "dropout_prob": None,
}
LAYER = "adapter_fusion_layer"
"""What the library's keys of a fusion's tensors have before its name."""
_ONLY: dict[str, tuple[Any, str]] = {
    "key": (True, "deltakit's fusion has a matrix of keys"),
    "query": (True, "deltakit's fusion has a matrix of queries"),
    "query_before_ln": (False, "deltakit's queries are what the adapters read"),
    "residual_before": (False, "deltakit adds what the fusion has made to the stream"),
    "temperature": (False, "deltakit's softmax has no temperature"),
}


def read(config: Any, names: tuple[str, ...], host: Host, origin: str) -> AdapterFusion:
    """The fusion of the members called `names`. Raises `CheckpointError`."""
    settings = Settings(origin, config, DEFAULTS)
    settings.all_only(_ONLY)
    value = settings.flag("value")
    if value:
        settings.only("value_initialized", True, "deltakit's values start at the identity")
    try:
        return AdapterFusion(
            *names,
            value=value,
            regularisation=0.01 if settings.flag("regularization") else 0.0,
            dropout=_dropout(settings, host),
        )
    except InvalidConfig as error:
        raise CheckpointError(f"{origin}: {error}") from None


def _dropout(settings: Settings, host: Host) -> float:
    if settings["dropout_prob"] is not None:
        return settings.number("dropout_prob")
    key = host.layout.dropout
    return 0.0 if key is None else float(getattr(host.config, key))


def write(method: AdapterFusion) -> dict[str, Any]:
    """The config of a fusion; it holds whether values are regularised, not how much."""
    return {
        **DEFAULTS,
        "value": method.value,
        "value_initialized": method.value,
        "regularization": method.regularisation > 0,
        "dropout_prob": float(method.dropout),
    }


def written(method: Method) -> tuple[object, ...]:
    """The library's config of a fusion. Raises `CheckpointError` for another method."""
    if not isinstance(method, AdapterFusion):
        raise CheckpointError(f"{type(method).__name__} is not a fusion.")
    return method.names, write(method)


def placement_of(name: str, method: Method, *, first: bool = False) -> str:
    """The placement of sequential bottlenecks: the library composes those of one placement only.

    The first of a stack may have an invertible adapter, too: the library runs the first one's
    alone.

    Raises:
        CheckpointError: the method is something else.
    """
    placements = {
        term.method.placement if isinstance(term.method, SequentialAdapter) else None
        for term in terms_of(method)
        if not (first and isinstance(term.method, InvertibleAdapter))
    }
    if len(placements) != 1 or None in placements:
        raise CheckpointError(
            "AdapterHub's library and deltakit stack and fuse sequential adapters of one placement "
            f"alike, nothing else, and {name!r} is {method!r}. Use format='deltakit' for it."
        )
    return str(placements.pop())


def handles_of(name: str, member: Method, host: Host) -> tuple[Handle, ...]:
    """The sites of a fusion over members like this one.

    Raises:
        CheckpointError: the library does not fuse such members, or not as deltakit does.
    """
    placement_of(name, member)
    terms = terms_of(member)
    every = {handle.key: handle for handle in host.at(replace(terms[0], omitted=frozenset()))}
    present = {handle.key for term in terms for handle in host.at(term)}
    if present != set(every):
        raise CheckpointError(
            f"AdapterHub's library has a fusion in every layer, and its member {name!r} leaves "
            "some out. Fuse deltas of all layers, or use format='deltakit'."
        )
    return tuple(every.values())


def shapes_of(method: Method, handles: tuple[Handle, ...]) -> dict[str, torch.Size]:
    """The shapes of a fusion's tensors, without making any."""
    assert isinstance(method, AdapterFusion)
    with torch.device("meta"):
        return {
            f"{handle.key}.{name}": parameter.shape
            for handle in handles
            for name, parameter in method.combiner(handle, method.names).named_parameters()
        }


def links_of(method: Method, handles: tuple[Handle, ...], host: Host, name: str) -> Iterator[Link]:
    """The places of the tensors of a fusion that the library calls `name`."""
    assert isinstance(method, AdapterFusion)
    tensors = ["query.weight", "query.bias", "key.weight", "key.bias"]
    for handle in handles:
        for each in [*tensors, "value.weight"] if method.value else tensors:
            yield Link(
                theirs=f"{host.stem(handle)}.{LAYER}.{name}.{each}", ours=(f"{handle.key}.{each}",)
            )
