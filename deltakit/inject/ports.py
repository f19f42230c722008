"""The only file that registers hooks: how a site is read while the model runs, and written back.

A port is a callable object, not a closure, so that a model with deltas can be deep-copied and
pickled. With nothing active there is no hook: the base runs as if deltakit were not there.
"""

import inspect
from collections.abc import Iterable
from functools import partial
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.hooks import RemovableHandle

from deltakit.core.compose import Gate, Node, Signal
from deltakit.core.delta import Regularised
from deltakit.core.ports import AddingPort
from deltakit.core.rows import Rows
from deltakit.core.site import Handle, Tap
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.attention import AttentionPort, Switch
from deltakit.inject.tokens import SequencePort


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


class NumbersPort(AddingPort):
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
        assert isinstance(node, Rows)
        each = signal.stream.expand(len(node.choice), -1)
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
    """Holds what one module was given until a port behind it takes it.

    Written anew by each forward pass before it is read, so a recomputed pass (gradient
    checkpointing) reads its own value, and nothing is kept alive after the read.
    """

    def __init__(self) -> None:
        self.held: Tensor | None = None

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.held = _first(args, kwargs)

    def take(self) -> Tensor:
        held, self.held = self.held, None
        assert held is not None, "the module that holds x ran after the one that needs it"
        return held


