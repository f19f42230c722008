"""Linears whose weight is held in fewer bits: reading it in full, counting it, holding another.

A library is supported by one codec for each of its classes, found by the class's full name, so
a library is imported only where a model has its modules already.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deltakit._registry import Registry


class Codec(ABC):
    """The storage of weights in one class of linears."""

    @abstractmethod
    def holds(self, module: nn.Module) -> bool:
        """True if this module's weight is quantised: some are left in full."""

    @abstractmethod
    def weight(self, module: nn.Module) -> Tensor:
        """The weight that the module computes with, ``(out, in)``, in single precision."""

    @abstractmethod
    def stored(self, module: nn.Module) -> Iterator[Tensor]:
        """All tensors that the weight is held in: packed values, statistics, codebooks."""

    @abstractmethod
    def like(self, module: nn.Module, weight: Tensor) -> nn.Module:
        """A module of the same kind, bias and hooks that holds `weight`, ``(out, in)``, rounded."""

    @abstractmethod
    def pack_empty(self, module: nn.Module, dtype: torch.dtype, shared: dict[str, Tensor]) -> None:
        """Packs the weight of a module on the meta device: its tensors then have their sizes.

        Args:
            module: not quantised yet.
            dtype: of the weight before.
            shared: the tensors that all modules of a model have in common, filled here.
        """

    def keep_as_loaded(self, module: nn.Module) -> "TemporaryAttribute | None":
        """Keeps the module from changing how its weight is held, until that is taken back."""
        del module
        return None


CODECS: Registry[Codec] = Registry("class of quantised linears")
"""By the full name of the modules' class."""


def codec_class(module: nn.Module) -> Codec | None:
    """The codec of the module's class, or None."""
    names = (f"{each.__module__}.{each.__qualname__}" for each in type(module).__mro__)
    found = next((name for name in names if name in CODECS), None)
    return None if found is None else CODECS.get(found)


def codec_of(module: nn.Module) -> Codec | None:
    """The codec of a module whose weight is quantised; None where it is not."""
    codec = codec_class(module)
    return codec if codec is not None and codec.holds(module) else None


def stored_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a model is held in: parameters, buffers, what quantised weights need."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        codec = codec_of(module)
        if codec is not None:
            yield from codec.stored(module)


def dequantised_linear(module: nn.Module, weight: Tensor) -> nn.Linear:
    """A plain linear with the module's bias and hooks, and `weight`, ``(out, in)``."""
    twin = _clone_shell(module, weight)
    twin.__class__ = nn.Linear  # a copy of our own: what else it has means nothing to its forward
    twin.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    assert isinstance(twin, nn.Linear)
    return twin


def keep_as_loaded(model: nn.Module) -> "list[TemporaryAttribute]":
    """Keeps every quantised linear of a model as it is held now."""
    found = ((codec_of(module), module) for module in model.modules())
    held = (codec.keep_as_loaded(module) for codec, module in found if codec is not None)
    return [each for each in held if each is not None]


def trainable(model: nn.Module) -> "list[TemporaryAttribute]":
    """Lets transformers' Trainer train a quantised model whose deltas are not PEFT's.

    It depends on the model's `is_quantized`, which only `half` and `float` read.
    """
    return (
        [TemporaryAttribute(model, "is_quantized", False)]
        if vars(model).get("is_quantized")
        else []
    )


def _clone_shell(module: Any, weight: Tensor) -> Any:
    """A copy that shares the bias and the hooks; its weight is still the module's."""
    twin = copy.copy(module)
    twin._parameters = dict(module._parameters)
    for name in ("forward", "_old_forward", "_hf_hook"):  # accelerate's are bound to the module
        vars(twin).pop(name, None)
    twin.out_features, twin.in_features = weight.shape
    return twin


# ---------------------------------------------------------------------------------- bitsandbytes


