"""The hooks at sites: how a site is read while the model runs, and written back.

A port is a callable object, not a closure, so that a model with deltas can be deep-copied and
pickled. With nothing active no hook is installed: the base runs as without deltakit.
"""

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol, assert_never

import torch
from torch import Tensor, nn

from deltakit.core.site import Handle, HookKind, Site
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.attention import AttentionPort, Switch
from deltakit.runtime.batch_rows import PerRowNode
from deltakit.runtime.disentangled import DisentangledPort, Replaced
from deltakit.runtime.nodes import Node, Signal
from deltakit.runtime.passes import BLOCK, NOTHING, Owner, Stream, current_pass
from deltakit.runtime.port_kinds import AddingPort, SitePort
from deltakit.runtime.tables import tables_of
from deltakit.runtime.tokens import TokensPort
from deltakit.runtime.twins import Forward


class OutputPort(SitePort, AddingPort):
    """h is what the module returns, x what it was given (or what the handle's reader was given)."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        self.columns = handle.columns
        self.elsewhere = handle.reader is not None

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        node, output = self.find(), rest[-1]
        if node is None:
            return output
        x = self._kept(node) if self.elsewhere else None
        x = _first(args, rest[0]) if x is None else x
        whole = output[0] if isinstance(output, tuple) else output
        h = whole if self.columns is None else self.columns.read(whole)
        x = x.flatten(0, -2) if x.ndim > h.ndim else x  # rows and tokens may leave on one axis
        changed = node.applied(Signal(x, h, h), self)
        if self.columns is not None:
            changed = self.columns.write(whole, changed)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    def _kept(self, node: Node) -> Tensor | None:
        """What the module that has x was given; None where no delta reads it."""
        kept: Tensor | None = current_pass().held.pop(self.key, None)
        assert kept is not None or not node.reads_input, "x is given after it is needed"
        return kept

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.stream + change
        return Signal(signal.x, h, h)


class TablePort(OutputPort):
    """h is the vectors that a table of embeddings has for tokens, x is their ids."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        self.handle = handle

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        if is_resized(self.handle) and self.find() is not None:
            self._check(_first(args, rest[0]))
        return super().__call__(module, args, *rest)

    def _check(self, ids: Tensor) -> None:
        """Raises `IncompatibleDeltas` for a token that the delta knows nothing of."""
        known, compiling = self.handle.d_in, torch.compiler.is_compiling()
        last = 0 if compiling or not ids.numel() else int(ids.max())
        if last >= known:
            raise IncompatibleDeltas(
                f"token {last} is new: {self.handle.path!r} was resized after a delta of its first "
                f"{known} rows was attached. Leave the new tokens out, or `detach` the delta and "
                "attach one to the resized model."
            )


def is_resized(handle: Handle) -> bool:
    """True if a table of embeddings has more rows than the deltas there are for."""
    table = handle.module
    return isinstance(table, nn.Embedding) and table.num_embeddings > handle.d_in


class InputPort(SitePort, AddingPort):
    """h is what the module is given."""

    def __call__(self, module: nn.Module, args: Any) -> Any:
        node = self.find()
        if node is None:
            return args
        h = args[0]
        return (node.applied(Signal(h, h, h), self), *args[1:])

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        h = signal.stream + change
        return Signal(h, h, h)


class PositionIdsPort(SitePort, AddingPort):
    """h is the number of each token in the sequence, ``(rows, tokens)``; padding's stays its own.

    What the module does with the numbers, it does at every step of a cached sequence.
    """

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        names = [*inspect.signature(handle.module.forward).parameters]
        self.name = "position_ids" if "position_ids" in names else names[0]
        self.place = names.index(self.name)
        self.limit = handle.limit
        self.fitting: set[int] = set()

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> Any:
        node = self.find()
        if node is None:
            return None
        named = self.name in kwargs
        given = kwargs[self.name] if named else args[self.place]
        changed = node.applied(Signal(given, given, given), self)
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

    def add_rows(self, node: Node, signal: Signal) -> Tensor:
        return signal.stream + self.rows(node, signal)

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


