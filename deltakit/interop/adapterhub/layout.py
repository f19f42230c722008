"""The library's layout: where its modules are, for each model type.

Only what golden files of the library check is here; another model type is refused by name.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deltakit.arch.resolve import resolve
from deltakit.core.method import Method, Placement
from deltakit.core.site import Handle, HookKind, Site
from deltakit.errors import CheckpointError
from deltakit.inject.attachments import attachments_of
from deltakit.inject.base_names import head_names

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True)
class StackLayout:
    """One of our stacks, in the library's words.

    Attributes:
        layers: path of the list of layers, in the base model.
        attention: path of what holds the adapters behind the attention, in a layer.
        feedforward: the same behind the feed-forward; None where the stack has none.
        prefix: what its prefixes are called.
        behind: the stack whose layers are counted before these: layers have one number each.
    """

    layers: str
    attention: str = "attention_adapters"
    feedforward: str | None = "output_adapters"
    prefix: str = "self_prefix"
    behind: str | None = None


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One model type.

    Attributes:
        stacks: by our names for them.
        intermediate: the site that LoRA's and (IA)³'s "intermediate" location is.
        output: the site that their "output" location is.
        dropout: the config's key for the dropout of attention, which fusions take over.
        modules: the library's paths of modules in a layer, by transformers' of today, where it has
            renamed them.
        counted: whether relative positions count the library's prefixes.
        invertible: path of what holds the invertible adapters, in the base model; None where the
            library has none.
    """

    stacks: dict[str, StackLayout]
    intermediate: Site = Site.FFN_UP
    output: Site = Site.FFN_DOWN
    dropout: str | None = None
    modules: Mapping[str, str] = field(default_factory=dict)
    counted: bool = False
    invertible: str | None = "invertible_adapters"


