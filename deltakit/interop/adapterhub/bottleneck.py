"""Bottleneck adapters: configs without an "architecture"."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from deltakit.core.method import Method
from deltakit.core.site import Site
from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub import compacter
from deltakit.interop.adapterhub.layout import Host, Term
from deltakit.interop.adapterhub.links import Link
from deltakit.interop.adapterhub.settings import GATES, REQUIRED, Settings, is_number
from deltakit.methods.adapter import SequentialAdapter, bottleneck_width
from deltakit.methods.compacter import Compacter
from deltakit.methods.invertible import InvertibleAdapter
from deltakit.methods.parallel import ParallelAdapter

Bottleneck: TypeAlias = SequentialAdapter | ParallelAdapter | Compacter
BLOCKS = {
    "nice": {"first": "F", "second": "G"},
    "glow": {"first": "s2", "second": "s1"},
}
"""The library's names for the bottlenecks of its invertible adapters, by ours."""

DEFAULTS: dict[str, Any] = {
    "mh_adapter": REQUIRED,
    "output_adapter": REQUIRED,
    "reduction_factor": REQUIRED,
    "non_linearity": REQUIRED,
    "original_ln_before": False,
    "original_ln_after": True,
    "ln_before": False,
    "ln_after": False,
    "init_weights": "bert",
    "init_weights_seed": None,
    "is_parallel": False,
    "scaling": 1.0,
    "use_gating": False,
    "residual_before_ln": True,
    "adapter_residual_before_ln": False,
    "inv_adapter": None,
    "inv_adapter_reduction_factor": None,
    "cross_adapter": False,
    "leave_out": [],
    "dropout": 0.0,
    "phm_layer": False,
    "phm_dim": 4,
    "factorized_phm_W": True,
    "shared_W_phm": False,
    "shared_phm_rule": True,
    "factorized_phm_rule": False,
    "phm_c_init": "normal",
    "phm_init_range": 0.0001,
    "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform",
    "phm_rank": 1,
    "phm_bias": True,
    "stochastic_depth": 0.0,
}
"""The library's. What a part that is not there would be like, and the seed, may say anything."""

_ONLY: dict[str, tuple[Any, str]] = {
    "original_ln_after": (True, "deltakit keeps the model's residual addition and norm"),
    "ln_before": (False, "deltakit's bottlenecks have no norm of their own"),
    "ln_after": (False, "deltakit's bottlenecks have no norm of their own"),
    "use_gating": (False, GATES),
    "stochastic_depth": (0, "deltakit does not drop the adapters of whole rows"),
}
_ACTIVATIONS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "silu": "silu",
    "swish": "swish",
    "tanh": "tanh",
    "leakyrelu": "leaky_relu",
    "leaky_relu": "leaky_relu",
    "linear": "identity",
}
_INITIALISATIONS = {"bert": "normal", "houlsby": "truncated_normal", "mam_adapter": "lora"}
_NO_BOTTLENECK = {
    **{key: value for key, value in DEFAULTS.items() if value is not REQUIRED},
    "mh_adapter": False,
    "output_adapter": False,
    "reduction_factor": 16,
}
"""The config of an invertible adapter alone."""
_LOCATIONS = ("mh_adapter", "output_adapter", "original_ln_before")
_PLACEMENTS = {(False, True, True): "pfeiffer", (True, True, False): "houlsby"}


# ------------------------------------------------------------------------------------- reading


def read(settings: Settings, host: Host) -> tuple[Term, ...]:
    """The methods of one config: an invertible one, and one for each reduction factor."""
    settings.all_only(_ONLY)
    inverse = _invertible(settings, host)
    alone = inverse and not any(settings.flag(key) for key in _LOCATIONS[:2])
    return inverse if alone else (*inverse, *_bottlenecks(settings, host))


def _invertible(settings: Settings, host: Host) -> tuple[Term, ...]:
    """The method of the embeddings, if the config has one."""
    if settings["inv_adapter"] is None:
        return ()
    _check_invertible(host)
    method = InvertibleAdapter(
        block=settings.choice("inv_adapter", {each: each for each in BLOCKS}),
        reduction=settings.number("inv_adapter_reduction_factor"),
        activation=_activation(settings),
    )
    return (Term(method=method),)


