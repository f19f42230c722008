"""Sparse deltas: masks, counts, training, merging, files, copies, scores, settings."""

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import deltakit as dk
from deltakit.errors import InvalidConfig
from deltakit.methods.forms import sparse as forms_of_sparse
from deltakit.methods.forms.sparse import _packed, _unpacked, by_flow, largest
from deltakit.methods.sparse import Sparse

ADAPTER = dk.SequentialAdapter(bottleneck=3)


def forms(model: Any) -> dict[str, Any]:
    return dict(model.deltakit.attached["default"].modules())


def attached(kit: SimpleNamespace, method: dk.Method, family: str = "bert") -> Any:
    torch.manual_seed(0)
    model = kit.make_model(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


def masks(model: Any) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith("_bits")}


@pytest.mark.parametrize("method", [ADAPTER, dk.LoRA(rank=2), dk.PrefixTuning(length=3)])
def test_all_of_it_is_the_method_itself(kit: SimpleNamespace, method: dk.Method) -> None:
    outputs = [
        kit.out(attached(kit, each), kit.make_batch()) for each in (method, Sparse(method, keep=1))
    ]
    assert torch.equal(*outputs)


@pytest.mark.parametrize("keep", [0.01, 0.1, 0.25, 0.5, 0.99])
def test_as_many_numbers_as_it_says(kit: SimpleNamespace, keep: float) -> None:
    model = attached(kit, Sparse(ADAPTER, keep=keep))
    d = model.config.hidden_size
    kept = int(keep * 3 * d + 0.5)
    found = dk.summary(model)
    assert found.trained_params == found.deployed_params == 2 * (2 * kept + 3 + d)
    for form in forms(model).values():
        assert int((form.down.weight != 0).sum()) == int((form.up.weight != 0).sum()) == kept


def test_the_same_change_as_a_dense_form_with_zeros(kit: SimpleNamespace) -> None:
    model, plain = attached(kit, Sparse(ADAPTER, keep=0.3)), attached(kit, ADAPTER)
    with torch.no_grad():
        for key, form in forms(plain).items():
            form.down.weight.copy_(forms(model)[key].down.weight)
            form.up.weight.copy_(forms(model)[key].up.weight)
            form.down.bias.copy_(forms(model)[key].down.bias)
            form.up.bias.copy_(forms(model)[key].up.bias)
    batch = kit.make_batch()
    found, expected = kit.out(model, batch), kit.out(plain, batch)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)


def test_training_changes_what_is_kept_alone(kit: SimpleNamespace) -> None:
    torch.manual_seed(0)
    model = kit.make_model("bert", "classify")
    dk.attach(model, Sparse(ADAPTER, keep=0.3))
    before, dense = masks(model), forms(model)["encoder.0.block.out"].down.weight.detach()
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    labels = torch.zeros(len(kit.make_batch()["input_ids"]), dtype=torch.long)
    for _ in range(3):
        optimiser.zero_grad()
        model(**kit.make_batch(), labels=labels).loss.backward()
        optimiser.step()
    after = forms(model)["encoder.0.block.out"].down.weight.detach()
    assert all(torch.equal(bits, masks(model)[name]) for name, bits in before.items())
    assert not after[dense == 0].any()
    assert (after[dense != 0] != dense[dense != 0]).all()


def test_files_have_the_kept_numbers_and_bits(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = attached(kit, Sparse(ADAPTER, keep=0.25)), kit.make_batch()
    dk.save(model, tmp_path / "delta")
    (file,) = (tmp_path / "delta").glob("*.safetensors")
    d = model.config.hidden_size
    sizes = {name.rpartition(".")[2]: t.numel() for name, t in load_file(file).items()}
    assert sizes["weight_kept"] == int(0.25 * 3 * d + 0.5)
    assert sizes["weight_bits"] == (3 * d + 7) // 8
    torch.manual_seed(7)
    fresh = kit.make_model("bert")
    dk.load(fresh, tmp_path / "delta")
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))
    assert all(torch.equal(bits, masks(fresh)[name]) for name, bits in masks(model).items())


def test_merged_and_unmerged(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, Sparse(dk.LoRA(rank=2), keep=0.5)), kit.make_batch()
    expected = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), expected)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies(kit: SimpleNamespace, again: Any) -> None:
    model, batch = attached(kit, Sparse(dk.LoRA(rank=2), keep=0.5)), kit.make_batch()
    other = again(model)
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))
    kit.randomise_deltas(other, "others")
    assert not torch.equal(kit.out(other, batch), kit.out(model, batch))


@pytest.mark.parametrize("shape", [(3, 5), (8, 8), (1, 1), (2, 3, 7)])
def test_bits(shape: tuple[int, ...]) -> None:
    mask = torch.rand(shape) < 0.4
    bits = _packed(mask.flatten().to(torch.uint8))
    assert bits.dtype == torch.uint8
    assert torch.equal(_unpacked(bits, mask.shape), mask)


def test_largest() -> None:
    assert largest(torch.tensor([[1.0, 5.0], [3.0, 4.0]]), 2).tolist() == [1, 3]
    drawn = {tuple(largest(torch.zeros(6), 3).tolist()) for _ in range(30)}
    assert len(drawn) > 5, "equal scores are drawn at random"


def test_synflow_is_the_gradient_of_the_mean_output() -> None:
    torch.manual_seed(0)
    handle: Any = SimpleNamespace(d_in=4, d_out=4)
    form = dk.SequentialAdapter(bottleneck=2, activation="relu").form(handle)
    down, up = form.down.weight.detach().clone(), form.up.weight.detach().clone()
    scores = by_flow(form, 4)
    inner = down.abs().sum(1)  # the input is ones, and nothing is below zero
    torch.testing.assert_close(scores["up.weight"], up.abs() * inner / 4)
    torch.testing.assert_close(scores["down.weight"], down.abs() * up.abs().sum(0)[:, None] / 4)
    assert torch.equal(form.down.weight, down)


@pytest.mark.parametrize("score", ["magnitude", "random", "synflow"])
def test_scores_choose_other_numbers(kit: SimpleNamespace, score: Any) -> None:
    torch.manual_seed(0)
    model = kit.make_model("bert")
    dk.attach(model, Sparse(ADAPTER, keep=0.5, score=score))
    plain = kit.make_model("bert")
    torch.manual_seed(0)
    dk.attach(plain, ADAPTER)
    weight = forms(model)["encoder.0.block.out"].down.weight
    largest_ones = forms(plain)["encoder.0.block.out"].down.weight.abs().flatten().sort().values
    smallest_kept = weight[weight != 0].abs().min()
    assert (smallest_kept >= largest_ones[len(largest_ones) // 2]) == (score == "magnitude")


def test_one_class_for_each_kind_of_form(kit: SimpleNamespace) -> None:
    model = attached(kit, Sparse(ADAPTER, keep=0.5))
    kinds = {type(form) for form in forms(model).values()}
    assert len(kinds) == 1
    assert isinstance(next(iter(forms(model).values())), type(ADAPTER.form(_handle())))
    assert next(iter(kinds)).__module__ == forms_of_sparse.__name__


def _handle() -> Any:
    return SimpleNamespace(d_in=8, d_out=8)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"keep": 0}, "above 0"),
        ({"keep": 1.5}, "at most 1"),
        ({"keep": True}, "above 0"),
        ({"score": "snip"}, "magnitude, random, synflow"),
        ({"method": dk.AdapterFusion("a", "b")}, "puts deltas into layers"),
    ],
)
def test_bad_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        Sparse(**fields)
