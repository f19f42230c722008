"""LoReFT: the formula, the tokens that are edited, orthonormal rows, decoding, settings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.core.delta import ReadsEnd
from deltakit.errors import InvalidConfig
from deltakit.methods.forms.loreft import LowRankEdit, LowRankEditOfEnds, orthonormal


def edit(first: int = 2, last: int = 1, rank: int = 3, d: int = 8) -> LowRankEdit:
    torch.manual_seed(0)
    form = LowRankEditOfEnds(d, rank=rank, first=first, last=last, dropout=0.0)
    with torch.no_grad():
        form.rotation.add_(torch.randn_like(form.rotation))
    return form


def test_the_formula() -> None:
    form, h = edit(first=9), torch.randn(2, 5, 8)
    R, W, b = orthonormal(form.rotation), form.source.weight, form.source.bias
    expected = (h @ W.T + b - h @ R.T) @ R
    found = form(h, torch.ones(2, 5, dtype=torch.bool))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close((h + found) @ R.T, h @ W.T + b, atol=1e-5, rtol=1e-5)


def test_rows_are_orthonormal_and_stay_what_they_are() -> None:
    torch.manual_seed(1)
    free = torch.randn(3, 8)
    rows = orthonormal(free)
    torch.testing.assert_close(rows @ rows.T, torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(orthonormal(rows), rows, atol=1e-5, rtol=1e-5)
    fresh = LowRankEdit(8, rank=3, first=1, last=0, dropout=0.0).rotation
    torch.testing.assert_close(orthonormal(fresh), fresh, atol=1e-5, rtol=1e-5)
    assert orthonormal(free.bfloat16()).dtype == torch.bfloat16
    assert orthonormal(torch.zeros(3, 8)).isfinite().all()


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("11111", "11001"),
        ("11100", "11100"),
        ("00111", "00111"),
        ("01111", "01101"),
        ("01110", "01110"),
        ("10000", "10000"),
        ("10101", "10101"),
        ("00000", "00000"),
    ],
)
def test_tokens_that_are_edited(mask: str, expected: str) -> None:
    form = edit(first=2, last=1)
    row = torch.tensor([[letter == "1" for letter in mask]])
    found = form(torch.randn(1, 5, 8), row).abs().sum(-1) > 0
    assert "".join(str(int(each)) for each in found[0]) == expected


def test_tokens_of_a_cached_sequence() -> None:
    form, h = edit(first=4, last=2), torch.randn(1, 1, 8)
    later = torch.ones(1, 6, dtype=torch.bool)
    assert not form(h, later).any(), "the last tokens are those of the call that began it"
    assert form(h, torch.tensor([[False, False, True, True, True, True]])).any(), "the fourth"


def edited(kit: SimpleNamespace, model: Any, batch: dict[str, Tensor]) -> Tensor:
    """Which tokens the first layer edits."""
    seen = {}

    def hook(module: Any, args: Any, output: Tensor) -> None:
        seen["tokens"] = output.abs().sum(-1) > 0

    form = next(module for module in model.modules() if isinstance(module, LowRankEdit))
    handle = form.register_forward_hook(hook)
    kit.out(model, batch)
    handle.remove()
    return seen["tokens"]


@pytest.mark.parametrize("family", ["bert", "llama", "opt", "gpt2"])
def test_tokens_in_a_model(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family), kit.make_batch(rows=2, length=6)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1]])
    dk.attach(model, dk.LoReFT(rank=2, first=1, last=2))
    found = edited(kit, model, {**batch, "attention_mask": mask})
    expected = torch.tensor([[1, 0, 0, 0, 1, 1], [0, 0, 1, 0, 1, 1]]).bool()
    assert torch.equal(found, expected)
    without = edited(kit, model, {"input_ids": batch["input_ids"]})
    assert torch.equal(without, expected[:1].expand(2, -1))


def test_only_the_chosen_layers(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoReFT(rank=2, layers=(1,)))
    assert [*model.deltakit.attached["default"].leaves] == ["encoder.1.block.out"]
    assert dk.parse_method("loreft[layers=0/1]") == dk.LoReFT(layers=(0, 1))
    dropped = dk.AdapterDrop(dk.LoReFT(rank=2, layers=(0, 1)), first=1)
    dk.attach(model, dropped, "dropped")
    assert [*model.deltakit.attached["dropped"].leaves] == ["encoder.1.block.out"]
    with pytest.raises(InvalidConfig, match="layer 5 cannot be chosen: .* layers 0 to 1"):
        dk.attach(model, dk.LoReFT(layers=(1, 5)), "deep")


def test_mixed_rows(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("llama"), kit.make_batch(rows=3, length=6)
    batch["attention_mask"][1, :3] = 0
    outputs = {}
    for name in "ab":
        dk.attach(model, dk.LoReFT(rank=2, first=1, last=1), name)
    kit.randomise_deltas(model)
    for name in "ab":
        dk.activate(model, name)
        outputs[name] = kit.out(model, batch)
    dk.activate(model, dk.Stack("a", "b"))
    outputs["stack"] = kit.out(model, batch)
    dk.activate(model, dk.PerRow(["a", "b", dk.Stack("a", "b")]))
    found = kit.out(model, batch)
    for row, name in enumerate(("a", "b", "stack")):
        real = batch["attention_mask"][row].bool()
        torch.testing.assert_close(
            found[row][real], outputs[name][row][real], atol=1e-5, rtol=1e-5, msg=name
        )


def test_generation_with_a_cache_where_the_first_tokens_are_edited(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama", "causal")
    dk.attach(model, dk.LoReFT(rank=2, first=8, last=0))
    kit.randomise_deltas(model)
    assert not any(isinstance(module, ReadsEnd) for module in model.modules())
    ids = torch.tensor([[5, 6, 7, 8]])
    tokens = [
        model.generate(ids, max_new_tokens=8, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*tokens)


def test_a_mask_that_cannot_be_read_is_refused(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("llama"), kit.make_batch(rows=2, length=6)
    dk.attach(model, dk.LoReFT(rank=2))
    mask = torch.ones(2, 1, 6, 6, dtype=torch.bool)
    with pytest.raises(dk.DeltakitError, match="reads the attention_mask.*not a tensor of shape"):
        model(input_ids=batch["input_ids"], attention_mask=mask)


def test_training_moves_it_and_files_keep_it(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    dk.attach(model, dk.LoReFT(rank=2))
    start = F.cross_entropy(kit.out(model, batch), batch["labels"])
    kit.train_steps(model, batch, steps=10, lr=0.05)
    model.eval()
    assert F.cross_entropy(kit.out(model, batch), batch["labels"]) < start
    for form in (m for m in model.modules() if isinstance(m, LowRankEdit)):
        rows = orthonormal(form.rotation)
        torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-5, rtol=0)
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path)
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"first": -1},
        {"last": 1.5},
        {"first": 0, "last": 0},
        {"layers": ()},
        {"layers": (-1,)},
        {"layers": "all"},
        {"dropout": 1.0},
    ],
)
def test_refused_settings(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="LoReFT"):
        dk.LoReFT(**fields)


def test_no_more_rows_than_the_model_is_wide(kit: SimpleNamespace) -> None:
    with pytest.raises(InvalidConfig, match="rank=17.*16 wide"):
        dk.attach(kit.make_model("bert"), dk.LoReFT(rank=17))


def test_sized() -> None:
    assert dk.LoReFT().sized(9) == dk.LoReFT(rank=9)
