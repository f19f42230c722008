"""A family read off the modules of a model that no data file knows."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

import deltakit as dk
from deltakit.arch.family import FAMILIES, input_of, output
from deltakit.arch.resolve import family_of, handles_of
from deltakit.core.site import INPUT_SITES, HookKind, Site
from deltakit.errors import UnknownArchitecture

POST_LN = ("bert", "roberta", "electra", "distilbert", "albert", "mpnet", "deberta-v2", "bart")
NORMED = ("gemma2", "gemma3_text", "gemma3")
EXPERTS = ("mixtral", "qwen2_moe", "qwen3_moe")
FFN = {Site.FFN_GATE, Site.FFN_UP, Site.FFN_MID, Site.FFN_DOWN, Site.FFN_OUT}


def left_out(family: str) -> set[Site]:
    """What structure alone does not say."""
    missing = {*INPUT_SITES, Site.FFN_STREAM}
    missing |= {Site.BLOCK_OUT} if family in (*POST_LN, "opt") else set()
    missing |= {Site.ATTN_OUT, Site.FFN_OUT} if family in NORMED else set()
    missing |= FFN if family in EXPERTS else set()
    missing |= {Site.ATTN_KV} if family == "deberta-v2" else set()
    return missing | ({Site.FFN_GATE, Site.FFN_UP} if family == "modernbert" else set())


def test_what_is_inferred_is_what_the_data_file_says(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    theirs = [h for h in dk.resolve(model) if h.site not in left_out(family)]
    mine = list(handles_of(model, dk.infer_family(model).family))
    if family == "gemma3":  # its vision tower has no data file
        mine = [handle for handle in mine if handle.path.startswith("language_model")]
    summands = (Site.ATTN_OUT, Site.FFN_OUT)
    facts = [
        {
            (h.site, h.path, h.hook_kind, h.d_in, h.d_out, h.columns)
            for h in handles
            if h.site not in summands
        }
        for handles in (mine, theirs)
    ]
    assert facts[0] == facts[1]
    widths = [
        sorted((h.site, h.layer, h.d_in, h.d_out) for h in handles if h.site in summands)
        for handles in (mine, theirs)
    ]
    assert widths[0] == widths[1]


def test_what_is_added_leaves_the_last_projection(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    handles = handles_of(model, dk.infer_family(model).family)
    by_key = {handle.key: handle for handle in handles}
    for handle in handles:
        last = {Site.ATTN_OUT: Site.ATTN_O, Site.FFN_OUT: Site.FFN_DOWN}.get(handle.site)
        if last is not None:
            other = by_key[f"{handle.stack}.{handle.layer}.{last}"]
            assert handle.module is other.module and handle.reader is not None


def test_nothing_is_inferred_unless_asked(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    model.config.model_type = "berd"
    with pytest.raises(UnknownArchitecture) as caught:
        dk.attach(model, dk.LoRA())
    assert "`dk.register_family(dk.infer_family(model).family)`" in str(caught.value)
    inference = dk.infer_family(model)
    assert inference.family.model_types == ("berd",) and "berd" not in FAMILIES
    dk.register_family(inference.family)
    try:
        assert family_of(model) is inference.family
        before = kit.out(model, kit.make_batch())
        dk.attach(model, dk.LoRA())
        kit.randomise_deltas(model)
        assert not torch.equal(kit.out(model, kit.make_batch()), before)
    finally:
        FAMILIES.remove("berd")


def test_the_evidence_says_what_was_found_and_what_not(kit: SimpleNamespace) -> None:
    lines = dk.infer_family(kit.make_model("opt")).evidence
    assert lines[0] == "decoder.layers: 2 layers of OPTDecoderLayer"
    assert "decoder.layers.*: attn.q: self_attn.q_proj, 16 -> 16, by its name" in lines
    condition = "left out, self_attn_layer_norm is called under a condition before attention"
    assert f"decoder.layers.*: block.out: {condition}" in lines
    assert all("\n" not in line for line in lines)


# ------------------------------------------------------------------------- a model of one's own


class OwnConfig(PretrainedConfig):
    model_type = "own"

    def __init__(self, width: int = 16, heads: int = 4, **kwargs: Any) -> None:
        self.width, self.num_attention_heads = width, heads
        super().__init__(**kwargs)


class OwnLayer(nn.Module):
    """Pre-LN, everything flat, with query, key and value of each head side by side."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(d, 3 * d)
        self.out = nn.Linear(d, d)
        self.first, self.second = nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.norm_a, self.norm_b = nn.LayerNorm(d), nn.LayerNorm(d)

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm_a(x))
        return x + self.second(self.first(self.norm_b(x)).relu())


class OwnModel(PreTrainedModel):
    config_class = OwnConfig
    layer = OwnLayer

    def __init__(self, config: OwnConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(64, config.width)
        self.blocks = nn.ModuleList(
            self.layer(config.width, config.num_attention_heads) for _ in range(3)
        )
        self.post_init()

    def forward(self, input_ids: Tensor, **_: Any) -> BaseModelOutput:
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x)
        return BaseModelOutput(last_hidden_state=x)


def own(layer: type[nn.Module] = OwnLayer) -> Any:
    """A model of such layers."""
    return type("Own", (OwnModel,), {"layer": layer})(OwnConfig()).eval()


