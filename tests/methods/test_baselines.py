"""The baselines, and what the summary counts (the papers' counts are in test_counts)."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.core.method import Role


def trained(model: Any, method: dk.Method) -> int:
    dk.attach(model, method)
    found = dk.summary(model)
    by_flag = sum(p.numel() for p in model.deltakit.parameters() if p.requires_grad)
    assert found.trained_params == found.deployed_params == by_flag
    assert sum(row.params for row in found.rows) == found.deployed_params
    dk.detach(model)
    return found.trained_params


@pytest.fixture(scope="module")
def bert_base() -> Any:
    from transformers import BertConfig, BertModel

    with torch.device("meta"):
        return BertModel(BertConfig())


@pytest.mark.parametrize(
    ("spec", "count"),
    [
        ("lora[rank=8,targets=q/k/v]", 442_368),
        ("lora[rank=8,targets=q/k/v/up/down]", 1_179_648),
        ("lora[rank=8]+pfeiffer", 294_912 + 894_528),
    ],
)
def test_counts_bert_base(bert_base: Any, spec: str, count: int) -> None:
    assert trained(bert_base, dk.parse_method(spec)) == count


def test_base_bytes_and_delta_bytes(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert").to(torch.bfloat16)
    dk.attach(model, dk.LoRA(rank=4))
    found = dk.summary(model)
    assert found.delta_bytes == 4 * found.deployed_params == 4 * 2 * 2 * 4 * (16 + 16)
    buffers = sum(b.numel() * b.element_size() for b in model.buffers())
    assert found.base_bytes == 2 * found.base_params + buffers
    assert found.trained_pct == pytest.approx(100 * found.trained_params / found.base_params)


def test_summary_is_a_table(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    plain = str(dk.summary(model))
    assert "trained 0" in plain and "\n" not in plain
    dk.attach(model, dk.LoRA(rank=4), name="mine")
    text = str(dk.summary(model))
    headers = ["delta", "site", "layers", "parameters", "deployed", "trained"]
    assert text.splitlines()[0].split() == headers
    assert "mine" in text and "encoder attn.q" in text
    row = dk.summary(model).rows[0]
    assert (row.site, row.layers, row.trained) == ("encoder attn.q", 2, True)
    assert row.params == row.deployed == 256


@pytest.mark.parametrize("family", ["bert", "roberta", "electra", "distilbert", "gpt2", "llama"])
def test_head_only_trains_the_head_and_nothing_of_the_base(
    kit: SimpleNamespace, family: str
) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    inside = {f"{model.base_model_prefix}.{n}" for n, _ in model.base_model.named_parameters()}
    before = kit.snapshot(model)
    dk.attach(model, dk.HeadOnly())
    found = dk.summary(model)
    head = {n for n, p in model.named_parameters() if p.requires_grad}
    assert found.trained_params == found.deployed_params == 0 and found.rows == ()
    everything = {n for n, _ in model.named_parameters() if not n.startswith("deltakit.base.")}
    assert head == everything - inside
    assert found.head_params == sum(p.numel() for n, p in model.named_parameters() if n in head)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    kit.train_steps(model, batch)
    assert not any(torch.equal(model.get_parameter(n), before["state"][n]) for n in head)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_full_trains_everything_and_gives_it_back(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    before = kit.snapshot(model)
    plain = kit.out(model, batch)
    dk.attach(model, dk.FullFineTuning(), name="all")
    found = dk.summary(model)
    assert found.trained_params == found.deployed_params == found.base_params
    assert all(p.requires_grad for p in model.deltakit.delta_all.parameters())
    assert not any(p.requires_grad for p in model.deltakit.base.parameters())
    assert torch.equal(kit.out(model, batch), plain)
    kit.train_steps(model, batch)
    after = kit.out(model, batch)
    assert not torch.equal(after, plain)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
    assert torch.equal(kit.out(model, batch), after)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), plain)


def test_full_equals_plain_training(kit: SimpleNamespace) -> None:
    batch = kit.make_batch(labels=True)
    plain, attached = kit.make_model("bert", "classify"), kit.make_model("bert", "classify")
    dk.attach(attached, dk.FullFineTuning())
    kit.train_steps(plain, batch)
    kit.train_steps(attached, batch)
    assert torch.equal(kit.out(plain, batch), kit.out(attached, batch))


def test_full_on_tied_embeddings(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama", "causal", tie_word_embeddings=True)
    before = kit.snapshot(model)
    batch = kit.make_batch()
    dk.attach(model, dk.FullFineTuning())
    assert dk.summary(model).trained_params == dk.summary(model).base_params
    kit.train_steps(model, {**batch, "labels": batch["input_ids"]})
    assert model.lm_head.weight is model.model.embed_tokens.weight
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_roles() -> None:
    assert dk.HeadOnly.role is Role.FLOOR
    assert dk.FullFineTuning.role is Role.CEILING
    assert dk.LoRA.role is Role.METHOD
