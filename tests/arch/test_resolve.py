"""Where the sites of each family are."""

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.arch.family import FAMILIES, output
from deltakit.arch.resolve import family_of, linear_widths
from deltakit.core.site import HookKind, Insertion, Site
from deltakit.errors import NameInUse, UnknownArchitecture
from deltakit.testing import SITE_LAWS, fill
from deltakit.testing.case import NotApplicable
from deltakit.testing.sites import (
    Seen,
    SiteLaw,
    by_layer,
    check_inner_activation,
    check_stream,
    check_tables,
)
from deltakit.testing.suite import law_name

MORE = (
    "xlm-roberta", "camembert", "bert-generation", "data2vec-text", "ernie", "layoutlm", "splinter",
    "cohere", "cohere2", "ernie4_5", "gemma", "helium", "hunyuan_v1_dense", "ministral",
    "ministral3", "olmo", "seed_oss", "smollm3", "stablelm", "ernie4_5_moe", "glm4_moe", "gpt_oss",
    "hunyuan_v1_moe", "minimax_m2", "olmoe", "phimoe", "olmo2", "olmo3", "exaone4", "umt5",
    "glm", "glm4", "granite", "nemotron", "arcee", "starcoder2", "llama4_text",
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


@pytest.mark.parametrize("kind", ["bare", "classify", "causal", "seq2seq"])
def test_every_family_resolves(kit: SimpleNamespace, family: str, kind: str) -> None:
    try:
        model = kit.make_model(family, kind)
    except ValueError as error:
        assert "Unrecognized configuration" in str(error)  # transformers has no such head for it
        return
    handles = dk.resolve(model)
    assert any(handle.in_a_layer for handle in handles)
    assert len({h.key for h in handles}) == len(handles)
    for handle in handles:
        assert model.get_submodule(handle.path) is handle.module
        assert handle.dtype is torch.float32 and handle.device.type == "cpu"
        assert handle.key == f"{handle.stack}.{handle.layer}.{handle.site.value}"


@pytest.mark.parametrize("law", SITE_LAWS, ids=law_name)
def test_the_sites_keep_the_laws(kit: SimpleNamespace, family: str, law: SiteLaw) -> None:
    try:
        law(kit.make_model(family), kit.make_inputs(family))
    except NotApplicable as reason:
        pytest.skip(str(reason))


def test_widths_of_a_llama(kit: SimpleNamespace) -> None:
    """Two of four heads have keys and values, and the feed-forward is twice as wide."""
    layer = next(by_layer(kit.make_model("llama")))
    widths = {site: (handle.d_in, handle.d_out) for site, handle in layer.items()}
    assert widths[Site.ATTN_K] == widths[Site.ATTN_V] == widths[Site.ATTN_KV] == (16, 8)
    assert widths[Site.ATTN_Q] == widths[Site.ATTN_OUT] == widths[Site.BLOCK_OUT] == (16, 16)
    assert widths[Site.FFN_UP] == (16, 32) and widths[Site.FFN_DOWN] == (32, 16)
    for handle in layer.values():
        assert Insertion.PARALLEL.width(handle) == handle.d_in
        assert Insertion.SEQUENTIAL.width(handle) == handle.d_out


def test_a_table_of_both_halves(kit: SimpleNamespace) -> None:
    """A model whose vocabulary has changed has one table."""
    model = kit.make_model("t5", "seq2seq")
    model.resize_token_embeddings(66)
    (handle,) = (h for h in dk.resolve(model) if h.site is Site.EMBED)
    assert handle.key == "input.0.embed" and handle.module is model.get_input_embeddings()
    check_tables(model, kit.make_inputs("t5", "seq2seq"))


def test_a_table_that_is_of_another_kind(kit: SimpleNamespace) -> None:
    class Hashed(nn.Embedding):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input // 2)

    model = kit.make_model("bert")
    model.set_input_embeddings(Hashed(64, 16))
    assert all(h.site is not Site.EMBED for h in dk.resolve(model))


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
    check_stream(model, kit.make_inputs(family))
    check_inner_activation(model, kit.make_inputs(family))
    hook_kinds = {handle.hook_kind for handle in dk.resolve(model) if handle.site is Site.BLOCK_OUT}
    assert hook_kinds == {HookKind.NORM if family == "opt" else HookKind.OUTPUT}
    assert any(handle.site is Site.FFN_GATE for handle in dk.resolve(model)) == (family == "t5")


def test_projections_that_are_not_called_are_no_sites(kit: SimpleNamespace) -> None:
    model = kit.make_model("bloom", slow_but_exact=True, pretraining_tp=2)
    layer = next(by_layer(model))
    assert set(layer) == {Site.ATTN_Q, Site.ATTN_K, Site.ATTN_V, Site.FFN_UP, Site.BLOCK_OUT}
    seen = Seen(model, kit.make_inputs("bloom"))
    assert all(handle.module in seen.given for handle in layer.values())


def test_shared_layers_have_one_handle_each(kit: SimpleNamespace) -> None:
    model = kit.make_model("albert")
    assert model.config.num_hidden_layers == 4
    assert {h.layer for h in dk.resolve(model) if h.stack == "encoder"} == {0, 1}


def one_of_each_family() -> list[Any]:
    """The model types, as parameters of a test; the first of each family is not in the slow run."""
    firsts = {FAMILIES.get(each).name: each for each in reversed(MORE)}.values()
    return [pytest.param(m, marks=[] if m in firsts else pytest.mark.slow) for m in MORE]


@pytest.mark.parametrize("model_type", one_of_each_family())
def test_model_types_that_share_a_layer(kit: SimpleNamespace, model_type: str) -> None:
    from transformers import AutoConfig, AutoModel

    family = FAMILIES.get(model_type)
    like_it = {**TINY_CONFIG, **TINY_EXPERTS} if family.name == "mixture" else TINY_CONFIG
    known = AutoConfig.for_model(model_type).to_dict()
    config = {key: value for key, value in like_it.items() if key in known}
    model = AutoModel.from_config(
        AutoConfig.for_model(model_type, **config), attn_implementation="eager"
    ).eval()
    fill(model)
    inputs = {"input_ids": kit.make_batch(2)["input_ids"].clamp(min=3)}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"][:, :4]
    for law in SITE_LAWS:
        with contextlib.suppress(NotApplicable):
            law(model, inputs)


CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_kernel": (4, 4),
    "conv_stride": (2, 2),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "mask_time_prob": 0.0,
    "layerdrop": 0.0,
}
TEXT = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}
LAYER = {**TEXT, "intermediate_size": 32, "max_position_embeddings": 40}
OTHERS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("phi", LAYER),
    ("gptj", {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "rotary_dim": 2}),
    ("falcon", {**TEXT, "multi_query": True, "bias": True}),
    ("falcon", {**TEXT, "multi_query": False, "alibi": True, "parallel_attn": False}),
    ("falcon", {**TEXT, "new_decoder_architecture": True, "num_kv_heads": 2}),
    ("deberta", LAYER),
    (
        "deberta",
        {**LAYER, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    ),
    ("beit", {**LAYER, "image_size": 8, "patch_size": 4, "drop_path_rate": 0.0}),
    ("wav2vec2", {**LAYER, **CONVOLUTIONS}),
    ("wav2vec2", {**LAYER, **CONVOLUTIONS, "do_stable_layer_norm": True}),
    ("hubert", {**LAYER, **CONVOLUTIONS}),
    ("unispeech", {**LAYER, **CONVOLUTIONS, "do_stable_layer_norm": True}),
    ("unispeech-sat", {**LAYER, **CONVOLUTIONS}),
    ("data2vec-audio", {**LAYER, **CONVOLUTIONS, "conv_pos_kernel_size": 3}),
    ("xmod", {**LAYER, "default_language": "en_XX"}),
    ("bert", {**LAYER, "is_decoder": True, "add_cross_attention": True}),
    ("roberta", {**LAYER, "is_decoder": True, "add_cross_attention": True}),
    (
        "gpt2",
        {"vocab_size": 64, "n_embd": 16, "n_layer": 2, "n_head": 4, "add_cross_attention": True},
    ),
)


