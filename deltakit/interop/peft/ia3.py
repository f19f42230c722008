"""(IA)³: PEFT has one vector for each linear module, on its output or, if "feedforward", its input.

Where projections are fused in one module, each of our sites has its part of the vector; what we do
not rescale is ones there.
"""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn

from deltakit.core.method import Method
from deltakit.core.site import HookKind, Site
from deltakit.errors import CheckpointError
from deltakit.interop.peft.adapter import TUNED, Adapter, Folder, Values, Written
from deltakit.interop.peft.config import Config, Names
from deltakit.interop.peft.defaults import IA3_FEEDFORWARD, IA3_TARGETS
from deltakit.interop.peft.saved_modules import saved_modules_of, saved_words
from deltakit.interop.peft.targets import Targets, ends, longest, named, targeted
from deltakit.interop.peft.view import (
    KeyedDelta,
    PeftView,
    arranged,
    copied,
    part_of,
    placements_on,
    same,
    widths,
    with_part,
)
from deltakit.methods.ia3 import IA3

KNOWN = (
    "target_modules",
    "exclude_modules",
    "feedforward_modules",
    "modules_to_save",
    "fan_in_fan_out",
    "init_ia3_weights",
)


# ------------------------------------------------------------------------------------------ reading


def read(folder: Folder) -> Adapter:
    """Raises `CheckpointError` for what a rescaling of our sites is not."""
    config, base = folder.config, folder.base
    config.check(KNOWN, {})
    paths = targeted(config, base, IA3_TARGETS)
    inner = _feedforward(config, base)
    shapes = {_key(path): _shape(path, inner, folder) for path in paths}
    values, own = folder.take(shapes, saved_modules_of(config, base, TUNED, paths))
    vectors = {path: values[_key(path)] for path in paths}
    return folder.adapter(own, partial(_plain, vectors, base), partial(_apart, vectors, base))


def _key(path: str) -> str:
    return f"{TUNED}{path}.ia3_l"


def _feedforward(config: Config, base: PeftView) -> Names:
    """The modules of which the input is rescaled. Any ends of names will do."""
    given = config.names("feedforward_modules")
    if given is None:
        given = IA3_FEEDFORWARD.get(base.model.config.model_type)
    if given is None:
        raise config.refusal(
            "feedforward_modules", "PEFT has no default for this model. Name some."
        )
    return given


def _is_inner(inner: Names, path: str) -> bool:
    return named(inner, path) if isinstance(inner, str) else path.endswith(inner)


def _shape(path: str, inner: Names, folder: Folder) -> tuple[int, int]:
    """Of the vector of one module."""
    base = folder.base
    on_input = any(_is_inner(inner, name) for name in base.names_of(path))
    if path not in (base.inputs if on_input else base.linears):
        raise base.no_site(path, folder.config.path, what="the input of " * on_input)
    d_in, d_out = widths(base.modules[path])
    return (1, d_in) if on_input else (d_out, 1)


def _on_input(vector: Tensor) -> bool:
    return vector.shape[0] == 1


def _plain(vectors: Values, base: PeftView) -> tuple[Method, ...]:
    settings = {
        handle.key: IA3()
        for path, vector in vectors.items()
        for handle in (base.inputs if _on_input(vector) else base.linears)[path]
    }
    return arranged(settings, base, _at)


def _at(ia3: IA3, sites: tuple[Site, ...]) -> Method:
    if set(sites) == set(ia3.sites()):
        return ia3
    return IA3(targets=tuple(site.value for site in Site if site in sites))


def _apart(vectors: Values, base: PeftView, method: Method) -> Values | None:
    """The tensors of a method, if its deltas give these vectors."""
    placed = placements_on(method, base, IA3)
    if placed.keys() != vectors.keys():
        return None
    found: dict[str, Tensor] = {}
    for path, group in placed.items():
        if not _is_one(group):
            return None
        flat = vectors[path].flatten()
        parts = [part_of(delta.handle, flat) for delta in group]
        if not same(_joined(group, parts), vectors[path]):
            return None
        found |= {f"{s.key}.vector": copied(part) for s, part in zip(group, parts, strict=True)}
    return found


# ------------------------------------------------------------------------------------------ writing


def write(adapter: Adapter, base: PeftView) -> Written:
    """The config and the vectors of a rescaling, in any layers.

    Raises:
        CheckpointError: a module of which the input and the output are rescaled, or one twice.
    """
    vectors = {}
    for path, group in placements_on(adapter.method, base, IA3).items():
        if not _is_one(group):
            raise CheckpointError(
                f"PEFT has one vector for {path!r}; {adapter.name!r} has several, at "
                f"{', '.join(delta.key for delta in group)}. Attach them as deltas of their own."
            )
        vectors[path] = _joined(group, [adapter.tensors[f"{delta.key}.vector"] for delta in group])
    inner = tuple(path for path, vector in vectors.items() if _on_input(vector))
    targets, feedforward = _spelled(tuple(vectors), inner, base)
    config = {
        "peft_type": "IA3",
        "target_modules": list(targets),
        "feedforward_modules": list(feedforward),
        "fan_in_fan_out": not all(isinstance(base.modules[path], nn.Linear) for path in vectors),
        "modules_to_save": saved_words(adapter.own, base)["modules_to_save"],
    }
    tensors = {_key(path): vector for path, vector in vectors.items()}
    return Written(config=config, tensors=tensors, targeted=vectors)


def _is_one(group: Sequence[KeyedDelta[IA3]]) -> bool:
    """Whether the deltas are parts of one vector."""
    hook_kinds = {delta.handle.hook_kind for delta in group}
    return len(hook_kinds) == 1 and len({delta.handle.key for delta in group}) == len(group)


def _joined(group: Sequence[KeyedDelta[IA3]], parts: Sequence[Tensor]) -> Tensor:
    """One vector of what the sites of one module have."""
    handle = group[0].handle
    on_input = handle.hook_kind is HookKind.INPUT
    vector = parts[0].new_ones(widths(handle.module)[0 if on_input else 1])
    for delta, part in zip(group, parts, strict=True):
        vector = with_part(delta.handle, vector, part)
    return vector[None] if on_input else vector[:, None]


def _spelled(
    paths: tuple[str, ...], inner: tuple[str, ...], base: PeftView
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The fewest words by which PEFT means these modules, and by their inputs the `inner` ones."""
    for words in range(1, longest(paths)):
        found, feedforward = ends(paths, words), ends(inner, words)
        exact = set(Targets(modules=found).among(base.modules)) == set(paths)
        if exact and all(_is_inner(feedforward, path) == (path in inner) for path in paths):
            return found, feedforward
    return paths, inner
