"""VeRA: PEFT's outputs and gradients, shared projections, merging, files, settings."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import deltakit as dk
from deltakit.errors import InvalidConfig, UnknownName

SITES = {
    "bert": {"attn.q": "encoder.layer.{}.attention.self.query", "attn.v": "{}.self.value"},
    "llama": {"attn.q": "layers.{}.self_attn.q_proj", "attn.o": "layers.{}.self_attn.o_proj"},
}
SITES["bert"]["attn.v"] = "encoder.layer.{}.attention.self.value"


def forms(model: Any) -> dict[str, Any]:
    return dict(model.deltakit.attached["default"].modules())


@torch.no_grad()
def randomise(model: Any) -> None:
    draw = torch.Generator().manual_seed(3)
    for form in forms(model).values():
        form.lambda_d.copy_(torch.randn(form.lambda_d.shape, generator=draw))
        form.lambda_b.copy_(torch.randn(form.lambda_b.shape, generator=draw))


@pytest.mark.parametrize("family", list(SITES))
def test_equals_peft_in_outputs_and_gradients(kit: SimpleNamespace, family: str) -> None:
    peft = pytest.importorskip("peft")
    sites, batch = SITES[family], kit.make_batch()
    model = kit.make_model(family)
    dk.attach(model, dk.VeRA(rank=5, targets=tuple(sites), seed=7))
    randomise(model)
    config = peft.VeraConfig(
        r=5,
        projection_prng_key=7,
        target_modules=[path.format(layer) for path in sites.values() for layer in (0, 1)],
    )
    other = peft.get_peft_model(kit.make_model(family), config).eval()
    theirs, pairs = dict(other.base_model.model.named_parameters()), {}
    for key, form in forms(model).items():
        _, layer, site = key.split(".", 2)
        for name, parameter in form.named_parameters():
            other_name = f"{sites[site].format(layer)}.vera_{name}.default"
            theirs[other_name].data.copy_(parameter.data)
            pairs[other_name] = parameter
    assert pairs.keys() == {name for name in theirs if "vera_" in name}
    outputs = [each(**batch)[0] for each in (model, other)]
    torch.testing.assert_close(*outputs, atol=1e-5, rtol=1e-5)
    for output in outputs:
        (output * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
    for name, parameter in pairs.items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


def test_one_pair_of_projections_for_each_shape(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.VeRA(rank=3, targets="all"))
    pairs = {id(form._projections[0]): form._projections[0] for form in forms(model).values()}
    shapes = {(pair.A.shape[1], pair.B.shape[0]) for pair in pairs.values()}
    assert len(pairs) == len(shapes) == 3, "d to d, d to the feed-forward's width, and back"
    moved = model.to(torch.float64)
    assert all(form._projections[0].A.dtype == torch.float64 for form in forms(moved).values())


def test_a_file_has_the_vectors_alone(kit: SimpleNamespace, tmp_path: Path) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.VeRA(rank=3, seed=11))
    randomise(model)
    expected = kit.out(model, batch)
    dk.save(model, tmp_path / "vera")
    (file,) = (tmp_path / "vera").glob("*.safetensors")
    names = {name.rpartition(".")[2] for name in load_file(file)}
    assert names == {"lambda_d", "lambda_b"}
    fresh = kit.make_model("bert")
    dk.load(fresh, tmp_path / "vera")
    assert torch.equal(kit.out(fresh, batch), expected)


def test_merged_output(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.VeRA(rank=3))
    randomise(model)
    expected = kit.out(model, batch)
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)


def test_another_seed_is_another_delta(kit: SimpleNamespace) -> None:
    outputs = []
    for seed in (0, 0, 1):
        model = kit.make_model("bert")
        dk.attach(model, dk.VeRA(rank=3, seed=seed))
        randomise(model)
        outputs.append(kit.out(model, kit.make_batch()))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"rank": 0}, InvalidConfig),
        ({"seed": -1}, InvalidConfig),
        ({"seed": True}, InvalidConfig),
        ({"d_initial": 0}, InvalidConfig),
        ({"dropout": 1.0}, InvalidConfig),
        ({"targets": "nowhere"}, UnknownName),
    ],
)
def test_bad_settings(fields: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        dk.VeRA(**fields)


def test_rows_of_two_deltas_have_what_each_shares(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    for index, name in enumerate("ab"):
        dk.attach(model, dk.VeRA(rank=3, seed=index), name=name)
    kit.randomise_deltas(model)
    alone = []
    for name in "ab":
        dk.activate(model, name)
        alone.append(kit.out(model, batch))
    choice = ["a", "b", None][: len(batch["input_ids"])]
    choice += ["b"] * (len(batch["input_ids"]) - len(choice))
    dk.activate(model, dk.PerRow(choice))
    found = kit.out(model, batch)
    for row, name in enumerate(choice):
        if name is not None:
            expected = alone["ab".index(name)][row]
            torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=1e-5)
