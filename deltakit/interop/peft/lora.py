"""LoRA and DoRA: PEFT has one A and one B for each module, and one dropout for all of them.

Where projections are fused in one module, each of our sites has matrices of its own. Reading gives
every site the A and its rows of B. Writing keeps an A that all of them share; other ones are put on
top of each other, with B's blocks side by side and zeros between, so the ranks add up. DoRA's
lengths are of all outputs of a module, row by row, so each site has those of its rows.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from deltakit.core.method import Method
from deltakit.core.site import Site
from deltakit.errors import CheckpointError
from deltakit.interop.peft.adapter import TUNED, Adapter, Folder, Values, Written
from deltakit.interop.peft.config import Config
from deltakit.interop.peft.defaults import LORA
from deltakit.interop.peft.saved_modules import SavedModules, saved_modules_of, saved_words
from deltakit.interop.peft.targets import by_pattern, patterns, spelled, targeted
from deltakit.interop.peft.view import (
    KeyedDelta,
    PeftView,
    arranged,
    copied,
    part_of,
    placements_on,
    same,
    terms,
    widths,
    with_part,
)
from deltakit.methods.dora import DoRA
from deltakit.methods.lora import LoRA

KNOWN = (
    "r",
    "lora_alpha",
    "lora_dropout",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "use_dora",
    "init_lora_weights",
    "bias",
    "modules_to_save",
    # What follows says how the base stores a weight, how training began, or what is off anyway.
    "fan_in_fan_out",
    "merge_weights",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "megatron_core",
    "qalora_group_size",
)
VARIANTS = {
    "use_qalora": "QALoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "Activated LoRA",
    "arrow_config": "Arrow",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA",
    "lora_bias": "a bias of B",
    "layer_replication": "a model of repeated layers",
    "target_parameters": "LoRA on parameters that are not of a linear module",
    "trainable_token_indices": "the training of single tokens",
    "ensure_weight_tying": "tied adapters",
    "megatron_config": "LoRA on Megatron's layers",
}
HARMLESS = (True, False, "gaussian", "eva", "orthogonal")
"""The starts that leave the base's weights as they are: of no account once it is trained."""
_STRAIGHT = (nn.Linear, nn.Embedding)
"""What has no transposed weight, as transformers' Conv1D does."""
N = TypeVar("N", int, float)
Low = LoRA | DoRA
KeyedDeltas = Sequence[KeyedDelta[Any]]
Matrices = tuple[Tensor, Tensor]
"""A and B."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """PEFT's pair of matrices for one module. Shapes: ``(rank, in)`` and ``(out, rank)``."""

    A: Tensor
    B: Tensor
    alpha: float
    magnitude: Tensor | None = None
    """DoRA's, ``(out,)``."""

    @property
    def rank(self) -> int:
        """r."""
        return len(self.A)

    def equals(self, other: "Pair") -> bool:
        """True if it is the same, bit for bit."""
        alike = self.alpha == other.alpha and same(self.A, other.A) and same(self.B, other.B)
        one, two = self.magnitude, other.magnitude
        return alike and (one is two if one is None or two is None else same(one, two))


# ------------------------------------------------------------------------------------------ reading


def read(folder: Folder) -> Adapter:
    """Raises `CheckpointError` for what LoRA at our sites is not."""
    config, base = folder.config, folder.base
    config.check(KNOWN, VARIANTS)
    _check_start(config)
    paths = targeted(config, base, LORA)
    for path in paths:
        if path not in base.linears and path not in base.tables:
            raise base.no_site(path, config.path)
    rank, alpha = config.whole("r", 8), config.number("lora_alpha", 8)
    ranks = by_pattern(base, paths, config.counts("rank_pattern"), rank)
    alphas = by_pattern(base, paths, config.numbers("alpha_pattern"), alpha)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        key_A, key_B = _keys(path, base)
        d_in, d_out = widths(base.modules[path])
        shapes |= {key_A: (ranks[path], d_in), key_B: (d_out, ranks[path])}
        shapes |= {_length_key(path): (d_out,)} if _is_dora(config, path, base) else {}
    values, own = folder.take(shapes, _own_of(config, base, paths))
    pairs = {}
    for path in paths:
        A, B = (values[key] for key in _keys(path, base))
        length = values.get(_length_key(path))
        pairs[path] = Pair(A=A, B=B, alpha=alphas[path], magnitude=length)
    usual = _usual(config)
    return folder.adapter(
        own, partial(_plain, pairs, usual, base), partial(_apart, pairs, usual, base)
    )


def _keys(path: str, base: PeftView) -> tuple[str, str]:
    """Of A and B."""
    name, end = ("lora_embedding_", "") if path in base.tables else ("lora_", ".weight")
    return f"{TUNED}{path}.{name}A{end}", f"{TUNED}{path}.{name}B{end}"