@pytest.mark.parametrize(("model_type", "config"), OTHERS)
def test_more_model_types_keep_the_site_laws_and_take_a_lora(
    kit: SimpleNamespace, model_type: str, config: dict[str, Any]
) -> None:
    from transformers import AutoConfig, AutoModel

    full = AutoConfig.for_model(model_type, **config)
    model = AutoModel.from_config(full, attn_implementation="eager").eval()
    fill(model)
    inputs: dict[str, Tensor] = kit.make_batch(2)
    if model_type == "beit":
        inputs = {"pixel_values": kit.make_inputs("vit", rows=2)["pixel_values"]}
    if "conv_dim" in config:
        inputs = {"input_values": torch.linspace(-1, 1, 80).sin().view(2, 40)}
    if config.get("add_cross_attention"):
        inputs["encoder_hidden_states"] = torch.linspace(-1, 1, 2 * 5 * 16).view(2, 5, 16).sin()
        assert "cross" in {handle.stack for handle in dk.resolve(model)}
    for law in SITE_LAWS:
        with contextlib.suppress(NotApplicable):
            law(model, inputs)
    plain = model(**inputs)[0]
    dk.attach(model, dk.LoRA(rank=2, targets="all"))
    for parameter in model.deltakit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert not torch.allclose(model(**inputs)[0], plain)
    dk.detach(model)
    assert torch.equal(model(**inputs)[0], plain)


