"""From a model to its handles: the family's data file applied to the model's own modules."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from deltakit.arch.base_weight import ModuleLinear
from deltakit.arch.family import FAMILIES, Embedded, Family, LayerStack, Location, Tokens
from deltakit.core.site import INPUT_SITES, LINEAR_SITES, Handle, HookKind, Site
from deltakit.errors import UnknownArchitecture, UnknownName
from deltakit.models.quantised import codec_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def family_of(model: "PreTrainedModel") -> Family:
    """The family of a model.

    Raises:
        UnknownArchitecture: no family has the model's `model_type`.
    """
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        raise UnknownArchitecture(
            f"{type(model).__name__} is not a transformers model (PreTrainedModel); attach to the "
            "transformers model inside it."
        )
    model_type = model.config.model_type
    try:
        return FAMILIES.get(model_type)
    except UnknownName as error:
        raise UnknownArchitecture(
            f"{error} `deltakit sites MODEL --infer` shows what its modules say, which "
            "`dk.register_family(dk.infer_family(model).family)` makes known; or describe it with "
            "`dk.register_family(dk.Family(...))`."
        ) from None


def resolve(model: "PreTrainedModel") -> tuple[Handle, ...]:
    """Every site of every layer of a model, layer by layer.

    Raises:
        UnknownArchitecture: the model's family is unknown, or its modules are not where the
            family's data file says.
    """
    return handles_of(model, family_of(model))


def handles_of(model: "PreTrainedModel", family: Family) -> tuple[Handle, ...]:
    """The family's data applied to the modules of `model`. Raises `UnknownArchitecture`."""
    if family.parts:
        return tuple(handle for part in family.parts for handle in _handles_of_part(model, part))
    names = {module: name for name, module in model.named_modules()}
    tables = _tables(model, family)
    tokens = () if family.tokens is None else _tokens(model, family.tokens, tables, names)
    embed = (_embed(model, stack, table, names) for stack, table in tables.items())
    positions = () if family.positions is None else _positions(model, family.positions, names)
    layers = [h for stack in family.stacks for h in _stack_handles(model, stack, names)]
    if not layers:
        paths = ", ".join(repr(stack.layers) for stack in family.stacks)
        raise UnknownArchitecture(
            f"{type(model).__name__} says model_type={model.config.model_type!r}, but has layers "
            f"in none of {paths}. `deltakit sites MODEL` prints the modules that it has."
        )
    ends = () if family.embedded is None else _ends(model, family.embedded, names)
    return (*tokens, *filter(None, embed), *positions, *ends, *layers)


def body_of(model: "PreTrainedModel") -> "PreTrainedModel":
    """The model without its head: its base model.

    A class of the user's own may have the body under another name than the base model's. It is then
    the only one in it that transformers registers for the config.
    """
    body, bodies = model.base_model, registered_bodies(model)
    if body is not model or isinstance(model, bodies):
        return body
    inside = [module for module in model.modules() if isinstance(module, bodies)]
    return cast("PreTrainedModel", inside[0]) if len(inside) == 1 else body


def registered_bodies(model: "PreTrainedModel") -> tuple[type, ...]:
    """The classes that transformers registers as bodies for a model's config."""
    from transformers import MODEL_MAPPING

    registered = MODEL_MAPPING.get(type(model.config), ())
    return registered if isinstance(registered, tuple) else (registered,)


_LANGUAGE = (
    "PRETRAINING",
    "CAUSAL_LM",
    "MASKED_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
)
"""transformers' mappings of the classes with the head that a model is pre-trained with."""


def language_classes(config: Any) -> frozenset[type]:
    """The classes that transformers registers for a config with the head of its pre-training."""
    from transformers.models.auto import modeling_auto

    found: set[type] = set()
    for name in _LANGUAGE:
        known = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING").get(type(config), ())
        found |= {*(known if isinstance(known, tuple | list) else (known,))}
    return frozenset(found)


def _handles_of_part(model: "PreTrainedModel", part: str) -> Iterator[Handle]:
    """The handles of one of a model's parts, in a stack of the part's name.

    The sites of tokens and positions are left out: a part is not told how long the others are. So
    are those of embedded tokens and of the head: the two are not in one part.
    """
    whole = (Site.TOKENS, Site.POSITION_IDS, Site.EMBED_OUT, Site.UNEMBED)
    for handle in resolve(cast(Any, model.get_submodule(part))):
        if handle.site not in whole:
            stack = handle.stack if handle.stack == "cross" else part
            yield replace(handle, stack=stack, path=f"{part}.{handle.path}".rstrip("."))