def _length_key(path: str) -> str:
    return f"{TUNED}{path}.lora_magnitude_vector"


def _is_dora(config: Config, path: str, base: PeftView) -> bool:
    """Whether the weight's length is apart. Raises `CheckpointError` for a table of embeddings."""
    dora = config.flag("use_dora")
    if dora and path in base.tables:
        raise config.refusal("use_dora", f"DoRA of the embeddings {path!r} cannot be loaded.")
    return dora


def _own_of(config: Config, base: PeftView, paths: Sequence[str]) -> SavedModules:
    """As for other modules; PEFT also writes the whole table that an adapter changes."""
    own = saved_modules_of(config, base, TUNED, paths)
    tables = {
        f"{TUNED}{path}.base_layer.weight": f"{path}.weight"
        for path in paths
        if path in base.tables
    }
    return replace(own, tables={**own.tables, **tables})


def _check_start(config: Config) -> None:
    start = config.values.get("init_lora_weights", True)
    if not any(start == each for each in HARMLESS):
        raise config.refusal(
            "init_lora_weights",
            "only starts that leave the base's weights alone can be loaded. Save it from PEFT as "
            "plain LoRA, with path_initial_model_for_weight_conversion.",
        )


def _usual(config: Config) -> Low:
    """What all modules of a config have in common."""
    start = config.values.get("init_lora_weights", True)
    kind = DoRA if config.flag("use_dora") else LoRA
    return kind(
        dropout=config.number("lora_dropout", 0.0),
        rslora=config.flag("use_rslora"),
        initialisation="gaussian" if start == "gaussian" else "kaiming",
    )


def _plain(pairs: Mapping[str, Pair], usual: Low, base: PeftView) -> tuple[Method, ...]:
    settings = {
        handle.key: replace(usual, rank=pair.rank, alpha=pair.alpha)
        for path, pair in pairs.items()
        for handle in {**base.linears, **base.tables}[path]
    }
    return arranged(settings, base, lambda lora, sites: replace(lora, targets=_words(sites)))


def _words(sites: Sequence[Site]) -> tuple[str, ...]:
    return tuple(site.value for site in sites)


def _apart(pairs: Mapping[str, Pair], usual: Low, base: PeftView, method: Method) -> Values | None:
    """The tensors of a method, if its deltas give these pairs."""
    placed = placements_on(method, base, type(usual))
    loras = [delta.term for group in placed.values() for delta in group]
    alike = {(lora.dropout, _is_stable(loras)) for lora in loras} == {(usual.dropout, usual.rslora)}
    if not alike or placed.keys() != pairs.keys():
        return None
    found: dict[str, Tensor] = {}
    for path, group in placed.items():
        parts, lengths = _split(pairs[path], group), _lengths(pairs[path], group)
        if not parts or not pairs[path].equals(_joined(group, parts, usual.rslora, lengths)):
            return None
        for delta, (A, B) in zip(group, parts, strict=True):
            found |= {f"{delta.key}.lora_A": A, f"{delta.key}.lora_B": B}
        for delta, length in zip(group, lengths, strict=False):
            found[f"{delta.key}.magnitude"] = length
    return found


def _split(pair: Pair, group: KeyedDeltas) -> list[Matrices]:
    """Each site's matrices; empty, if the ranks of the sites do not add up to the pair's."""
    ranks = [delta.term.rank for delta in group]
    rows = [part_of(delta.handle, pair.B.T).T for delta in group]
    if set(ranks) == {pair.rank} and _is_spread(group):
        return [(copied(pair.A), copied(B)) for B in rows]
    if sum(ranks) == pair.rank:
        blocks = [B.split(ranks, dim=1)[index] for index, B in enumerate(rows)]
        return [(copied(A), copied(B)) for A, B in zip(pair.A.split(ranks), blocks, strict=True)]
    return []


def _lengths(pair: Pair, group: KeyedDeltas) -> list[Tensor]:
    """Each site's lengths; empty for LoRA."""
    if pair.magnitude is None:
        return []
    return [copied(part_of(delta.handle, pair.magnitude)) for delta in group]


# ------------------------------------------------------------------------------------------ writing


