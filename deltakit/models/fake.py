"""Models without values: packed on the meta device, and run on fake tensors.

A fake tensor (torch's `FakeTensorMode`) has a shape, a dtype and a device, and no values. A model
on fake tensors runs forward and backward in seconds at any size, with the operations that the
device would run.
"""

import copy
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode

from deltakit.models.quantised import codec_class

if TYPE_CHECKING:
    from transformers import PreTrainedModel

M = TypeVar("M", bound=nn.Module)


def pack(model: "PreTrainedModel", quantisation: Any) -> None:
    """Gives a model on the meta device the packed linears that loading it quantised would give it.

    Args:
        model: not quantised, on the meta device.
        quantisation: transformers' quantisation config, with the modules to leave as they are.
    """
    from transformers.quantizers import AutoHfQuantizer

    quantiser = AutoHfQuantizer.from_config(quantisation, pre_quantized=False)
    shapes = {name: module.weight for name, module in _weighted(model)}
    quantiser.preprocess_model(model, device_map=None)
    shared: dict[str, Tensor] = {}
    for name, module in _weighted(model):
        codec = codec_class(module)
        if codec is not None:
            codec.pack_empty(module, shapes[name].dtype, shared)
        if module.weight is not shapes[name] and module.bias is not None:
            module.bias = nn.Parameter(module.bias.to(shapes[name].dtype), requires_grad=False)


def _weighted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if isinstance(module._parameters.get("weight"), Tensor):
            yield name, module


def on_fake_tensors(model: M, device: torch.device) -> tuple[M, FakeTensorMode]:
    """A copy of a model on fake tensors, and the mode to run it in.

    Args:
        model: with what is attached to it; usually on the meta device.
        device: where the copy seems to be.
    """
    copying = _CopyAsFake(FakeTensorMode(), device)
    memo: dict[int, Any] = {}
    with copying:
        for parameter in model.parameters():
            if type(parameter) is not nn.Parameter:
                memo[id(parameter)] = copying.subclassed(parameter, memo)
        return copy.deepcopy(model, memo), copying.fakes


class _CopyAsFake(TorchFunctionMode):
    """Makes `copy.deepcopy` put fake tensors where tensors are."""

    def __init__(self, fakes: FakeTensorMode, device: torch.device) -> None:
        super().__init__()
        self.fakes = fakes
        self.device = device

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        with torch._C.DisableTorchFunction():
            if func is Tensor.__deepcopy__:
                tensor, memo = args
                if id(tensor) not in memo:
                    memo[id(tensor)] = self._fake(FakeTensor, tensor)
                return memo[id(tensor)]
            if func is Tensor.clone:  # how a parameter is copied
                return self._fake(FakeTensor, args[0])
            return func(*args, **(kwargs or {}))

    def subclassed(self, parameter: Tensor, memo: dict[int, Any]) -> Tensor:
        """The parameter as a fake one of its own class, with the attributes that it has."""
        own = type(parameter)
        fake = self._fake(type(f"Fake{own.__name__}", (FakeTensor, own), {}), parameter)
        vars(fake).update({k: copy.deepcopy(v, memo) for k, v in _plain(parameter).items()})
        fake.requires_grad = parameter.requires_grad
        return fake

    def _fake(self, kind: Any, tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction():
            empty = torch.empty_strided(
                tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta"
            )
            return kind.__new__(kind, self.fakes, empty, self.device)


def _plain(parameter: Tensor) -> dict[str, Any]:
    """A parameter's attributes, the module left out that it may know."""
    return {k: v for k, v in vars(parameter).items() if not isinstance(v, nn.Module)}
