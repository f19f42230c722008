"""An adapter's values for the model's own parameters: modules that are saved whole, and biases."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor

from deltakit.core.method import Method
from deltakit.errors import CheckpointError, nearest
from deltakit.interop.peft.config import TASK_HEADS, Config
from deltakit.interop.peft.targets import ends, longest
from deltakit.interop.peft.view import PeftView, same
from deltakit.methods.bitfit import BitFit
from deltakit.methods.norms import NormTuning
from deltakit.methods.partial import PartialFineTuning

BIASES = ("none", "all", "lora_only")
_ANY_HEAD = {name for names in TASK_HEADS.values() for name in names}


@dataclass(frozen=True, kw_only=True)
class SavedModules:
    """The model's own parameters in a file.

    Attributes:
        keys: by the file's key, the name in the model.
        spare: keys that PEFT writes in addition, and whose value they must repeat: the name in the
            model, or None where the value is not used.
        tables: keys of embeddings, which PEFT writes where it takes them to be resized or changed:
            the name in the model. A file may lack them.
    """

    keys: Mapping[str, str]
    spare: Mapping[str, str | None]
    tables: Mapping[str, str]


def saved_modules_of(
    config: Config, base: PeftView, prefix: str, targeted: Collection[str]
) -> SavedModules:
    """The model's own parameters that a config lists for its file.

    Args:
        config: of any tuner.
        base: the model.
        prefix: what the file's keys begin with.
        targeted: the names of the modules that have an adapter.
    """
    inside = _inside_saved(config, base)
    keys = {f"{prefix}{name}": name for name in inside}
    spare: dict[str, str | None] = {}
    for name in _biases(config, base, targeted):
        owner = name.rpartition(".")[0]
        if name in inside:
            at, rest = f"{prefix}{inside[name]}", name.removeprefix(inside[name])
            spare |= {f"{at}.original_module{rest}": None, f"{at}.modules_to_save{rest}": name}
        else:
            keys[f"{prefix}{f'{owner}.base_layer' if owner in targeted else owner}.bias"] = name
    tables = {f"{prefix}{name}": name for name in base.vocabulary if f"{prefix}{name}" not in keys}
    return SavedModules(keys=keys, spare=spare, tables=tables)


def _inside_saved(config: Config, base: PeftView) -> dict[str, str]:
    """What is saved with a whole module: its name, and the module's. Any ends of names will do."""
    modules = [name for name, _ in base.places]
    saved = [m for m in modules if any(n.endswith(config.saved) for n in base.names_of(m))]
    return {name: m for m in reversed(saved) for name in base.state if name.startswith(f"{m}.")}


def check_saved(config: Config, base: PeftView) -> None:
    """Raises `CheckpointError` for a module to save that the model does not have.

    PEFT ignores it, so it explains a folder that does not fit and refuses none that does.
    """
    modules = [name for name, _ in base.places]
    called = [name for module in modules for name in base.names_of(module)]
    for end in config.saved:
        if end not in _ANY_HEAD and not any(name.endswith(end) for name in called):
            known = {module.rpartition(".")[2] for module in modules}
            raise CheckpointError(
                f"{config.path}: modules_to_save names {end!r}, and no module of this {base.kind} "
                f"is called that.{nearest(end, known)}"
            )


def _biases(config: Config, base: PeftView, targeted: Iterable[str]) -> Iterator[str]:
    match config.choice("bias", BIASES):
        case "all":
            yield from (name for name in base.state if name.endswith(".bias"))
        case "lora_only":
            yield from (f"{path}.bias" for path in targeted if f"{path}.bias" in base.state)


def saved_values(
    own: SavedModules, values: Mapping[str, Tensor], base: PeftView, path: object
) -> dict[str, Tensor]:
    """The values by the parameters' first names.

    Raises:
        CheckpointError: two names of one parameter with different values, or a buffer with another
            value than the model's.
    """
    given = {name: values[key] for key, name in own.keys.items()}
    found: dict[str, Tensor] = {}
    for first, names in base.names.items():
        some = [given.pop(name) for name in names if name in given]
        if some and (len(some) < len(names) or any(not same(some[0], each) for each in some)):
            raise CheckpointError(_not_one(path, names, base))
        if some:
            found[first] = some[0]
    for name, buffer in given.items():
        if base.state[name].is_meta or not same(buffer, base.state[name].cpu()):
            raise CheckpointError(
                f"{path} holds {name!r}, which is none of this {base.kind}'s parameters."
            )
    return found