def test_the_language_model_of_one_that_sees_and_reads(kit: SimpleNamespace) -> None:
    from transformers import AutoConfig, AutoModelForImageTextToText

    vision = {**LAYER, "model_type": "pixtral", "image_size": 8, "patch_size": 4, "head_dim": 4}
    text = {**LAYER, "model_type": "mistral", "num_key_value_heads": 2, "head_dim": 4}
    config = AutoConfig.for_model("mistral3", text_config=text, vision_config=vision)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="eager").eval()
    fill(model)
    inputs = kit.make_batch(2)
    for law in SITE_LAWS:
        with contextlib.suppress(NotApplicable):
            law(model, inputs)
    plain = model(**inputs).logits
    dk.attach(model, dk.parse_method("prefix[length=2]+houlsby[bottleneck=2]+lora[rank=2]"))
    for parameter in model.deltakit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert not torch.allclose(model(**inputs).logits, plain)
    dk.detach(model)
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("decoder", ["bert", "gpt2"])
def test_a_model_made_of_two(kit: SimpleNamespace, decoder: str) -> None:
    """Sites of both parts and across, in stacks of the parts' names."""
    from transformers import AutoConfig, AutoModelForCausalLM, EncoderDecoderModel

    small = dict(OTHERS[-1][1] if decoder == "gpt2" else OTHERS[-3][1])
    config = AutoConfig.for_model(decoder, **{**small, "is_decoder": True})
    second = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = EncoderDecoderModel(encoder=kit.make_model("bert"), decoder=second).eval()
    fill(second)
    handles = dk.resolve(model)
    assert {handle.stack for handle in handles} == {"encoder", "decoder", "cross"}
    assert all(model.get_submodule(handle.path) is handle.module for handle in handles)
    inputs = kit.make_batch(2) | {"decoder_input_ids": kit.make_batch(2)["input_ids"][:, :4]}
    for law in SITE_LAWS:
        with contextlib.suppress(NotApplicable):
            law(model, inputs)
    plain = model(**inputs).logits
    dk.attach(model, dk.parse_method("prefix[length=2]+houlsby[bottleneck=2]+lora[rank=2]"))
    for parameter in model.deltakit.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    assert not torch.allclose(model(**inputs).logits, plain)
    dk.detach(model)
    assert torch.equal(model(**inputs).logits, plain)


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
    assert "Known: albert, arcee, bart, beit" in text and "`deltakit sites MODEL --infer`" in text
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
    with pytest.raises(UnknownArchitecture, match="LayerNorm is not a linear projection"):
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