def _bottlenecks(settings: Settings, host: Host) -> tuple[Term, ...]:
    method = _method(settings, host)
    stacks = _left_out_stacks(settings, method, host)
    factors = _factors(settings, host)
    if isinstance(method, Compacter):
        compacter.check_one_width({*factors.values()}, method.rank, settings.origin)
        across = host.crosses and _is_double(method) and not stacks
        method, stacks = replace(method, cross_attention=across), frozenset()
    return tuple(
        Term(
            method=replace(method, **_widths(factor, host.width)),
            omitted=host.omitted(
                frozenset(n for n in host.numbers() if factors.get(n) != factor), settings.origin
            ),
            stacks=stacks,
        )
        for factor in dict.fromkeys(factors.values())
    )


def _method(settings: Settings, host: Host) -> Bottleneck:
    """The method of a config, without its width."""
    if settings.flag("phm_layer"):
        return compacter.read(settings, _activation(settings))
    return _parallel(settings, host) if settings.flag("is_parallel") else _sequential(settings)


def _left_out_stacks(settings: Settings, method: Bottleneck, host: Host) -> frozenset[str]:
    """The attention across, which the library leaves alone by default."""
    if not host.crosses or (_is_double(method) and settings.flag("cross_adapter")):
        return frozenset()
    settings.only("cross_adapter", False, "deltakit adapts the attention across with all others")
    return frozenset({"cross"} if _is_double(method) else ())


def _is_double(method: Method) -> bool:
    """Whether there is a bottleneck behind each attention."""
    return isinstance(method, SequentialAdapter | Compacter) and method.placement == "houlsby"


def _sequential(settings: Settings) -> SequentialAdapter:
    places = tuple(settings.flag(key) for key in _LOCATIONS)
    if places not in _PLACEMENTS:
        said = ", ".join(f"{key}={settings[key]!r}" for key in _LOCATIONS)
        raise CheckpointError(
            f"{settings.origin}: {said} cannot be loaded: deltakit has seq_bn (False, True, True) "
            "and double_seq_bn (True, True, False)."
        )
    settings.only("residual_before_ln", True, "deltakit adds a change to what the model computes")
    return SequentialAdapter(
        placement=_PLACEMENTS[places], scale=settings.number("scaling"), **_common(settings)
    )


def _parallel(settings: Settings, host: Host) -> ParallelAdapter:
    settings.only(
        "mh_adapter", False, "deltakit's parallel adapter is parallel to the feed-forward"
    )
    settings.only(
        "output_adapter", True, "deltakit's parallel adapter is parallel to the feed-forward"
    )
    learned = settings["scaling"] == "learned"
    return ParallelAdapter(
        scale=1.0 if learned else settings.number("scaling"),
        learned_scale=learned,
        **_common(settings),
        **_reads(host),
    )


