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
        ({"score": "snap"}, "magnitude, random, synflow, snip, grasp"),
        ({"method": dk.AdapterFusion("a", "b")}, "puts deltas into layers"),
    ],
)
def test_bad_settings(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidConfig, match=text):
        Sparse(**fields)


# ------------------------------------------------------------------------------- scores from data


Batches = list[dict[str, Tensor]]


def batches(kit: SimpleNamespace) -> Batches:
    batch = kit.make_batch()
    labels = torch.arange(len(batch["input_ids"])) % 2
    return [{**batch, "labels": labels}, {**batch, "labels": 1 - labels.flip(0)}]


def classifier(kit: SimpleNamespace, method: dk.Method) -> Any:
    torch.manual_seed(0)
    model = kit.make_model("bert", "classify")
    torch.manual_seed(0)
    dk.attach(model, method)
    return model.double().eval()


def of_forms(model: Any) -> dict[str, Tensor]:
    """The matrices of the adapters, by a name that pruned and dense ones have."""
    return {
        f"{key}.{part}": getattr(form, part).weight
        for key, form in forms(model).items()
        for part in ("down", "up")
    }


def dense(kit: SimpleNamespace, pruned: Any) -> Any:
    """The plain method with the numbers that the pruned one begins with."""
    plain = classifier(kit, ADAPTER)
    with torch.no_grad():
        for key, form in forms(pruned).items():
            for name, start in vars(form)["_dense_start"].items():
                forms(plain)[key].get_parameter(name).copy_(start)
    return plain


def slopes(model: Any, data: Batches) -> list[Tensor]:
    loss = sum(model(**batch).loss for batch in data) / len(data)
    return list(torch.autograd.grad(loss, list(of_forms(model).values())))


def keeps_the_largest(model: Any, scores: dict[str, Tensor]) -> None:
    for name, score in scores.items():
        kept = of_forms(model)[name].detach() != 0
        assert int(kept.sum()) == int(0.25 * score.numel() + 0.5), name
        assert score[kept].min() >= score[~kept].max() - 1e-12, name


def test_snip_keeps_where_number_times_gradient_is_largest(kit: SimpleNamespace) -> None:
    data = batches(kit)
    model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="snip"))
    plain = dense(kit, model)
    before = masks(model)
    assert dk.prepare(model, data) == ("default",)
    assert any(not torch.equal(bits, masks(model)[name]) for name, bits in before.items())
    pairs = zip(of_forms(plain).items(), slopes(plain, data), strict=True)
    keeps_the_largest(model, {name: (p.detach() * g).abs() for (name, p), g in pairs})
    start = of_forms(plain)
    for name, kept in of_forms(model).items():
        assert torch.equal(kept[kept != 0], start[name][kept != 0]), "the dense start, in part"


def test_grasp_is_the_number_times_hessian_times_gradient(kit: SimpleNamespace) -> None:
    data, step = batches(kit), 1e-2
    model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="grasp"))
    plain = dense(kit, model)
    first = slopes(plain, data)
    start = [p.detach().clone() for p in of_forms(plain).values()]

    def slopes_at(shift: float) -> list[Tensor]:
        with torch.no_grad():
            for p, value, slope in zip(of_forms(plain).values(), start, first, strict=True):
                p.copy_(value + shift * slope)
        return slopes(plain, data)

    products = [
        (a - b) / (2 * step) for a, b in zip(slopes_at(step), slopes_at(-step), strict=True)
    ]
    scores = [value * product for value, product in zip(start, products, strict=True)]
    dk.prepare(model, data)
    keeps_the_largest(model, dict(zip(of_forms(plain), scores, strict=True)))


def test_a_matrix_of_zeros_is_scored_by_its_gradient(kit: SimpleNamespace) -> None:
    data, method = batches(kit), dk.LoRA(rank=4)
    found = []
    for seed in (1, 2):
        model = classifier(kit, Sparse(method, keep=0.25, score="snip"))
        torch.manual_seed(seed)
        dk.prepare(model, data)
        found.append(masks(model))
    assert all(torch.equal(bits, found[1][name]) for name, bits in found[0].items()), "not drawn"
    plain = classifier(kit, method)
    assert torch.equal(plain(**data[0]).logits, model(**data[0]).logits), "it still starts at zero"


def test_training_and_saving_wait_for_the_start(kit: SimpleNamespace, tmp_path: Path) -> None:
    data = batches(kit)
    model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="snip"))
    with pytest.raises(InvalidConfig, match="'default' takes its start from data.*prepare"):
        dk.save(model, tmp_path / "early")
    model.train()
    with pytest.raises(InvalidConfig, match="score='snip'.*deltakit.prepare.model, batches."):
        model(**data[0])
    dk.prepare(model, data)
    assert model.training, "as it was"
    model(**data[0]).loss.backward()
    dk.save(model, tmp_path / "delta")
    other = kit.make_model("bert", "classify").double()
    dk.load(other, tmp_path / "delta")
    assert not any("_dense_start" in vars(form) for form in forms(other).values())
    other.train()(**data[0]).loss.backward()
    assert dk.prepare(other, data) == (), "a delta that was loaded has its start"
    assert all(torch.equal(bits, masks(other)[name]) for name, bits in masks(model).items())


def test_prepared_once_and_without_batches_where_none_is_needed(kit: SimpleNamespace) -> None:
    model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="magnitude"))
    assert dk.prepare(model, iter(())) == ()
    model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="snip") + dk.BitFit())
    with pytest.raises(InvalidConfig, match="there are no batches"):
        dk.prepare(model, [])
    with pytest.raises(InvalidConfig, match="gives no loss for a batch with input_ids"):
        dk.prepare(model, [kit.make_batch()])
    dk.prepare(model, batches(kit))
    before = masks(model)
    assert dk.prepare(model, batches(kit)) == ()
    assert all(torch.equal(bits, masks(model)[name]) for name, bits in before.items())


def test_as_many_batches_are_read_as_it_takes(kit: SimpleNamespace) -> None:
    data = batches(kit)
    found = []
    for given in (iter(data), data[:1]):
        model = classifier(kit, Sparse(ADAPTER, keep=0.25, score="snip", batches=1))
        dk.prepare(model, given)
        found.append(masks(model))
    assert len(data) > 1
    assert all(torch.equal(bits, found[1][name]) for name, bits in found[0].items())
    both = classifier(kit, Sparse(ADAPTER, keep=0.25, score="snip"))
    dk.prepare(both, data)
    assert any(not torch.equal(bits, found[0][name]) for name, bits in masks(both).items())


def test_a_copy_waits_too(kit: SimpleNamespace) -> None:
    model = pickle.loads(pickle.dumps(classifier(kit, Sparse(ADAPTER, score="snip"))))
    assert dk.prepare(model, batches(kit)) == ("default",)