class RowsPort:
    """Checks that a batch has the rows that the active composition says."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        first = next(t for t in (*args, *kwargs.values()) if isinstance(t, Tensor) and t.ndim > 0)
        if first.shape[0] != self.rows:
            raise IncompatibleDeltas(
                f"PerRow has entries for {self.rows} rows, but the batch has {first.shape[0]}. "
                "Activate a PerRow with one entry for each row of this batch."
            )


Head = tuple[dict[str, Tensor], tuple[int, ...]]
"""Values by parameter, and the rows of the batch that use them."""


class HeadPort:
    """Runs one module of the task head with the values that each row's delta has for it."""

    def __init__(self, module: nn.Module, heads: list[Head]) -> None:
        self.run = _Forward(module)
        self.heads = heads

    def __call__(self, module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        for values, rows in self.heads:
            index = torch.tensor(rows, device=output.device)
            some, named = tree_map(partial(_some_rows, index, output.shape[0]), (args, kwargs))
            own = functional_call(self.run, values, some, named)
            output = output.index_copy(0, index, own)
        return output


class _Forward(nn.Module):
    """A module's forward without the hooks on it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _some_rows(index: Tensor, size: int, value: Any) -> Any:
    batched = isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == size
    return value.index_select(0, index) if batched else value


class GatePort:
    """Draws, once for every batch that is trained on, how many layers go without their deltas."""

    def __init__(self, gates: tuple[Gate, ...]) -> None:
        self.gates = gates

    def __call__(self, module: nn.Module, args: Any) -> None:
        for gate in self.gates:
            if module.training:
                gate.draw()
            else:
                gate.open()


class PenaltyPort:
    """Adds the regularisers' terms to what is trained on, in any training loop.

    A model that returns a loss returns it with the terms added, so they are logged, scaled and
    averaged with it. Where the loop computes its own loss from the outputs, the terms' gradient
    joins the backward pass with weight one. Where the loop accumulates gradients and says how many
    items the whole step has (transformers' Trainer does), each pass adds its share.
    """

    def __init__(self, parts: tuple[Regularised, ...]) -> None:
        self.parts = parts

    def __call__(self, module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        if not (module.training and torch.is_grad_enabled()):
            return output
        penalty = sum((part.penalty() for part in self.parts[1:]), self.parts[0].penalty())
        return _with_penalty(output, penalty * _share(module, kwargs))


def _share(model: Any, kwargs: dict[str, Any]) -> Tensor | float:
    """This pass's part of an optimiser step, counted as the Trainer counts: by labels."""
    items, labels = kwargs.get("num_items_in_batch"), kwargs.get("labels")
    if items is None or labels is None:
        return 1.0
    if "shift_labels" in kwargs:
        labels = kwargs["shift_labels"]
    elif model.loss_type == "ForCausalLM":  # each label is compared with the token before it
        labels = labels[..., 1:]
    return labels.ne(-100).sum() / items


class _JoinBackward(torch.autograd.Function):
    """Adds `penalty` to `loss`, or to the backward pass of `carriers` where `loss` is not used."""

    @staticmethod
    def forward(ctx: Any, penalty: Tensor, loss: Tensor | None, *carriers: Tensor) -> Any:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(penalty)
        joined = None if loss is None else loss + penalty.to(loss.device, loss.dtype)
        return joined, *(carrier.view_as(carrier) for carrier in carriers)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        of_loss, *of_carriers = grads
        (penalty,) = ctx.saved_tensors
        one = torch.ones_like(penalty)
        of_penalty = one if of_loss is None else of_loss.to(one.device, one.dtype)
        return of_penalty, of_loss, *of_carriers


def _with_penalty(output: Any, penalty: Tensor) -> Any:
    leaves, shape = tree_flatten(output)
    trained = [
        i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad
    ]
    loss = next((i for i in trained if leaves[i].ndim == 0), None)
    carriers = [i for i in trained if i != loss]
    joined = _JoinBackward.apply(
        penalty, None if loss is None else leaves[loss], *(leaves[i] for i in carriers)
    )
    if loss is not None:
        leaves[loss] = joined[0]
    for index, carrier in zip(carriers, joined[1:], strict=True):
        leaves[index] = carrier
    return tree_unflatten(leaves, shape)


class Removable(Protocol):
    """Something on a model that can be taken off again."""

    def remove(self) -> None:
        """Takes it off."""


def install(handle: Handle, node: Node) -> Iterable[Removable]:
    """Puts `node` at a site of the model, and says how to take it away again."""
    module = handle.module
    match handle.tap:
        case Tap.OUTPUT:
            reader = None
            if handle.reader is not None and node.reads_input:
                reader = Reader()
                yield handle.reader.register_forward_pre_hook(reader, with_kwargs=True)
            port = OutputPort(handle, node, reader)
            yield module.register_forward_hook(port, with_kwargs=True)
        case Tap.INPUT:
            yield module.register_forward_pre_hook(InputPort(node))
        case Tap.NORM:
            yield module.register_forward_hook(NormPort(module, node), with_kwargs=True)
        case Tap.ATTENTION:
            switch = Switch(module, AttentionPort(node))
            yield switch
            yield module.register_forward_pre_hook(switch)
        case Tap.NUMBERS:
            numbers = NumbersPort(handle, node)
            yield module.register_forward_pre_hook(numbers, with_kwargs=True)
        case Tap.SEQUENCE:
            tokens = SequencePort(handle, node)
            yield module.register_forward_pre_hook(tokens.lengthen, with_kwargs=True)
            yield module.register_forward_hook(tokens.shorten, with_kwargs=True)
            if handle.reader is not None:
                yield handle.reader.register_forward_pre_hook(tokens.widen, with_kwargs=True)
        case _:
            assert_never(handle.tap)


def install_gates(model: nn.Module, gates: tuple[Gate, ...]) -> RemovableHandle:
    """Makes each batch that is trained on draw which layers take part."""
    return model.register_forward_pre_hook(GatePort(gates))


def install_rows(model: nn.Module, rows: int) -> RemovableHandle:
    """Makes the model refuse a batch of another size."""
    return model.register_forward_pre_hook(RowsPort(rows), with_kwargs=True)


def install_heads(model: nn.Module, heads: list[Head]) -> Iterable[RemovableHandle]:
    """Makes the modules of the task head use, for each row, the values given for it."""
    children = dict.fromkeys(name.partition(".")[0] for values, _ in heads for name in values)
    for child in children:
        module, start = model.get_submodule(child), f"{child}."
        own = [
            ({_inner(k, start): v for k, v in values.items() if k.startswith(start)}, rows)
            for values, rows in heads
        ]
        yield module.register_forward_hook(HeadPort(module, own), with_kwargs=True)


def _inner(name: str, start: str) -> str:
    """The parameter's name in `_Forward`."""
    return f"module.{name.removeprefix(start)}"


def install_penalty(model: nn.Module, parts: tuple[Regularised, ...]) -> RemovableHandle:
    """Makes the regularisers of the active deltas part of the model's loss."""
    return model.register_forward_hook(PenaltyPort(parts), with_kwargs=True)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))
