"""One forward pass: what its parts need from each other, and what recomputation needs again.

The first of a model's hooked modules that is called opens a `Pass`, and closes it when it returns.
Ports ask `current_pass` for it. Passes are kept on a stack of the calling thread, so two threads,
or a model that calls itself, share nothing. A module that is called inside a pass belongs to it,
unless it is called inside a further `using`.

Activation checkpointing runs a layer a second time in the backward pass, when the pass is closed. A
model's checkpointing function is wrapped, so that the layer runs again in its own pass.
"""

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType, MethodType
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltakit.core.site import Handle
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.row_counts import RowCounts
from deltakit.runtime.twins import is_offloaded
from deltakit.runtime.uses import Use, current_uses, entered

NOTHING: Mapping[str, Any] = MappingProxyType({})
"""No arguments by name: of a hook whose flag another thread has not set yet."""

DECODER = ("decoder", "cross")
"""The stacks whose tokens are those of an encoder-decoder's ``decoder_`` arguments."""

INPUTS = (
    "input_ids",
    "decoder_input_ids",
    "attention_mask",
    "position_ids",
    "decoder_attention_mask",
    "decoder_position_ids",
)
"""The arguments that a pass notes."""


BLOCK = "block"
"""The key under which a pass holds the `Stream` of the block that runs."""


