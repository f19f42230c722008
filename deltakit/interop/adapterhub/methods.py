"""Any method as a config of the library's, and back, with the places of its tensors."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import torch

from deltakit.core.method import Method, Sum, method_from_dict
from deltakit.errors import CheckpointError, DeltakitError
from deltakit.interop.adapterhub import bottleneck, lora, prefix
from deltakit.interop.adapterhub.layout import Host, Term
from deltakit.interop.adapterhub.links import Link
from deltakit.interop.adapterhub.settings import Settings
from deltakit.methods.adapter import SequentialAdapter
from deltakit.methods.compacter import Compacter
from deltakit.methods.drop import AdapterDrop
from deltakit.methods.ia3 import IA3
from deltakit.methods.invertible import InvertibleAdapter
from deltakit.methods.lora import LoRA
from deltakit.methods.mam import MAM
from deltakit.methods.parallel import ParallelAdapter
from deltakit.methods.partial import PartialFineTuning
from deltakit.methods.prefix import PrefixTuning


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An architecture of the library.

    Attributes:
        methods: the deltakit methods of this kind.
        defaults: its config.
        read: the methods of one config.
        write: the config of methods of one group.
        links: the places of a method's tensors.
        group: methods for which this is equal share a config; by default none do.
    """

    methods: tuple[type[Method], ...]
    defaults: Mapping[str, Any]
    read: Callable[[Settings, Host], tuple[Term, ...]]
    write: Callable[[tuple[Term, ...], Host], dict[str, Any]]
    links: Callable[[Term, Host, str], Iterator[Link]]
    group: Callable[[Term], object] = id


KINDS: dict[str | None, Kind] = {
    None: Kind(
        methods=(SequentialAdapter, ParallelAdapter, Compacter, InvertibleAdapter),
        defaults=bottleneck.DEFAULTS,
        read=bottleneck.read,
        write=bottleneck.write,
        links=bottleneck.links,
        group=bottleneck.group,
    ),
    "lora": Kind(
        methods=(LoRA, IA3),
        defaults=lora.DEFAULTS,
        read=lora.read,
        write=lora.write,
        links=lora.links,
    ),
    "prefix_tuning": Kind(
        methods=(PrefixTuning,),
        defaults=prefix.DEFAULTS,
        read=prefix.read,
        write=prefix.write,
        links=prefix.links,
    ),
}
"""By the word under "architecture"; a bottleneck has none."""


# ------------------------------------------------------------------------- configs and methods


def method_of(config: Any, host: Host, origin: str) -> Method:
    """The method that a config describes.

    Raises:
        CheckpointError: a key, or a value, that deltakit has no exact counterpart of.
    """
    try:
        return _sum_of(
            [term for each in _configs(config, origin) for term in _read(each, host, origin)]
        )
    except DeltakitError as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{origin}: {error}") from None


def config_of(method: Method, host: Host) -> dict[str, Any]:
    """The inverse of `method_of`.

    Raises:
        CheckpointError: the library has no words for the method.
    """
    groups: dict[tuple[str | None, object], list[Term]] = {}
    for term in terms_of(method):
        architecture, kind = _kind_of(term.method)
        groups.setdefault((architecture, kind.group(term)), []).append(term)
    _join_invertible(groups)
    if not groups:
        _kind_of(method)
    configs = [KINDS[kind].write(tuple(terms), host) for (kind, _), terms in groups.items()]
    for one, other in combinations(groups, 2):
        if one[0] == other[0]:
            _check_apart(one[0], groups[one], groups[other], host)
    return configs[0] if len(configs) == 1 else {"architecture": "union", "configs": configs}


def _join_invertible(groups: dict[tuple[str | None, object], list[Term]]) -> None:
    """An invertible adapter is written with the first bottlenecks that there are."""
    own = (None, bottleneck.INVERTIBLE)
    first = next((terms for key, terms in groups.items() if key[0] is None and key != own), None)
    if first is not None and own in groups:
        first.extend(groups.pop(own))