def _tables(model: "PreTrainedModel", family: Family) -> dict[str, nn.Module]:
    """The modules that ids are looked up in, by the stack that each is for."""
    if not family.tables:
        known = family.tokens is not None and not model.config.is_encoder_decoder
        return {"input": body_of(model).get_input_embeddings()} if known else {}
    found = {stack: _find(body_of(model), path) for stack, path in family.tables.items()}
    tables = {stack: table for stack, table in found.items() if table is not None}
    first = next(iter(tables.values()), None)
    shared = len(tables) > 1 and all(table is first for table in tables.values())
    return {"input": first} if shared and first is not None else tables


def _embed(
    model: "PreTrainedModel", stack: str, table: nn.Module, names: dict[nn.Module, str]
) -> Handle | None:
    scale = _table_scale(table)
    if scale is None or not isinstance(table, nn.Embedding):
        return None
    return Handle(
        site=Site.EMBED,
        stack=stack,
        layer=0,
        path=names[table],
        module=table,
        hook_kind=HookKind.OUTPUT,
        d_in=table.num_embeddings,
        d_out=table.embedding_dim,
        scale=scale,
        dtype=_dtype(table, table, model.dtype),
        device=_device(table, table),
    )


def _table_scale(table: nn.Module) -> float | None:
    """What transformers' scaled tables multiply by; None for a table that does something else."""
    if type(table) is nn.Embedding:
        return 1.0
    match table:
        case nn.Embedding(scalar_embed_scale=float(scale)) | nn.Embedding(embed_scale=float(scale)):
            return scale
        case _:
            return None


def _tokens(
    model: "PreTrainedModel",
    tokens: Tokens,
    tables: dict[str, nn.Module],
    names: dict[nn.Module, str],
) -> Iterator[Handle]:
    module = _find(body_of(model), tokens.path)
    if module is None:  # the decoder alone of an encoder-decoder
        return
    embeddings: Any = tables.get(tokens.path, body_of(model).get_input_embeddings())
    width = embeddings.embedding_dim
    yield Handle(
        site=Site.TOKENS,
        stack="input",
        layer=0,
        path=names[module],
        module=module,
        hook_kind=HookKind.INPUT_EMBEDS,
        reader=None if tokens.reader is None else _find(body_of(model), tokens.reader),
        d_in=width,
        d_out=width,
        position=tokens.position,
        embeddings=embeddings,
        dtype=_dtype(embeddings, embeddings, model.dtype),
        device=_device(embeddings, embeddings),
    )


def _positions(
    model: "PreTrainedModel", path: str, names: dict[nn.Module, str]
) -> Iterator[Handle]:
    module = _find(body_of(model), path)
    if module is None:
        return
    learned = isinstance(module, nn.Embedding)
    yield Handle(
        site=Site.POSITION_IDS,
        stack="input",
        layer=0,
        path=names[module],
        module=module,
        hook_kind=HookKind.POSITION_IDS,
        d_in=1,
        d_out=1,
        limit=model.config.max_position_embeddings if learned else None,
        dtype=model.dtype,
        device=_device(module, model),
    )


def _ends(
    model: "PreTrainedModel", embedded: Embedded, names: dict[nn.Module, str]
) -> Iterator[Handle]:
    """What the first layer is given and, in a language model, what the vocabulary's projection is.

    A model without the embeddings, as the decoder alone of an encoder-decoder, has neither.
    """
    module = _find(body_of(model), embedded.location.path)
    if module is None:
        return
    kind, width = embedded.location.hook_kind, embedded.width(model.config)
    yield _end(model, Site.EMBED_OUT, module, names[module], kind, width)
    head = model.get_output_embeddings()
    if isinstance(head, nn.Linear) and head in names:
        yield _end(model, Site.UNEMBED, head, names[head], HookKind.INPUT, head.in_features)


def _end(
    model: "PreTrainedModel",
    site: Site,
    module: nn.Module,
    path: str,
    kind: HookKind,
    width: int,
) -> Handle:
    return Handle(
        site=site,
        stack="input" if site in INPUT_SITES else "output",
        layer=0,
        path=path,
        module=module,
        hook_kind=kind,
        d_in=width,
        d_out=width,
        dtype=_dtype(module, module, model.dtype),
        device=_device(module, model),
    )


def _stack_handles(
    model: "PreTrainedModel", stack: LayerStack, names: dict[nn.Module, str]
) -> Iterator[Handle]:
    config = model.config if stack.config is None else getattr(model.config, stack.config)
    sites = stack.sites if isinstance(stack.sites, Mapping) else stack.sites(config)
    layers = layers_of(model, stack)
    for index, layer in enumerate(layers):
        measure = _Widths(model, layer, sites, config)
        for site, location in sites.items():
            module = _submodule(layer, location.path, model)
            reader = None if location.reads is None else _submodule(layer, location.reads, model)
            biases = location.relative
            d_in, d_out = measure.of(site, location)
            columns = None if location.columns is None else location.columns(config)
            yield Handle(
                site=site,
                stack=stack.name,
                layer=index,
                depth=len(layers),
                path=names[module],
                module=module,
                hook_kind=location.hook_kind,
                reader=reader,
                relative=None if biases is None else _submodule(layers[0], biases, model),
                activation=_activation(config, stack),
                d_in=d_in,
                d_out=d_out,
                columns=columns,
                linear=ModuleLinear(module, columns) if site in LINEAR_SITES else None,
                dtype=_dtype(module, layer, model.dtype),
                device=_device(module, layer),
                block=layer,
            )


