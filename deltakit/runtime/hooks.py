"""The hooks at sites: how a site is read while the model runs, and written back.

A port is a callable object, not a closure, so that a model with deltas can be deep-copied and
pickled. With nothing active there is no hook: the base runs as if deltakit were not there.
"""

import inspect
from collections.abc import Iterable
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltakit.core.site import Handle, HookKind
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.attention import AttentionPort, Switch
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.nodes import Node, Signal
from deltakit.runtime.passes import LayerDrop, current_pass
from deltakit.runtime.port_kinds import AddingPort
from deltakit.runtime.tokens import TokensPort


class OutputPort(AddingPort):
    """h is what the module returns, x what it was given (or what `reader` was given)."""

    def __init__(self, handle: Handle, node: Node, reader: "Reader | None") -> None:
        self.columns = handle.columns
        self.node = node
        self.reader = reader

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        x = _first(args, kwargs) if self.reader is None else self.reader.take()
        if not self.node.present:
            return output
        whole = output[0] if isinstance(output, tuple) else output
        h = whole if self.columns is None else self.columns.read(whole)
        changed = self.node.applied(Signal(x, h, h), self)
        if self.columns is not None:
            changed = self.columns.write(whole, changed)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.stream + change
        return Signal(signal.x, h, h)


class InputPort(AddingPort):
    """h is what the module is given."""

    def __init__(self, node: Node) -> None:
        self.node = node

    def __call__(self, module: nn.Module, args: Any) -> Any:
        if not self.node.present:
            return args
        h = args[0]
        return (self.node.applied(Signal(h, h, h), self), *args[1:])

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.stream + change
        return Signal(h, h, h)


class PositionIdsPort(AddingPort):
    """h is the number of each token in the sequence, ``(rows, tokens)``; padding's stays its own.

    What the module does with the numbers, it does at every step of a cached sequence.
    """

    def __init__(self, handle: Handle, node: Node) -> None:
        names = [*inspect.signature(handle.module.forward).parameters]
        self.name = "position_ids" if "position_ids" in names else names[0]
        self.place = names.index(self.name)
        self.limit = handle.limit
        self.node = node
        self.fitting: set[int] = set()

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        if not self.node.present:
            return args, kwargs
        named = self.name in kwargs
        given = kwargs[self.name] if named else args[self.place]
        changed = self.node.applied(Signal(given, given, given), self)
        padding = module.padding_idx if isinstance(module, nn.Embedding) else None
        if padding is not None:
            changed = torch.where(given == padding, given, changed)
        self._check(changed)
        if named:
            return args, {**kwargs, self.name: changed}
        return (*args[: self.place], changed, *args[self.place + 1 :]), kwargs

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.stream + change
        return Signal(h, h, h)

    def rows(self, node: Node, signal: Signal) -> Tensor:
        """As for any site; the model may have numbered the tokens once for all rows."""
        assert isinstance(node, PerRowNode)
        counts = current_pass().rows
        rows = len(node.choice) if counts is None else counts.whole()
        each = signal.stream.expand(rows if signal.stream.shape[0] == 1 else -1, -1)
        return super().rows(node, Signal(each, each, each))

    def _check(self, numbers: Tensor) -> None:
        """Raises `IncompatibleDeltas` for a number that the model does not know.

        Asking an accelerator has it wait, so there it is asked once for each length.
        """
        length = numbers.shape[-1]
        known = length in self.fitting and numbers.device.type != "cpu"
        if self.limit is None or known or torch.compiler.is_compiling():
            return
        last = int(numbers.max())
        if last >= self.limit:
            raise IncompatibleDeltas(
                f"with the positions that the deltas add, a token has number {last}, but the model "
                f"knows 0 to {self.limit - 1}. Shorten the input by {last - self.limit + 1}."
            )
        self.fitting.add(length)


class NormPort(AddingPort):
    """h = norm(s): the change is made to the stream s, and the norm runs again."""

    def __init__(self, norm: nn.Module, node: Node) -> None:
        self.norm = norm
        self.node = node

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        if not self.node.present:
            return output
        stream = _first(args, kwargs)
        changed = self.node.applied(Signal(stream, output, stream), self)
        return self.norm.forward(changed)  # not __call__: this hook is on it

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        stream = signal.stream + change
        return Signal(stream, self.norm.forward(stream), stream)


class Reader:
    """Keeps in the pass what one module was given, until a port behind it takes it."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        current_pass().held[self.key] = _first(args, kwargs)

    def take(self) -> Tensor:
        """What was kept. The pass keeps it no longer."""
        held: Tensor | None = current_pass().held.pop(self.key, None)
        assert held is not None, "the module that holds x ran after the one that needs it"
        return held


class LayerDropPort:
    """Draws, for every batch that is trained on, how many layers run without their deltas."""

    def __init__(self, gates: tuple[LayerDrop, ...]) -> None:
        self.gates = gates

    def __call__(self, module: nn.Module, args: Any) -> None:
        if module.training:
            dropped = current_pass().dropped
            for gate in self.gates:
                dropped[gate] = gate.draw()


class Removable(Protocol):
    """Something on a model that can be taken off again."""

    def remove(self) -> None:
        """Takes it off."""


def install(handle: Handle, node: Node) -> Iterable[Removable]:
    """Puts `node` at a site of the model, and says how to take it away again."""
    module = handle.module
    match handle.hook_kind:
        case HookKind.OUTPUT:
            reader = None
            if handle.reader is not None and node.reads_input:
                reader = Reader(handle.key)
                yield handle.reader.register_forward_pre_hook(reader, with_kwargs=True)
            port = OutputPort(handle, node, reader)
            yield module.register_forward_hook(port, with_kwargs=True)
        case HookKind.INPUT:
            yield module.register_forward_pre_hook(InputPort(node))
        case HookKind.NORM:
            yield module.register_forward_hook(NormPort(module, node), with_kwargs=True)
        case HookKind.ATTENTION:
            switch = Switch(module, AttentionPort(node))
            yield switch
            yield module.register_forward_pre_hook(switch)
        case HookKind.POSITION_IDS:
            numbers = PositionIdsPort(handle, node)
            yield module.register_forward_pre_hook(numbers, with_kwargs=True)
        case HookKind.INPUT_EMBEDS:
            tokens = TokensPort(handle, node)
            yield module.register_forward_pre_hook(tokens.lengthen, with_kwargs=True)
            yield module.register_forward_hook(tokens.shorten, with_kwargs=True)
            if handle.reader is not None:
                yield handle.reader.register_forward_pre_hook(tokens.widen, with_kwargs=True)
        case _:
            assert_never(handle.hook_kind)


def install_gates(model: nn.Module, gates: tuple[LayerDrop, ...]) -> RemovableHandle:
    """Makes each batch that is trained on draw which layers take part."""
    return model.register_forward_pre_hook(LayerDropPort(gates))


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))