def _check_apart(architecture: str | None, one: list[Term], other: list[Term], host: Host) -> None:
    """Raises `CheckpointError` unless a union may have both: bottlenecks of different layers."""
    layers = [
        {number for term in terms if _in_layers(term) for number in host.present(term)}
        for terms in (one, other)
    ]
    hypercomplex = all(isinstance(terms[0].method, Compacter) for terms in (one, other))
    if architecture is not None or hypercomplex or layers[0] & layers[1]:
        raise CheckpointError(
            f"AdapterHub's library has one place for {one[0].method!r} and {other[0].method!r}. "
            "Save them as deltas of their own, or as format='deltakit'."
        )


def _in_layers(term: Term) -> bool:
    return not isinstance(term.method, InvertibleAdapter)


def restored(
    words: Mapping[str, Any], method: Method, written: Callable[[Method], object]
) -> Method:
    """Our own method as it was described, if it is `written` as what was read; else `method`."""
    try:
        mine = method_from_dict(words["method"])
        return mine if written(mine) == written(method) else method
    except (DeltakitError, KeyError, TypeError, ValueError, RecursionError):
        return method


def links_of(method: Method, host: Host, name: str) -> Iterator[Link]:
    """The places of all its tensors, in a delta that the library calls `name`."""
    for term in terms_of(method):
        _, kind = _kind_of(term.method)
        yield from kind.links(term, host, name)


def shapes_of(method: Method, host: Host, origin: str) -> dict[str, torch.Size]:
    """The shapes of all its tensors, without making any: a config may say any size.

    Raises:
        CheckpointError: no tensor has that size.
    """
    try:
        with torch.device("meta"):
            return {
                f"{handle.key}.{name}": parameter.shape
                for term in terms_of(method)
                for placement, handle in host.placed(term)
                for name, parameter in placement.make_delta(handle).named_parameters()
            }
    except (DeltakitError, RuntimeError, OverflowError, TypeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{origin} does not fit this {host.kind}: {reason}") from None


def terms_of(method: Method) -> tuple[Term, ...]:
    """The summands of the method, each with the layers without it."""
    match method:
        case Sum():
            return tuple(term for part in method.parts for term in terms_of(part))
        case MAM():
            return terms_of(method.sum())
        case PartialFineTuning():  # of a pooler, which is written with the head
            return ()
        case AdapterDrop():
            dropped = frozenset((*range(method.first), *method.layers))
            inner = terms_of(method.method)
            stacks = frozenset(method.stacks)
            return tuple(
                replace(term, omitted=term.omitted | dropped, stacks=term.stacks | stacks)
                for term in inner
            )
        case _:
            return (Term(method=method),)


# --------------------------------------------------------------------------------------- parts


def _configs(config: Any, origin: str) -> list[Any]:
    if not isinstance(config, dict) or config.get("architecture") != "union":
        return [config]
    configs = config.get("configs")
    if set(config) != {"architecture", "configs"} or not isinstance(configs, list) or not configs:
        raise CheckpointError(f"{origin}: a union has a list of 'configs', and nothing else.")
    return configs


def _read(config: Any, host: Host, origin: str) -> tuple[Term, ...]:
    architecture = config.get("architecture") if isinstance(config, dict) else None
    if not isinstance(architecture, str | None) or architecture not in KINDS:
        known = ", ".join(name for name in KINDS if name is not None)
        raise CheckpointError(
            f"{origin}: architecture={architecture!r:.80} cannot be loaded: deltakit reads "
            f"{known}, unions of them, and bottlenecks (which have none)."
        )
    kind = KINDS[architecture]
    if architecture is None and isinstance(config, dict):
        config = {key: value for key, value in config.items() if key != "architecture"}
    return kind.read(Settings(origin, config, kind.defaults), host)


def _sum_of(terms: list[Term]) -> Method:
    parts = tuple(map(_dropped, terms))
    return parts[0] if len(parts) == 1 else Sum(parts=parts)


def _dropped(term: Term) -> Method:
    if not term.omitted and not term.stacks:
        return term.method
    return AdapterDrop(term.method, layers=sorted(term.omitted), stacks=sorted(term.stacks))


def _kind_of(method: Method) -> tuple[str | None, Kind]:
    for architecture, kind in KINDS.items():
        if type(method) in kind.methods:
            return architecture, kind
    raise CheckpointError(
        f"{type(method).__name__} has no words in AdapterHub's format. Save it as "
        "format='deltakit'."
    )