def _activation(config: Any, stack: LayerStack) -> str | None:
    """The name of the feed-forward's nonlinearity; None where it is gated or has no name."""
    given = None if stack.activation is None else getattr(config, stack.activation)
    return given if isinstance(given, str) else None


def layers_of(model: "PreTrainedModel", stack: LayerStack) -> list[nn.Module]:
    """The stack's layers, in order; none where the model does without the stack."""
    found: list[nn.Module] = [body_of(model)]
    for word in stack.layers.split("."):
        try:
            if word == "*":
                found = [each for module in found for each in module.children()]
            else:
                found = [_submodule(module, word, model) for module in found]
        except UnknownArchitecture:
            if stack.optional:
                return []
            raise
    return [layer for layers in found for layer in layers.children()]


def _submodule(root: nn.Module, path: str, model: "PreTrainedModel") -> nn.Module:
    module = _find(root, path)
    if module is None:
        raise UnknownArchitecture(
            f"{type(model).__name__} says model_type={model.config.model_type!r}, but "
            f"{type(root).__name__} has no module {path!r}. `deltakit sites MODEL` prints the "
            "modules that it has."
        )
    return module


def _find(root: nn.Module, path: str) -> nn.Module | None:
    try:
        return root.get_submodule(path)
    except AttributeError:
        return None


@dataclass(frozen=True, eq=False)
class _Widths:
    """How wide each site of one layer is, read off its projections."""

    model: "PreTrainedModel"
    layer: nn.Module
    sites: Mapping[Site, Location]
    config: Any

    def of(self, site: Site, location: Location) -> tuple[int, int]:
        """What a parallel delta reads, and what is changed."""
        if location.hook_kind is HookKind.INPUT:
            return (self._projection(location)[0],) * 2
        if location.hook_kind in (HookKind.ATTENTION, HookKind.DISENTANGLED):
            return self._stream(), self._projection(self.sites[Site.ATTN_K])[1]
        if site in LINEAR_SITES:
            return self._projection(location)
        return self._stream(), self._stream()

    def _stream(self) -> int:
        """The width of the residual stream: what the projections of the block read."""
        projections = (self.sites.get(Site.ATTN_Q), self.sites.get(Site.FFN_UP))
        first = next((each for each in projections if each is not None), None)
        return self.config.hidden_size if first is None else self._projection(first)[0]

    def _projection(self, location: Location) -> tuple[int, int]:
        d_in, d_out = linear_widths(_submodule(self.layer, location.path, self.model))
        if location.columns is None:
            return d_in, d_out
        return d_in, location.columns(self.config).total


def linear_widths(module: nn.Module) -> tuple[int, int]:
    """(in, out) of a linear projection, transformers' transposed Conv1D included.

    Raises:
        UnknownArchitecture: the module is not a linear projection.
    """
    from transformers.pytorch_utils import Conv1D

    match module:
        case nn.Linear():  # bitsandbytes' quantised linears are among them
            return module.in_features, module.out_features
        case Conv1D():
            return module.nx, module.nf
        case _:
            raise UnknownArchitecture(
                f"{type(module).__name__} is not a linear projection that deltakit knows "
                "(nn.Linear and its subclasses, transformers' Conv1D). Take a method with other "
                "sites."
            )


def fit_linear(module: nn.Module) -> None:
    """Sets the widths of a linear projection to those of its weight."""
    from transformers.pytorch_utils import Conv1D

    if codec_of(module) is not None:  # its weight is packed, and it says its own widths
        return
    weight = module.get_parameter("weight")
    match module:
        case nn.Linear():
            module.out_features, module.in_features = weight.shape
        case Conv1D():
            module.nx, module.nf = weight.shape


def _dtype(module: nn.Module, layer: nn.Module, default: torch.dtype) -> torch.dtype:
    """What the module hands on: its own floating parameters', its layer's, or the model's dtype.

    Neither the packed dtype of a quantised weight counts, nor that of its product: the module
    returns the dtype that it is given.
    """
    return _floating(module) or _floating(layer) or default


def _floating(module: nn.Module) -> torch.dtype | None:
    """The dtype of the first floating parameter that is not a quantised weight."""
    for each in module.modules():
        packed = codec_of(each) is not None
        for name, parameter in each.named_parameters(recurse=False):
            if parameter.is_floating_point() and not (packed and name == "weight"):
                return parameter.dtype
    return None


def _device(module: nn.Module, layer: nn.Module) -> torch.device:
    first = next(module.parameters(), None)
    return (next(layer.parameters()) if first is None else first).device