def table_values(tables: Mapping[str, Tensor], base: PeftView, path: object) -> dict[str, Tensor]:
    """The embeddings of a file that are not the model's, by the parameters' first names.

    PEFT replaces the model's values by them, and leaves tied ones tied.

    Args:
        tables: by any name of the parameter.
        base: the model.
        path: of the file, for messages.

    Raises:
        CheckpointError: another number of rows than the model has; two values for one parameter.
    """
    found: dict[str, Tensor] = {}
    for first, names in base.names.items():
        some = [tables[name] for name in names if name in tables]
        if any(not same(some[0], each) for each in some):
            raise CheckpointError(_not_one(path, names, base))
        if some:
            _check_rows(first, some[0], base, path)
        here = base.state[first]
        if some and (here.is_meta or not same(some[0].to(here.dtype), here.cpu())):
            found[first] = some[0]
    return found


def _check_rows(name: str, table: Tensor, base: PeftView, path: object) -> None:
    rows, here = len(table), len(base.state[name])
    if rows != here:
        raise CheckpointError(
            f"{path}: {name!r} has {rows} rows, one a token, and this {base.kind} has {here}. Call "
            f"model.resize_token_embeddings({rows}) before loading."
        )


def _not_one(path: object, names: Iterable[str], base: PeftView) -> str:
    return (
        f"{path} has not one value for all of {', '.join(map(repr, names))}, which are one "
        f"parameter in this {base.kind}. Load it on a model that does not tie them "
        "(tie_word_embeddings=False)."
    )


def training(names: Iterable[str], base: PeftView) -> tuple[Method, ...]:
    """The method that trains these parameters of the base and no other; none for the head alone."""
    wanted = frozenset(names) - base.head
    if not wanted:
        return ()
    found = (method for method in (BitFit(), NormTuning()) if base.trained(method) == wanted)
    return (next(found, PartialFineTuning(parameters=_patterns(wanted, base))),)


def _patterns(parameters: Iterable[str], base: PeftView) -> tuple[str, ...]:
    """The shortest patterns that match these parameters and no other."""
    wanted = [name for first in sorted(parameters) for name in base.names[first]]
    others = {name for names in base.names.values() for name in names} - {*wanted}
    for words in range(2, longest(wanted)):
        found = tuple(f"*.{end}" for end in ends(wanted, words))
        if all(_match(found, name) for name in wanted) and not any(
            _match(found, name) for name in others
        ):
            return found
    return tuple(wanted)


def _match(patterns: Iterable[str], name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


# ------------------------------------------------------------------------------------------ writing


def saved_words(own: Iterable[str], base: PeftView, targeted: Iterable[str] = ()) -> dict[str, Any]:
    """By which words PEFT has values of its own for these parameters: whole modules, and biases.

    Args:
        own: the parameters' first names.
        base: the model.
        targeted: the modules that have an adapter; their biases have a word of their own.
    """
    modules, left = _whole(own, base)
    trained = {name for name in left if name.endswith(".bias")}
    everything = {n for n in base.state if n.endswith(".bias")}
    of_targets = {f"{path}.bias" for path in targeted} & everything
    bias = "none"
    if trained:
        bias = "lora_only" if trained == of_targets else "all"
    return {"modules_to_save": list(modules) or None, "bias": bias}


def _whole(own: Iterable[str], base: PeftView) -> tuple[tuple[str, ...], set[str]]:
    """The outermost modules of which all parameters are among these, and what is left of these."""
    left = {name for first in own for name in base.names[first]}
    found = []
    for module in base.modules:
        inside = {name for name in base.state if name.startswith(f"{module}.")}
        if inside and inside <= left:
            found.append(module)
            left -= inside
    return tuple(found), left


def own_tensors(
    own: Mapping[str, Tensor],
    config: Config,
    base: PeftView,
    prefix: str,
    targeted: Collection[str],
) -> dict[str, Tensor]:
    """The values by the keys that the config lists; the arguments are those of `saved_modules_of`.

    Raises:
        CheckpointError: the config has no words for one of the values.
    """
    first = {name: names[0] for names in base.names.values() for name in names}
    keys = saved_modules_of(config, base, prefix, targeted).keys
    unsaid = sorted(own.keys() - {first.get(name) for name in keys.values()})
    if unsaid:
        raise CheckpointError(
            "PEFT saves whole modules, and all biases or none; it has no words for values of "
            f"{', '.join(map(repr, unsaid[:3]))} alone."
        )
    values = {
        key: own.get(first[name]) if name in first else base.state[name]
        for key, name in keys.items()
    }
    return {key: value for key, value in values.items() if value is not None}
