"""From a model to its handles: the family's data file applied to the model's own modules."""

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from deltakit.arch.family import FAMILIES, Family, LayerStack, Location
from deltakit.core.delta import compute_dtype
from deltakit.core.site import LINEAR_SITES, Handle, Site, Tap
from deltakit.errors import UnknownArchitecture, UnknownName

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def family_of(model: "PreTrainedModel") -> Family:
    """The family of a model.

    Raises:
        UnknownArchitecture: no family has the model's `model_type`.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UnknownArchitecture(
            f"{type(model).__name__} is no transformers model (PreTrainedModel); attach to the "
            "transformers model inside it."
        )
    importlib.import_module("deltakit.arch.families")
    model_type = model.config.model_type
    try:
        return FAMILIES.get(model_type)
    except UnknownName as error:
        raise UnknownArchitecture(
            f"{error} `deltakit sites MODEL` prints this model's repeated modules, from which "
            "`deltakit.register_family(Family(...))` makes it known."
        ) from None


def resolve(model: "PreTrainedModel") -> tuple[Handle, ...]:
    """Every site of every layer of a model, layer by layer.

    Raises:
        UnknownArchitecture: the model's family is unknown, or its modules are not where the
            family's data file says.
    """
    family = family_of(model)
    names = {module: name for name, module in model.named_modules()}
    return tuple(
        handle for stack in family.stacks for handle in _stack_handles(model, stack, names)
    )


def _stack_handles(
    model: "PreTrainedModel", stack: LayerStack, names: dict[nn.Module, str]
) -> Iterator[Handle]:
    layers = _submodule(model.base_model, stack.layers, model)
    assert isinstance(layers, nn.ModuleList)
    for index, layer in enumerate(layers):
        for site, location in stack.sites.items():
            module = _submodule(layer, location.path, model)
            reader = None if location.reads is None else _submodule(layer, location.reads, model)
            d_in, d_out = _widths(site, location, module, model)
            yield Handle(
                site=site,
                stack=stack.name,
                layer=index,
                path=names[module],
                module=module,
                tap=location.tap,
                reader=reader,
                d_in=d_in,
                d_out=d_out,
                columns=None if location.columns is None else location.columns(model.config),
                dtype=_dtype(module, layer, model.dtype),
                device=_device(module, layer),
            )


def _submodule(root: nn.Module, path: str, model: "PreTrainedModel") -> nn.Module:
    try:
        return root.get_submodule(path)
    except AttributeError:
        raise UnknownArchitecture(
            f"{type(model).__name__} says model_type={model.config.model_type!r}, but "
            f"{type(root).__name__} has no module {path!r}. `deltakit sites MODEL` prints the "
            "modules that it has."
        ) from None


def _widths(
    site: Site, location: Location, module: nn.Module, model: "PreTrainedModel"
) -> tuple[int, int]:
    """What a parallel delta reads, and what is changed."""
    if site not in LINEAR_SITES and location.tap is not Tap.INPUT:
        return model.config.hidden_size, model.config.hidden_size
    d_in, d_out = linear_widths(module)
    if location.tap is Tap.INPUT:
        return d_in, d_in
    if location.columns is not None:
        first, end = location.columns(model.config)
        return d_in, end - first
    return d_in, d_out


def linear_widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear projection, transformers' transposed Conv1D included.

    Raises:
        UnknownArchitecture: the module is no linear projection.
    """
    from transformers.pytorch_utils import Conv1D

    match module:
        case nn.Linear():  # bitsandbytes' quantised linears are among them
            return module.in_features, module.out_features
        case Conv1D():
            return module.nx, module.nf
        case _:
            raise UnknownArchitecture(
                f"{type(module).__name__} is no linear projection that deltakit knows (nn.Linear "
                "and its subclasses, transformers' Conv1D)."
            )


def _dtype(module: nn.Module, layer: nn.Module, default: torch.dtype) -> torch.dtype:
    """What the module computes in: its own floating parameters', its layer's, or the model's."""
    return compute_dtype(module) or compute_dtype(layer) or default


def _device(module: nn.Module, layer: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return (next(layer.parameters()) if first is None else first).device
