"""Weight formats: floating point, or quantised when the model is loaded."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from deltakit._registry import Registry
from deltakit.errors import InvalidConfig, MissingExtra

if TYPE_CHECKING:
    import torch

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
"""What models compute in, by torch's names."""


def dtype_of(name: str) -> torch.dtype:
    """The dtype of that name among torch's."""
    import torch

    found = getattr(torch, name)
    assert isinstance(found, torch.dtype)
    return found


@dataclass(frozen=True, kw_only=True)
class WeightFormat(ABC):
    """One way to hold a pretrained model's weights.

    Attributes:
        name: what users call it.
        compute_dtype: the default dtype of computation, by torch's name.
    """

    name: str
    compute_dtype: str

    @property
    def dtype(self) -> torch.dtype:
        """The default dtype of computation."""
        return dtype_of(self.compute_dtype)

    @abstractmethod
    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        """Raises where it cannot be had on the device, or in the dtype."""

    @abstractmethod
    def reads(self, stored: dict[str, Any] | None) -> bool:
        """True if a checkpoint with `stored` as its quantisation config has this format."""

    @abstractmethod
    def arguments(
        self, stored: dict[str, Any] | None, dtype: torch.dtype, skip: list[str]
    ) -> dict[str, Any]:
        """The arguments of `from_pretrained` to quantise, or to read quantised weights.

        Args:
            stored: the quantisation config of the checkpoint.
            dtype: what to compute in.
            skip: modules to leave as they are.
        """

    def quiet(self) -> None:
        """Turns off messages that come with every pass. None by default."""
        return


WEIGHT_FORMATS: Registry[WeightFormat] = Registry("base", group="weights")

F = TypeVar("F", bound=type[WeightFormat])


def register_weight_format(name: str, **fields: Any) -> Callable[[F], F]:
    """Class decorator: makes a format known by `name`, which ``--weights`` takes.

    Args:
        name: what users call it.
        fields: the other fields that this name sets; one class may have several names.

    Raises:
        NameInUse: another format has the name.
    """
    return WEIGHT_FORMATS.register_instance(name, name=name, **fields)


@register_weight_format("bf16", compute_dtype="bfloat16")
@register_weight_format("fp32", compute_dtype="float32")
@dataclass(frozen=True, kw_only=True)
class Floating(WeightFormat):
    """Every weight is a floating-point number."""

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        del device
        if dtype != self.dtype:
            raise InvalidConfig(
                f"base {self.name!r} is {self.dtype}, not {dtype}; dtype= is for quantised bases."
            )

    def reads(self, stored: dict[str, Any] | None) -> bool:
        return stored is None

    def arguments(
        self, stored: dict[str, Any] | None, dtype: torch.dtype, skip: list[str]
    ) -> dict[str, Any]:
        return {}


@register_weight_format("int8")
@register_weight_format("nf4")
@register_weight_format("fp4")
@dataclass(frozen=True, kw_only=True)
class Bitsandbytes(WeightFormat):
    """Linears in eight bits, or in four with their statistics quantised too."""

    compute_dtype: str = "bfloat16"
    package: ClassVar[str] = "bitsandbytes"

    def check(self, device: torch.device, dtype: torch.dtype) -> None:
        del dtype
        if find_spec(self.package) is None:
            raise MissingExtra(
                f"base {self.name!r} needs the package {self.package!r}, which is not installed. "
                'From a checkout: pip install -e ".[quant]". Or take the base fp32 or bf16.'
            )
        from bitsandbytes import supported_torch_devices

        if device.type not in supported_torch_devices:
            raise InvalidConfig(
                f"base {self.name!r}: {self.package} does not run on {device.type!r}, only on "
                f"{', '.join(sorted(supported_torch_devices))}. Take the base fp32 or bf16 there."
            )

    def reads(self, stored: dict[str, Any] | None) -> bool:
        if stored is None or stored.get("quant_method") != self.package:
            return False
        if stored.get("load_in_8bit"):
            return self.name == "int8"
        return bool(stored.get("bnb_4bit_quant_type", "fp4") == self.name)

    def arguments(
        self, stored: dict[str, Any] | None, dtype: torch.dtype, skip: list[str]
    ) -> dict[str, Any]:
        from transformers import BitsAndBytesConfig

        if stored is not None:
            left = [*(stored.get("llm_int8_skip_modules") or ()), *skip]
            stored["llm_int8_skip_modules"] = list(dict.fromkeys(left))
            return {}
        if self.name == "int8":
            config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        else:
            config = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type=self.name,
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=skip,
            )
        return {"quantization_config": config}

    def quiet(self) -> None:
        # int8 says once for each linear and pass that it casts to fp16.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
