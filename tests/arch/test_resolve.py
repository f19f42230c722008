"""Where the sites of each family are."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.arch.family import FAMILIES, output
from deltakit.arch.resolve import family_of, linear_widths
from deltakit.core.site import INPUT_SITES, LINEAR_SITES, HookKind, Insertion, Site
from deltakit.errors import NameInUse, UnknownArchitecture

MORE = (
    "xlm-roberta", "camembert", "bert-generation", "data2vec-text", "ernie", "layoutlm", "splinter",
    "cohere", "cohere2", "ernie4_5", "gemma", "helium", "hunyuan_v1_dense", "ministral",
    "ministral3", "olmo", "seed_oss", "smollm3", "stablelm", "ernie4_5_moe", "glm4_moe", "gpt_oss",
    "hunyuan_v1_moe", "minimax_m2", "olmoe", "phimoe", "olmo2", "olmo3", "exaone4", "umt5",
    "marian", "plbart", "blenderbot-small", "m2m_100", "pegasus", "blenderbot",
)  # fmt: skip
TINY_CONFIG = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "d_model": 16,
    "d_kv": 4,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_start_token_id": 1,
}
TINY_EXPERTS = {
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
SMALL = ("bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3")
GATED = (
    "llama", "mistral", "qwen2", "qwen3", "modernbert", "phi3", "gemma2", "gemma3_text", "gemma3",
    "mt5",
)  # fmt: skip
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
OWN_ATTENTION = ("mpnet", "deberta-v2", "bloom")
NO_TOKENS = ("gemma3", "vit", "clip", "clip_text_model", "clip_vision_model", "whisper")
STREAMED = ("llama", "mistral", "qwen2", "qwen3", "gpt2", "t5", "mt5")
UNKNOWN_POSITIONS = (*OWN_ATTENTION, "t5", "mt5", "bart", "mbart")
NO_POSITIONS = (
    *UNKNOWN_POSITIONS,
    "vit",
    "clip",
    "clip_text_model",
    "clip_vision_model",
    "whisper",
)
STACKS = {
    **dict.fromkeys(("t5", "mt5", "bart", "mbart", "whisper"), ("encoder", "decoder", "cross")),
    "clip": ("text", "vision"),
}
TABLES = {
    **dict.fromkeys(("t5", "mt5", "bart", "mbart"), {"encoder", "decoder"}),
    **dict.fromkeys(("vit", "clip_vision_model"), set()),
    **dict.fromkeys(("clip", "clip_text_model"), {"text"}),
    "whisper": {"decoder"},
}
FUSED = ("gpt2", "modernbert", "gpt_neox", "bloom", "phi3")
ATTENTION = {
    Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V, Site.ATTN_MID, Site.ATTN_O, Site.ATTN_KV, Site.ATTN_OUT,
}  # fmt: skip
INSIDE_FFN = {Site.FFN_GATE, Site.FFN_UP, Site.FFN_MID, Site.FFN_DOWN}


def sites_of(family: str) -> set[Site]:
    """What there is in a layer of a family's main stacks."""
    missing = set(INPUT_SITES)
    missing |= set() if family in GATED else {Site.FFN_GATE}
    missing |= set() if family in STREAMED else {Site.FFN_STREAM}
    missing |= INSIDE_FFN if family in EXPERTS else set()
    missing |= {Site.ATTN_KV} if family in OWN_ATTENTION else set()
    return set(Site) - missing


