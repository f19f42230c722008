"""A frozen trunk that is computed once: passes begin at the lowest active delta where they can.

While the hooks here are on a model, a pass whose rows are all kept does not run the layers below
the lowest delta: the forward of these layers hands their input on, and the last of them returns the
kept states. Any other pass runs as it would, and its rows are kept for later ones.

A trunk is exact while nothing in it is random. That is observed: a pass in which a generator of
random numbers has moved before the trunk's end, as dropout moves it, is not kept. So the first pass
in each set of training modes is computed.
"""

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from deltakit.runtime.tokens import named_arguments
from deltakit.runtime.trunk_cache import TrunkCache
from deltakit.runtime.trunk_rows import Refused, TrunkRows, trunk_rows

_OUTPUTS = ("output_hidden_states", "output_attentions", "output_router_logits")
"""Settings that make a model return what its layers compute inside."""

StoredTensors = Callable[[nn.Module], Iterable[Tensor]]
"""From a module to the tensors that it holds itself or below."""


@dataclass(kw_only=True, eq=False)
class TrunkPass:
    """One pass of a base whose trunk is kept, or is being kept.

    Attributes:
        layer: the first layer behind the trunk.
        trunk: the digest of the trunk's weights and modes.
        rows: the rows of the batch.
        states: the kept states of all rows; None where the trunk is computed.
        random: the states of the random generators when the pass began.
        output: what the trunk's last layer has returned.
        widths: by layer, how many values its output is; None for a plain tensor.
        reached: the highest layer that was called.
        refused: why the pass cannot be kept; empty where it can.
    """

    layer: int
    trunk: bytes
    rows: TrunkRows
    states: Tensor | None
    random: tuple[Tensor, ...]
    device: torch.device
    output: Tensor | None = None
    widths: dict[int, int | None] = field(default_factory=dict)
    reached: int = 0
    refused: str = ""

    def reach(self, index: int) -> None:
        """Notes that a layer is called."""
        if index < self.reached:
            self.refused = "layers that run again behind later ones"
        self.reached = index

    def note(self, index: int, output: Any) -> Any:
        """A layer's output, cut off from what is below where it is the trunk's."""
        states, *others = output if isinstance(output, tuple) else (output,)
        if any(each is not None for each in others):
            self.refused = "layers that hand on more than hidden states"
        self.widths[index] = 1 + len(others) if isinstance(output, tuple) else None
        if index < self.layer - 1 or self.refused:
            return output
        if not _equal(self.random, generator_states(self.device)):
            self.refused = f"dropout or other random numbers below layer {self.layer}"
            return output
        self.output = states.detach()
        return _shaped(self.output, self.widths[index])

    def kept(self, places: list[int]) -> list[tuple[bytes, Tensor]]:
        """Some rows of what the trunk has returned, by their keys."""
        assert self.output is not None
        return self.rows.parts(self.output, places)


def _shaped(states: Any, width: int | None) -> Any:
    """States as a layer returns them: a tensor, or the first of several values."""
    return states if width is None else (states, *(None,) * (width - 1))


def generator_states(device: torch.device) -> tuple[Tensor, ...]:
    """The states of the generators that a pass on the device may use."""
    states = (torch.get_rng_state(),)
    if device.type == "cpu":
        return states
    return (*states, torch.get_device_module(device).get_rng_state(device))


def _equal(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


class _Thread(threading.local):
    """The passes of one thread, the outermost first; None for one that is computed as without."""

    def __init__(self) -> None:
        self.passes: tuple[tuple[TrunkPorts, TrunkPass | None], ...] = ()


class Weights:
    """A digest of tensors' values, computed again where one of them has changed."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        """They are held, so that no other tensor is put where one of them is."""
        self.places: list[tuple[int, int, torch.Size]] = []
        self.digest = b""

    def read(self, tensors: list[Tensor]) -> bytes:
        """The digest. A write in place through ``p.data`` goes unseen."""
        places = [(each.data_ptr(), _version(each), each.shape) for each in tensors]
        if places != self.places:
            self.tensors, self.places = tensors, places
            self.digest = digest_of(tensors)
        return self.digest


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def digest_of(tensors: Iterable[Tensor]) -> bytes:
    """A digest of tensors' shapes and bits, from the sums of their rows and columns."""
    made = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        made.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32}.get(tensor.element_size())
        bits = tensor.detach().contiguous().reshape(-1).view(kind or torch.uint8)
        width = tensor.shape[-1] if tensor.ndim > 1 else 1
        table = bits.view(-1, width) if bits.numel() and bits.numel() % width == 0 else bits[None]
        for axis in (0, 1):
            made.update(table.sum(axis, dtype=torch.int64).cpu().numpy().tobytes())
    return made.digest()