class NormPort(SitePort, AddingPort):
    """h = norm(s): the change is made to the stream s, and the norm runs again."""

    def __init__(self, owner: Owner, handle: Handle) -> None:
        super().__init__(owner, handle)
        self.norm = handle.module
        self.forward = Forward(handle.module)

    def __call__(self, module: nn.Module, args: Any, *rest: Any) -> Any:
        node, output = self.find(), rest[-1]
        if node is None:
            return output
        stream = _first(args, rest[0])
        changed = node.applied(Signal(stream, output, stream), self)
        return self._normalised(changed)

    def advance(self, signal: Signal, change: Tensor) -> Signal:
        stream = signal.stream + change
        return Signal(stream, self._normalised(stream), stream)

    def _normalised(self, stream: Tensor) -> Tensor:
        """The norm of the stream, without the hooks on it: this port is one."""
        own = tables_of(self.owner).own.get(self.norm)
        normalised: Tensor = (
            self.norm.forward(stream) if own is None else self.forward.run(own, (stream,), {})
        )
        return normalised


class Reader(SitePort):
    """Keeps in the pass what one module was given, until a port behind it takes it."""

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        if self.find() is not None:
            current_pass().held[self.key] = _first(args, kwargs)


class BlockReader:
    """Keeps in the pass the stream that enters a block, until the next block begins."""

    def __init__(self, owner: Owner) -> None:
        self.owner = owner

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        running = current_pass()
        if running.owner is self.owner:
            running.held[BLOCK] = Stream(_first(args, kwargs))


class AttentionReader(SitePort):
    """Keeps in the pass what an attention module was given, for keys and values that depend on it.

    The first argument is the representation of the tokens that ask.
    """

    def __call__(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        node = self.find()
        if node is not None and node.depends:
            current_pass().held[self.key] = _first(args, kwargs)


class Removable(Protocol):
    """Something on a model that can be taken off again."""

    def remove(self) -> None:
        """Takes it off."""


def install(owner: Owner, handle: Handle) -> Iterable[Removable]:
    """Lets the nodes of the owner's tables act at a site of the model."""
    module = handle.module
    match handle.hook_kind:
        case HookKind.OUTPUT:
            kind = TablePort if handle.site is Site.EMBED else OutputPort
            yield module.register_forward_hook(kind(owner, handle), with_kwargs=True)
        case HookKind.INPUT:
            yield module.register_forward_pre_hook(InputPort(owner, handle))
        case HookKind.NORM:
            yield module.register_forward_hook(NormPort(owner, handle), with_kwargs=True)
        case HookKind.ATTENTION:
            switch = Switch(module, AttentionPort(owner, handle))
            yield switch
            yield module.register_forward_pre_hook(switch)
            reader = AttentionReader(owner, handle)
            yield module.register_forward_pre_hook(reader, with_kwargs=True)
        case HookKind.DISENTANGLED:
            port = DisentangledPort(owner, handle)
            yield Replaced(port)
            yield module.register_forward_pre_hook(port.begin, with_kwargs=True)
            yield module.register_forward_hook(port.end)
        case HookKind.POSITION_IDS:
            numbers = PositionIdsPort(owner, handle)
            yield module.register_forward_pre_hook(numbers, with_kwargs=True)
        case HookKind.INPUT_EMBEDS:
            tokens = TokensPort(owner, handle)
            yield module.register_forward_pre_hook(tokens.lengthen, with_kwargs=True)
            yield module.register_forward_hook(tokens.shorten, with_kwargs=True)
            if handle.reader is not None:
                yield handle.reader.register_forward_pre_hook(tokens.widen, with_kwargs=True)
        case _:
            assert_never(handle.hook_kind)


def install_reader(owner: Owner, handle: Handle) -> Iterator[Removable]:
    """Keeps x for a site where another module than the site's own is given it."""
    if handle.hook_kind is HookKind.OUTPUT and handle.reader is not None:
        reader = Reader(owner, handle)
        yield handle.reader.register_forward_pre_hook(reader, with_kwargs=True)


def install_block(owner: Owner, block: nn.Module) -> Removable:
    """Keeps the stream that enters a block."""
    return block.register_forward_pre_hook(BlockReader(owner), with_kwargs=True)


def _first(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    return args[0] if args else next(iter(kwargs.values()))
