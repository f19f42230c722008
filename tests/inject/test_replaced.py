"""Modules that the user replaces after deltas were attached: followed, or refused in one line."""

import copy
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import deltakit as dk
from deltakit.errors import IncompatibleDeltas, NotMergeable


class Wrapped(nn.Module):
    """A module that calls another, as those of checkpointing and compiling do."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def attached(kit: SimpleNamespace, spec: str = "lora", family: str = "bert") -> Any:
    kind = "seq2seq" if family == "t5" else "classify"
    model = kit.make_model(family, kind)
    for name in ("b", "a"):
        dk.attach(model, dk.parse_method(spec), name)
    kit.randomise_deltas(model)
    return model


def replace_projection(model: Any) -> None:
    """As quantising one layer by hand does."""
    attention = model.bert.encoder.layer[1].attention.self
    with dk.disabled(model):
        attention.query = copy.deepcopy(attention.query)


def replace_layer(model: Any) -> None:
    with dk.disabled(model):
        model.bert.encoder.layer[0] = copy.deepcopy(model.bert.encoder.layer[0])


def act(kit: SimpleNamespace, model: Any, what: str) -> None:
    """One of the calls that would do without the delta."""
    if what == "pass":
        model(**kit.make_batch())
    elif what == "inner pass":
        batch = {k: v for k, v in kit.make_batch().items() if k != "labels"}
        model.bert(**batch)
    elif what == "using":
        with dk.using(model, "b"):
            pass
    elif what == "activate":
        dk.activate(model, dk.Mean("a", "b"))
    else:
        getattr(dk, what)(model)


@pytest.mark.parametrize("replace", [replace_projection, replace_layer])
@pytest.mark.parametrize("what", ["pass", "inner pass", "activate", "using", "merge", "summary"])
def test_a_hooked_module_that_was_replaced_is_told(
    kit: SimpleNamespace, replace: Any, what: str
) -> None:
    model = attached(kit)
    replace(model)
    with pytest.raises(IncompatibleDeltas, match="another module was put at 'bert.encoder") as told:
        act(kit, model, what)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("replace", [replace_projection, replace_layer])
def test_the_advice_keeps_what_was_trained(
    kit: SimpleNamespace, replace: Any, tmp_path: Any
) -> None:
    model, batch = attached(kit), kit.make_batch()
    expected = kit.out(model, batch)
    replace(model)
    dk.save(model, tmp_path / "a", "a")
    dk.detach(model)
    dk.load(model, tmp_path / "a")
    torch.testing.assert_close(kit.out(model, batch), expected)


def test_the_plain_base_runs_with_what_is_put_there(kit: SimpleNamespace) -> None:
    model, batch = attached(kit), kit.make_batch()
    plain = kit.out(kit.make_model("bert", "classify"), batch)
    replace_projection(model)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)


def test_a_module_around_a_hooked_one_is_followed(kit: SimpleNamespace) -> None:
    model, batch = attached(kit), kit.make_batch()
    expected = kit.out(model, batch)
    layers = model.bert.encoder.layer
    layers[0] = Wrapped(layers[0])
    layers[1].attention.self.query = Wrapped(layers[1].attention.self.query)
    assert torch.equal(kit.out(model, batch), expected)
    dk.activate(model, "b")
    dk.activate(model, "a")
    assert torch.equal(kit.out(model, batch), expected)


@pytest.mark.parametrize("family", ["t5", "bert"])
def test_a_resized_table_acts_or_is_told(kit: SimpleNamespace, family: str) -> None:
    """T5 puts another module in the table's place, BERT another parameter."""
    model, batch = attached(kit, "lora[targets=embed]", family), kit.make_batch()
    if family == "t5":
        batch = {**batch, "decoder_input_ids": batch["input_ids"]}
    expected = kit.out(model, batch)
    model.resize_token_embeddings(70, mean_resizing=False)
    try:
        found = kit.out(model, batch)
    except IncompatibleDeltas as error:
        assert family == "t5"
        assert "another module was put at" in str(error)
    else:
        torch.testing.assert_close(found[..., : expected.shape[-1]], expected)


