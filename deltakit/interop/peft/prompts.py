"""Prompts and prefixes: one tensor for the whole model, and the task head."""

import inspect
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from deltakit.core.delta import Reparametrised
from deltakit.core.method import Method
from deltakit.core.site import Handle, Site
from deltakit.errors import CheckpointError
from deltakit.interop.peft.adapter import PROMPTED, Adapter, Folder, Values, Written
from deltakit.interop.peft.config import about
from deltakit.interop.peft.saved_modules import saved_modules_of, saved_words
from deltakit.interop.peft.view import PeftView, copied, sole
from deltakit.methods.prefix import PrefixTuning
from deltakit.methods.prompt import PromptTuning

KEY = "prompt_embeddings"
SIZES = (
    "num_virtual_tokens",
    "token_dim",
    "num_transformer_submodules",
    "num_attention_heads",
    "num_layers",
    "modules_to_save",
)
PREFIX = (*SIZES, "prefix_projection", "encoder_hidden_size", "init_weights")
PROMPT = (
    *SIZES,
    "prompt_tuning_init",
    "prompt_tuning_init_text",
    "tokenizer_name_or_path",
    "tokenizer_kwargs",
)


# ------------------------------------------------------------------------------------ prompt tuning


def read_prompt(folder: Folder) -> Adapter:
    """Raises `CheckpointError` for a prompt at another place than deltakit's."""
    config, base = folder.config, folder.base
    config.check(PROMPT, {})
    handle = _tokens(base)
    if config.task not in ("CAUSAL_LM", "FEATURE_EXTRACTION"):
        raise config.refusal(
            "task_type", "a prompt can be loaded for CAUSAL_LM and FEATURE_EXTRACTION alone."
        )
    length = config.whole("num_virtual_tokens", None)
    _check_sizes(folder, token_dim=handle.d_in, num_transformer_submodules=1)
    values, own = folder.take(
        {KEY: (length, handle.d_in)}, saved_modules_of(config, base, PROMPTED, ())
    )
    plain = PromptTuning(length=length)
    tensors = {f"{handle.key}.embedding": values[KEY]}
    return folder.adapter(
        own, lambda: (plain,), lambda m: tensors if sole(m, PromptTuning) == plain else None
    )


def write_prompt(adapter: Adapter, base: PeftView) -> Written:
    """The config and the tensor of a prompt. Raises `CheckpointError` where PEFT has none there."""
    prompt = adapter.tensors[f"{_tokens(base).key}.embedding"]
    return _written("PROMPT_TUNING", {"token_dim": prompt.shape[1]}, prompt, adapter, base)


def _tokens(base: PeftView) -> Handle:
    """Where the prompt goes in: in front of all tokens, in a model that has no other place."""
    handle = next((h for h in base.handles if h.site is Site.TOKENS), None)
    if handle is None or handle.position or handle.reader is not None:
        raise CheckpointError(
            f"a prompt of PEFT's comes before all tokens of a decoder; in a {base.kind} it "
            "would be elsewhere than deltakit's. Save it as format='deltakit', or use PEFT's with "
            "PEFT itself."
        )
    return handle


# ------------------------------------------------------------------------------------ prefix tuning


def read_prefix(folder: Folder) -> Adapter:
    """Raises `CheckpointError` for a prefix in some attentions and not in others."""
    config, base = folder.config, folder.base
    config.check(PREFIX, {})
    handles = _attentions(base)
    length, d_kv = config.whole("num_virtual_tokens", None), handles[0].d_out
    _check_sizes(
        folder,
        token_dim=d_kv,
        num_layers=len(handles),
        num_attention_heads=_heads(d_kv, base),
        num_transformer_submodules=1,
    )
    shapes = {KEY: (length, 2 * len(handles) * d_kv)}
    values, own = folder.take(shapes, saved_modules_of(config, base, PROMPTED, ()))
    memories = values[KEY].view(length, len(handles), 2, d_kv).permute(1, 2, 0, 3)
    tensors = {f"{h.key}.memory": copied(m) for h, m in zip(handles, memories, strict=True)}
    plain = PrefixTuning(length=length, bottleneck=None, positions="shifted")

    def apart(method: Method) -> Values | None:
        prefix = sole(method, PrefixTuning)
        return tensors if prefix is not None and replace(prefix, dropout=0.0) == plain else None

    return folder.adapter(own, lambda: (plain,), apart)