_BERT = Layout(
    stacks={
        "encoder": StackLayout(
            layers="encoder.layer", attention="attention.output", feedforward="output"
        )
    },
    dropout="attention_probs_dropout_prob",
)
# The library has these two the wrong way round, and so have the files that it writes.
_LLAMA = Layout(
    stacks={"decoder": StackLayout(layers="layers")}, intermediate=Site.FFN_DOWN, output=Site.FFN_UP
)
LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "distilbert": Layout(
        stacks={"encoder": StackLayout(layers="transformer.layer", prefix="self")},
        dropout="attention_dropout",
    ),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "gpt2": Layout(stacks={"decoder": StackLayout(layers="h")}, dropout="attn_pdrop"),
    "t5": Layout(
        stacks={
            "encoder": StackLayout(
                layers="encoder.block",
                attention="layer.0",
                feedforward="layer.1",
                prefix="encoder_prefix",
            ),
            "decoder": StackLayout(
                layers="decoder.block", attention="layer.0", feedforward="layer.2", behind="encoder"
            ),
            "cross": StackLayout(
                layers="decoder.block",
                attention="layer.1",
                feedforward=None,
                prefix="cross_prefix",
                behind="encoder",
            ),
        },
        dropout="dropout_rate",
        invertible="encoder.invertible_adapters",
        counted=True,
    ),
    "bart": Layout(
        stacks={
            "encoder": StackLayout(layers="encoder.layers", prefix="encoder_prefix"),
            "decoder": StackLayout(layers="decoder.layers", behind="encoder"),
            "cross": StackLayout(
                layers="decoder.layers",
                attention="cross_attention_adapters",
                feedforward=None,
                prefix="cross_prefix",
                behind="encoder",
            ),
        },
        dropout="attention_dropout",
        invertible="encoder.invertible_adapters",
    ),
    "deberta-v2": _BERT,
    "vit": Layout(
        stacks={
            "encoder": StackLayout(layers="encoder.layer", feedforward="output.output_adapters")
        },
        dropout="attention_probs_dropout_prob",
        invertible=None,
        modules={
            "attention": "attention.attention",
            "attention.q_proj": "attention.attention.query",
            "attention.k_proj": "attention.attention.key",
            "attention.v_proj": "attention.attention.value",
            "attention.o_proj": "attention.output.dense",
            "mlp.fc1": "intermediate.dense",
            "mlp.fc2": "output.dense",
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Term:
    """One summand of a method, and the layers and stacks without it."""

    method: Method
    omitted: frozenset[int] = frozenset()
    stacks: frozenset[str] = frozenset()


@dataclass(frozen=True, eq=False)
class Host:
    """A model in the library's terms; it is only read."""

    model: "PreTrainedModel"
    layout: Layout
    handles: tuple[Handle, ...]
    heads: frozenset[str]
    """The parameters of the task head."""
    depths: dict[str, int] = field(default_factory=dict)
    """How many layers each stack has."""

    @property
    def config(self) -> Any:
        """The model's own config."""
        return self.model.config

    @property
    def kind(self) -> str:
        """The name of the model's class."""
        return type(self.model).__name__

    @property
    def width(self) -> int:
        """The width that the library divides by a reduction factor."""
        return next(h.d_out for h in self.handles if h.site is Site.ATTN_OUT)

    @property
    def base_prefix(self) -> str:
        """The prefix of paths in the base model, where the model has a head."""
        return f"{self.model.base_model_prefix}."

    @property
    def is_base(self) -> bool:
        """True if the model is a base model itself, so that its keys have no prefix."""
        return self.model.base_model is self.model

    @property
    def post_norm(self) -> bool:
        """True if the norms come after the residual additions."""
        return any(handle.hook_kind is HookKind.NORM for handle in self.handles)

    @property
    def crosses(self) -> bool:
        """True if a decoder attends to an encoder."""
        return "cross" in self.depths

    def placed(self, term: Term) -> Iterator[tuple[Placement, Handle]]:
        """The sites that a method changes, placement by placement."""
        for placement in term.method.placements():
            for handle in self.handles:
                without = handle.layer in term.omitted or handle.stack in term.stacks
                without |= handle.stack == "cross" and not placement.cross_attention
                left_out = without and handle.in_a_layer
                if handle.site is placement.site and not left_out:
                    yield placement, handle

    def at(self, term: Term) -> tuple[Handle, ...]:
        """The same, the sites alone."""
        return tuple(handle for _, handle in self.placed(term))

    def path(self, handle: Handle) -> str:
        """The path of the handle's module in the base model."""
        path = handle.path if self.is_base else handle.path.removeprefix(self.base_prefix)
        _, _, inner = path.partition(f".{handle.layer}.")
        if inner not in self.layout.modules:
            return path
        layers = self.layout.stacks[handle.stack].layers
        return f"{layers}.{handle.layer}.{self.layout.modules[inner]}"

    def stem(self, handle: Handle) -> str:
        """The path of what holds the bottlenecks of a site."""
        stack = self.layout.stacks[handle.stack]
        part = stack.attention if handle.site is Site.ATTN_OUT else stack.feedforward
        return f"{stack.layers}.{handle.layer}.{part}"

    def numbered(self, omitted: Iterable[int]) -> list[int]:
        """The library's numbers of layers that are left out of every stack."""
        chosen = set(omitted)
        return sorted({self._first(s) + k for s, n in self.depths.items() for k in chosen if k < n})

    def omitted(self, numbers: frozenset[int], origin: str) -> frozenset[int]:
        """The inverse of `numbered`. Raises `CheckpointError` where it has none."""
        found = frozenset(
            number - self._first(stack)
            for stack, depth in self.depths.items()
            for number in numbers
            if 0 <= number - self._first(stack) < depth
        )
        if set(self.numbered(found)) != set(numbers):
            raise CheckpointError(
                f"{origin}: it says something of the layers {sorted(numbers)} of "
                f"{len(self.numbers())}. deltakit leaves a layer out of encoder and decoder alike."
            )
        return found

    def present(self, term: Term) -> list[int]:
        """The library's numbers of the layers that the method is in."""
        left_out = self.numbered(term.omitted)
        return [number for number in self.numbers() if number not in left_out]

    def numbers(self) -> list[int]:
        """The library's numbers of all layers."""
        return self.numbered(range(max(self.depths.values())))

    def _first(self, stack: str) -> int:
        behind = self.layout.stacks[stack].behind
        return 0 if behind is None else self.depths.get(behind, 0)


def host_of(model: "PreTrainedModel") -> Host:
    """The model in the library's terms. Raises `CheckpointError` for an unknown architecture."""
    layout = LAYOUTS.get(model.config.model_type)
    if layout is None:
        raise CheckpointError(
            f"where AdapterHub's library puts its modules in a model of type "
            f"{model.config.model_type!r} is not known to deltakit. It is for "
            f"{', '.join(sorted(LAYOUTS))}."
        )
    if model.config.to_dict().get("add_cross_attention"):
        raise CheckpointError(
            f"this {type(model).__name__} attends across (add_cross_attention), where AdapterHub's "
            "library has adapters and deltakit has none. Use format='deltakit' for it."
        )
    attachments = attachments_of(model)
    handles = resolve(model) if attachments is None else tuple(attachments.handles.values())
    handles = tuple(h for h in handles if h.in_a_layer or h.site in (Site.EMBED_OUT, Site.UNEMBED))
    depths = {handle.stack: handle.layer + 1 for handle in handles if handle.in_a_layer}
    return Host(model, layout, handles, head_names(model), depths)