def _activation(settings: Settings) -> str:
    word = settings["non_linearity"]
    if not isinstance(word, str) or word.lower() not in _ACTIVATIONS:
        raise settings.refused("non_linearity", f"deltakit has {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[word.lower()]


def _common(settings: Settings) -> dict[str, Any]:
    return {
        "activation": _activation(settings),
        "initialisation": settings.choice("init_weights", _INITIALISATIONS),
        "dropout": settings.number("dropout"),
    }


def _factors(settings: Settings, host: Host) -> dict[int, float]:
    """The reduction factor of each layer that has an adapter, by the library's number."""
    given = settings["reduction_factor"]
    table = given if isinstance(given, dict) else {"default": given}
    left_out = settings.layers("leave_out")
    host.omitted(left_out, settings.origin)
    present = [n for n in host.numbers() if n not in left_out]
    factors: dict[int, Any] = {n: table.get(str(n), table.get("default")) for n in present}
    numbered = set(table) <= {"default", *map(str, host.numbers())}
    if not numbered or not all(_divides(factor, host.width) for factor in factors.values()):
        raise settings.refused("reduction_factor", "every layer needs one, above zero")
    return factors


def _divides(factor: object, width: int) -> bool:
    return is_number(factor) and factor > 0 and math.isfinite(width // factor)


def _widths(factor: float, width: int) -> dict[str, Any]:
    return {"reduction": factor} if int(width // factor) >= 1 else {"bottleneck": 1}


# ------------------------------------------------------------------------------------- writing

INVERTIBLE = "invertible"
"""The group of an invertible adapter, which joins that of a bottleneck where there is one."""


def write(terms: tuple[Term, ...], host: Host) -> dict[str, Any]:
    """One config for methods that differ in their widths and layers alone, and an inverse."""
    inverses = [term.method for term in terms if isinstance(term.method, InvertibleAdapter)]
    rest = tuple(term for term in terms if not isinstance(term.method, InvertibleAdapter))
    config = _written(rest, host) if rest else _NO_BOTTLENECK
    return {**config, **_written_invertible(inverses, config, host)}


def _written_invertible(
    methods: list[InvertibleAdapter], config: Mapping[str, Any], host: Host
) -> dict[str, Any]:
    """The keys of invertible adapters. Raises `CheckpointError` where the library has no words."""
    if not methods:
        return {}
    _check_invertible(host)
    if len(methods) > 1:
        raise CheckpointError(
            "AdapterHub's library has one place for an invertible adapter, and this delta puts two "
            "there. Save them as deltas of their own."
        )
    (method,) = methods
    word = _word(method.activation)
    if config.get("non_linearity", word) != word:
        raise CheckpointError(
            f"AdapterHub's library has one nonlinearity for both, and {method!r} is with a "
            f"bottleneck of {config['non_linearity']!r}. Save it as format='deltakit', or train "
            "both with one activation."
        )
    return {
        "non_linearity": word,
        "inv_adapter": method.block,
        "inv_adapter_reduction_factor": method.reduction,
    }


def _check_invertible(host: Host) -> None:
    if host.layout.invertible is None:
        raise CheckpointError(
            f"AdapterHub's library has no invertible adapters in a {host.kind}. Use "
            "format='deltakit' for them."
        )


def _word(activation: str) -> str:
    return next(theirs for theirs, ours in _ACTIVATIONS.items() if ours == activation)


def _written(terms: tuple[Term, ...], host: Host) -> dict[str, Any]:
    method = terms[0].method
    assert isinstance(method, Bottleneck)
    _check_words(method, terms)
    config = {key: value for key, value in DEFAULTS.items() if value is not REQUIRED}
    config |= _described(method, host)
    config["cross_adapter"] = _crosses(terms[0], host)
    factors = _factor_by_layer(terms, host)
    distinct = list(dict.fromkeys(factors.values()))
    config["reduction_factor"] = (
        distinct[0] if len(distinct) == 1 else {str(n): f for n, f in factors.items()}
    )
    return {**config, "leave_out": [n for n in host.numbers() if n not in factors]}


def _check_words(method: Bottleneck, terms: tuple[Term, ...]) -> None:
    """Raises `CheckpointError` for what the library's bottlenecks do not have."""
    if isinstance(method, Compacter) and method.rank is not None and len(terms) > 1:
        raise CheckpointError(
            f"AdapterHub's library has one shared rule in a delta, and this sum has {len(terms)} "
            "Compacters with a rule each. Save them as deltas of their own, or as "
            "format='deltakit'."
        )
    if not isinstance(method, Compacter) and not method.bias:
        raise CheckpointError(
            f"{type(method).__name__}(bias=False) has no words in AdapterHub's format: its "
            "bottlenecks have biases. Save it as format='deltakit'."
        )


def group(term: Term) -> object:
    """The settings that two methods need to share a config."""
    if isinstance(term.method, InvertibleAdapter):
        return INVERTIBLE
    assert isinstance(term.method, Bottleneck)
    return replace(term.method, reduction=1, bottleneck=None), term.stacks


def _crosses(term: Term, host: Host) -> bool:
    """Whether the attention across has bottlenecks; the library has them in the other stacks."""
    if term.stacks - {"cross"}:
        raise CheckpointError(
            f"bottlenecks without the stacks {', '.join(sorted(term.stacks))} have no words in "
            "AdapterHub's format: its library leaves out the attention across alone. Save it as "
            "format='deltakit'."
        )
    method = term.method
    if isinstance(method, SequentialAdapter):
        method = method.settled()
    across = not isinstance(method, Compacter) or method.cross_attention
    return host.crosses and _is_double(method) and across and not term.stacks


def _reads(host: Host) -> dict[str, Any]:
    """The library's parallel adapter reads the stream, which a post-LN model does not norm."""
    return {} if host.post_norm else {"reads": "stream"}


def _described(method: Bottleneck, host: Host) -> dict[str, Any]:
    if isinstance(method, Compacter):
        return {**compacter.described(method), "non_linearity": _word(method.activation)}
    drawn = {ours: theirs for theirs, ours in _INITIALISATIONS.items()}
    if isinstance(method, SequentialAdapter):
        method = method.settled()
        placements = {ours: theirs for theirs, ours in _PLACEMENTS.items()}
        places = dict(zip(_LOCATIONS, placements[method.placement], strict=True))
        scaling: Any = float(method.scale)
    else:
        if method != replace(method, **{"reads": "input", **_reads(host)}):
            raise CheckpointError(
                f"ParallelAdapter(reads={method.reads!r}) has no words in AdapterHub's format for "
                f"this {host.kind}: in a pre-LN model its library reads the stream before the "
                "norm, in others what the feed-forward is given. Save it as format='deltakit'."
            )
        places = {"mh_adapter": False, "output_adapter": True, "is_parallel": True}
        scaling = "learned" if method.learned_scale else float(method.scale)
    assert method.activation is not None and method.initialisation is not None
    return {
        **places,
        "non_linearity": _word(method.activation),
        "init_weights": drawn[method.initialisation],
        "scaling": scaling,
        "dropout": float(method.dropout),
    }


def _factor_by_layer(terms: tuple[Term, ...], host: Host) -> dict[int, float]:
    factors: dict[int, float] = {}
    for term in terms:
        present = host.present(term)
        twice = sorted(set(present) & set(factors))
        if twice:
            raise CheckpointError(
                f"AdapterHub's library has one place for a bottleneck in layer {twice[0]}, and "
                "this delta puts two there. Save them as deltas of their own."
            )
        factors |= dict.fromkeys(present, _factor(term, host.width))
    return {n: factors[n] for n in sorted(factors)}


def _factor(term: Term, width: int) -> float:
    """A reduction factor that gives the exact width: the library rounds down."""
    method = term.method
    assert isinstance(method, Bottleneck)
    m = bottleneck_width(width, method.reduction, method.bottleneck)
    if method.bottleneck is None:
        return method.reduction
    if width % m == 0:
        return width // m
    factor = width / m
    return factor if int(width // factor) == m else math.nextafter(factor, 0)


# --------------------------------------------------------------------------------------- both


def links(term: Term, host: Host, name: str) -> Iterator[Link]:
    """The names of its tensors."""
    if isinstance(term.method, InvertibleAdapter):
        yield from _links_of_invertible(term.method, term, host, name)
        return
    if isinstance(term.method, Compacter):
        yield from compacter.links(term, host, name)
        return
    learned = isinstance(term.method, ParallelAdapter) and term.method.learned_scale
    inner = "form." if learned else ""
    for handle in host.at(term):
        stem = f"{host.stem(handle)}.adapters.{name}"
        for ours, theirs in (("down", "adapter_down.0"), ("up", "adapter_up")):
            for kind in ("weight", "bias"):
                mine = f"{handle.key}.{inner}{ours}.{kind}"
                yield Link(theirs=f"{stem}.{theirs}.{kind}", ours=(mine,))
        if learned:
            yield Link(theirs=f"{stem}.scaling", ours=(f"{handle.key}.scale",))


def _links_of_invertible(
    method: InvertibleAdapter, term: Term, host: Host, name: str
) -> Iterator[Link]:
    """Both directions have one set of tensors, which the site of the embeddings has."""
    layers = {"down": 0, "up": 2}
    for handle in host.at(term):
        if handle.site is not Site.EMBED_OUT:
            continue
        for net, theirs in BLOCKS[method.block].items():
            for layer, index in layers.items():
                for kind in ("weight", "bias"):
                    stem = f"{host.layout.invertible}.{name}.{theirs}.{index}.{kind}"
                    yield Link(theirs=stem, ours=(f"{handle.key}.{net}.{layer}.{kind}",))