def write_prefix(adapter: Adapter, base: PeftView) -> Written:
    """The config and the tensor of a prefix. Raises `CheckpointError` where PEFT's is another."""
    handles = _attentions(base)
    keys = [f"{handle.key}.memory" for handle in handles]
    if not all(key in adapter.tensors for key in keys):
        raise CheckpointError(
            f"PEFT has a prefix in every layer; {adapter.method!r} has it in some."
        )
    memories = torch.stack([adapter.tensors[key] for key in keys])
    values = memories.permute(2, 0, 1, 3).flatten(1).contiguous()
    sizes = {
        "token_dim": handles[0].d_out,
        "num_layers": len(handles),
        "num_attention_heads": _heads(handles[0].d_out, base),
    }
    return _written("PREFIX_TUNING", sizes, values, adapter, base)


def deployed(adapter: Adapter, base: PeftView) -> Adapter:
    """The saved part of a prefix: the keys and values, without the network that trains them."""
    prefix, found = sole(adapter.method, PrefixTuning), dict[str, Tensor]()
    if prefix is None or prefix.bottleneck is None:
        return adapter
    make_delta = prefix.placements()[0].make_delta
    for handle in _attentions(base):
        delta, start = make_delta(handle), f"{handle.key}."
        given = {
            k.removeprefix(start): t for k, t in adapter.tensors.items() if k.startswith(start)
        }
        delta.to(next(iter(given.values())).dtype).load_state_dict(given)
        assert isinstance(delta, Reparametrised)
        found |= {f"{start}{name}": t for name, t in delta.deployed().state_dict().items()}
    return replace(adapter, method=adapter.method.deployed(), tensors=found)


def _attentions(base: PeftView) -> tuple[Handle, ...]:
    """Where the keys and values go in, layer by layer. Raises `CheckpointError`."""
    handles = tuple(handle for handle in base.handles if handle.site is Site.ATTN_KV)
    window, end = (_sizes(base).get(k) for k in ("sliding_window", "max_position_embeddings"))
    takes = inspect.signature(base.model.base_model.forward).parameters
    if "past_key_values" not in takes:
        why = "takes no past_key_values, which PEFT's prefixes are"
    elif len({handle.stack for handle in handles}) != 1:
        stacks = sorted({handle.stack for handle in handles})
        why = f"has deltakit's prefixes in {', '.join(stacks) or 'no stack'}, and PEFT's in one"
    elif window and (end is None or end > window):
        why = f"cannot see a prefix of PEFT's from {window} tokens on, and always one of deltakit's"
    else:
        return handles
    raise CheckpointError(
        f"a {base.kind} {why}. Save it as format='deltakit', or use PEFT's with PEFT itself."
    )


def _sizes(base: PeftView) -> dict[str, Any]:
    return base.model.config.get_text_config().to_dict()


def _heads(d_kv: int, base: PeftView) -> int:
    """How many heads have keys and values."""
    config = base.model.config.get_text_config()
    width = _sizes(base).get("head_dim") or config.hidden_size // config.num_attention_heads
    return d_kv // width


# --------------------------------------------------------------------------------------------- both


def _check_sizes(folder: Folder, **sizes: int) -> None:
    """Raises `CheckpointError` where the config has another size than the model."""
    for key, here in sizes.items():
        if folder.config.values.get(key) is not None and folder.config.whole(key, here) != here:
            raise folder.config.refusal(key, f"with this {folder.base.kind} it must be {here}.")


def _written(
    kind: str, sizes: dict[str, Any], values: Tensor, adapter: Adapter, base: PeftView
) -> Written:
    config = {
        "peft_type": kind,
        "task_type": about(base.model)["task_type"] or "FEATURE_EXTRACTION",
        "num_virtual_tokens": len(values),
        "num_transformer_submodules": 1,
        "modules_to_save": saved_words(adapter.own, base)["modules_to_save"],
        **sizes,
    }
    return Written(config=config, tensors={KEY: values}, prefix=PROMPTED)