@dataclass(frozen=True, eq=False)
class Stream:
    """The stream that enters a block, and what modules have made of it in this pass."""

    stream: Tensor
    made: dict[nn.Module, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class LayerDrop:
    """The number of the lowest layers that run without their deltas in one forward pass.

    AdapterDrop draws the number for each batch that is trained on (Rücklé et al. 2021).
    """

    up_to: int

    def draw(self) -> int:
        """A number from 0 to `up_to`, each equally often."""
        return int(torch.randint(self.up_to + 1, ()))


@dataclass(kw_only=True, eq=False)
class Pass:
    """The arguments and random draws of one call of a model. Only the thread of the call uses it.

    Attributes:
        owner: what the model runs by; a pass of another model has another. None outside any call.
        tables: what the pass runs with.
        inputs: by name, those of `INPUTS` that the call's module can be given. None for one that
            was not given, and for a mask that is not ``(rows, tokens)``.
        tasks: the index of the task of all rows, or of each; None where none is named.
        unread: the names of those that were given in another shape.
        rows_given: the rows of the call.
        cached: how many tokens the call's cache held before it.
        dropped: how many of the lowest layers run without their deltas, by the drop that drew it.
        losses: the values of the losses that deltas add in this pass. A recomputed layer adds
            none.
        loss_weight: the weight of these losses, once the backward pass has begun. Recomputed
            layers share it.
        rows: the numbers of rows, where a `PerRow` is active.
        recomputed: whether a checkpointed layer runs again in the backward pass.
        held: what one port keeps for another, by a key; empty again when the pass is over.
        cast: the latest input that was cast for a delta, and the result.
        inside: the paths of the hooked modules that are running, the outermost first.
        alone: whether other threads' passes of offloaded bases wait for this one.
        uses: how many uses inside one another the call was made in; None where a layer runs again.
    """

    owner: "Owner | None" = None
    tables: "PassTables | None" = None
    inputs: dict[str, Tensor | None] = field(default_factory=dict)
    tasks: tuple[int, ...] | None = None
    unread: frozenset[str] = frozenset()
    rows_given: int | None = None
    cached: int = 0
    dropped: dict[LayerDrop, int] = field(default_factory=dict)
    losses: list[Tensor] = field(default_factory=list)
    loss_weight: list[Tensor] = field(default_factory=list)
    rows: RowCounts | None = None
    recomputed: bool = False
    held: dict[str, Any] = field(default_factory=dict)
    cast: tuple[Tensor, Tensor] | None = None
    inside: list[str] = field(default_factory=list)
    alone: bool = False
    uses: int | None = None

    def attention_mask(self, stack: str) -> Tensor | None:
        """The padding mask ``(rows, tokens)`` of the tokens in a stack of layers, or None.

        A model of two towers has one mask, the text's: see that its shape fits.
        """
        return self._input("attention_mask", stack)

    def position_ids(self, stack: str) -> Tensor | None:
        """The numbers ``(rows, tokens)`` that the call gave the stack's tokens, or None."""
        return self._input("position_ids", stack)

    def input_ids(self, stack: str) -> Tensor | None:
        """The ids ``(rows, tokens)`` that the call gave as the stack's tokens, or None."""
        return self._input("input_ids", stack)

    def past(self, stack: str) -> int:
        """The number of a stack's tokens that are cached, and not given again in this call."""
        two_stacks = "decoder_attention_mask" in self.inputs
        return self.cached if stack in DECODER or not two_stacks else 0

    def _input(self, name: str, stack: str) -> Tensor | None:
        decoders = stack in DECODER and "decoder_attention_mask" in self.inputs
        return self.inputs.get(f"decoder_{name}" if decoders else name)

    def again(self) -> "Pass":
        """The same pass, for a layer that runs again in the backward pass."""
        return Pass(
            owner=self.owner,
            tables=self.tables,
            inputs=self.inputs,
            tasks=self.tasks,
            unread=self.unread,
            rows_given=self.rows_given,
            cached=self.cached,
            dropped=self.dropped,
            losses=self.losses,
            loss_weight=self.loss_weight,
            rows=self.rows,
            recomputed=True,
            inside=["recomputed"],
        )


class PassTables(Protocol):
    """The tables of a pass: see `deltakit.runtime.tables.Tables`."""

    @property
    def blocks(self) -> frozenset[nn.Module]:
        """The layers in which they do something."""

    @property
    def own(self) -> dict[nn.Module, dict[str, nn.Parameter]]:
        """Parameters that modules use in place of their own."""

    def check(self) -> None:
        """Refuses a base whose modules were replaced."""

    def begin(self, begun: Pass, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Draws and counts what a pass that begins needs."""

    def resumed(self) -> AbstractContextManager[None]:
        """Inside, a part of a pass with them runs again as it ran."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generation:
    """A call of `generate` that is running.

    Attributes:
        model: the model that generates.
        rows: the rows that it was given; None where it was given none.
        kept: what does not change until it returns, by the object that keeps it.
    """

    model: nn.Module
    rows: int | None
    kept: dict[Any, Tensor] = field(default_factory=dict)


class Owner(Protocol):
    """The program of a model: see `deltakit.runtime.program.Program`."""

    active: Any


class _Thread(threading.local):
    """The passes of one thread."""

    def __init__(self) -> None:
        self.passes: tuple[Pass, ...] = ()
        self.outside = Pass()
        self.generation: Generation | None = None


THREAD = _Thread()
"""The state of the calling thread."""


def current_pass() -> Pass:
    """The innermost pass of this thread.

    A part of a model that is called by itself, below every hooked module, has a pass that
    knows of no call.
    """
    passes = THREAD.passes
    return passes[-1] if passes else THREAD.outside


def next_tables(owner: Owner) -> "PassTables":
    """The tables of this thread's next pass: those it uses, or those active for all threads."""
    for use in reversed(current_uses()):
        if use.owner is owner and use.tables is not None:
            used: PassTables = use.tables
            return used
    active: PassTables = owner.active
    return active


def _tasks_of(owner: Owner) -> tuple[int, ...] | None:
    uses = reversed(current_uses())
    return next((use.tasks for use in uses if use.owner is owner and use.tasks is not None), None)


def with_tasks(owner: Owner, tasks: tuple[int, ...]) -> AbstractContextManager[None]:
    """Inside, the passes of this thread are of a task, or of one for each row."""
    return entered(Use(owner=owner, tasks=tasks))


@contextmanager
def running(entered: Pass) -> Iterator[None]:
    """Inside, `entered` is this thread's current pass."""
    before = THREAD.passes
    THREAD.passes = (*before, entered)
    try:
        yield
    finally:
        THREAD.passes = before


class PassPort:
    """Opens a pass before a module runs, unless the module is called inside one."""

    def __init__(self, module: nn.Module, path: str, owner: Owner) -> None:
        self.path = path
        self.owner = owner
        names = [*inspect.signature(module.forward).parameters]
        self.places = {name: names.index(name) for name in INPUTS if name in names}

    def open(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        """Before the module."""
        current, uses = current_pass(), len(current_uses())
        inside = current.owner is self.owner and self.path not in current.inside
        if inside and current.uses in (None, uses):
            current.inside.append(self.path)
            return
        tables = next_tables(self.owner)
        begun = Pass(owner=self.owner, tables=tables, inside=[self.path], uses=uses)
        begun.tasks = _tasks_of(self.owner)
        THREAD.passes = (*THREAD.passes, begun)
        if _has_offloaded(module):
            _BRINGING.acquire()
            begun.alone = True
        self._read(begun, args, kwargs)
        tables.begin(begun, module, args, kwargs)

    def close(self, module: nn.Module, args: Any, *output: Any) -> None:
        """Behind the module, after an error too."""
        current = current_pass()
        if current.owner is not self.owner or current.inside[-1:] != [self.path]:
            return  # an earlier hook has failed, so `open` has not run
        current.inside.pop()
        if not current.inside:
            THREAD.passes = THREAD.passes[:-1]
            if current.alone:
                _BRINGING.release()

    def _read(self, begun: Pass, args: Any, kwargs: Mapping[str, Any]) -> None:
        """Notes the call's masks and positions."""
        for name, place in self.places.items():
            value = args[place] if place < len(args) else kwargs.get(name)
            fits = isinstance(value, Tensor) and value.ndim == 2
            begun.inputs[name] = value if fits else None
            if value is not None and not fits:
                begun.unread |= {name}
        given = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        begun.rows_given = next((value.shape[0] for value in given if value.ndim > 1), None)
        begun.cached = _cached(kwargs)


_BRINGING = threading.RLock()
"""Held by a pass of an offloaded base: accelerate takes weights away behind each module, whatever
other threads compute with them."""


def _has_offloaded(module: nn.Module) -> bool:
    """True if accelerate brings weights for a part of the module; it marks the whole, too."""
    return "_hf_hook" in vars(module) and any(map(is_offloaded, module.modules()))


def _cached(kwargs: Mapping[str, Any]) -> int:
    """How many tokens a call's cache holds."""
    cache: Any = kwargs.get("past_key_values")
    known = callable(getattr(type(cache), "get_seq_length", None))
    length = cache.get_seq_length() if known else 0
    return length if isinstance(length, int) else 0


class RootPort(PassPort):
    """Opens the pass of a whole model, and refuses a replica."""

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        super().__init__(model, "", owner)

    def open(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any] = NOTHING) -> None:
        if "_is_replica" in vars(module):
            raise IncompatibleDeltas(
                "DataParallel's replicas would all run the deltas of the first device. Use "
                "DistributedDataParallel, one process for each device."
            )
        super().open(module, args, kwargs)


class BeforePass:
    """Prepares what a graph cannot: the base is checked, and recomputation resumes its pass.

    It is a hook of its own, and changes nothing of its thread. torch compiles a hook that asks
    whether it is compiled, and loses what that hook notes for its thread.
    """

    def __init__(self, model: nn.Module, owner: Owner) -> None:
        self.owner = owner
        self.layers = tuple(m for m in model.modules() if _can_checkpoint(m))

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Before the module, and before its pass is opened.

        Raises:
            IncompatibleDeltas: the module of a site was replaced.
        """
        if torch.compiler.is_compiling():
            return
        next_tables(self.owner).check()
        if module.training:
            for layer in self.layers:
                _resume_in_own_pass(layer)


def _can_checkpoint(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", None) is not None


class ResumingCheckpoint:
    """A checkpointing function that recomputes a layer in the pass to which it belongs."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function

    def __call__(self, layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if torch.is_grad_enabled() and _is_reentrant(self.function):
            if not _has_gradient(args) and not _is_trained(layer):
                return layer(*args, **kwargs)
            args = _with_gradient(args)
        return self.function(_Resumed(layer, current_pass()), *args, **kwargs)


def _is_reentrant(function: Callable[..., Any]) -> bool:
    """Whether gradients flow only through arguments that require them."""
    return bool(getattr(function, "keywords", {}).get("use_reentrant", True))


def _has_gradient(args: tuple[Any, ...]) -> bool:
    return any(isinstance(each, Tensor) and each.requires_grad for each in args)


def _is_trained(layer: Callable[..., Any]) -> bool:
    """Whether a backward pass has to enter a layer that is checkpointed, if anything is known."""
    tables, module = current_pass().tables, _module_of(layer)
    if module is None or tables is None:
        return True
    inside = {*module.modules()}
    acts = any(each in inside for each in (*tables.blocks, *tables.own))
    return acts or any(parameter.requires_grad for parameter in module.parameters())


def _module_of(layer: Callable[..., Any]) -> nn.Module | None:
    """The module whose forward a checkpointing function is given."""
    match layer:
        case nn.Module() as module:
            return module
        case partial(args=(nn.Module() as module, *_)):
            return module
        case MethodType(__self__=nn.Module() as module):
            return module
        case _:
            return None


def _with_gradient(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments, the first tensor of numbers with a gradient if none has one.

    In front of the first layer that has deltas nothing requires a gradient, and the reentrant kind
    would leave them without one.
    """
    if _has_gradient(args):
        return args
    floating = (i for i, x in enumerate(args) if isinstance(x, Tensor) and x.is_floating_point())
    first = next(floating, None)
    if first is None:
        return args
    return (*args[:first], args[first].detach().requires_grad_(), *args[first + 1 :])


@dataclass(frozen=True)
class _Resumed:
    """A layer and the pass in which it ran first."""

    layer: Callable[..., Any]
    first: Pass

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if current_pass() is self.first:
            return self.layer(*args, **kwargs)
        again = self.first.again()
        stream = next((each for each in args if isinstance(each, Tensor)), None)
        if stream is not None:  # the layer's own hooks are not called again
            again.held[BLOCK] = Stream(stream)
        tables = self.first.tables
        with running(again), nullcontext() if tables is None else tables.resumed():
            return self.layer(*args, **kwargs)


def _resume_in_own_pass(layer: Any) -> None:
    """Wraps the layer's checkpointing function where it has one that is not wrapped."""
    if layer.gradient_checkpointing:
        function = vars(layer).get("_gradient_checkpointing_func")
        if function is not None and not isinstance(function, ResumingCheckpoint):
            layer._gradient_checkpointing_func = ResumingCheckpoint(function)


def _resume_anywhere(layer: Any) -> None:
    """Gives a layer its own checkpointing function back."""
    function = vars(layer).get("_gradient_checkpointing_func")
    if isinstance(function, ResumingCheckpoint):
        layer._gradient_checkpointing_func = function.function


def entries(model: nn.Module, handles: Iterable[Handle]) -> dict[str, nn.Module]:
    """The models inside the model that have sites, by path: those that are called alone too."""
    from transformers import PreTrainedModel

    paths = {id(module): path for path, module in model.named_modules()}
    inside = [paths.get(id(handle.module), "") for handle in handles if handle.in_a_layer]
    return {
        path: module
        for path, module in model.named_modules()
        if path and isinstance(module, PreTrainedModel)
        if any(each.startswith(f"{path}.") for each in inside)
    }


class PassPorts:
    """The hooks that open and close the passes of one model."""

    def __init__(self, model: nn.Module, handles: Iterable[Handle], owner: Owner) -> None:
        self.before = BeforePass(model, owner)
        inner = {m: PassPort(m, path, owner) for path, m in entries(model, handles).items()}
        self.ports: dict[nn.Module, PassPort] = {model: RootPort(model, owner), **inner}
        self.hooks: list[RemovableHandle] = []
        self.ends: dict[nn.Module, RemovableHandle] = {}

    def install(self) -> None:
        """Makes each call of the model, or of a part of it, a pass, if it is none."""
        if self.hooks:
            return
        for module, port in self.ports.items():
            end = module.register_forward_hook(port.close, with_kwargs=True, always_call=True)
            begin = module.register_forward_pre_hook(port.open, with_kwargs=True, prepend=True)
            before = module.register_forward_pre_hook(self.before, prepend=True)
            self.ends[module] = end
            self.hooks += [end, begin, before]

    def are_resumed(self) -> bool:
        """True if layers may be run again after a pass, in a backward pass."""
        functions = (vars(x).get("_gradient_checkpointing_func") for x in self.before.layers)
        return any(isinstance(function, ResumingCheckpoint) for function in functions)

    def come_last(self) -> None:
        """Makes passes end behind all other hooks."""
        for module, end in self.ends.items():
            hooks: Any = module._forward_hooks
            hooks.move_to_end(end.id)

    def remove(self) -> None:
        """Makes calls no passes, and gives layers their own checkpointing functions back."""
        for hook in self.hooks:
            hook.remove()
        self.hooks.clear()
        self.ends.clear()
        for layer in self.before.layers:
            _resume_anywhere(layer)
