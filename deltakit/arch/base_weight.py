"""The weights of a base's linear projections, however they are held."""

from dataclasses import dataclass

from torch import Tensor, nn

from deltakit.core.delta import precise
from deltakit.core.site import BaseLinear, Columns
from deltakit.models.quantised import codec_of


def weight_matrix(module: nn.Module) -> Tensor:
    """The weight as ``(out, in)``, in single precision at least."""
    codec = codec_of(module)
    if codec is not None:
        return codec.weight(module)
    place = module._parameters["weight"]  # a functional call puts a plain tensor there
    assert place is not None
    weight = precise(place.detach())
    return weight if isinstance(module, nn.Linear) else weight.T


def bias_vector(module: nn.Module) -> Tensor | None:
    """The bias in single precision at least, or None."""
    bias = module._parameters.get("bias")
    return None if bias is None else precise(bias.detach())


@dataclass(frozen=True, eq=False)
class ModuleLinear(BaseLinear):
    """A linear projection that is one module, or some columns of its output."""

    module: nn.Module
    columns: Columns | None

    def weight(self) -> Tensor:
        whole = weight_matrix(self.module)
        return whole if self.columns is None else self.columns.read(whole.T).T

    def bias(self) -> Tensor | None:
        whole = bias_vector(self.module)
        return whole if whole is None or self.columns is None else self.columns.read(whole)
