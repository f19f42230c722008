"""Bases that several processes hold in parts: what works on them, and what is refused.

``fully_shard`` puts distributed tensors into the modules. ``FullyShardedDataParallel`` and
DeepSpeed ZeRO-3 leave flat pieces there outside a forward pass.
"""

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from deltakit.errors import DeltakitError, IncompatibleDeltas
from deltakit.inject.attachments import CHILD


@dataclass(frozen=True, kw_only=True)
class Wrapper:
    """The holder of a module's parameters in parts.

    Attributes:
        name: its name.
        whole: the code inside which the values are whole; None where tensors know their wholes.
    """

    name: str
    whole: str | None = None


FULLY_SHARD = Wrapper(name="fully_shard")
FSDP = Wrapper(
    name="FullyShardedDataParallel",
    whole="with FullyShardedDataParallel.summon_full_params(wrapped, writeback=False):",
)
ZERO = Wrapper(
    name="DeepSpeed ZeRO-3",
    whole="with deepspeed.zero.GatheredParameters(list(model.parameters())):",
)


def is_sharded(tensor: Tensor) -> bool:
    """True if a tensor is distributed over devices (``torch.distributed.tensor.DTensor``)."""
    tensors: Any = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def wrapper_of(module: nn.Module) -> Wrapper | None:
    """The holder of the module's own parameters in parts; None where they are whole.

    ``fully_shard`` may leave plain tensors in its modules after a pass, so it is known by the mark
    that it leaves on them.
    """
    parameters = [each for each in module._parameters.values() if each is not None]
    if any("ds_id" in vars(each) for each in parameters):
        return ZERO
    if any(map(is_sharded, parameters)):
        return FULLY_SHARD
    if not vars(module).get("_is_fsdp_managed_module"):
        return None
    if not vars(module).get("_fsdp_use_orig_params"):
        return FSDP
    flat = any("_fsdp_flattened" in vars(each) for each in parameters)
    return FSDP if flat else FULLY_SHARD if parameters else None


def first_wrapper(modules: Iterable[nn.Module]) -> Wrapper | None:
    """The holder of the first of the modules that is held in parts; None if all are whole."""
    return next((found for each in modules if (found := wrapper_of(each))), None)


def check_attachable(model: nn.Module) -> None:
    """Raises `IncompatibleDeltas` where a further delta would be no part of what is wrapped.

    DeepSpeed partitions a base while it is loaded, and deltas when its engine is made.
    """
    wrapper = first_wrapper(_base_modules(model))
    if wrapper is not None and wrapper is not ZERO:
        raise IncompatibleDeltas(
            f"this {type(model).__name__} is wrapped by {wrapper.name}, which would not keep a new "
            "delta equal in all processes. Attach or load the deltas first, then wrap the model."
        )


def check_own_values(places: Iterable[nn.Module]) -> None:
    """Raises `IncompatibleDeltas` where no other values can be used at the modules."""
    wrapper = first_wrapper(places)
    if wrapper is not None and wrapper.whole is not None:
        raise IncompatibleDeltas(
            f"{wrapper.name} holds parameters of the base of which deltas have values of their own "
            "(head, biases, norms or embeddings), so the model cannot switch between them. "
            "Activate the delta before the model is wrapped, or use fully_shard."
        )


def check_whole(model: nn.Module, wanted: str) -> None:
    """Raises `DeltakitError` where values that are read are parts.

    Args:
        model: the model; its deltas are held as its base is.
        wanted: what reads them.
    """
    found = (_in_parts(each) for each in _base_modules(model))
    wrapper = next((each for each in found if each is not None), None)
    if wrapper is not None:
        raise DeltakitError(
            f"{wrapper.name} holds parts of this {type(model).__name__}'s parameters in each "
            f"process, and {wanted} needs whole ones. Call it in all processes inside "
            f"`{wrapper.whole}`."
        )


def _base_modules(model: nn.Module) -> Iterator[nn.Module]:
    """The modules of the base, without a look at the deltas, of which there may be many."""
    deltas = {model._modules[CHILD]} if CHILD in model._modules else set()
    return (module for _, module in model.named_modules(memo=deltas))  # type: ignore[arg-type]


def _in_parts(module: nn.Module) -> Wrapper | None:
    """The holder of pieces of the module's parameters at the moment. A linear's piece is flat."""
    for parameter in module._parameters.values():
        wanted = None if parameter is None else vars(parameter).get("ds_numel")
        if parameter is not None and wanted not in (None, parameter.numel()):
            return ZERO
    if wrapper_of(module) is not FSDP:
        return None
    weight = vars(module)["_parameters"].get("weight")
    linear = isinstance(module, nn.Linear | nn.Embedding)
    return FSDP if linear and (weight is None or weight.ndim != 2) else None
