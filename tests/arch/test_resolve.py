"""Where the sites of each family are."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import deltakit as dk
from deltakit.arch.family import FAMILIES, output
from deltakit.arch.resolve import family_of, linear_widths
from deltakit.core.site import LINEAR_SITES, Insertion, Site, Tap
from deltakit.errors import NameInUse, UnknownArchitecture

TINY = (
    "bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3",
)  # fmt: skip
GATED = ("llama", "mistral", "qwen2", "qwen3")


@pytest.mark.parametrize("kind", ["bare", "classify"])
@pytest.mark.parametrize("family", TINY)
def test_every_family_resolves(kit: SimpleNamespace, family: str, kind: str) -> None:
    model = kit.make_model(family, kind)
    handles = dk.resolve(model)
    expected = set(Site) - (set() if family in GATED else {Site.FFN_GATE})
    assert {h.site for h in handles} == expected
    assert len(handles) == 2 * len(expected)
    assert len({h.key for h in handles}) == len(handles)
    for handle in handles:
        assert model.get_submodule(handle.path) is handle.module
        assert handle.dtype is torch.float32 and handle.device.type == "cpu"
        assert handle.key == f"{handle.stack}.{handle.layer}.{handle.site.value}"


@pytest.mark.parametrize("family", TINY)
def test_widths(kit: SimpleNamespace, family: str) -> None:
    inner = 64 if family == "gpt2" else 32
    keys = 8 if family in GATED else 16
    widths = {
        Site.ATTN_Q: (16, 16),
        Site.ATTN_K: (16, keys),
        Site.ATTN_V: (16, keys),
        Site.ATTN_O: (16, 16),
        Site.ATTN_OUT: (16, 16),
        Site.FFN_GATE: (16, inner),
        Site.FFN_UP: (16, inner),
        Site.FFN_MID: (inner, inner),
        Site.FFN_DOWN: (inner, 16),
        Site.FFN_OUT: (16, 16),
        Site.BLOCK_OUT: (16, 16),
    }
    for handle in dk.resolve(kit.make_model(family)):
        assert (handle.d_in, handle.d_out) == widths[handle.site], handle.key
        assert Insertion.PARALLEL.width(handle) == handle.d_in
        assert Insertion.SEQUENTIAL.width(handle) == handle.d_out


@pytest.mark.parametrize("family", TINY)
def test_widths_are_those_that_flow(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family)
    seen: dict[int, tuple[int, int]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        given = args[0] if args else next(iter(kwargs.values()))
        first = out[0] if isinstance(out, tuple) else out
        seen[id(module)] = (given.shape[-1], first.shape[-1])

    handles = dk.resolve(model)
    hooks = [
        m.register_forward_hook(note, with_kwargs=True)
        for m in {h.module for h in handles} | {h.reader for h in handles if h.reader}
    ]
    kit.out(model, kit.make_batch())
    for hook in hooks:
        hook.remove()
    for handle in handles:
        given, returned = seen[id(handle.module)]
        if handle.reader is not None:
            given = seen[id(handle.reader)][0]
        assert handle.d_in == given, handle.key
        if handle.tap is Tap.OUTPUT and handle.columns is None:
            assert handle.d_out == returned, handle.key


def test_fused_columns_tile_the_projection(kit: SimpleNamespace) -> None:
    handles = {h.key: h for h in dk.resolve(kit.make_model("gpt2"))}
    spans = [handles[f"decoder.0.attn.{part}"].columns for part in "qkv"]
    assert spans == [(0, 16), (16, 32), (32, 48)]
    assert len({id(handles[f"decoder.0.attn.{part}"].module) for part in "qkv"}) == 1


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
    assert "Known: bert, camembert" in text and "`deltakit sites MODEL`" in text
    assert "register_family" in text and "\n" not in text
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
    for family in TINY:
        for handle in dk.resolve(kit.make_model(family)):
            if handle.site in LINEAR_SITES:
                assert linear_widths(handle.module)[0] == handle.d_in
