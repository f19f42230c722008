"""A kept trunk changes no result, and what it cannot be kept through is computed as without it."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.testing.models import ENCODER_DECODERS, kind_of

UPPER = dk.AdapterDrop(dk.SequentialAdapter(reduction=4), first=1)
NOT_KEPT = {
    **dict.fromkeys((*ENCODER_DECODERS, "clip"), "a model of several stacks of layers"),
    "bloom": "layers that hand on more than hidden states",
    "gemma3": "the argument inputs_embeds",
}
"""Families whose trunk is computed in each pass, and why."""


def make(kit: SimpleNamespace, family: str, method: dk.Method = UPPER, **config: Any) -> Any:
    model = kit.make_model(family, kind_of(family), **config)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


def step(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The outputs at real tokens, and the gradients of what is trained."""
    model.zero_grad()
    torch.manual_seed(0)  # of the dropout in front of some classifiers
    output = model(**batch)
    found = output.logits if "logits" in output else output[0]
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == found.shape[:2]:
        found = found[mask.bool()]
    found.square().mean().backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"output": found.detach(), **grads}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-5, rtol=1e-4, msg=name)


def padded(batch: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    return {name: nn.functional.pad(value, (0, width)) for name, value in batch.items()}


def turned(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.flip(0) for name, value in batch.items()}


# ----------------------------------------------------------------------------- every family


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_results_are_those_of_whole_passes(
    kit: SimpleNamespace, family: str, training: bool
) -> None:
    model = make(kit, family).train(training)
    batch = kit.make_inputs(family, kind_of(family))
    expected = step(model, batch)
    with dk.kept_trunk(model) as trunk:
        for _ in range(3):
            assert_close(step(model, batch), expected)
    if family in NOT_KEPT:
        assert set(trunk.refused) == {NOT_KEPT[family]}
    else:
        assert not trunk.refused
        assert (trunk.begun, trunk.computed, trunk.rows) == (2, 1, 3)


@pytest.mark.parametrize("family", ["bert", "llama", "vit", "albert"])
def test_a_head_alone_begins_behind_all_layers(kit: SimpleNamespace, family: str) -> None:
    model = kit.make_model(family, "classify")
    dk.attach(model, dk.HeadOnly())
    batch = kit.make_inputs(family, "classify")
    expected = step(model, batch)
    with dk.kept_trunk(model) as trunk:
        for _ in range(2):
            assert_close(step(model, batch), expected)
    assert trunk.begun == 1


# ------------------------------------------------------------------------ what is kept, and when


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_rows_are_found_in_other_batches(kit: SimpleNamespace, family: str) -> None:
    model, batch = make(kit, family).train(), kit.make_batch()
    if family == "bert":
        batch["token_type_ids"] = torch.tensor([[0, 0, 1, 1, 0, 0, 0]]).expand(3, -1)
    others = [turned(batch), padded(batch, 4), {n: v[1:] for n, v in batch.items()}]
    expected = [step(model, other) for other in others]
    with dk.kept_trunk(model) as trunk:
        step(model, batch)
        for other, wanted in zip(others, expected, strict=True):
            assert_close(step(model, other), wanted)
    assert (trunk.begun, trunk.computed, trunk.rows) == (3, 1, 3)


def test_the_layers_of_the_trunk_do_not_run(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = make(kit, "bert"), kit.make_batch()
    kind = type(model.bert.encoder.layer[0].attention)
    forward, calls = kind.forward, list[int]()

    def counted(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(module, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", counted)
    with dk.kept_trunk(model):
        for layers in (2, 1, 1):
            calls.clear()
            model(**batch)
            assert len(calls) == layers


def test_a_batch_with_a_new_row_is_computed_as_a_whole(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "bert"), kit.make_batch()
    first = {name: value[:2] for name, value in batch.items()}
    expected = step(model, batch)
    with dk.kept_trunk(model) as trunk:
        step(model, first)
        assert_close(step(model, batch), expected)
        assert (trunk.begun, trunk.computed, trunk.rows) == (0, 2, 3)
        assert_close(step(model, batch), expected)
    assert trunk.begun == 1


def test_what_has_no_room_is_computed(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "bert"), kit.make_batch()
    expected = step(model, batch)
    with dk.kept_trunk(model, limit=7 * 16 * 4) as trunk:
        for _ in range(2):
            assert_close(step(model, batch), expected)
    assert (trunk.begun, trunk.rows, trunk.size) == (0, 1, 7 * 16 * 4)
    assert trunk.left_out == 4


def test_evaluated_rows_can_be_trained_on_where_nothing_differs(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "llama"), kit.make_batch()
    expected = step(model.train(), batch)
    with dk.kept_trunk(model) as trunk:
        with torch.inference_mode():
            model.eval()(**batch)
            model(**batch)
        for _ in range(2):
            assert_close(step(model.train(), batch), expected)
    assert (trunk.begun, trunk.computed) == (2, 2)


def test_the_rows_of_one_model_serve_another_of_the_same_weights(kit: SimpleNamespace) -> None:
    batch, cache = kit.make_batch(), dk.TrunkCache()
    for number in range(2):
        model = make(kit, "llama")
        expected = step(model, batch)
        with dk.kept_trunk(model, cache):
            assert_close(step(model, batch), expected)  # the first pass is looked at
            assert_close(step(model, batch), expected)
        assert (cache.begun, cache.rows) == (number + 1, 3)
    with torch.no_grad():
        next(model.model.layers[0].parameters()).mul_(1.5)
    with dk.kept_trunk(model, cache):
        wanted = step(model, batch)
        assert_close(step(model, batch), wanted)
    assert cache.rows == 6
    assert not torch.equal(wanted["output"], expected["output"])


@contextlib.contextmanager
def activated(model: Any) -> Iterator[None]:
    dk.attach(model, dk.LoRA(), name="low")
    yield


@contextlib.contextmanager
def changed(model: Any) -> Iterator[None]:
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight.mul_(1.5)
    yield


@contextlib.contextmanager
def replaced(model: Any) -> Iterator[None]:
    linear = model.bert.encoder.layer[0].output.dense
    linear.weight = nn.Parameter(1.5 * linear.weight.detach(), requires_grad=False)
    yield


@contextlib.contextmanager
def written(model: Any) -> Iterator[None]:
    weight = model.bert.encoder.layer[0].output.dense.weight
    weight.data = 1.5 * weight.data
    yield


@contextlib.contextmanager
def dropping(model: Any) -> Iterator[None]:
    model.bert.encoder.layer[0].output.dropout.p = 0.5
    model.train()
    torch.manual_seed(0)
    yield


@contextlib.contextmanager
def other_block(model: Any) -> Iterator[None]:
    block = copy.deepcopy(model.bert.encoder.layer[0])
    vars(block).pop("forward", None)
    model.bert.encoder.layer[0] = block
    changed(model).__enter__()
    yield


@contextlib.contextmanager
def base_alone(model: Any) -> Iterator[None]:
    with dk.disabled(model):
        for parameter in model.base_model.parameters():
            parameter.requires_grad_(False)
        yield


@pytest.mark.parametrize(
    "change", [activated, changed, replaced, written, dropping, other_block, base_alone]
)
def test_what_changes_meanwhile_is_seen(
    kit: SimpleNamespace, change: Callable[[Any], contextlib.AbstractContextManager[None]]
) -> None:
    plain, model, batch = make(kit, "bert"), make(kit, "bert"), kit.make_batch()
    with change(plain):
        expected = kit.out(plain, batch)
    with dk.kept_trunk(model):
        before = [kit.out(model, batch) for _ in range(2)][-1]
        with change(model):
            found = kit.out(model, batch)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, before)


# ------------------------------------------------------------------- what it cannot be kept through


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "hidden states": ({"output_hidden_states": True}, "output_hidden_states"),
    "attention": ({"output_attentions": True}, "output_attentions"),
    "cache": ({"use_cache": True}, "use_cache=True"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_asked_for_is_computed(kit: SimpleNamespace, case: str) -> None:
    model, batch = make(kit, "llama"), kit.make_batch()
    asked, reason = REFUSED[case]
    expected = model(**batch, **asked)
    with dk.kept_trunk(model) as trunk:
        kit.out(model, batch)
        kit.out(model, batch)
        found = model(**batch, **asked)
    assert trunk.refused == {reason: 1}
    assert found.keys() == expected.keys()
    if case != "cache":
        name = {"hidden states": "hidden_states", "attention": "attentions"}[case]
        for one, other in zip(found[name], expected[name], strict=True):
            torch.testing.assert_close(one, other)


def test_generation_is_as_without_it(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "llama"), {"input_ids": kit.make_batch(1)["input_ids"]}
    expected = model.generate(**batch, max_new_tokens=4, do_sample=False)
    with dk.kept_trunk(model) as trunk:
        model(**batch)
        found = model.generate(**batch, max_new_tokens=4, do_sample=False)
    assert torch.equal(found, expected)
    assert not trunk.begun


def test_dropout_below_is_seen_before_anything_is_kept(kit: SimpleNamespace) -> None:
    model = make(kit, "bert", hidden_dropout_prob=0.3).train()
    batch = kit.make_batch()
    expected = [step(model, batch) for _ in range(2)]
    with dk.kept_trunk(model) as trunk:
        for wanted in expected:
            assert_close(step(model, batch), wanted)
    assert trunk.refused == {"dropout or other random numbers below layer 1": 2}
    assert trunk.rows == 0


def test_dropout_above_goes_on(kit: SimpleNamespace) -> None:
    model = make(kit, "bert").train()
    model.bert.encoder.layer[1].output.dropout.p = 0.3
    batch = kit.make_batch()
    expected = [step(model, batch) for _ in range(3)]
    with dk.kept_trunk(model) as trunk:
        for wanted in expected:
            assert_close(step(model, batch), wanted)
    assert trunk.begun == 2


def test_a_hook_on_a_layer_below_sees_all_passes(kit: SimpleNamespace) -> None:
    model, batch, seen = make(kit, "bert"), kit.make_batch(), list[int]()
    model.bert.encoder.layer[0].output.register_forward_hook(lambda *_: seen.append(1))
    with dk.kept_trunk(model) as trunk:
        for _ in range(3):
            model(**batch)
    assert len(seen) == 3
    assert trunk.refused == {"a hook on a layer of the trunk": 3}


@pytest.mark.parametrize(
    ("method", "reason"),
    [
        (dk.LoRA(), "something acts or is trained in the lowest layer, or before it"),
        (dk.PromptTuning(length=2), "something acts or is trained in the lowest layer"),
        (dk.BitFit(), "something acts or is trained in the lowest layer"),
        (dk.FullFineTuning(), "something acts or is trained in the lowest layer"),
        (
            dk.PartialFineTuning(parameters="*word_embeddings.weight"),
            "parameters outside the layers are trained",
        ),
    ],
)
def test_what_reaches_down_has_no_trunk(
    kit: SimpleNamespace, method: dk.Method, reason: str
) -> None:
    model, batch = make(kit, "bert", method), kit.make_batch()
    expected = step(model, batch)
    with dk.kept_trunk(model) as trunk:
        assert_close(step(model, batch), expected)
    assert [text for text in trunk.refused if reason in text]


def test_a_failed_pass_leaves_nothing(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "bert"), kit.make_batch()
    expected = kit.out(model, batch)
    with dk.kept_trunk(model) as trunk:
        with pytest.raises(IndexError):
            model(**{**batch, "input_ids": batch["input_ids"] + 1000})
        assert trunk.rows == 0
        torch.testing.assert_close(kit.out(model, batch), expected)
    assert trunk.computed == 1


def test_no_gradient_flows_below(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "bert").train(), kit.make_batch()
    model.enable_input_require_grads()
    below = list[bool]()

    def look(module: Any, args: Any, output: Tensor) -> None:
        output.register_hook(lambda _: below.append(True))

    model.get_input_embeddings().register_forward_hook(look)
    with dk.kept_trunk(model):
        for _ in range(2):
            step(model, batch)
    assert not below


def test_the_model_is_given_back(kit: SimpleNamespace) -> None:
    model = make(kit, "llama")
    before = kit.snapshot(model)
    with dk.kept_trunk(model):
        model(**kit.make_batch())
    kit.assert_same(kit.snapshot(model), before)


def test_a_copy_made_inside_computes(kit: SimpleNamespace) -> None:
    model, batch = make(kit, "bert"), kit.make_batch()
    with dk.kept_trunk(model):
        expected = kit.out(model, batch)
        torch.testing.assert_close(kit.out(copy.deepcopy(model), batch), expected)


def test_nothing_attached_is_told(kit: SimpleNamespace) -> None:
    with pytest.raises(dk.DeltakitError, match="nothing is attached"):
        dk.kept_trunk(kit.make_model("bert")).__enter__()
