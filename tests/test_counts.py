"""Every published parameter count that the arithmetic reproduces, through the public summary.

The models are on the meta device: no weight is allocated. The ids are those of the papers' table of
counts; P10, P13 and P15 are also the sizes of files that the authors shipped.
"""

import contextlib
import functools
import string
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import deltakit as dk

ROBERTA = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
}
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("bert", "AutoModel", {}),
    "bert-large": ("bert", "AutoModel", LARGE),
    "roberta": ("roberta", "AutoModel", ROBERTA),
    "roberta-mnli": (
        "roberta",
        "AutoModelForSequenceClassification",
        {**ROBERTA, "num_labels": 3},
    ),
    "roberta-large": ("roberta", "AutoModel", {**ROBERTA, **LARGE}),
    "deberta-xxl": (
        "deberta-v2",
        "AutoModel",
        {
            "hidden_size": 1536,
            "num_hidden_layers": 48,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "relative_attention": True,
            "position_buckets": 256,
            "pos_att_type": ["p2c", "c2p"],
            "share_att_key": True,
        },
    ),
    "gpt2-medium": ("gpt2", "AutoModel", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "gpt3": (
        "gpt2",
        "AutoModel",
        {"n_embd": 12288, "n_layer": 96, "n_head": 96, "n_positions": 2048},
    ),
    "t5-3b": (
        "t5",
        "AutoModelForSeq2SeqLM",
        {
            "d_model": 2048,
            "d_kv": 64,
            "d_ff": 5120,
            "num_layers": 24,
            "num_heads": 32,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "t5-11b": (
        "t5",
        "AutoModelForSeq2SeqLM",
        {
            "d_model": 4096,
            "d_kv": 64,
            "d_ff": 10240,
            "num_layers": 24,
            "num_heads": 64,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "llama-7b": ("llama", "AutoModel", {}),
    "llama-8b": (
        "llama",
        "AutoModel",
        {
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
        },
    ),
    "llama-3b": (
        "llama",
        "AutoModelForCausalLM",
        {
            "vocab_size": 128256,
            "hidden_size": 3072,
            "intermediate_size": 8192,
            "num_hidden_layers": 28,
            "num_attention_heads": 24,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "tie_word_embeddings": True,
        },
    ),
    "bart-large": ("bart", "AutoModel", {}),
    "t5-base": (
        "t5",
        "AutoModelForSeq2SeqLM",
        {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    ),
}
PLAIN_PREFIX = "prefix[length={},bottleneck=none]"

TRAINED = [
    ("P1", "bert-large", "houlsby[bottleneck=64]", 6_343_680),
    ("P1-norms", "bert-large", "houlsby[bottleneck=64,train_norms=true]", 6_444_032),
    ("P3", "bert", "norms", 38_400),
    ("P4", "bert", "pfeiffer[bottleneck=48]", 894_528),
    ("P4-reduction", "bert", "pfeiffer[reduction=16]", 894_528),
    ("P5-2", "bert", "pfeiffer[reduction=2]", 7_091_712),
    ("P5-64", "bert", "pfeiffer[reduction=64]", 230_544),
    ("P6", "bert", "houlsby[reduction=16]", 1_789_056),
    ("P7", "bert", "bitfit", 102_912),
    ("P8", "bert", PLAIN_PREFIX.format(10), 184_320),
    ("P9", "bert", "lora[rank=8]", 294_912),
    ("P11-large", "roberta-large", "lora[rank=8]", 786_432),
    ("P11-xxl", "deberta-xxl", "lora[rank=16]", 4_718_592),
    ("P12-1", "gpt3", "lora[rank=1]", 4_718_592),
    ("P12-8", "gpt3", "lora[rank=8]", 37_748_736),
    ("P13", "gpt2-medium", "lora[rank=4]", 393_216),
    ("P15", "t5-3b", "ia3", 540_672),
    ("P16", "t5-11b", "ia3", 1_081_344),
    ("P18", "bert", "ia3", 55_296),
    ("P19", "llama-7b", "ia3", 614_400),
    ("P20-lora", "llama-3b", "lora[rank=32]", 9_175_040),
    ("DoRA", "llama-3b", "dora[rank=32]", 9_289_728),
    ("Compacter", "t5-base", "compacter", 114_112),
    ("Compacter-norms", "t5-base", "compacter[train_norms=true]", 161_728),
    ("Compacter++", "t5-base", "compacter++", 57_088),
    ("PHM", "t5-base", "phm", 351_360),
    ("Compacter-bert", "bert", "compacter", 57_088),
    ("Compacter++-bert", "bert", "compacter++", 28_576),
    (
        "HyperFormer++",
        "t5-base",
        "hyperformer[tasks=a/b/c/d/e/f/g/h,train_norms=true]",
        5_211_056,
    ),
    ("MoA-sparse", "llama-8b", "moa", 28_058_240),
    ("VeRA-base", "roberta", "vera[rank=1024]", 43_008),
    ("VeRA-large", "roberta-large", "vera[rank=256]", 61_440),
    ("VeRA-3b", "llama-3b", "vera[rank=256]", 129_024),
    ("AdaMix", "bert", "adamix[method=pfeiffer[bottleneck=48,placement=ffn]]", 2_223_360),
    (
        "AdaMix-large",
        "roberta-large",
        "adamix[method=pfeiffer[bottleneck=16,placement=ffn]]",
        1_992_192,
    ),
    ("AdaMix-lora", "gpt2-medium", "adamix[experts=8,share=lora_B,method=lora[rank=4]]", 1_769_472),
    ("MoLA", "llama-7b", "mola", 105_635_840),
    ("Sparse", "bert", "sparse[method=pfeiffer[bottleneck=48]]", 12 * (2 * 9_216 + 816)),
    ("Large-Sparse", "bert", "sparse[method=pfeiffer[bottleneck=192]]", 12 * (2 * 36_864 + 960)),
    ("Sparse-odd", "bert", "sparse[keep=0.1,method=lora[rank=3]]", 24 * (230 + 230)),
    ("UniPELT", "bert", "unipelt", 1_410_672),
    ("LoReFT-7b", "llama-7b", "loreft[rank=8]", 2_097_408),
    ("LoReFT-base", "roberta", "loreft[rank=1]", 18_444),
    ("LoReFT-large", "roberta-large", "loreft[rank=1]", 49_176),
    ("P20-mlp", "llama-3b", "lora[rank=10,targets=gate/up/down]", 9_461_760),
    ("P20-ia3", "llama-3b", "ia3", 286_720),
    ("P20-prefix", "llama-3b", PLAIN_PREFIX.format(200), 11_468_800),
    ("P20-prompt", "llama-3b", "prompt[length=200]", 614_400),
    ("P20-norms", "llama-3b", "norms", 175_104),
    ("P21-prefix", "bart-large", PLAIN_PREFIX.format(200), 14_745_600),
    ("P21-pa-512", "bart-large", "parallel[bottleneck=512,bias=false]", 25_165_824),
    ("P21-pa-1024", "bart-large", "parallel[bottleneck=1024,bias=false]", 50_331_648),
    ("P21-lora", "bart-large", "lora[rank=102,targets=up/down]", 25_067_520),
    ("P21-pfeiffer", "bart-large", "pfeiffer[bottleneck=600,bias=false]", 29_491_200),
    (
        "P21-mam",
        "bart-large",
        "mam[length=30,bottleneck=512,bias=false,prefix_bottleneck=none]",
        27_377_664,
    ),
    ("P22", "roberta", "mam[length=16,bottleneck=16,prefix_bottleneck=none]", 599_232),
    ("P24", "bert", "adapterdrop[method=pfeiffer,first=5]", 521_808),
    ("P25-parallel", "bert", "parallel", 7_091_712),
    ("P25-learned", "bert", "parallel[learned_scale=true]", 7_091_724),
    ("P25-prefix", "bert", "prefix[length=30,bottleneck=512]", 9_872_384),
    ("P25-mam", "bert", "mam[prefix_bottleneck=800]", 22_493_984),
]


@functools.cache
def base(name: str) -> Any:
    """The model on the meta device; every test gives it back as it was."""
    import transformers

    family, cls, config = BASES[name]
    full = transformers.AutoConfig.for_model(family, **config)
    with torch.device("meta"):
        model = getattr(transformers, cls).from_config(full)
    assert all(parameter.is_meta for parameter in model.parameters())
    return model


@contextlib.contextmanager
def counted(name: str, *specs: str) -> Iterator[Any]:
    """The base with one delta for each spec, called "a", "b", ...; the last one is active."""
    model = base(name)
    for letter, spec in zip(string.ascii_lowercase, specs, strict=False):
        dk.attach(model, dk.parse_method(spec), name=letter)
    try:
        yield model
    finally:
        dk.detach(model)


@pytest.mark.parametrize(
    ("name", "spec", "expected"), [row[1:] for row in TRAINED], ids=[row[0] for row in TRAINED]
)
def test_trained(name: str, spec: str, expected: int) -> None:
    with counted(name, spec) as model:
        found = dk.summary(model)
        flags = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.trained_params == expected == flags - found.head_params
    assert sum(row.params for row in found.rows) == expected
    assert sum(row.deployed for row in found.rows) == found.deployed_params
    assert found.delta_bytes == 4 * found.deployed_params


DEPLOYED = [
    ("P8", "bert", "prefix[length=10]", 184_320),
    ("P20-prefix", "llama-3b", "prefix[length=200]", 11_468_800),
    ("P21-mam", "bart-large", "mam[length=30,bottleneck=512,bias=false]", 27_377_664),
    ("AdaMix", "bert", "adamix[method=pfeiffer[bottleneck=48,placement=ffn]]", 894_528),
    (
        "AdaMix-large",
        "roberta-large",
        "adamix[method=pfeiffer[bottleneck=16,placement=ffn]]",
        811_392,
    ),
    ("AdaMix-lora", "gpt2-medium", "adamix[experts=8,share=lora_B,method=lora[rank=4]]", 393_216),
    ("P25-prefix", "bert", "prefix[length=30]", 552_960),
    ("P25-mam", "bert", "mam[prefix_bottleneck=800]", 7_091_712 + 552_960),
]


@pytest.mark.parametrize(
    ("name", "spec", "expected"), [row[1:] for row in DEPLOYED], ids=[row[0] for row in DEPLOYED]
)
def test_deployed(name: str, spec: str, expected: int) -> None:
    with counted(name, spec) as model:
        before = dk.summary(model)
        dk.deploy(model, "a")
        after = dk.summary(model)
    assert before.trained_params > before.deployed_params == expected
    assert after.trained_params == after.deployed_params == expected


BASE = [
    ("bert", 109_482_240, 0),
    ("roberta", 124_645_632, 0),
    ("roberta-mnli", 124_055_040, 592_899),
    ("bart-large", 406_291_456, 0),
    ("P20", 3_212_749_824, 0),
]


@pytest.mark.parametrize(("name", "expected", "head"), BASE)
def test_base_and_head(name: str, expected: int, head: int) -> None:
    found = dk.summary(base("llama-3b" if name == "P20" else name))
    assert (found.base_params, found.head_params) == (expected, head)
    assert found.trained_params == found.deployed_params == 0


def test_p10_is_what_is_trained_and_its_head() -> None:
    with counted("roberta-mnli", "lora[rank=8]") as model:
        found = dk.summary(model)
        flags = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.trained_params == 294_912
    assert found.trained_params + found.head_params == flags == 887_811


@pytest.mark.parametrize(
    ("spec", "published"),
    [
        (PLAIN_PREFIX.format(200), 3.6),
        ("parallel[bottleneck=512,bias=false]", 6.2),
        ("parallel[bottleneck=1024,bias=false]", 12.4),
        ("lora[rank=102,targets=up/down]", 6.2),
        ("pfeiffer[bottleneck=600,bias=false]", 7.3),
        ("mam[length=30,bottleneck=512,bias=false,prefix_bottleneck=none]", 6.7),
    ],
)
def test_p21_in_per_cent(spec: str, published: float) -> None:
    """The paper cuts 6.19 to 6.1 and rounds the rest; rounded they are these."""
    with counted("bart-large", spec) as model:
        assert round(dk.summary(model).trained_pct, 1) == published


@pytest.mark.parametrize(("value", "expected"), [("true", 21_252_096), ("false", 14_174_208)])
def test_p23_fusion_of_eight(value: str, expected: int) -> None:
    names = "abcdefgh"
    fusion = f"fusion[names={'/'.join(names)},value={value}]"
    with counted("bert", *["pfeiffer[bottleneck=48]"] * 8, fusion) as model:
        found = dk.summary(model)
    frozen = [row for row in found.rows if not row.trained]
    assert found.trained_params == expected
    assert sum(row.params for row in frozen) == 7_156_224
    assert found.deployed_params == expected + 7_156_224
    assert [row.delta for row in frozen] == list(names)
    if value == "true":
        assert round(found.trained_pct, 1) == 19.4