@pytest.mark.parametrize("kind", ["bare", "classify", "causal", "seq2seq"])
def test_every_family_resolves(kit: SimpleNamespace, family: str, kind: str) -> None:
    try:
        model = kit.make_model(family, kind)
    except ValueError as error:
        assert "Unrecognized configuration" in str(error)  # transformers has no such head for it
        return
    handles = dk.resolve(model)
    stacks = {handle.stack for handle in handles if handle.in_a_layer}
    whole = kind == "bare" or (kind == "seq2seq" and family in STACKS)
    expected = STACKS.get(family, tuple(stacks)) if whole else tuple(stacks)
    assert stacks == set(expected) and stacks
    for stack in stacks:
        sites = sites_of(family) & ATTENTION if stack == "cross" else sites_of(family)
        inside = [h.site for h in handles if h.stack == stack and h.in_a_layer]
        assert set(inside) == sites and len(inside) == 2 * len(sites), stack
    inputs = [h.key for h in handles if h.stack == "input"]
    decoder_alone = "encoder" not in stacks and family in STACKS
    tokens = [] if family in NO_TOKENS or decoder_alone else ["input.0.tokens"]
    halves = [h.stack for h in handles if h.site is Site.EMBED]
    tokens += ["input.0.embed"] if halves == ["input"] else []
    assert set(halves) == TABLES.get(family, {"input"}) & {*stacks, "input"}
    assert inputs == tokens + ([] if family in NO_POSITIONS else ["input.0.position_ids"])
    assert len({h.key for h in handles}) == len(handles)
    for handle in handles:
        assert model.get_submodule(handle.path) is handle.module
        assert handle.dtype is torch.float32 and handle.device.type == "cpu"
        assert handle.key == f"{handle.stack}.{handle.layer}.{handle.site.value}"


@pytest.mark.parametrize("family", SMALL)
def test_widths(kit: SimpleNamespace, family: str) -> None:
    inner = 64 if family == "gpt2" else 32
    keys = 8 if family in GATED else 16
    tokens = 12 if family == "electra" else 16
    widths = {
        Site.ATTN_Q: (16, 16),
        Site.ATTN_K: (16, keys),
        Site.ATTN_V: (16, keys),
        Site.ATTN_MID: (16, 16),
        Site.ATTN_O: (16, 16),
        Site.ATTN_KV: (16, keys),
        Site.ATTN_OUT: (16, 16),
        Site.FFN_GATE: (16, inner),
        Site.FFN_UP: (16, inner),
        Site.FFN_MID: (inner, inner),
        Site.FFN_DOWN: (inner, 16),
        Site.FFN_OUT: (16, 16),
        Site.FFN_STREAM: (16, 16),
        Site.BLOCK_OUT: (16, 16),
        Site.TOKENS: (tokens, tokens),
        Site.EMBED: (64, tokens),
        Site.POSITION_IDS: (1, 1),
    }
    for handle in dk.resolve(kit.make_model(family)):
        assert (handle.d_in, handle.d_out) == widths[handle.site], handle.key
        assert Insertion.PARALLEL.width(handle) == handle.d_in
        assert Insertion.SEQUENTIAL.width(handle) == handle.d_out


