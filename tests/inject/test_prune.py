"""Pruning a fusion's members, and dropping layers of one."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import CheckpointError, IncompatibleDeltas, InvalidConfig, UnknownName
from deltakit.interop.deltakit.files import CONFIG

FIRST, SECOND = "encoder.0.block.out", "encoder.1.block.out"
USAGE = {FIRST: {"a": 0.5, "b": 0.2, "c": 0.3}, SECOND: {"a": 0.1, "b": 0.3, "c": 0.6}}


def fused(kit: SimpleNamespace, kind: str = "bare") -> Any:
    model = kit.make_model("bert", kind)
    kit.attach_fusion(model, ("a", "b", "c"))
    return model


def copy_combiners(kit: SimpleNamespace, model: Any, source: str, target: str) -> None:
    """Gives the fusion `target` the matrices of `source`."""
    ours = dict(kit.attachments(model).get(source).tensors())
    with torch.no_grad():
        for key, tensor in kit.attachments(model).get(target).tensors():
            tensor.copy_(ours[key])


def test_what_is_left_is_the_fusion_of_the_members_kept(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch()
    whole = kit.out(model, batch)
    dk.attach(model, dk.AdapterFusion("a", "c"), name="pair")
    copy_combiners(kit, model, "fused", "pair")
    expected = kit.out(model, batch)
    assert not torch.equal(expected, whole)
    dk.activate(model, "fused")
    dk.prune(model, {site: {"a": 0.4, "b": 0.1, "c": 0.5} for site in USAGE}, "fused", keep=2)
    assert torch.equal(kit.out(model, batch), expected)
    pruned = kit.attachments(model).get("fused")
    assert (pruned.members, pruned.kept) == (("a", "c"), {})
    assert pruned.method == kit.attachments(model).get("pair").method


def test_one_member_and_no_value_matrix_is_that_adapter(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    kit.attach_fusion(model, ("a", "b", "c"), value=False)
    dk.activate(model, "c")
    expected = kit.out(model, batch)
    dk.activate(model, "fused")
    usage = {site: {"a": 0, "b": 0, "c": 1} for site in USAGE}
    dk.prune(model, usage, name="fused", keep=1)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-6, rtol=1e-6)


def test_sites_keep_different_members(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch()
    dk.prune(model, USAGE, name="fused", keep=2)
    pruned = kit.attachments(model).get("fused")
    assert pruned.members == ("a", "b", "c")
    assert pruned.kept == {FIRST: ("a", "c"), SECOND: ("b", "c")}
    output = kit.out(model, batch)
    with dk.fusion_attention(model) as seen:
        assert torch.equal(kit.out(model, batch), output)
    mean = seen.mean()
    assert {site: tuple(used) for site, used in mean.items()} == pruned.kept == seen.members
    for used in mean.values():
        assert sum(used.values()) == pytest.approx(1, abs=1e-5)
    dk.attach(model, dk.AdapterFusion("a", "c"), name="pair")
    copy_combiners(kit, model, "fused", "pair")
    dk.drop(model, layers=[1])
    expected = kit.out(model, batch)
    dk.activate(model, "fused")
    assert torch.equal(kit.out(model, batch), expected)


def test_again_from_what_was_seen(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch()
    dk.prune(model, USAGE, name="fused", keep=2)
    with dk.fusion_attention(model) as seen:
        kit.out(model, batch)
    dk.prune(model, seen.mean(), name="fused", keep=1)
    best = {site: max(used, key=used.__getitem__) for site, used in seen.mean().items()}
    with dk.fusion_attention(model) as seen:
        kit.out(model, batch)
    assert seen.mean() == {site: {name: 1.0} for site, name in best.items()}


def test_a_member_left_nowhere_can_be_detached(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch()
    with dk.disabled(model):
        plain = kit.out(model, batch)
    usage = {FIRST: {"a": 2, "b": 0, "c": 1}, SECOND: {"a": 1, "b": 0, "c": 2}}
    dk.prune(model, usage, name="fused", keep=1)
    assert kit.attachments(model).get("fused").members == ("a", "c")
    output = kit.out(model, batch)
    with pytest.raises(IncompatibleDeltas, match="'a' is a member of 'fused'"):
        dk.detach(model, "a")
    dk.detach(model, "b")
    assert torch.equal(kit.out(model, batch), output)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), plain)


@pytest.mark.parametrize("keep", [1, 2])
def test_saved_and_loaded(kit: SimpleNamespace, tmp_path: Path, keep: int) -> None:
    model, batch = fused(kit, "classify"), kit.make_batch(labels=True)
    dk.prune(model, USAGE, name="fused", keep=keep)
    kit.train_steps(model, batch)
    expected = kit.out(model, kit.make_batch())
    dk.save(model, tmp_path, name="fused")
    other = kit.make_model("bert", "classify")
    dk.load(other, tmp_path, name="again")
    ours, theirs = kit.attachments(model).get("fused"), kit.attachments(other).get("again")
    assert (ours.members, ours.kept, ours.method) == (theirs.members, theirs.kept, theirs.method)
    assert torch.equal(kit.out(other, kit.make_batch()), expected)
    with dk.fusion_attention(other) as seen:
        assert torch.equal(kit.out(other, kit.make_batch()), expected)
    assert {site: len(names) for site, names in seen.members.items()} == {FIRST: keep, SECOND: keep}


def test_a_fusion_that_is_whole_is_saved_as_before(kit: SimpleNamespace, tmp_path: Path) -> None:
    dk.save(fused(kit), tmp_path, name="fused")
    for delta in json.loads((tmp_path / CONFIG).read_text())["deltas"]:
        assert set(delta) == {"name", "method"}


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"encoder.7.block.out": ["a"]}, "keeps .* at 'encoder.7.block.out', but it has a, b, c"),
        ({FIRST: ["a", "d"]}, "keeps .*'d'.* at 'encoder.0.block.out'"),
        ({FIRST: ["a", "a"]}, "keeps .* at 'encoder.0.block.out'"),
        ({FIRST: []}, "keeps .* at 'encoder.0.block.out'"),
        ({FIRST: "ab"}, "bad or missing key 'kept'"),
        (["a"], "bad or missing key 'kept'"),
    ],
)
def test_a_wrong_file_changes_nothing(
    kit: SimpleNamespace, tmp_path: Path, kept: Any, message: str
) -> None:
    dk.save(fused(kit), tmp_path, name="fused")
    config = json.loads((tmp_path / CONFIG).read_text())
    config["deltas"][-1]["kept"] = kept
    (tmp_path / CONFIG).write_text(json.dumps(config))
    model = kit.make_model("bert")
    before = kit.snapshot(model)
    with pytest.raises(CheckpointError, match=message) as caught:
        dk.load(model, tmp_path)
    assert "\n" not in str(caught.value)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize(
    ("usage", "name", "keep", "error", "message"),
    [
        (USAGE, "fused", 0, InvalidConfig, r"prune\(keep=0\): give a whole number"),
        (USAGE, "fused", True, InvalidConfig, r"prune\(keep=True\)"),
        (USAGE, "fused", 4, InvalidConfig, "'fused' has 3 members at 'encoder.0.block.out': a, b"),
        (
            {FIRST: USAGE[FIRST]},
            "fused",
            2,
            InvalidConfig,
            "nothing of .* at 'encoder.1.block.out'",
        ),
        (
            {**USAGE, FIRST: {"a": 1}},
            "fused",
            2,
            InvalidConfig,
            "'b', 'c' at 'encoder.0.block.out'",
        ),
        (USAGE, "a", 2, IncompatibleDeltas, r"'a' is not a fusion \(SequentialAdapter\)"),
        (USAGE, "fuesd", 2, UnknownName, "unknown delta 'fuesd'.*'fused'"),
    ],
)
def test_refusals(
    kit: SimpleNamespace, usage: Any, name: str, keep: int, error: type[Exception], message: str
) -> None:
    model, batch = fused(kit), kit.make_batch()
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(error, match=message) as caught:
        dk.prune(model, usage, name=name, keep=keep)
    assert "\n" not in str(caught.value)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_layers_of_a_fusion_are_dropped(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch()
    whole = kit.out(model, batch)
    with dk.disabled(model):
        plain = kit.out(model, batch)
    dk.drop(model, first=1)
    with dk.fusion_attention(model) as seen:
        dropped = kit.out(model, batch)
    assert set(seen.weights) == {SECOND}
    assert not torch.equal(dropped, whole) and not torch.equal(dropped, plain)
    dk.prune(model, USAGE, name="fused", keep=3)
    assert torch.equal(kit.out(model, batch), dropped)
    dk.drop(model, first=2)
    assert torch.equal(kit.out(model, batch), plain)
    dk.drop(model)
    assert torch.equal(kit.out(model, batch), whole)