def write(adapter: Adapter, base: PeftView) -> Written:
    """The config and the tensors of LoRA at any sites, in any layers, of any ranks and scales.

    Raises:
        CheckpointError: two dropouts, or two scales at one module; DoRA of some outputs of one.
    """
    loras: list[Low] = [t for t, _ in terms(adapter.method) if isinstance(t, LoRA | DoRA)]
    kind = type(loras[0])
    if len({lora.dropout for lora in loras}) > 1:
        raise CheckpointError(
            f"PEFT has one lora_dropout for all modules; {adapter.name!r} has "
            f"{', '.join(str(lora.dropout) for lora in loras)}. Attach deltas of one dropout."
        )
    stable = _is_stable(loras)
    pairs = {}
    for path, group in placements_on(adapter.method, base, kind).items():
        _check_scale(path, group)
        keys = [(f"{delta.key}.lora_A", f"{delta.key}.lora_B") for delta in group]
        parts = [(adapter.tensors[A], adapter.tensors[B]) for A, B in keys]
        lengths = [adapter.tensors[f"{delta.key}.magnitude"] for delta in group if kind is DoRA]
        _check_whole(path, group, lengths)
        pairs[path] = _joined(group, parts, stable, lengths)
    tensors: dict[str, Tensor] = {}
    for path, pair in pairs.items():
        tensors |= dict(zip(_keys(path, base), (pair.A, pair.B), strict=True))
        tensors |= {} if pair.magnitude is None else {_length_key(path): pair.magnitude}
    targets = spelled(tuple(pairs), base.modules)
    ranks = {path: pair.rank for path, pair in pairs.items()}
    alphas = {path: pair.alpha for path, pair in pairs.items()}
    config = {
        "peft_type": "LORA",
        "r": _most(ranks.values()),
        "lora_alpha": _most(alphas.values()),
        "rank_pattern": _exceptions(ranks),
        "alpha_pattern": _exceptions(alphas),
        "lora_dropout": loras[0].dropout,
        "use_rslora": stable,
        "use_dora": kind is DoRA,
        "init_lora_weights": "gaussian" if loras[0].initialisation == "gaussian" else True,
        "target_modules": list(targets.modules),
        "layers_to_transform": list(targets.layers) or None,
        "fan_in_fan_out": not all(isinstance(base.modules[p], _STRAIGHT) for p in pairs),
        **saved_words(adapter.own, base, pairs),
    }
    return Written(config=config, tensors=tensors, targeted=pairs)


def _joined(
    group: KeyedDeltas, parts: Sequence[Matrices], stable: bool, lengths: Sequence[Tensor]
) -> Pair:
    """One A and one B for what the sites of one module have."""
    As, Bs = zip(*parts, strict=True)
    shared = _is_spread(group) and all(same(A, As[0]) for A in As)
    A = As[0] if shared else torch.cat(As)
    B = Bs[0].new_zeros(widths(group[0].handle.module)[1], len(A))
    start = 0
    for delta, part in zip(group, Bs, strict=True):
        block = slice(start, start + part.shape[1])
        B[:, block] = with_part(delta.handle, B[:, block].T, part.T).T
        start = 0 if shared else block.stop
    magnitude = None
    if lengths:
        magnitude = lengths[0].new_zeros(len(B))
        for delta, length in zip(group, lengths, strict=True):
            magnitude = with_part(delta.handle, magnitude, length)
    return Pair(A=A, B=B, alpha=_alpha(group[0].term, len(A), stable), magnitude=magnitude)


def _check_whole(path: str, group: KeyedDeltas, lengths: Sequence[Tensor]) -> None:
    """DoRA has a length for each output of a module, and one change of its direction."""
    outputs = sum(len(length) for length in lengths)
    if lengths and (not _is_spread(group) or outputs != widths(group[0].handle.module)[1]):
        raise CheckpointError(
            f"PEFT's DoRA has one change and one length for every output of {path!r}, and this "
            "delta is at some of them, or twice. Save it as format='deltakit'."
        )


def _check_scale(path: str, group: KeyedDeltas) -> None:
    scales = {_scale(delta.term) for delta in group}
    if len(scales) > 1:
        raise CheckpointError(
            f"PEFT has one scale for {path!r}, where deltas of the scales "
            f"{', '.join(map(str, sorted(scales)))} are. Attach deltas of one alpha / rank."
        )


def _is_spread(group: KeyedDeltas) -> bool:
    """Whether the deltas are at different sites, one at each."""
    return len({delta.handle.key for delta in group}) == len(group)


def _is_stable(loras: Sequence[Low]) -> bool:
    return all(lora.rslora for lora in loras)


def _scale(lora: Low) -> float:
    return lora.alpha / (lora.rank**0.5 if lora.rslora else lora.rank)


def _alpha(lora: Low, rank: int, stable: bool) -> float:
    """The alpha that gives the scale at another rank."""
    if (lora.rank, lora.rslora) == (rank, stable):
        return lora.alpha
    return _scale(lora) * (rank**0.5 if stable else rank)


def _most(values: Iterable[N]) -> N:
    """The value that is there most often."""
    return Counter(values).most_common(1)[0][0]


def _exceptions(values: Mapping[str, N]) -> dict[str, N]:
    """The values that are not the most frequent one, by regular expressions for their modules."""
    usual, found = _most(values.values()), dict[str, N]()
    for value in dict.fromkeys(values.values()):
        paths = [path for path in values if values[path] == value]
        found |= {} if value == usual else dict.fromkeys(patterns(paths, values), value)
    return found
