"""The target modules of a config, by PEFT's rules, and the shortest way to name them."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from torch import nn

from deltakit.errors import CheckpointError, nearest
from deltakit.interop.peft.config import TASK_HEADS, Config, Names
from deltakit.interop.peft.view import PeftView

ALL_LINEAR = "all-linear"
N = TypeVar("N", int, float)


@dataclass(frozen=True, kw_only=True)
class Targets:
    """The modules that a config is about.

    Attributes:
        modules: names or ends of names, or a regular expression for whole names.
        excluded: names of modules that are left out.
        saved: parts of names; what is saved whole is left out too.
        layers: the layers that count for ends of names; all if empty.
        lists: what the lists of layers are called, as regular expressions; anything if empty.
    """

    modules: Names
    excluded: Names = ()
    saved: tuple[str, ...] = ()
    layers: tuple[int, ...] = ()
    lists: tuple[str, ...] = ()

    def match(self, name: str) -> bool:
        """True if a module is a target."""
        if named(self.excluded, name) or any(_inside(each, name) for each in self.saved):
            return False
        if not named(self.modules, name):
            return False
        whole = isinstance(self.modules, str) or name in self.modules
        return whole or not self.layers or self.layer(name) in self.layers

    def layer(self, name: str) -> int | None:
        """The number of the layer that a module is in."""
        lists = [rf"(?:^|.*?\.){each}" for each in self.lists] or [r".*?\.[^.]*"]
        found = (re.match(rf"{each}\.(?P<layer>\d+)\.", name) for each in lists)
        first = next(filter(None, found), None)
        return None if first is None else int(first["layer"])

    def among(self, names: Iterable[str]) -> list[str]:
        """The modules that are targets."""
        return [name for name in names if self.match(name)]


def named(names: Names, name: str) -> bool:
    """True if it is one of several names, ends in one, or matches a regex in full."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in names)


def _inside(saved: str, name: str) -> bool:
    return re.match(rf"(^|.*\.){saved}($|\..*)", name) is not None


# ------------------------------------------------------------------------------------------ reading


