"""LoRA and (IA)³, which differ in the library's "composition_mode".

Its (IA)³ rescales what the first projection of the feed-forward returns, before the activation:
``IA3(feedforward="pre_activation")``. In Llama and Mistral its two feed-forward locations are the
wrong way round ("intermediate" is the second projection); a file means what the library does with
it, so it is read and written that way. Files of its versions before 1.1.0 were trained with a scale
of one, for any alpha.
"""

from collections.abc import Iterator
from typing import Any

from deltakit.core.site import Handle, Site
from deltakit.errors import CheckpointError
from deltakit.interop.adapterhub.layout import Host, Term
from deltakit.interop.adapterhub.links import Column, Link, Packing, Rows
from deltakit.interop.adapterhub.settings import GATES, Settings
from deltakit.methods.ia3 import IA3
from deltakit.methods.lora import LoRA

DEFAULTS: dict[str, Any] = {
    "architecture": "lora",
    "selfattn_lora": True,
    "intermediate_lora": False,
    "output_lora": False,
    "leave_out": [],
    "r": 8,
    "alpha": 8,
    "dropout": 0.0,
    "attn_matrices": ["q", "v"],
    "composition_mode": "add",
    "init_weights": "lora",
    "init_weights_seed": None,
    "use_gating": False,
    "use_dora": False,
    "vera_d": None,
    "vera_b": None,
    "dtype": None,
}
_ONLY: dict[str, tuple[Any, str]] = {
    "use_gating": (False, GATES),
    "use_dora": (False, "the library's DoRA rescales the bias too, and leaves alpha / r out"),
    "vera_d": (None, "the library's VeRA trains its projections, deltakit's does not"),
    "vera_b": (None, "the library's VeRA trains its projections, deltakit's does not"),
    "dtype": (None, "the tensors say their dtype"),
}
_MATRICES = {"q": Site.ATTN_Q, "k": Site.ATTN_K, "v": Site.ATTN_V}
_IA3_SITES: tuple[Site, ...] = (Site.ATTN_K, Site.ATTN_V, Site.FFN_UP)


def read(settings: Settings, host: Host) -> tuple[Term, ...]:
    """The method of one config."""
    settings.all_only(_ONLY)
    mode = settings.choice("composition_mode", {"add": _lora, "scale": _ia3})
    omitted = host.omitted(settings.layers("leave_out"), settings.origin)
    return (Term(method=mode(settings, _sites(settings, host)), omitted=omitted),)


def _sites(settings: Settings, host: Host) -> tuple[Site, ...]:
    matrices = settings["attn_matrices"]
    if not isinstance(matrices, list) or not all(m in _MATRICES for m in matrices):
        raise settings.refused("attn_matrices", f"the library adapts {', '.join(_MATRICES)} alone")
    attention = [_MATRICES[m] for m in matrices] if settings.flag("selfattn_lora") else []
    chosen = {*attention}
    chosen |= {host.layout.intermediate} if settings.flag("intermediate_lora") else set()
    chosen |= {host.layout.output} if settings.flag("output_lora") else set()
    if not chosen:
        raise settings.refused("attn_matrices", "it adapts nothing, and no feed-forward either")
    return tuple(site for site in Site if site in chosen)


def _lora(settings: Settings, sites: tuple[Site, ...]) -> LoRA:
    settings.only("init_weights", "lora", "deltakit starts with B at zero")
    return LoRA(
        rank=settings.whole("r"),
        alpha=settings.number("alpha"),
        targets=tuple(site.value for site in sites),
        dropout=settings.number("dropout"),
        initialisation="kaiming",
    )


def _ia3(settings: Settings, sites: tuple[Site, ...]) -> IA3:
    settings.only("init_weights", "ia3", "deltakit's vectors start at one")
    for key in ("r", "alpha"):
        settings.only(key, 1, "(IA)³ has no rank and no scale")
    settings.only("dropout", 0, "(IA)³ has no dropout")
    if sites == _IA3_SITES:
        return IA3(feedforward="pre_activation")
    return IA3(targets=tuple(site.value for site in sites))


def write(terms: tuple[Term, ...], host: Host) -> dict[str, Any]:
    """The config of one method."""
    (term,) = terms
    method = term.method
    if isinstance(method, IA3):
        config = _described_ia3(method)
        sites = method.sites()
    else:
        assert isinstance(method, LoRA)
        sites = method.sites()
        scale = method.alpha * method.rank**0.5 if method.rslora else method.alpha
        config = {"r": method.rank, "alpha": scale, "dropout": float(method.dropout)}
    if term.stacks:
        raise CheckpointError(
            f"{type(method).__name__} without the stacks {', '.join(sorted(term.stacks))} has no "
            "words in AdapterHub's format. Save it as format='deltakit'."
        )
    letters = [letter for letter, site in _MATRICES.items() if site in sites]
    places = {*_MATRICES.values(), host.layout.intermediate, host.layout.output}
    for site in sites:
        if site not in places:
            raise CheckpointError(
                f"{type(method).__name__} at {site.value!r} has no words in AdapterHub's format: "
                f"its library adapts {', '.join(sorted(places))}. Save it as format='deltakit'."
            )
    return {
        **DEFAULTS,
        **config,
        "selfattn_lora": bool(letters),
        "attn_matrices": letters,
        "intermediate_lora": host.layout.intermediate in sites,
        "output_lora": host.layout.output in sites,
        "leave_out": host.numbered(term.omitted),
    }


def _described_ia3(method: IA3) -> dict[str, Any]:
    if method.targets is None and method.feedforward != "pre_activation":
        raise CheckpointError(
            f"IA3(feedforward={method.feedforward!r}) has no words in AdapterHub's format: its "
            "library rescales before the activation. Save it as format='deltakit', or train "
            "IA3(feedforward='pre_activation')."
        )
    return {"r": 1, "alpha": 1, "composition_mode": "scale", "init_weights": "ia3"}


def links(term: Term, host: Host, name: str) -> Iterator[Link]:
    """The names of its tensors. A fused projection has those of all its sites in one."""
    tensors: dict[str, tuple[str, Packing]] = {
        "lora_A": ("lora_A", Rows()),
        "lora_B": ("lora_B", Rows()),
    }
    if isinstance(term.method, IA3):
        tensors = {"lora_B": ("vector", Column())}
    shared: dict[str, list[Handle]] = {}
    for handle in host.at(term):
        shared.setdefault(host.path(handle), []).append(handle)
    for path, handles in shared.items():
        for theirs, (ours, packing) in tensors.items():
            yield Link(
                theirs=f"{path}.loras.{name}.{theirs}",
                ours=tuple(f"{handle.key}.{ours}" for handle in handles),
                packing=packing,
            )
