"""kept_trunk: what lies below the lowest delta is computed once for each row."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from deltakit.core.site import INPUT_SITES, Handle
from deltakit.inject.attachments import CHILD, attachments_of, need_attachments
from deltakit.models.quantised import codec_of
from deltakit.runtime.tables import tables_of
from deltakit.runtime.trunk import TrunkPorts, trunk_kept, why_not_kept
from deltakit.runtime.trunk_cache import TrunkCache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextmanager
def kept_trunk(
    model: "PreTrainedModel", cache: TrunkCache | None = None, *, limit: str | int = "512 MB"
) -> Iterator[TrunkCache]:
    """Inside, the frozen layers below the lowest delta are computed once for each row.

    ::

        dk.attach(model, dk.AdapterDrop(first=6))
        with dk.kept_trunk(model, limit="1 GB") as trunk:
            ...                                        # any training loop
        print(trunk)

    The hidden states that enter the lowest layer with a delta are kept, row by row, until the limit
    is reached. A pass whose rows are all kept begins there. Results are those of a whole pass; at
    padding, hidden states are zero. No gradient flows below that layer. A call without `use_cache`
    makes no cache of keys and values. A weight of the trunk that is written inside is followed, but
    for a write in place through ``p.data``.

    A pass is computed as without it where the trunk is not the same in each pass, or more of it is
    asked for: dropout below that layer, a parameter there that is trained, a cache of keys and
    values, ``inputs_embeds``, hidden states or attention weights in the output, a hook on a layer
    of the trunk, several processes, a compiled model, an encoder-decoder. ``trunk.refused`` has the
    reasons.

    Args:
        model: a model with deltas.
        cache: of an earlier call, whose rows are used where weights and layer are the same.
        limit: the memory of a new cache, on the model's device: bytes, or an amount such as
            ``"512 MB"``.

    Raises:
        DeltakitError: nothing is attached.
        InvalidConfig: the limit is not an amount of memory.
    """
    attachments = need_attachments(model)
    cache = TrunkCache(limit) if cache is None else cache
    cache.begin()
    blocks = _blocks(model, attachments.handles.values())
    reason = why_not_kept(blocks)
    if reason:
        cache.refused[reason] += 1
        yield cache
        return
    base, lowest = _base(model, blocks), LowestLayer(model, len(blocks))
    ports = TrunkPorts(base, blocks, cache, lowest=lowest, stored=own_tensors, apart=CHILD)
    with trunk_kept(ports):
        yield cache


def _base(model: Any, blocks: Sequence[nn.Module]) -> Any:
    """The innermost model that has all layers; a model may call it without what is around it."""
    from transformers import PreTrainedModel

    models = (each for each in model.modules() if isinstance(each, PreTrainedModel))
    return [each for each in models if {*blocks} <= {*each.modules()}][-1]


def _blocks(model: Any, handles: Iterable[Handle]) -> list[nn.Module]:
    """The model's layers, in order; none where it has several stacks of them."""
    found: dict[int, nn.Module] = {}
    for handle in handles:
        if handle.in_a_layer:
            assert handle.block is not None
            if found.setdefault(handle.layer, handle.block) is not handle.block:
                return []
    return [] if model.config.is_encoder_decoder else [found[index] for index in sorted(found)]


@dataclass(frozen=True, eq=False)
class LowestLayer:
    """The lowest layer where something acts in a pass; the number of layers where nothing does."""

    model: Any
    depth: int

    def __call__(self) -> int:
        attachments = attachments_of(self.model)
        if attachments is None or attachments.program is None:
            return self.depth
        tables = tables_of(attachments.program)
        if tables.own and not tables.own.keys().isdisjoint(self.model.base_model.modules()):
            return 0
        handles = [attachments.handles[key] for key in tables.nodes]
        if any(handle.site in INPUT_SITES for handle in handles):
            return 0
        layers = (handle.layer for handle in handles if handle.in_a_layer)
        return min(layers, default=self.depth)


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """The tensors that a module is held in, without those of the modules in it."""
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None:
            yield tensor
    plain = type(module).__module__.startswith(("torch.", "transformers."))
    codec = None if plain else codec_of(module)
    if codec is not None:
        yield from codec.stored(module)
