"""A pretrained model by its name: where it is, and its shapes without its weights."""

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit._network import Answer, answer_for
from deltakit.errors import InvalidConfig, UnknownName, first_line, nearest
from deltakit.models.heads import MaskedHead
from deltakit.models.loading import HEAD_CLASSES
from deltakit.models.shipped import SHIPPED

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_GIVE = (
    "Give a folder that holds a transformers checkpoint (config.json, weights, tokenizer), "
    f"or a shipped model ({', '.join(SHIPPED)})."
)
_UNKNOWN = {
    Answer.NONE: "the Hub does not answer, and its config.json is not in the local cache. "
    f"{_GIVE} Or try again with a network.",
    Answer.MISSING: f"and the Hub has no public model of that name. {_GIVE} For a private model, "
    "log in with `hf auth login`.",
}
"""Why a model that is not in the local cache cannot be had."""


@dataclass(frozen=True, kw_only=True)
class Named:
    """A pretrained model that has been found.

    Attributes:
        name: what the user calls it.
        location: a folder, or a Hub name.
        local_only: whether transformers read what is here or in the local cache, without the Hub.
    """

    name: str
    location: str
    local_only: bool

    def config(self) -> Any:
        """Its config, in transformers' own classes only.

        Raises:
            UnknownName: there is none.
        """
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(
                self.location, local_files_only=self.local_only, trust_remote_code=False
            )
        except (OSError, ValueError, KeyError) as error:
            raise UnknownName(
                f"model {self.name!r} cannot be resolved: {first_line(error)} Give a folder that "
                "holds a transformers checkpoint (config.json, weights, tokenizer), or a Hub name."
            ) from None


def find(name: str) -> Named:
    """A shipped model, a local folder or config file, or a Hub name.

    Raises:
        MissingExtra: a shipped model whose package is not installed.
        UnknownName: nothing can have that name, or neither the Hub nor the local cache has it.
    """
    location = location_of(name)
    if _is_here(location):
        return Named(name=name, location=location, local_only=True)
    cached, answer = _is_cached(location), answer_for(location)
    if not cached and answer in _UNKNOWN:
        raise UnknownName(f"model {name!r} is not a folder here, {_UNKNOWN[answer]}")
    return Named(name=name, location=location, local_only=answer is not Answer.THERE)


def check_found(name: str) -> None:
    """Raises as `find`, for a model that is neither here nor in the local cache.

    Nothing of torch and transformers is imported.
    """
    location = location_of(name)
    if not _is_here(location) and not _is_cached(location):
        find(name)


def _is_cached(location: str) -> bool:
    """True if the local cache has the config of a model on the Hub.

    Raises:
        UnknownName: the Hub can have no such name.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(location, "config.json"), str)
    except HFValidationError as error:
        raise UnknownName(
            f"model {location!r} is not a folder here, and the Hub can have no such name: "
            f"{first_line(error)} {_GIVE}"
        ) from None


def _is_here(name: str) -> bool:
    """True if the name is a folder, or a config file."""
    return Path(name).is_dir() or (name.endswith(".json") and Path(name).is_file())


def location_of(name: str) -> str:
    """A folder, a config file, or a name that the Hub may have. The Hub is not asked.

    Raises:
        MissingExtra: a shipped model whose package is not installed.
        UnknownName: nothing can have that name.
    """
    if name in SHIPPED:
        return str(SHIPPED.get(name).folder(name))
    if _is_here(name):
        return name
    meant = "/" not in name and nearest(name, SHIPPED)  # the Hub's first models have no owner
    if name.startswith((".", "/", "~")) or meant:
        SHIPPED.check_known(name)
    return name


def classes(config: Any, told: Iterable[str] = ()) -> "tuple[type[PreTrainedModel], ...]":
    """The classes of transformers that a config's model can have, the likeliest first.

    Args:
        config: of transformers.
        told: names of classes, or of Auto classes, that come first where they fit the config. Then
            comes the class that the config names, if it is one of those that `load_base` makes.
    """
    guessed = [name for task, name in HEAD_CLASSES.items() if task != MaskedHead.task]
    usual = [kind for name in guessed for kind in _named(name, config)]
    own = [kind for kind in usual if kind.__name__ in (config.architectures or ())]
    first = [kind for name in told for kind in _named(name, config)]
    return tuple(dict.fromkeys((*first, *own, *usual)))


def own_class(config: Any) -> "type[PreTrainedModel]":
    """The class that a config names, in transformers only, and otherwise its bare model's.

    Raises:
        InvalidConfig: transformers has no class for the config.
    """
    names = (*(config.architectures or ()), "AutoModel")
    found = next((kind for name in names for kind in _named(name, config)), None)
    if found is None:
        raise InvalidConfig(
            f"transformers has no model for a config of the type {config.model_type!r} (of the "
            f"classes {', '.join(names)}). Give a model of another architecture."
        )
    return found


def _named(name: str, config: Any) -> "list[type[PreTrainedModel]]":
    """The class of that name, or that an Auto class of that name has for the config, if any."""
    import transformers
    from transformers.models.auto.auto_factory import _BaseAutoModelClass

    kind: Any = getattr(transformers, name, None)
    if _is(kind, _BaseAutoModelClass):
        kind = kind._model_mapping.get(type(config), None)
    fits = _is(kind, transformers.PreTrainedModel) and kind.config_class is type(config)
    return [kind] if fits else []


def _is(kind: Any, parent: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, parent)


def skeleton(
    kind: "type[PreTrainedModel]", config: Any, labels: int | None = None
) -> "PreTrainedModel":
    """A model without its weights, in fp32 on the meta device.

    Args:
        kind: a class that fits the config.
        config: of transformers; it is copied.
        labels: how many classes a head has, if the config's number is not meant.

    Raises:
        InvalidConfig: the config describes no such model.
    """
    import torch

    own = copy.deepcopy(config)
    if labels is not None:
        own.num_labels = labels
    try:
        with torch.device("meta"):
            return kind(own)
    except Exception as error:
        # Each architecture raises its own for a number that it does not like.
        raise InvalidConfig(
            f"no {kind.__name__} can be made from its config: {first_line(error)}"
        ) from None