def test_a_new_token_is_refused_where_a_delta_is_for_the_old_ones(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "lora[targets=embed]"), kit.make_batch()
    expected = kit.out(model, batch)
    model.resize_token_embeddings(70, mean_resizing=False)
    new = {**batch, "input_ids": batch["input_ids"].clone()}
    new["input_ids"][0, 1] = 66
    with pytest.raises(IncompatibleDeltas, match="token 66 is new.*attach one to the resized"):
        kit.out(model, new)
    with pytest.raises(NotMergeable, match=r"resize_token_embeddings\(64\) first"):
        dk.merge(model)
    torch.testing.assert_close(kit.out(model, batch), expected)
    dk.detach(model)
    dk.attach(model, dk.LoRA(targets="embed"))
    kit.out(model, new)


def test_a_delta_that_is_attached_after_a_table_was_resized_knows_its_tokens(
    kit: SimpleNamespace,
) -> None:
    model, batch = attached(kit, "lora"), kit.make_batch()
    model.resize_token_embeddings(70, mean_resizing=False)
    dk.attach(model, dk.LoRA(rank=2, targets="embed"), "table")
    kit.randomise_deltas(model)
    batch["input_ids"][0, 1] = 66
    found = kit.out(model, batch)
    dk.activate(model, None)
    assert not torch.allclose(kit.out(model, batch), found)


def test_a_table_where_no_delta_acts_can_be_resized(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "lora", "t5"), kit.make_batch()
    batch = {**batch, "decoder_input_ids": batch["input_ids"]}
    expected = kit.out(model, batch)
    model.resize_token_embeddings(70, mean_resizing=False)
    torch.testing.assert_close(kit.out(model, batch)[..., : expected.shape[-1]], expected)


def test_a_head_that_is_put_in_a_deltas_place_is_the_deltas(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    model, batch = attached(kit), kit.make_batch()
    other = kit.out(attached(kit), batch)
    model.classifier = nn.Linear(16, 3)
    expected = kit.out(model, batch)
    assert not torch.equal(expected, other)
    dk.save(model, tmp_path / "a", "a")
    dk.activate(model, "b")
    assert not torch.equal(kit.out(model, batch), expected)
    dk.activate(model, "a")
    assert torch.equal(kit.out(model, batch), expected)
    again = kit.make_model("bert", "classify")
    dk.load(again, tmp_path / "a")
    torch.testing.assert_close(kit.out(again, batch), expected)


def test_a_head_replaced_on_a_base_in_half_precision_is_told(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify").to(torch.bfloat16)
    dk.attach(model, dk.LoRA())
    model.classifier = nn.Linear(16, 3, dtype=torch.bfloat16)
    with pytest.raises(IncompatibleDeltas, match="another module was put at 'classifier'"):
        model(**kit.make_batch())


def test_a_copied_model_is_checked_by_itself(kit: SimpleNamespace) -> None:
    model, batch = attached(kit), kit.make_batch()
    copied = copy.deepcopy(model)
    replace_projection(model)
    kit.out(copied, batch)
    replace_projection(copied)
    with pytest.raises(IncompatibleDeltas, match="another module"):
        copied(**batch)


def test_a_part_is_copied_without_deltas_or_refused(kit: SimpleNamespace) -> None:
    model, batch = attached(kit), kit.make_batch()
    plain = kit.make_model("bert", "classify").bert(**batch)[0]
    with pytest.raises(IncompatibleDeltas, match="copied alone"):
        copy.deepcopy(model.bert)
    with dk.disabled(model):
        part = copy.deepcopy(model.bert)
    assert torch.equal(part(**batch)[0], plain)
    dk.activate(model, None)
    assert torch.equal(copy.deepcopy(model.bert)(**batch)[0], plain)


def test_a_part_with_idle_hooks_is_copied_without_deltas(kit: SimpleNamespace) -> None:
    """While other threads run, hooks stay where nothing is active."""
    model, batch = attached(kit), kit.make_batch()
    plain = kit.make_model("bert", "classify").bert(**batch)[0]
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    with dk.disabled(model):
        part = copy.deepcopy(model.bert)
    done.set()
    thread.join()
    dk.activate(model, "a")
    assert torch.equal(part(**batch)[0], plain)
