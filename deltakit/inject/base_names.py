"""The base's parameters by name: at their places, its own, the task head's, untrained ones."""

import copy
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from deltakit.arch.resolve import body_of, language_classes, registered_bodies
from deltakit.inject.attachments import CHILD, Attachments
from deltakit.models.grown import grown_tables

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters at the base's places by name, shared ones once.

    At the places that active deltas have taken they are the deltas'; `plain_parameters` has the
    base's.
    """
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, parameter in _at_places(model):
        if id(parameter) not in seen:
            seen.add(id(parameter))
            found[name] = parameter
    return found


def plain_parameters(model: nn.Module, attachments: Attachments | None) -> dict[str, nn.Parameter]:
    """The base's own parameters by name, shared ones once, whatever is active."""
    found = base_parameters(model)
    if attachments is None:
        return found
    found |= attachments.base.tensors()
    originals = attachments.merged.parameters() if attachments.merged is not None else {}
    return found | {name: originals[name] for name in originals.keys() & found.keys()}


def parameter_names(model: nn.Module) -> tuple[tuple[str, ...], ...]:
    """All names of each of the model's own parameters; tied ones have several."""
    names: dict[int, list[str]] = {}
    for name, parameter in _at_places(model):
        names.setdefault(id(parameter), []).append(name)
    return tuple(map(tuple, names.values()))


def _at_places(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Each name of a parameter of the base, without a look at the deltas."""
    deltas = {model._modules[CHILD]} if CHILD in model._modules else set()
    for path, module in model.named_modules(memo=deltas, remove_duplicate=False):  # type: ignore[arg-type]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield (f"{path}.{name}" if path else name), parameter


def head_names(model: "PreTrainedModel") -> frozenset[str]:
    """Names of the task head's parameters: what lies outside the model's body.

    The body is of a class that transformers registers for the config. A class without one has its
    head next to the parts of one. A language-modelling head is part of what was pre-trained, so it
    belongs to the base; a further head next to it does not.
    """
    bodies = registered_bodies(model)
    if _is_bare(model, bodies):
        return frozenset()
    if model.get_output_embeddings() is not None:
        return _next_to_language(model)
    body = body_of(model)
    found = body is not model and isinstance(body, bodies)
    parts = frozenset[str]() if found else _parts(model, bodies)
    if any(name in parts for name, _ in model.named_children()):
        names = base_parameters(model)
        return frozenset(name for name in names if name.partition(".")[0] not in parts)
    return _outside(model, body.parameters())


def _outside(model: nn.Module, inside: Iterable[nn.Parameter]) -> frozenset[str]:
    """The names of the model's own parameters that are not among those `inside`."""
    known = {id(p) for p in inside}
    return frozenset(n for n, p in base_parameters(model).items() if id(p) not in known)


def _next_to_language(model: "PreTrainedModel") -> frozenset[str]:
    """The head of a class that has more than the classes with a language-modelling head alone."""
    classes = language_classes(model.config)
    predicts = model.get_output_embeddings()
    own = {n.partition(".")[0] for n, each in model.named_modules() if each is predicts}
    outside = _outside(model, body_of(model).parameters())
    beside = {name for name in outside if name.partition(".")[0] not in own}
    if not classes or type(model) in classes or not beside:
        return frozenset()
    with torch.device("meta"):
        built = [each(copy.deepcopy(model.config)) for each in classes]
    return frozenset(beside).difference(*(each.state_dict() for each in built))


def _is_bare(model: "PreTrainedModel", bodies: tuple[type, ...]) -> bool:
    """True for a body alone; classes with a task are named for it, some bodies among them."""
    return type(model) in bodies and not re.search("For[A-Z]", type(model).__name__)


def _parts(model: "PreTrainedModel", bodies: tuple[type, ...]) -> frozenset[str]:
    """The names of the children and parameters that any of the bodies has."""
    with torch.device("meta"):
        built = [body(copy.deepcopy(model.config)) for body in bodies if body is not type(model)]
    return frozenset(
        name.partition(".")[0]
        for body in built
        for name in (*body.state_dict(), *dict(body.named_children()))
    )


def fresh_names(model: "PreTrainedModel") -> frozenset[str]:
    """Names of the parameters that the checkpoint of a loaded model has no values for.

    transformers marks the parameters that it has loaded. A model that was not loaded, and one that
    was copied, has no marks. A table of tokens that was resized lacks values for some rows.
    """
    parameters = base_parameters(model)
    loaded = {name for name, p in parameters.items() if vars(p).get("_is_hf_initialized")}
    if not loaded:
        return frozenset()
    grown = set(map(id, grown_tables(model)))
    return frozenset(
        name
        for name, parameter in parameters.items()
        if (name not in loaded or id(parameter) in grown) and computes(parameter.dtype)
    )


def computes(dtype: torch.dtype) -> bool:
    """True if a floating dtype can be computed in; 8-bit floats only hold values."""
    return dtype.is_floating_point and dtype.itemsize > 1