@CODECS.register_instance("bitsandbytes.nn.modules.Linear4bit")
class FourBit(Codec):
    """bitsandbytes' Linear4bit: nf4 or fp4 in blocks, with or without double quantisation."""

    def holds(self, module: Any) -> bool:
        from bitsandbytes.nn import Params4bit

        return isinstance(module.weight, Params4bit) and module.weight.quant_state is not None

    def weight(self, module: Any) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        _unpack(module)
        return dequantize_4bit(module.weight.data, module.weight.quant_state).float()

    def stored(self, module: Any) -> Iterator[Tensor]:
        state = module.weight.quant_state
        yield module.weight.data
        for part in (state, vars(state).get("state2")):
            if part is not None:
                yield from (v for v in vars(part).values() if isinstance(v, Tensor))

    def like(self, module: Any, weight: Tensor) -> nn.Module:
        from bitsandbytes.nn import Params4bit

        old, twin = module.weight, _clone_shell(module, weight)
        twin.weight = Params4bit(
            weight.to(old.quant_state.dtype).contiguous(),
            blocksize=old.blocksize,
            compress_statistics=old.compress_statistics,
            quant_type=old.quant_type,
            quant_storage=old.quant_storage,
            module=twin,
        ).to(old.device)  # which quantises it
        return twin

    def pack_empty(self, module: Any, dtype: torch.dtype, shared: dict[str, Tensor]) -> None:
        from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise
        from bitsandbytes.nn import Params4bit

        old = module.weight
        settings = {
            "blocksize": old.blocksize,
            "quant_type": old.quant_type,
            "quant_storage": old.quant_storage,
        }
        packed, state = quantize_4bit(old.data.to(dtype), **settings)
        if old.compress_statistics:
            # The library's own table is given, or it would keep an empty one for later use.
            table = shared.setdefault("nested", torch.empty(256, device="meta"))
            offset = state.absmax.mean()
            nested, second = quantize_blockwise(state.absmax - offset, code=table, blocksize=256)
            state = QuantState(
                absmax=nested,
                shape=state.shape,
                dtype=state.dtype,
                blocksize=state.blocksize,
                code=state.code,
                quant_type=state.quant_type,
                offset=offset,
                state2=second,
            )
        module.weight = Params4bit(
            packed,
            quant_state=state,
            compress_statistics=old.compress_statistics,
            bnb_quantized=True,
            **settings,
        )
        module.quant_state = state

    def keep_as_loaded(self, module: Any) -> "TemporaryAttribute":
        """On some CPUs an evaluation repacks the weight: coarser statistics, no backward pass."""
        _unpack(module)
        return TemporaryAttribute(module, "support_avx512bf16_for_cpu", False)


def _unpack(module: Any) -> None:
    if vars(module.weight.quant_state).get("packing_format_for_cpu"):
        module.state_dict()  # which is how the library itself goes back to the plain layout


@CODECS.register_instance("bitsandbytes.nn.modules.Linear8bitLt")
class EightBit(Codec):
    """bitsandbytes' Linear8bitLt: int8 with one statistic for each row."""

    def holds(self, module: Any) -> bool:
        from bitsandbytes.nn import Int8Params

        return isinstance(module.weight, Int8Params) and module.weight.dtype == torch.int8

    def weight(self, module: Any) -> Tensor:
        return module.weight.data.float() * (_rows(module).float() / 127)[:, None]

    def stored(self, module: Any) -> Iterator[Tensor]:
        yield module.weight.data
        yield _rows(module)

    def like(self, module: Any, weight: Tensor) -> nn.Module:
        from bitsandbytes.nn import Int8Params

        twin = _clone_shell(module, weight)
        twin.state = copy.copy(module.state)
        twin.state.CB = twin.state.SCB = None  # the first pass takes them from the weight
        new = Int8Params(weight.cpu(), requires_grad=False, has_fp16_weights=False)
        twin.weight = new.to(module.weight.device)
        return twin

    def pack_empty(self, module: Any, dtype: torch.dtype, shared: dict[str, Tensor]) -> None:
        from bitsandbytes.nn import Int8Params

        del dtype, shared
        packed = torch.empty(module.weight.shape, dtype=torch.int8, device="meta")
        rows = torch.empty(module.weight.shape[0], device="meta")
        module.weight = Int8Params(packed, requires_grad=False, CB=packed, SCB=rows)
        # How many columns have outliers depends on values, so they are left out.
        module.state.threshold = 0.0


def _rows(module: Any) -> Tensor:
    """The largest magnitude of each row; the first pass moves it from the weight to the state."""
    return module.state.SCB if module.weight.SCB is None else module.weight.SCB


@dataclass(eq=False)
class TemporaryAttribute:
    """A temporary value of a module's attribute."""

    module: nn.Module
    name: str
    value: Any

    def __post_init__(self) -> None:
        own = vars(self.module)
        own[self.name], self.value = self.value, own.get(self.name)

    def remove(self) -> None:
        """Restores the attribute."""
        vars(self.module)[self.name] = self.value
