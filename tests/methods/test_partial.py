"""Partial fine-tuning: parameters by name."""

from types import SimpleNamespace

import pytest
import torch

import deltakit as dk
from deltakit.core.spec import format_method
from deltakit.errors import InvalidConfig


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_it_trains_what_is_named_and_nothing_else(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    names = {name for name, _ in model.named_parameters()}
    dk.attach(model, dk.PartialFineTuning(parameters=("*.query.bias", "embeddings.*")))
    wanted = {n for n in names if n.endswith(".query.bias") or n.startswith("embeddings.")}
    assert wanted and trained(model) == wanted
    dk.detach(model)
    dk.attach(model, dk.BitFit())
    biases = trained(model)
    dk.detach(model)
    dk.attach(model, dk.PartialFineTuning(parameters="*.bias"))  # type: ignore[arg-type]
    assert trained(model) == biases


def test_values_are_its_own(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    before, output = kit.snapshot(model), kit.out(model, batch)
    dk.attach(model, dk.LoRA(rank=2) + dk.PartialFineTuning(parameters=("*LayerNorm.weight",)))
    kit.train_steps(model, batch)
    assert not torch.equal(kit.out(model, batch), output)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: dk.LoRA() + m])
def test_a_pattern_that_matches_nothing(kit: SimpleNamespace, wrap: object) -> None:
    model = kit.make_model("bert")
    method = wrap(dk.PartialFineTuning(parameters=("*.bias", "pooler.dense.weigth")))  # type: ignore[operator]
    with pytest.raises(InvalidConfig, match=r"'pooler.dense.weigth'. Did you mean 'pooler.dense"):
        dk.attach(model, method)
    assert not hasattr(model, "deltakit")


@pytest.mark.parametrize(
    ("family", "patterns", "message"),
    [
        ("gpt2", "transformer.wte.*", "'transformer.wte.weight' is 'lm_head.weight' too"),
        ("gpt2", "lm_head.*", "'lm_head.weight' is 'transformer.wte.weight' too"),
        ("t5", "encoder.*", "'encoder.embed_tokens.weight' is 'shared.weight' too"),
    ],
)
def test_a_tied_parameter_is_asked_for_by_all_its_names(
    kit: SimpleNamespace, family: str, patterns: str, message: str
) -> None:
    model = kit.make_model(family, "causal" if family == "gpt2" else "seq2seq")
    before = kit.snapshot(model)
    with pytest.raises(InvalidConfig, match=message):
        dk.attach(model, dk.parse_method(f"partial[parameters={patterns}]"))
    kit.assert_same(before, kit.snapshot(model))
    dk.attach(model, dk.PartialFineTuning())
    assert trained(model) == set(before["flags"])


def test_a_spec() -> None:
    method = dk.PartialFineTuning(parameters=("*.query.bias", "pooler.*"))
    assert dk.parse_method("partial[parameters=*.query.bias/pooler.*]") == method
    assert format_method(method) == "partial[parameters=*.query.bias/pooler.*]"


@pytest.mark.parametrize("parameters", [(), ("",), (3,)])
def test_no_names(parameters: tuple[object, ...]) -> None:
    with pytest.raises(InvalidConfig, match="name parameters of the model"):
        dk.PartialFineTuning(parameters=parameters)  # type: ignore[arg-type]
