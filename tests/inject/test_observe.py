"""How far deltas move a site, against the site's own tensors and against factors that are known."""

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.core.delta import Scaling
from deltakit.inject.change import pruned
from deltakit.inject.observe import site_changes


@contextmanager
def outputs(module: torch.nn.Module, seen: list[torch.Tensor]) -> Iterator[None]:
    """Inside, `seen` is given what the module returns."""
    hook = module.register_forward_hook(lambda *call: seen.append(call[-1]))
    yield
    hook.remove()


def changes_of(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    with site_changes(model) as seen, torch.no_grad():
        model(**batch)
    return seen.relative()


@pytest.mark.parametrize(
    ("family", "method", "site"),
    [
        ("bert", dk.LoRA(rank=2), "attn.q"),  # one linear
        ("gpt2", dk.LoRA(rank=2), "attn.v"),  # some columns of one
        ("bert", dk.SequentialAdapter(bottleneck=4), "block.out"),  # around a norm
        ("llama", dk.SequentialAdapter(bottleneck=4), "block.out"),
    ],
)
def test_it_is_what_the_site_returns_with_deltas_and_without(
    kit: SimpleNamespace, family: str, method: dk.Method, site: str
) -> None:
    model, batch = kit.make_model(family), kit.make_inputs(family)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    # What enters the lowest layer does not depend on the deltas.
    (key,) = (key for key in kit.attachments(model).handles if key.endswith(f".0.{site}"))
    handle = kit.attachments(model).handles[key]
    seen: list[torch.Tensor] = []
    with torch.no_grad(), outputs(handle.module, seen):
        model(**batch)
        with dk.disabled(model):
            model(**batch)
    after, before = (each if handle.columns is None else handle.columns.read(each) for each in seen)
    expected = float((after - before).norm() / before.norm())
    assert expected > 0.01
    assert changes_of(model, batch)[key] == pytest.approx(expected, rel=1e-5)


def test_a_site_that_is_an_input_is_seen_too(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_inputs("bert")
    dk.attach(model, dk.IA3())
    with torch.no_grad():
        for _, module in kit.attachments(model).get("default").modules():
            assert isinstance(module, Scaling)
            for parameter in module.parameters():
                parameter += 0.25 - (module.factor() - 1)
    found = changes_of(model, batch)
    assert {key.split(".", 2)[2] for key in found} == {"attn.k", "attn.v", "ffn.mid"}
    assert found == pytest.approx(dict.fromkeys(found, 0.25), rel=1e-5)


def test_positions_beside_a_sequence_change_no_h(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_inputs("bert")
    dk.attach(model, dk.PrefixTuning(length=2) + dk.PromptTuning(length=2))
    assert changes_of(model, batch) == {}


def test_looking_changes_nothing_and_leaves_nothing(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_inputs("bert")
    dk.attach(model, dk.IA3() + dk.LoRA(rank=2) + dk.SequentialAdapter(bottleneck=2))
    kit.randomise_deltas(model)
    hooks, expected = kit.hook_count(model), kit.out(model, batch)
    with site_changes(model):
        assert torch.equal(kit.out(model, batch), expected)
    assert kit.hook_count(model) == hooks


def test_several_passes_are_one_mean(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_inputs("bert")
    dk.attach(model, dk.LoRA(rank=2))
    kit.randomise_deltas(model)
    with site_changes(model) as seen, torch.no_grad():
        for row in range(3):
            model(**{name: value[row : row + 1] for name, value in batch.items()})
    assert seen.relative() == pytest.approx(changes_of(model, batch), rel=1e-3)


def test_a_fusion_is_pruned_inside_alone(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    kit.attach_fusion(model, ("a", "b", "c"))
    sites = tuple(kit.attachments(model).get("fused").combiners)
    usage = {site: {"a": 0.5, "b": 0.3, "c": 0.2} for site in sites}
    dk.prune(model, {**usage, sites[0]: {"a": 0.1, "b": 0.3, "c": 0.2}}, "fused", keep=2)
    attached = kit.attachments(model).get("fused")
    before = (attached.method, attached.members, attached.kept)
    expected = kit.out(model, batch)
    with pytest.raises(ZeroDivisionError), pruned(model, usage, "fused", keep=1):
        assert attached.members == ("a", "b")
        assert not torch.equal(kit.out(model, batch), expected)
        raise ZeroDivisionError
    assert (attached.method, attached.members, attached.kept) == before
    assert torch.equal(kit.out(model, batch), expected)
