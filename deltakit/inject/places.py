"""The places of the base's parameters: what is in them, and what is put there in its stead."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.arch.resolve import fit_linear
from deltakit.core.site import BaseLinear, Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attachments import CHILD, Attached, Attachments, Displaced
from deltakit.inject.base_names import computes
from deltakit.inject.partitions import first_wrapper, is_sharded
from deltakit.runtime.own_values import Place, can_run_with, install_own_values
from deltakit.runtime.reached import install_reached
from deltakit.runtime.twins import execution_device, is_offloaded, loaded


def place_of(model: nn.Module, name: str) -> Place:
    """The place of the parameter `name`."""
    path, _, last = name.rpartition(".")
    return Place(model.get_submodule(path), last)


def stored_value(model: nn.Module, name: str) -> Tensor:
    """The value of the parameter `name`, fetched from where an offloaded one is kept."""
    place = place_of(model, name)
    with weights_of(place.module):
        value = place.parameter.detach()
        return value.clone() if is_offloaded(place.module) else value


@contextlib.contextmanager
def weights_of(module: nn.Module | None) -> Iterator[None]:
    """Inside, an offloaded module's weights are where it runs."""
    with contextlib.nullcontext() if module is None else loaded(module):
        yield


def runs_on(model: nn.Module, handle: Handle) -> torch.device:
    """The device that a site runs on: of an offloaded one, that to which accelerate moves it.

    A module without weights runs where the nearest offloaded one inside or around it does.
    """
    if handle.device.type != "meta" and not is_offloaded(handle.module):
        return handle.device
    for around in _around(model, handle):
        for module in around.modules():
            if is_offloaded(module):
                return execution_device(module)
    return handle.device


def _around(model: nn.Module, handle: Handle) -> Iterator[nn.Module]:
    """The site's module and those that it is in, from the inside."""
    yield handle.module
    path = handle.path
    while path:
        path = path.rpartition(".")[0]
        yield model.get_submodule(path)


class UnreadableLinear(BaseLinear):
    """A linear whose weight no form can compute with.

    Args:
        path: where it is.
        how: how the weight is held.
    """

    def __init__(self, path: str, how: str) -> None:
        self.path, self.how = path, how

    def weight(self) -> Tensor:
        raise IncompatibleDeltas(
            f"the weight of {self.path!r} is {self.how}, and this method computes with it. Load "
            "the base otherwise, or choose a method that leaves weights alone, such as LoRA."
        )

    bias = weight


def with_readable_weight(handle: Handle) -> Handle:
    """The handle, with a linear that refuses to be read where its weight cannot be."""
    weight = handle.module._parameters.get("weight")
    if handle.linear is None or weight is None:
        return handle
    if is_offloaded(handle.module):
        return replace(handle, linear=UnreadableLinear(handle.path, "offloaded"))
    if weight.is_floating_point() and not computes(weight.dtype):
        return replace(handle, linear=UnreadableLinear(handle.path, f"held in {weight.dtype}"))
    return handle


def submodule(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, or None."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def set_weight(
    model: nn.Module, name: str, value: nn.Parameter | nn.Module
) -> nn.Parameter | nn.Module:
    """Gives a parameter's place to another, or a linear's to another module; returns the old one.

    The new one is moved to where the old one is. It may have another shape.
    """
    if isinstance(value, nn.Module):
        return _set_module(model, name, value)
    place = place_of(model, name)
    before = place.parameter
    if (value.device, value.dtype) != (before.device, before.dtype):
        value.data = value.data.to(before.device, before.dtype)
    place.put(value)
    if value.shape != before.shape:
        fit_linear(place.module)
    return before


def _set_module(model: nn.Module, name: str, value: nn.Module) -> nn.Module:
    old = model.get_submodule(name)
    device = old.get_parameter("weight").device
    if value.get_parameter("weight").device != device:
        value.to(device)
    model.set_submodule(name, value.train(old.training))
    return old


# ------------------------------------------------------------------ a delta's own, at their places


def use_own(model: nn.Module, attachments: Attachments, owners: Mapping[str, Attached]) -> None:
    """Makes the model use the owners' parameters at the places of the base's of the same names.

    With no owners it uses the base's alone.
    """
    elsewhere: dict[Place, Place] = {}
    for name in list(attachments.running.displaced):
        elsewhere |= _give_back(model, attachments, name, owners.get(name))
    for name, owner in owners.items():
        if name not in attachments.running.displaced:
            elsewhere |= _displace(model, attachments, name, owner)
    hooks = attachments.running.hooks
    hooks.extend(install_own_values(elsewhere))
    if elsewhere:
        hooks.append(install_reached(model, _by_path(model, elsewhere)))
    if owners:
        hooks.extend(_state_hooks(model, attachments, owners))


def _by_path(model: nn.Module, places: Iterable[Place]) -> dict[str, nn.Module]:
    """The modules of the places, by path."""
    modules = {place.module for place in places}
    return {path: module for path, module in model.named_modules() if module in modules}


def _displace(
    model: nn.Module, attachments: Attachments, name: str, owner: Attached
) -> dict[Place, Place]:
    """Puts the owner's parameter into the places; else returns the places to use it for."""
    there, own = place_of(model, name), owner.tree.places[name]
    base = there.parameter
    names = tuple(_same_places(model, owner.aliases[name], base))
    _fit(own.parameter, base)
    places = [place_of(model, each) for each in names]
    away = any(is_offloaded(place.module) for place in places) or _in_parts(own, *places)
    if away or not _interchangeable(base, own.parameter):
        _check_forwards(places, name)
        return dict.fromkeys(places, own)
    attachments.base.put(name, base)
    attachments.running.displaced[name] = Displaced(names=names, places=tuple(places), own=own)
    for place in places:
        place.put(own.parameter)
    return {}


