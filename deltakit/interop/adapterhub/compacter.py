"""Compacter, Compacter++ and PHM adapters: bottlenecks whose config has ``"phm_layer": true``.

The library has the rule and the matrices shared or not, factorised or not, in any combination. Two
of these are deltakit's: matrices of a rank with one rule for all layers (`Compacter`), and matrices
of full rank with a rule for each projection (``rank=None``). The others are refused by name.

The library gives the shared rule the key ``shared_parameters.NAME.phm_rule`` in the base model. Its
own filter asks for a dot before that key, so it saves a bare base model's Compacter without the
rule: such a file is refused, as a tensor is missing. Files written here have the key always.
"""

from collections.abc import Iterator, Set
from typing import Any

from deltakit.core.site import Handle
from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub.layout import Host, Term
from deltakit.interop.adapterhub.links import Link
from deltakit.interop.adapterhub.settings import Settings
from deltakit.methods.compacter import Compacter

_ONLY: dict[str, tuple[Any, str]] = {
    "is_parallel": (False, "deltakit's Compacter is sequential"),
    "scaling": (1, "deltakit's Compacter has no scale"),
    "shared_W_phm": (False, "deltakit shares the rule between layers, not the matrices"),
    "factorized_phm_rule": (False, "deltakit's rule is not a product"),
    "learn_phm": (True, "deltakit trains the rule"),
    "phm_bias": (True, "deltakit's Compacter has biases"),
}
_LOCATIONS = ("mh_adapter", "output_adapter", "original_ln_before")
_PLACEMENTS = {
    (True, True, False): "houlsby",
    (False, True, False): "ffn",
    (False, True, True): "pfeiffer",
}


def read(settings: Settings, activation: str) -> Compacter:
    """The method of one config, without its width. Raises `CheckpointError`."""
    settings.all_only(_ONLY)
    settings.only("residual_before_ln", True, "deltakit adds a change to what the model computes")
    places = tuple(settings.flag(key) for key in _LOCATIONS)
    if places not in _PLACEMENTS:
        said = ", ".join(f"{key}={settings[key]!r}" for key in _LOCATIONS)
        raise CheckpointError(
            f"{settings.origin}: {said} cannot be loaded: deltakit's Compacter has "
            "(True, True, False), (False, True, False) and (False, True, True)."
        )
    return Compacter(
        placement=_PLACEMENTS[places],
        n=settings.whole("phm_dim"),
        rank=_rank(settings),
        activation=activation,
        dropout=settings.number("dropout"),
    )


def _rank(settings: Settings) -> int | None:
    factorised = settings.flag("factorized_phm_W")
    why = "deltakit shares the rule where the matrices have a rank, and only there"
    settings.only("shared_phm_rule", factorised, why)
    return settings.whole("phm_rank") if factorised else None


def described(method: Compacter) -> dict[str, Any]:
    """The keys of its config, without its width."""
    places = next(key for key, placement in _PLACEMENTS.items() if placement == method.placement)
    rank = {} if method.rank is None else {"phm_rank": method.rank}
    return {
        **dict(zip(_LOCATIONS, places, strict=True)),
        **rank,
        "phm_layer": True,
        "phm_dim": method.n,
        "factorized_phm_W": method.rank is not None,
        "shared_phm_rule": method.rank is not None,
        "dropout": float(method.dropout),
    }


def check_one_width(widths: Set[float], rank: int | None, origin: str) -> None:
    """Raises `CheckpointError` where layers with one rule differ in their widths."""
    if rank is not None and len(widths) > 1:
        raise CheckpointError(
            f"{origin}: deltakit's Compacter has one width where layers share a rule, and this "
            f"one has {len(widths)}. Train it with one reduction factor, or without a shared rule."
        )


def links(term: Term, host: Host, name: str) -> Iterator[Link]:
    """The names of its tensors; the first adapter has the rule that all of them share."""
    method = term.method
    assert isinstance(method, Compacter)
    shared = method.rank is not None
    for index, handle in enumerate(host.at(term)):
        if shared and index == 0:
            theirs = f"shared_parameters.{name}.phm_rule"
            yield Link(theirs=theirs, ours=(f"{handle.key}.down.rule.weight",))
        yield from _links_of(handle, host, name, shared=shared)


def _links_of(handle: Handle, host: Host, name: str, *, shared: bool) -> Iterator[Link]:
    stem = f"{host.stem(handle)}.adapters.{name}"
    own = {"rule.weight": "phm_rule", "blocks.weight": "W"}
    factors = {"blocks.left": "W_left", "blocks.right": "W_right"}
    tensors = {**(factors if shared else own), "bias": "b"}
    for ours, theirs in (("down", "adapter_down.0"), ("up", "adapter_up")):
        for mine, last in tensors.items():
            yield Link(theirs=f"{stem}.{theirs}.{last}", ours=(f"{handle.key}.{ours}.{mine}",))