class TrunkPorts:
    """The hooks that keep the trunk of one model.

    Args:
        base: the module that is given the tokens.
        blocks: its layers, in order.
        cache: where rows are kept.
        lowest: the lowest layer where a delta acts in the pass that begins.
        stored: the tensors of a module, those of quantised weights among them.
        apart: the name of the base's child that is no part of it, where it has one.
    """

    def __init__(
        self,
        base: Any,
        blocks: Sequence[nn.Module],
        cache: TrunkCache,
        *,
        lowest: Callable[[], int],
        stored: StoredTensors,
        apart: str,
    ) -> None:
        self.base = base
        self.blocks = tuple(blocks)
        self.cache = cache
        self.lowest = lowest
        self.stored = stored
        self.apart = apart
        self.setting = _setting(base)
        self.weights: dict[int, Weights] = {}
        self.proven: dict[bytes, dict[int, int | None]] = {}
        self.unfit: dict[bytes, str] = {}

    # ------------------------------------------------------------------------------- the hooks

    def begin(self, module: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> Any:
        """Before the base."""
        if torch.compiler.is_compiling():
            return None
        given = named_arguments(module, args, kwargs)
        try:
            found = self._pass(given)
        except Refused as reason:
            self.cache.refused[str(reason)] += 1
            found = None
        THREAD.passes = (*THREAD.passes, (self, found))
        if found is None or not vars(self.base.config).get("use_cache"):
            return None
        return (), {**given, "use_cache": False}

    def end(self, module: nn.Module, args: Any, *rest: Any) -> None:
        """Behind the base, after an error too."""
        if torch.compiler.is_compiling() or not THREAD.passes or THREAD.passes[-1][0] is not self:
            return
        (_, found), THREAD.passes = THREAD.passes[-1], THREAD.passes[:-1]
        if found is not None and rest[-1] is not None:
            self._finish(found)

    def current(self) -> TrunkPass | None:
        """The pass of this thread in which the base runs."""
        passes = THREAD.passes
        return passes[-1][1] if passes and passes[-1][0] is self else None

    # ---------------------------------------------------------------------- before and after it

    def _pass(self, given: Mapping[str, Any]) -> TrunkPass:
        """Raises `Refused`."""
        self._check(given)
        layer = self._layer()
        apart = self.base._modules.get(self.apart)
        modules = [*_modules(self.base, {*self.blocks[layer:], apart})]
        if not {*self.blocks[:layer]} <= {*modules}:
            raise Refused("a layer that was replaced")
        trunk = self._trunk(layer, modules)
        if trunk in self.unfit:
            raise Refused(self.unfit[trunk])
        rows = trunk_rows(given)
        kept = self.cache.find(trunk, rows.keys) if trunk in self.proven else None
        device = next(v.device for v in given.values() if isinstance(v, Tensor))
        return TrunkPass(
            layer=layer,
            trunk=trunk,
            rows=rows,
            states=None if kept is None else rows.whole(kept),
            random=() if kept else generator_states(device),
            device=device,
            widths=self.proven.get(trunk, {}) if kept else {},
        )

    def _check(self, given: Mapping[str, Any]) -> None:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            raise Refused("several processes")
        for name in _OUTPUTS:
            asked = given.get(name)
            if getattr(self.base.config, name, False) if asked is None else asked is not False:
                raise Refused(name)

    def _layer(self) -> int:
        """The first layer behind the trunk. Raises `Refused`."""
        lowest = self.lowest()
        trained = (
            index
            for index, block in enumerate(self.blocks[:lowest])
            if any(parameter.requires_grad for parameter in block.parameters())
        )
        layer = next(trained, lowest)
        if layer == 0:
            raise Refused("something acts or is trained in the lowest layer, or before it")
        return layer

    def _trunk(self, layer: int, modules: Sequence[nn.Module]) -> bytes:
        """The digest of all but the rows that the trunk's states depend on. Raises `Refused`."""
        for module in (each for block in self.blocks[:layer] for each in block.modules()):
            if any(map(_is_foreign, (*module._forward_hooks.values(), *_before(module)))):
                raise Refused("a hook on a layer of the trunk")
        tensors = [tensor for module in modules for tensor in self.stored(module)]
        if any(tensor.requires_grad for tensor in tensors):
            raise Refused("parameters outside the layers are trained")
        if any(tensor.is_meta for tensor in tensors):
            raise Refused("weights that are not in memory")
        weights = self.weights.setdefault(layer, Weights()).read(tensors)
        modes = bytes(module.training for module in modules)
        rates = [module.p for module in modules if isinstance(module, nn.Dropout)]
        made = hashlib.blake2b(weights + modes, digest_size=16)
        made.update(f"{self.setting} {layer} {rates} {_precision(tensors)}".encode())
        return made.digest()

    def _finish(self, found: TrunkPass) -> None:
        """Keeps the rows of a pass that was computed."""
        if found.states is not None:
            self.cache.begun += 1
            self.cache.begun_in_training += self.base.training
            return
        if not found.refused and not _fits(found):
            found.refused = "hidden states that are not (rows, tokens, width)"
        if found.refused:
            self.unfit[found.trunk] = found.refused
            self.cache.refused[found.refused] += 1
            return
        self.proven[found.trunk] = found.widths
        self.cache.computed += 1
        missing = self.cache.missing(found.trunk, found.rows.keys)
        self.cache.keep(found.trunk, found.kept(missing))


def _fits(found: TrunkPass) -> bool:
    """True if the states have a row for each row, and a place for each token."""
    if found.output is None or found.rows.seen is None:
        return found.output is not None and found.output.shape[0] == len(found.rows.keys)
    return found.output.shape[:2] == found.rows.seen.shape


_OF_TASKS = ("_name_or_path", "architectures", "id2label", "label2id", "problem_type")
"""Keys of a config that change no hidden state."""


def _setting(base: Any) -> str:
    """The base's class and its config."""
    config = {k: v for k, v in base.config.to_dict().items() if k not in _OF_TASKS}
    return f"{type(base).__name__} {sorted(config.items())}"


def _precision(tensors: Sequence[Tensor]) -> str:
    """The precision that autocast computes in."""
    kind = tensors[0].device.type
    return str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else ""


def _modules(module: nn.Module, without: set[nn.Module | None]) -> Iterator[nn.Module]:
    """The module and those in it, without some."""
    if module not in without:
        yield module
        for child in module._modules.values():
            if child is not None:
                yield from _modules(child, without)


def _before(module: nn.Module) -> Iterator[Any]:
    return iter(module._forward_pre_hooks.values())


_OWN = ("deltakit.runtime.", "transformers.")
_WATCHING = "deltakit.runtime.recording"


def _is_foreign(hook: Any) -> bool:
    """Whether a hook may look at what the module computes: neither a port nor transformers' own."""
    home = str(getattr(hook, "__module__", ""))
    return not home.startswith(_OWN) or home == _WATCHING


THREAD = _Thread()
"""The state of the calling thread."""


@dataclass(frozen=True, eq=False)
class BlockForward:
    """The forward of one layer, or the trunk's kept states in place of it."""

    index: int
    ports: TrunkPorts

    def __call__(self, block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        forward: Callable[..., Any] = type(block).forward
        found = None if torch.compiler.is_compiling() else self.ports.current()
        if found is None:
            return forward(block, *args, **kwargs)
        if found.states is None or self.index >= found.layer:
            found.reach(self.index)
            output = forward(block, *args, **kwargs)
            return found.note(self.index, output) if self.index < found.layer else output
        last = self.index == found.layer - 1
        given = args[0] if args else next(iter(kwargs.values()))
        return _shaped(found.states if last else given, found.widths.get(self.index))


def why_not_kept(blocks: Sequence[nn.Module]) -> str:
    """The reason why the layers cannot be left out; empty where they can."""
    if not blocks:
        return "a model of several stacks of layers"
    if any({"forward", "_old_forward"} & vars(block).keys() for block in blocks):
        return "layers whose forward was replaced"
    if any(block._parameters for block in blocks):
        return "layers with parameters of their own"
    return ""


@contextmanager
def trunk_kept(ports: TrunkPorts) -> Iterator[None]:
    """Inside, passes of the base begin at kept states where they can."""
    for index, block in enumerate(ports.blocks):
        vars(block)["forward"] = MethodType(BlockForward(index, ports), block)
    hooks = (
        ports.base.register_forward_pre_hook(ports.begin, with_kwargs=True),
        ports.base.register_forward_hook(ports.end, with_kwargs=True, always_call=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for block in ports.blocks:
            vars(block).pop("forward", None)
