"""Prefixes in DeBERTa-v2's own attention: the tokens' share stays theirs, with any setting."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.core.site import Site
from deltakit.errors import IncompatibleDeltas

SETTINGS: dict[str, dict[str, Any]] = {
    "both": {"relative_attention": True, "pos_att_type": "p2c|c2p"},
    "shared": {"relative_attention": True, "pos_att_type": "p2c|c2p", "share_att_key": True},
    "buckets": {"relative_attention": True, "pos_att_type": "c2p", "position_buckets": 3},
    "absolute": {"relative_attention": False},
}


def deberta(kit: SimpleNamespace, **settings: Any) -> Any:
    return kit.make_model("deberta-v2", **settings)


@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_share_what_the_prefix_leaves(kit: SimpleNamespace, setting: str) -> None:
    """In the first layer, the weights of tokens keep their proportions, and add to less than 1."""
    model, batch = deberta(kit, **SETTINGS[setting]), kit.make_batch()
    with torch.no_grad():
        plain = model(**batch, output_attentions=True).attentions[0]
        dk.attach(model, dk.PrefixTuning(length=2, bottleneck=None))
        found = model(**batch, output_attentions=True).attentions[0]
    assert found.shape == plain.shape
    share = found.sum(-1, keepdim=True)
    real = batch["attention_mask"].bool()[:, None, :, None].expand(*share.shape)
    assert (share[real] < 1 - 1e-5).all() and (share[real] > 0).all()
    ratio = (found / share).masked_select(real.expand_as(found))
    torch.testing.assert_close(ratio, plain.masked_select(real.expand_as(plain)), atol=1e-5, rtol=0)


def test_a_row_is_the_same_without_its_padding(kit: SimpleNamespace) -> None:
    model, batch = deberta(kit, **SETTINGS["both"]), kit.make_batch()
    dk.attach(model, dk.PrefixTuning(length=2, bottleneck=3))
    row = int(batch["attention_mask"].sum(1).argmin())
    kept = int(batch["attention_mask"][row].sum())
    alone = {key: value[row : row + 1, :kept] for key, value in batch.items()}
    with torch.no_grad():
        whole = model(**batch).last_hidden_state[row, :kept]
        torch.testing.assert_close(model(**alone).last_hidden_state[0], whole, atol=1e-5, rtol=0)


def test_rows_may_have_prefixes_of_other_lengths(kit: SimpleNamespace) -> None:
    model, batch = deberta(kit, **SETTINGS["both"]), kit.make_batch()
    for length, name in ((2, "a"), (3, "b")):
        dk.attach(model, dk.PrefixTuning(length=length, bottleneck=None), name=name)
    names = [("a", "b", None)[index % 3] for index in range(len(batch["input_ids"]))]
    with torch.no_grad():
        dk.activate(model, dk.PerRow(names))
        found = model(**batch).last_hidden_state
        for index, name in enumerate(names):
            if name is None:
                with dk.disabled(model):
                    alone = model(**batch).last_hidden_state
            else:
                dk.activate(model, name)
                alone = model(**batch).last_hidden_state
            mask = batch["attention_mask"][index].bool()
            torch.testing.assert_close(found[index][mask], alone[index][mask], atol=1e-5, rtol=0)


def test_the_module_has_its_own_functions_again(kit: SimpleNamespace) -> None:
    model = deberta(kit, **SETTINGS["both"])
    module = next(h.module for h in dk.resolve(model) if h.site is Site.ATTN_KV)
    before = dict(vars(module))
    dk.attach(model, dk.PrefixTuning(length=2))
    assert "transpose_for_scores" in vars(module)
    dk.detach(model)
    assert vars(module).keys() == before.keys()


def test_a_prefix_is_not_weighed(kit: SimpleNamespace) -> None:
    model = deberta(kit)
    for name in "ab":
        dk.attach(model, dk.PrefixTuning(length=2), name=name)
    with pytest.raises(IncompatibleDeltas, match="cannot be weighed"):
        dk.activate(model, dk.Mean("a", "b"))
