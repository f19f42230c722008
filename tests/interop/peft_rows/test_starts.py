"""PEFT's starts from data as rows: equal to PEFT's own way, saved and loaded, refused."""

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.core.provider import AdaptedModel
from deltakit.core.spec import parse_method
from deltakit.errors import InvalidConfig

peft = pytest.importorskip("peft", reason="PEFT is not installed (extra 'peft')")

STARTS = ("eva", "corda", "lora_ga")
TAKEN_OUT = ("corda", "lora_ga")


def batches(kit: SimpleNamespace) -> list[dict[str, Tensor]]:
    batch = kit.make_batch()
    labels = torch.arange(len(batch["input_ids"])) % 2
    return [{**batch, "labels": labels}, {**batch, "labels": 1 - labels}]


def fresh(kit: SimpleNamespace) -> Any:
    torch.manual_seed(3)
    return kit.make_model("bert", "classify").eval()


def prepared(kit: SimpleNamespace, start: str) -> AdaptedModel:
    model = fresh(kit)
    adapted = adapted_model(model, parse_method(f"peft:lora[r=2,init_lora_weights={start}]"))
    adapted.attach()
    adapted.prepare(iter(batches(kit)))
    adapted.model.eval()
    return adapted


def out(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


def factors(model: Any) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if "lora_" in name}


def rows(kit: SimpleNamespace) -> list[dict[str, Tensor]]:
    """Each row of each batch, its padding cut off."""
    return [
        {key: value[i : i + 1, batch["attention_mask"][i].bool()] for key, value in batch.items()}
        for batch in ({k: v for k, v in b.items() if k != "labels"} for b in batches(kit))
        for i in range(len(batch["input_ids"]))
    ]


def by_peft(kit: SimpleNamespace, start: str) -> Any:
    """A model that was started as PEFT's documentation says."""
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from peft.tuners.lora.loraga import preprocess_loraga

    model = fresh(kit)
    settings: dict[str, Any] = {
        "corda": {"corda_config": CordaConfig()},
        "lora_ga": {"lora_ga_config": peft.LoraGAConfig()},
        "eva": {"eva_config": peft.EvaConfig()},
    }[start]
    config = peft.LoraConfig(
        r=2, target_modules=["query", "value"], init_lora_weights=start, **settings
    )
    if start == "corda":
        preprocess_corda(model, config, lambda: [model(**row) for row in rows(kit)] and None)
    if start == "lora_ga":

        def run() -> None:
            for batch in batches(kit):
                model(**batch).loss.backward()

        preprocess_loraga(model, config, run)
    wrapped = peft.get_peft_model(model, config)
    if start == "eva":
        tokens = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches(kit)]
        peft.initialize_lora_eva_weights(wrapped, tokens, show_progress_bar=False)
    return wrapped.eval()


@pytest.mark.parametrize("start", STARTS)
def test_it_starts_as_by_pefts_own_way(kit: SimpleNamespace, start: str) -> None:
    mine = prepared(kit, start).model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = by_peft(kit, start)
    found, expected = factors(mine), factors(theirs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        # A singular vector's sign is free.
        torch.testing.assert_close(found[name].abs(), value.abs(), atol=1e-4, rtol=1e-3)
    batch = kit.make_batch()
    torch.testing.assert_close(out(mine, batch), out(theirs, batch), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(out(mine, batch), out(fresh(kit), batch), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("start", STARTS)
def test_saved_and_loaded_bit_for_bit(kit: SimpleNamespace, start: str, tmp_path: Path) -> None:
    adapted, batch = prepared(kit, start), kit.make_batch()
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape))
    adapted.save(tmp_path)
    assert (tmp_path / "start.safetensors").exists() == (start in TAKEN_OUT)
    other = adapted_model(fresh(kit), adapted.method)
    other.load(tmp_path)
    other.model.eval()
    assert torch.equal(out(other.model, batch), out(adapted.model, batch))
    assert other.counts() == adapted.counts()
    with adapted.second_copy(tmp_path) as switch:
        expected = out(other.model, batch)
        switch()
        torch.testing.assert_close(out(adapted.model, batch), expected)


@pytest.mark.parametrize("start", STARTS)
def test_its_name_is_lora_with_the_setting(kit: SimpleNamespace, start: str) -> None:
    adapted = adapted_model(fresh(kit), parse_method(f"peft:{start}[r=2]"))
    adapted.attach()
    adapted.prepare(iter(batches(kit)))
    named = factors(adapted.model)
    for name, value in factors(prepared(kit, start).model).items():
        torch.testing.assert_close(named[name].abs(), value.abs(), atol=1e-4, rtol=1e-3)


def test_nothing_is_read_for_other_starts(kit: SimpleNamespace) -> None:
    adapted = adapted_model(fresh(kit), parse_method("peft:lora[r=2]"))
    adapted.attach()
    before = {name: value.clone() for name, value in adapted.model.state_dict().items()}
    untouched = iter(batches(kit))
    adapted.prepare(untouched)
    assert len(list(untouched)) == len(batches(kit))
    for name, value in adapted.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("start", STARTS)
def test_without_batches_it_is_refused(kit: SimpleNamespace, start: str) -> None:
    spec = f"peft:lora[r=2,init_lora_weights={start}]"
    adapted = adapted_model(fresh(kit), parse_method(spec))
    adapted.attach()
    with pytest.raises(InvalidConfig, match="starts from data, and there are none"):
        adapted.prepare([])


def test_more_components_than_tokens_are_refused(kit: SimpleNamespace) -> None:
    adapted = adapted_model(fresh(kit), parse_method("peft:lora[r=64,init_lora_weights=eva]"))
    adapted.attach()
    with pytest.raises(InvalidConfig, match="takes 128 components from each batch"):
        adapted.prepare(batches(kit))


@pytest.mark.parametrize("start", STARTS)
def test_on_four_bits(kit: SimpleNamespace, start: str, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quant')")
    fresh(kit).save_pretrained(tmp_path)
    base = dk.load_base(tmp_path, "nf4", task="classify", labels=3, dtype=torch.float32)
    adapted = adapted_model(base.eval(), parse_method(f"peft:{start}[r=2]"))
    if start in TAKEN_OUT:
        with pytest.raises(InvalidConfig, match="quantised|no layers of it"):
            adapted.attach()
            adapted.prepare(batches(kit))
        return
    adapted.attach()
    before = out(adapted.model, kit.make_batch())
    adapted.prepare(batches(kit))
    found = factors(adapted.model)
    assert all(p.detach().any() for name, p in found.items() if "lora_A" in name)
    assert torch.equal(out(adapted.model, kit.make_batch()), before), "B is still zero"


def skewed(kit: SimpleNamespace) -> Any:
    """A model whose second layer is given tokens that vary along two directions."""
    model = fresh(kit)
    with torch.no_grad():
        model.bert.encoder.layer[0].output.LayerNorm.weight[2:] = 0.01
    return model


def test_ranks_that_eva_moves_are_loaded(kit: SimpleNamespace, tmp_path: Path) -> None:
    adapted = adapted_model(skewed(kit), parse_method("peft:eva[r=4]"))
    adapted.attach()
    adapted.prepare(batches(kit))
    adapted.model.eval()
    ranks = {p.shape[0] for name, p in factors(adapted.model).items() if "lora_A" in name}
    assert len(ranks) > 1
    adapted.save(tmp_path)
    other = adapted_model(skewed(kit), adapted.method)
    other.load(tmp_path)
    other.model.eval()
    batch = kit.make_batch()
    assert torch.equal(out(other.model, batch), out(adapted.model, batch))
    assert other.counts() == adapted.counts()