def test_a_model_of_ones_own_is_inferred() -> None:
    model = own()
    inference = dk.infer_family(model)
    handles = {handle.key: handle for handle in handles_of(model, inference.family)}
    paths = {key: handle.path for key, handle in handles.items() if handle.layer == 2}
    assert paths == {
        "blocks.2.attn.q": "blocks.2.qkv",
        "blocks.2.attn.k": "blocks.2.qkv",
        "blocks.2.attn.v": "blocks.2.qkv",
        "blocks.2.attn.mid": "blocks.2.out",
        "blocks.2.attn.o": "blocks.2.out",
        "blocks.2.attn.out": "blocks.2.out",
        "blocks.2.ffn.up": "blocks.2.first",
        "blocks.2.ffn.mid": "blocks.2.second",
        "blocks.2.ffn.down": "blocks.2.second",
        "blocks.2.ffn.out": "blocks.2.second",
        "blocks.2.block.out": "blocks.2",
    }
    assert str(handles["blocks.0.attn.v"].columns) == "[8:12 of each 12]"
    assert "blocks.*: attn.kv: left out, no call of transformers' attention interface is seen" in (
        inference.evidence
    )
    assert handles["blocks.0.block.out"].hook_kind is HookKind.OUTPUT
    assert not any(module._forward_hooks for module in model.modules())


def test_a_site_map_of_ones_own(kit: SimpleNamespace) -> None:
    """Written by hand, for the sites that a method needs."""
    sites = {
        Site.FFN_MID: input_of("second"),
        Site.FFN_DOWN: output("second"),
        Site.FFN_OUT: output("second", reads="first"),
        Site.FFN_UP: output("first"),
    }
    stack = dk.LayerStack(name="blocks", layers="blocks", sites=sites)
    dk.register_family(dk.Family(name="own", model_types=("own",), stacks=(stack,)))
    try:
        model = own()
        batch = {"input_ids": kit.make_batch()["input_ids"]}
        before = kit.out(model, batch)
        dk.attach(model, dk.ParallelAdapter(bottleneck=4))
        assert [h.key for h in dk.resolve(model)][:2] == ["blocks.0.ffn.mid", "blocks.0.ffn.down"]
        kit.randomise_deltas(model)
        assert not torch.equal(kit.out(model, batch), before)
        dk.detach(model)
        assert torch.equal(kit.out(model, batch), before)
        with pytest.raises(dk.DeltakitError, match="has no site 'attn.q'"):
            dk.attach(model, dk.LoRA())
    finally:
        FAMILIES.remove("own")


class TwoOuts(OwnLayer):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads)
        self.proj = nn.Linear(d, d)


class TwoFeeds(OwnLayer):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads)
        self.third = nn.Linear(3 * d, d)


class Rectified(OwnLayer):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads)
        self.other = nn.Linear(d, 2 * d)


class NoNames(nn.Module):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(d, d), nn.Linear(d, d)


class Interleaved(OwnLayer):
    """No layout that is known: the values of a head are every third column."""

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (self.heads, -1, 3)).transpose(1, 2).unbind(-1)
        return self.out(((q @ k.transpose(-1, -2)).softmax(-1) @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (TwoOuts, "last projection of attention; candidates: out, proj"),
        (TwoFeeds, "second feed-forward projection; candidates: second, third"),
        (Rectified, "gate of the feed-forward; candidates: none"),
        (NoNames, "no list of like layers"),
        (Interleaved, r"\[0:16\]/\[16:32\]/\[32:48\] or \[0:4 of each 12\].*, 0 fit"),
    ],
)
def test_what_is_not_clear_is_refused(layer: type[nn.Module], says: str) -> None:
    with pytest.raises(UnknownArchitecture, match=says) as caught:
        dk.infer_family(own(layer))
    assert "Family(" in str(caught.value) and "\n" not in str(caught.value)


def test_fused_projections_need_weights() -> None:
    with torch.device("meta"):
        model = own()
    with pytest.raises(UnknownArchitecture, match="0 fit. Weights are needed"):
        dk.infer_family(model)


def test_a_model_that_does_not_run_on_its_own_dummy_inputs() -> None:
    class Hungry(OwnModel):
        def forward(self, input_ids: Tensor, more: Tensor) -> BaseModelOutput:
            return super().forward(input_ids + more)

    model = Hungry(OwnConfig())
    with pytest.raises(UnknownArchitecture, match=r"does not run on its dummy_inputs \(TypeError"):
        dk.infer_family(model)
    assert not any(module._forward_hooks for module in model.modules())


class Experts(OwnLayer):
    def __init__(self, d: int, heads: int) -> None:
        super().__init__(d, heads)
        self.experts = nn.Parameter(torch.zeros(2, d, d))


def test_a_feed_forward_with_more_than_its_projections_is_left_out() -> None:
    inference = dk.infer_family(own(Experts))
    (stack,) = inference.family.stacks
    assert isinstance(stack.sites, dict) and not FFN & set(stack.sites)
    assert "blocks.*: ffn: left out, as next to second there is experts" in inference.evidence
    unseen = "blocks.*: experts: in no projection or norm; what it does is not seen"
    assert unseen in inference.evidence