def _give_back(
    model: nn.Module, attachments: Attachments, name: str, owner: Attached | None
) -> dict[Place, Place]:
    """Puts the base's parameter back; else returns the places, and what to use for them."""
    displaced = attachments.running.displaced[name]
    own, base = displaced.own, attachments.base.places[name]
    places = [place_of(model, each) for each in displaced.names]
    if _in_parts(own, base, *places):
        wanted = base if owner is None else owner.tree.places[name]
        same = wanted.parameter is own.parameter
        return {} if same else dict.fromkeys(places, wanted)
    _follow(places[0], own)
    _fit(base.parameter, own.parameter)
    for place in _unchanged(places, own.parameter):
        place.put(base.parameter)
    attachments.base.take(name)
    del attachments.running.displaced[name]
    return {}


def follow_places(model: nn.Module, attachments: Attachments) -> None:
    """Gives deltas the parameters that the user has put into the places of theirs."""
    for displaced in attachments.running.displaced.values():
        _follow(place_of(model, displaced.names[0]), displaced.own)


def _follow(place: Place, own: Place) -> None:
    if place.parameter is not own.parameter:
        own.put(place.parameter)


def _same_places(model: nn.Module, names: tuple[str, ...], base: nn.Parameter) -> Iterator[str]:
    """Those of the names under which the model still has the parameter."""
    for name in names:
        path, _, last = name.rpartition(".")
        module = submodule(model, path)
        if module is not None and module._parameters.get(last) is base:
            yield name


def _unchanged(places: list[Place], own: nn.Parameter) -> Iterator[Place]:
    return (place for place in places if place.parameter is own)


def _interchangeable(one: nn.Parameter, other: nn.Parameter) -> bool:
    return (one.dtype, one.device, one.shape) == (other.dtype, other.device, other.shape)


def _in_parts(*places: Place) -> bool:
    return first_wrapper(place.module for place in places) is not None


def _check_forwards(places: list[Place], name: str) -> None:
    for place in places:
        if not can_run_with(place.module):
            raise IncompatibleDeltas(
                f"the forward of {type(place.module).__name__}, which has {name!r}, was replaced "
                "on the module, so no delta's own values can be used there. Attach with the base's "
                "dtype (`dtype=`), or before the forward is replaced."
            )


def _fit(parameter: nn.Parameter, like: nn.Parameter) -> None:
    """Gives a parameter the device of another, and its number of rows where that was resized.

    Rows that it lacks are those of the other.
    """
    if is_sharded(parameter) or is_sharded(like):
        return
    if parameter.device != like.device and like.device.type != "meta":
        parameter.data = parameter.data.to(like.device)
    have, want = parameter.shape, like.shape
    if have != want and have[1:] == want[1:] and len(have) == len(want) > 0:
        further = like.detach()[have[0] :].to(parameter.dtype)
        parameter.data = torch.cat([parameter.detach()[: want[0]], further])
        parameter.grad = None


# ------------------------------------------------------------------------- what a state dict holds


class BaseInStateDict:
    """Lets a state dict hold the base's own parameters at their keys, whatever is active."""

    def __init__(self, attachments: Attachments) -> None:
        self.attachments = attachments

    def __call__(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, displaced in self.attachments.running.displaced.items():
            base = self.attachments.base.places[name].parameter
            for each in displaced.names:
                if f"{prefix}{each}" in state:
                    kept = isinstance(state[f"{prefix}{each}"], nn.Parameter)
                    state[f"{prefix}{each}"] = base if kept else base.detach()


class BeforeLoading:
    """Puts the base's parameters into their places while a state dict is loaded.

    State dicts from before deltas had parameters of their own hold the active delta's values at the
    base's keys; they are loaded into the delta.
    """

    def __init__(self, attachments: Attachments, owners: Mapping[str, Attached]) -> None:
        self.attachments = attachments
        self.owners = {name: owner.name for name, owner in owners.items()}

    def __call__(self, model: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        for name, owner in self.owners.items():
            delta, key = f"{prefix}{CHILD}.delta_{owner}.", f"{prefix}{name}"
            own = f"{delta}own.{name}"
            if own not in state and key in state and any(k.startswith(delta) for k in state):
                state[own] = state[key]
                state[key] = self._base(model, name).detach().clone()
        for name, displaced in self.attachments.running.displaced.items():
            base = self.attachments.base.places[name].parameter
            for each in displaced.names:
                place_of(model, each).put(base)

    def _base(self, model: nn.Module, name: str) -> nn.Parameter:
        place = self.attachments.base.places.get(name, place_of(model, name))
        return place.parameter


class AfterLoading:
    """Puts the deltas' parameters back, which loading may have replaced by others."""

    def __init__(self, attachments: Attachments) -> None:
        self.attachments = attachments

    def __call__(self, model: nn.Module, *_: Any) -> None:
        for name, displaced in self.attachments.running.displaced.items():
            places = [place_of(model, each) for each in displaced.names]
            self.attachments.base.places[name].put(places[0].parameter)
            for place in places:
                place.put(displaced.own.parameter)


def _state_hooks(
    model: nn.Module, attachments: Attachments, owners: Mapping[str, Attached]
) -> Iterator[Any]:
    yield model.register_state_dict_post_hook(BaseInStateDict(attachments))
    yield model.register_load_state_dict_pre_hook(BeforeLoading(attachments, owners))
    yield model.register_load_state_dict_post_hook(AfterLoading(attachments))