class Watch:
    """What modules are given and return in one forward pass: that of the last call of each."""

    def __init__(self, model: Any, inputs: dict[str, Tensor]) -> None:
        self.given: dict[nn.Module, Tensor] = {}
        self.returned: dict[nn.Module, Tensor] = {}
        hooks = [m.register_forward_hook(self.note, with_kwargs=True) for m in model.modules()]
        with torch.no_grad():
            model(**inputs)
        for hook in hooks:
            hook.remove()

    def note(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        self.given[module] = args[0] if args else next(iter(kwargs.values()), None)
        self.returned[module] = out[0] if isinstance(out, tuple) else out

    def x(self, handle: dk.Handle) -> Tensor:
        """What a parallel delta reads there."""
        return self.given[handle.reader or handle.module]

    def h(self, handle: dk.Handle) -> Tensor:
        """What is changed there; of a post-LN norm, the stream that it is given."""
        if handle.hook_kind is not HookKind.OUTPUT:
            return self.given[handle.module]
        whole = self.returned[handle.module]
        return whole if handle.columns is None else handle.columns.read(whole)


def by_layer(model: Any) -> Iterator[dict[Site, dk.Handle]]:
    """The handles of each layer of each stack."""
    layers: dict[tuple[str, int], dict[Site, dk.Handle]] = {}
    for handle in dk.resolve(model):
        if handle.in_a_layer:
            layers.setdefault((handle.stack, handle.layer), {})[handle.site] = handle
    return iter(layers.values())


def test_widths_are_those_that_flow(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    seen = Watch(model, kit.make_inputs(family))
    for layer in by_layer(model):
        for site, handle in layer.items():
            assert handle.d_in == seen.x(handle).shape[-1], handle.key
            if site is not Site.ATTN_KV:
                assert handle.d_out == seen.h(handle).shape[-1], handle.key


def test_tokens_are_those_of_the_embeddings(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    for handle in dk.resolve(model):
        if handle.site is Site.TOKENS:
            assert handle.embeddings.weight is model.get_input_embeddings().weight
            assert handle.embeddings in Watch(model, kit.make_inputs(family)).given
            assert handle.d_in == handle.d_out == handle.embeddings.embedding_dim
            assert handle.hook_kind is HookKind.INPUT_EMBEDS and handle.position in (0, 1)
            assert (handle.reader is None) == (family not in STACKS)


def check_tables(handles: tuple[dk.Handle, ...], seen: Watch) -> None:
    """They are what the model calls, they look ids up, and they do nothing else but scaling."""
    for handle in handles:
        if handle.site is Site.EMBED:
            assert handle.module in seen.given and not handle.in_a_layer
            plain = handle.module.weight[seen.given[handle.module]]
            torch.testing.assert_close(seen.returned[handle.module], handle.scale * plain)


def test_tables_look_ids_up(kit: SimpleNamespace, family: str) -> None:
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    check_tables(dk.resolve(model), Watch(model, inputs))


def test_a_table_of_both_halves(kit: SimpleNamespace) -> None:
    """A model whose vocabulary has changed has one table."""
    model = kit.make_model("t5", "seq2seq")
    model.resize_token_embeddings(66)
    (handle,) = (h for h in dk.resolve(model) if h.site is Site.EMBED)
    assert handle.key == "input.0.embed" and handle.module is model.get_input_embeddings()
    check_tables((handle,), Watch(model, kit.make_inputs("t5")))


def test_a_table_that_is_of_another_kind(kit: SimpleNamespace) -> None:
    class Hashed(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input // 2)

    model = kit.make_model("bert")
    model.set_input_embeddings(Hashed(64, 16))
    assert all(h.site is not Site.EMBED for h in dk.resolve(model))


def test_positions_are_numbers_that_something_reads(kit: SimpleNamespace, family: str) -> None:
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    for handle in dk.resolve(model):
        if handle.site is Site.POSITION_IDS:
            assert handle.hook_kind is HookKind.POSITION_IDS and not handle.in_a_layer
            learned = isinstance(handle.module, nn.Embedding)
            assert handle.limit == (40 if learned else None)
            assert handle.module in Watch(model, inputs).given


@pytest.mark.parametrize("family", FUSED)
def test_fused_columns_tile_the_projection(kit: SimpleNamespace, family: str) -> None:
    for layer in by_layer(kit.make_model(family)):
        groups = [(Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V)]
        groups += [(Site.FFN_GATE, Site.FFN_UP)] if family in GATED else []
        for group in groups:
            assert len({id(layer[site].module) for site in group}) == 1
            width = linear_widths(layer[group[0]].module)[1]
            spans = [layer[site].columns.read(torch.arange(width)) for site in group]
            assert torch.cat(spans).sort().values.tolist() == list(range(width))


def test_the_attention_function_is_given_what_the_sites_say(
    kit: SimpleNamespace, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_attention(kit.make_model(family), kit.make_inputs(family), monkeypatch)


def check_attention(model: Any, inputs: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The module of attn.kv calls the attention function with what attn.q, .k and .v are."""
    from transformers import AttentionInterface

    layers = [layer for layer in by_layer(model) if Site.ATTN_KV in layer]
    calls: dict[nn.Module, tuple[Tensor, ...]] = {}

    def note(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
    ) -> Any:
        calls[module] = tuple(part.transpose(1, 2).flatten(2) for part in (query, key, value))
        return query.transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "noting", note)
    model.set_attn_implementation("noting")
    seen = Watch(model, inputs)
    assert set(calls) >= {layer[Site.ATTN_KV].module for layer in layers}
    for layer in layers:
        query, key, value = calls[layer[Site.ATTN_KV].module]
        assert torch.equal(value, seen.h(layer[Site.ATTN_V])), layer[Site.ATTN_V].key
        assert key.shape[-1] == layer[Site.ATTN_KV].d_out == layer[Site.ATTN_K].d_out
        assert query.shape[-1] == layer[Site.ATTN_Q].d_out


@pytest.mark.parametrize("family", ["modernbert", "gpt_neox", "phi3"])
@pytest.mark.parametrize("part", [0, 1])
def test_fused_queries_and_keys(
    kit: SimpleNamespace, family: str, part: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the columns of one at zero, that one is zero, head by head, and the others are not."""
    from transformers import AttentionInterface

    model = kit.make_model(family)
    layer = next(by_layer(model))
    handle = layer[(Site.ATTN_Q, Site.ATTN_K)[part]]
    calls: list[tuple[Tensor, ...]] = []

    def note(module: nn.Module, *states: Tensor, **_: Any) -> Any:
        calls.append(states[:3])
        return states[0].transpose(1, 2).contiguous(), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "noting", note)
    model.set_attn_implementation("noting")
    keep = torch.ones(linear_widths(handle.module)[1])
    keep = handle.columns.write(keep, torch.zeros(handle.columns.total))
    handle.module.register_forward_hook(lambda module, args, out: out * keep)
    model(**kit.make_inputs(family))
    norms = [states.norm(dim=-1) for states in calls[0]]
    assert [bool((norm == 0).all()) for norm in norms] == [part == 0, part == 1, False]
    assert all(bool((norm > 0).all()) for index, norm in enumerate(norms) if index != part)


def test_fused_heads_of_bloom(kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.bloom.modeling_bloom import BloomAttention

    split, calls = BloomAttention._reshape, []

    def note(self: Any, fused: Tensor) -> Any:
        calls.append(split(self, fused))
        return calls[-1]

    monkeypatch.setattr(BloomAttention, "_reshape", note)
    model = kit.make_model("bloom")
    seen = Watch(model, kit.make_inputs("bloom"))
    for layer, states in zip(by_layer(model), calls, strict=True):
        for site, state in zip((Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V), states, strict=True):
            assert torch.equal(seen.h(layer[site]), state.transpose(1, 2).flatten(2))


def activation(config: Any, family: str) -> str:
    names = {"modernbert": "hidden_activation", "mt5": "dense_act_fn"}
    gemma = family.startswith("gemma")
    return getattr(config, "hidden_activation" if gemma else names.get(family, "hidden_act"))


def test_the_inner_activation_is_what_its_sites_say(kit: SimpleNamespace, family: str) -> None:
    """f(x W), or f(x W_gate) * x W_up: so gate and up are not mixed up, and f is known."""
    from transformers.activations import ACT2FN

    model = kit.make_model(family)
    seen = Watch(model, kit.make_inputs(family))
    stacks = {stack.name: stack for stack in family_of(model).stacks}
    for layer in by_layer(model):
        if Site.FFN_MID not in layer:
            continue
        mid, up = seen.h(layer[Site.FFN_MID]), seen.h(layer[Site.FFN_UP])
        stack = stacks[layer[Site.FFN_MID].stack]
        config = model.config if stack.config is None else getattr(model.config, stack.config)
        if Site.FFN_GATE in layer:
            gate = ACT2FN[activation(config, family)](seen.h(layer[Site.FFN_GATE]))
            torch.testing.assert_close(mid, gate * up)
        elif stack.activation is not None:
            torch.testing.assert_close(mid, ACT2FN[getattr(config, stack.activation)](up))
        else:
            assert family == "bloom"  # whose config does not say


def test_the_stream_is_the_sum_of_what_is_added(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    seen = Watch(model, kit.make_inputs(family))
    check_stream(model, seen)


def check_stream(model: Any, seen: Watch) -> None:
    """Pre-LN: out = in + attn.out + ffn.out. Post-LN: each norm is given x plus what is added."""
    across = {
        layer[Site.ATTN_OUT].layer: seen.h(layer[Site.ATTN_OUT])
        for layer in by_layer(model)
        if layer[Site.ATTN_OUT].stack == "cross"
    }
    streams = [given for module, given in seen.given.items() if isinstance(module, nn.LayerNorm)]
    for layer in by_layer(model):
        attn = layer[Site.ATTN_OUT]
        if attn.stack == "cross":
            continue
        block, ffn = layer[Site.BLOCK_OUT], layer[Site.FFN_OUT]
        if block.hook_kind is HookKind.NORM:
            summed = like(seen.x(ffn) + seen.h(ffn), seen.h(block))
            torch.testing.assert_close(summed, seen.h(block))
            total = seen.x(attn) + seen.h(attn)
            assert any(total.shape == s.shape and torch.allclose(total, s) for s in streams)
            continue
        total = seen.given[block.module] + seen.h(attn)
        total = total + like(seen.h(ffn), total)
        if attn.stack == "decoder" and across:
            total = total + across[attn.layer]
        torch.testing.assert_close(total, seen.h(block))
        if Site.FFN_STREAM in layer:
            stream = layer[Site.FFN_STREAM]
            torch.testing.assert_close(seen.x(stream) + seen.h(stream), seen.h(block))


def like(part: Tensor, whole: Tensor) -> Tensor:
    """OPT's feed-forward sees its tokens in one row."""
    return part.reshape(whole.shape)


@pytest.mark.parametrize(
    ("family", "config"),
    [
        ("gpt_neox", {"use_parallel_residual": False}),
        ("opt", {"do_layer_norm_before": False}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
    ],
)
def test_a_family_of_several_shapes(
    kit: SimpleNamespace, family: str, config: dict[str, Any]
) -> None:
    model = kit.make_model(family, **config)
    check_stream(model, Watch(model, kit.make_inputs(family)))
    hook_kinds = {handle.hook_kind for handle in dk.resolve(model) if handle.site is Site.BLOCK_OUT}
    assert hook_kinds == {HookKind.NORM if family == "opt" else HookKind.OUTPUT}
    assert any(handle.site is Site.FFN_GATE for handle in dk.resolve(model)) == (family == "t5")


def test_projections_that_are_not_called_are_no_sites(kit: SimpleNamespace) -> None:
    model = kit.make_model("bloom", slow_but_exact=True, pretraining_tp=2)
    layer = next(by_layer(model))
    assert set(layer) == {Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V, Site.FFN_UP, Site.BLOCK_OUT}
    seen = Watch(model, kit.make_inputs("bloom"))
    assert all(handle.module in seen.given for handle in layer.values())


def test_x_of_deberta_is_no_relative_position(kit: SimpleNamespace) -> None:
    """Its query projection is called a second time, for the positions."""
    model = kit.make_model("deberta-v2")
    handle = next(by_layer(model))[Site.ATTN_OUT]
    seen = Watch(model, kit.make_inputs("deberta-v2"))
    assert seen.x(handle).shape == seen.h(handle).shape
    assert (
        seen.given[model.encoder.layer[0].attention.self.query_proj].shape != seen.h(handle).shape
    )


def test_shared_layers_have_one_handle_each(kit: SimpleNamespace) -> None:
    model = kit.make_model("albert")
    assert model.config.num_hidden_layers == 4
    assert {h.layer for h in dk.resolve(model) if h.stack == "encoder"} == {0, 1}


@pytest.mark.parametrize("model_type", MORE)
def test_model_types_that_share_a_layer(
    kit: SimpleNamespace, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoConfig, AutoModel

    family = FAMILIES.get(model_type)
    like_it = {**TINY_CONFIG, **TINY_EXPERTS} if family.name == "mixture" else TINY_CONFIG
    known = AutoConfig.for_model(model_type).to_dict()
    config = {key: value for key, value in like_it.items() if key in known}
    model = AutoModel.from_config(
        AutoConfig.for_model(model_type, **config), attn_implementation="eager"
    ).eval()
    inputs = {"input_ids": kit.make_batch(2)["input_ids"].clamp(min=3)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    seen = Watch(model, inputs)
    check_stream(model, seen)
    check_attention(model, inputs, monkeypatch)
    check_tables(dk.resolve(model), seen)
    reads = [h.module for h in dk.resolve(model) if h.site is Site.POSITION_IDS]
    assert len(reads) == (family.positions is not None) and set(reads) <= set(seen.given)


@pytest.mark.parametrize("name", ["T5EncoderModel", "T5ForTokenClassification"])
def test_an_encoder_without_its_decoder(kit: SimpleNamespace, name: str) -> None:
    import transformers

    config = kit.make_model("t5").config
    handles = dk.resolve(getattr(transformers, name)(config))
    assert {handle.stack for handle in handles} == {"input", "encoder"}
    assert handles[0].site is Site.TOKENS and handles[0].reader is None


def test_dtype_follows_the_module(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama").to(torch.bfloat16)
    model.layers[0].self_attn.q_proj.float()
    handles = {h.key: h for h in dk.resolve(model)}
    assert handles["decoder.0.attn.q"].dtype is torch.float32
    assert handles["decoder.0.attn.k"].dtype is torch.bfloat16


def test_unknown_model_type(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    model.config.model_type = "berd"
    with pytest.raises(UnknownArchitecture) as caught:
        dk.resolve(model)
    text = str(caught.value)
    assert text.startswith("unknown model type 'berd'. Did you mean 'bert'")
    assert "Known: albert, bart, bert" in text and "`deltakit sites MODEL --infer`" in text
    assert "`dk.register_family(dk.infer_family(model).family)`" in text and "\n" not in text
    with pytest.raises(UnknownArchitecture):
        dk.attach(model, dk.LoRA())
    assert kit.hook_count(model) == 0 and not hasattr(model, "deltakit")


def test_modules_are_not_where_the_data_file_says(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    model.config.model_type = "gpt2"
    with pytest.raises(UnknownArchitecture, match="BertModel says model_type='gpt2', but .* 'h'"):
        dk.resolve(model)


def test_linear_widths() -> None:
    from transformers.pytorch_utils import Conv1D

    assert linear_widths(nn.Linear(3, 5)) == (3, 5)
    assert linear_widths(Conv1D(5, 3)) == (3, 5)
    with pytest.raises(UnknownArchitecture, match="LayerNorm is no linear projection"):
        linear_widths(nn.LayerNorm(3))


def test_a_family_of_ones_own(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    model.config.model_type = "my-bert"
    stack = dk.LayerStack(
        name="mine",
        layers="encoder.layer",
        sites={Site.ATTN_Q: output("attention.self.query")},
    )
    family = dk.Family(name="mine", model_types=("my-bert",), stacks=(stack,))
    assert dk.register_family(family) is family
    try:
        assert family_of(model) is family
        assert [h.key for h in dk.resolve(model)] == ["mine.0.attn.q", "mine.1.attn.q"]
        with pytest.raises(dk.DeltakitError, match="has no site 'attn.v'. It has: attn.q"):
            dk.attach(model, dk.LoRA())
        dk.attach(model, dk.LoRA(targets="q"))
        assert dk.summary(model).trained_params == 2 * 8 * 32
    finally:
        FAMILIES.remove("my-bert")


def test_family_names_do_not_collide_and_leave_no_trace() -> None:
    family_of_bert = FAMILIES.get("bert")
    family = dk.Family(name="mine", model_types=("brand-new", "bert"), stacks=())
    try:
        with pytest.raises(NameInUse, match="model type 'bert' is already"):
            dk.register_family(family)
        assert FAMILIES.get("bert") is family_of_bert
        assert "brand-new" not in FAMILIES
    finally:
        if "brand-new" in FAMILIES:
            FAMILIES.remove("brand-new")


def test_linear_sites_are_linear(kit: SimpleNamespace) -> None:
    for family in SMALL:
        for handle in dk.resolve(kit.make_model(family)):
            if handle.site in LINEAR_SITES:
                assert linear_widths(handle.module)[0] == handle.d_in