def targeted(
    config: Config, base: PeftView, defaults: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    """The names of the modules that a config means, in the model's order.

    Args:
        config: with target_modules and what narrows it down.
        base: the model.
        defaults: the targets without target_modules, by the model's type.

    Raises:
        CheckpointError: it means none, or some part of it does.
    """
    targets = Targets(
        modules=_modules(config, base, defaults),
        excluded=config.names("exclude_modules") or (),
        saved=config.saved,
        layers=config.layers(),
        lists=config.layer_lists(),
    )
    found = tuple(m for m in base.modules if targets.among(base.names_of(m)))
    if not found:
        check_names(config, base, targets.modules)
        raise config.refusal("target_modules", f"nothing in this {base.kind} is left to target.")
    _check_once(config, base, found)
    return found


def _check_once(config: Config, base: PeftView, found: Iterable[str]) -> None:
    """Raises `CheckpointError` for a module that is in two places: PEFT changes the first alone."""
    first = {id(base.modules[name]): name for name in found}
    for name, module in base.places:
        if first.get(id(module), name) != name:
            raise config.refusal(
                "target_modules", f"{first[id(module)]!r} is {name!r} too, where PEFT leaves it."
            )


def _modules(config: Config, base: PeftView, defaults: Mapping[str, tuple[str, ...]]) -> Names:
    model_type = base.model.config.model_type
    given = config.names("target_modules")
    if given is None:
        given = defaults.get(model_type)
    if not given:
        raise config.refusal(
            "target_modules", f"PEFT has no default for {model_type!r}. Name some."
        )
    if not isinstance(given, str):
        return given
    if config.layers() or config.layer_lists():
        raise config.refusal(
            "target_modules", "PEFT takes layers_to_transform only with a list of names."
        )
    return _linears(config, base) if given.lower() == ALL_LINEAR else given


def _linears(config: Config, base: PeftView) -> tuple[str, ...]:
    """All linear projections but the last one of the model."""
    from transformers.pytorch_utils import Conv1D

    last = base.model.get_output_embeddings()
    if last is None and config.task == "SEQ_CLS":
        heads = (base.modules.get(name) for name in reversed(TASK_HEADS["SEQ_CLS"]))
        last = next(filter(None, heads), None)
    return tuple(
        name
        for name, module in base.modules.items()
        if isinstance(module, nn.Linear | Conv1D) and module is not last
    )


def check_names(config: Config, base: PeftView, modules: Names) -> None:
    """Raises `CheckpointError` for a target that no module is called by, or a layer of none.

    PEFT ignores these where others match, so they explain a folder that does not fit and refuse
    none that does.
    """
    for name in () if isinstance(modules, str) else modules:
        if not any(named((name,), each) for m in base.modules for each in base.names_of(m)):
            known = {module.rpartition(".")[2] for module in base.modules}
            raise CheckpointError(
                f"{config.path}: target_modules names {name!r}, and no module of this {base.kind} "
                f"is called that.{nearest(name, known)}"
            )
    for layer in config.layers():
        if not any(
            _layer(config, each) == layer for m in base.modules for each in base.names_of(m)
        ):
            raise config.refusal(
                "layers_to_transform", f"nothing is targeted in layer {layer} of this {base.kind}."
            )


def _layer(config: Config, name: str) -> int | None:
    return Targets(modules=(), lists=config.layer_lists()).layer(name)


def by_pattern(
    base: PeftView, paths: Iterable[str], table: Mapping[str, N], default: N
) -> dict[str, N]:
    """The number of each path in a table by regular expressions: the first that fits.

    An expression that fits none changes nothing, as in PEFT.
    """
    names = {path: base.names_of(path) for path in paths}
    found = {path: next((p for p in table if _any_ends(p, names[path])), None) for path in names}
    return {path: default if p is None else table[p] for path, p in found.items()}


def _any_ends(pattern: str, names: Iterable[str]) -> bool:
    return any(_ends(pattern, name) for name in names)


def _ends(pattern: str, path: str) -> bool:
    return _ending(pattern).match(path) is not None


@functools.cache
def _ending(pattern: str) -> re.Pattern[str]:
    return re.compile(rf"(.*\.)?({pattern})$")


# ------------------------------------------------------------------------------------------ writing


def spelled(paths: Sequence[str], names: Iterable[str]) -> Targets:
    """The fewest words by which PEFT means exactly these modules, of all that have `names`."""
    wanted, names = set(paths), tuple(names)
    fitting = (each for each in _candidates(paths) if set(each.among(names)) == wanted)
    return next(fitting, Targets(modules=tuple(paths)))


def _candidates(paths: Sequence[str]) -> Iterator[Targets]:
    plain = [Targets(modules=ends(paths, words)) for words in range(1, longest(paths))]
    yield from plain[:2]
    layers = {plain[0].layer(path) for path in paths}
    numbers = tuple(sorted(layer for layer in layers if layer is not None))
    if len(numbers) == len(layers):
        yield from (replace(each, layers=numbers) for each in plain[:2])
    yield from plain[2:]


def patterns(paths: Sequence[str], among: Iterable[str]) -> tuple[str, ...]:
    """The shortest regular expressions that fit these of the paths and no other of `among`."""
    others = set(among) - set(paths)
    for words in range(1, longest(paths)):
        found = tuple(map(re.escape, ends(paths, words)))
        if not any(_ends(pattern, other) for pattern in found for other in others):
            return found
    return tuple(f"^{re.escape(path)}" for path in paths)


def ends(paths: Iterable[str], words: int) -> tuple[str, ...]:
    """The last words of each path, each end once."""
    return tuple(dict.fromkeys(".".join(path.split(".")[-words:]) for path in paths))


def longest(paths: Iterable[str]) -> int:
    """The number of words in the longest path."""
    return max(len(path.split(".")) for path in paths)
