"""What a pass keeps stays in it: threads, models inside models, recomputation, errors."""

import copy
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.runtime.passes import current_pass

DROP = dk.AdapterDrop(dk.SequentialAdapter(reduction=4), random_up_to=1)
CASES: dict[str, tuple[str, dk.Method]] = {
    "prompt": ("llama", dk.PromptTuning(length=3)),
    "prompt on an encoder": ("bert", dk.PromptTuning(length=3)),
    "parallel": ("bert", dk.ParallelAdapter(reduction=2)),
    "parallel reading the stream": ("llama", dk.ParallelAdapter(reduction=2, reads="stream")),
    "mam": ("bert", dk.MAM(length=2, bottleneck=4)),
    "adapterdrop": ("bert", DROP),
}


def attached(kit: SimpleNamespace, family: str, method: dk.Method, kind: str = "bare") -> Any:
    model = kit.make_model(family, kind)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model.eval()


def batches(kit: SimpleNamespace, count: int) -> list[dict[str, Tensor]]:
    """Of different lengths, so that a mix-up cannot go unseen."""
    return [kit.make_batch(2, 4 + i) for i in range(count)]


def test_threads_draw_their_own_layers(kit: SimpleNamespace) -> None:
    model = attached(kit, "bert", DROP).train()
    seen: dict[str, set[int]] = {"train": set()}

    def note(module: Any, args: Any, output: Any) -> None:
        seen["train"].add(*current_pass().dropped.values())

    model.register_forward_hook(note, prepend=True)
    torch.manual_seed(0)
    for _ in range(12):
        model(**kit.make_batch(1, 3))
    assert seen["train"] == {0, 1}
    assert not current_pass().dropped


class Twice(nn.Module):
    """Calls a model while it runs."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner, self.found = (model,), list[Tensor]()
        self.batch: dict[str, Tensor] = {}

    def __call__(self, module: Any, args: Any, kwargs: Any) -> None:
        if self.batch:
            batch, self.batch = self.batch, {}
            self.found.append(self.inner[0](**batch)[0])


@pytest.mark.parametrize("case", ["prompt", "parallel", "parallel reading the stream"])
@pytest.mark.parametrize("other", [False, True], ids=["itself", "another"])
def test_a_model_that_runs_inside_a_model(kit: SimpleNamespace, case: str, other: bool) -> None:
    family, method = CASES[case]
    model = attached(kit, family, method)
    inner = attached(kit, "bert", dk.ParallelAdapter(reduction=2)) if other else model
    outside, inside = batches(kit, 2)
    expected = kit.out(model, outside), kit.out(inner, inside)
    layer = next(h.module for h in model.deltakit.handles.values() if h.site == "ffn.up")
    again = Twice(inner)
    layer.register_forward_pre_hook(again.__call__, with_kwargs=True)
    again.batch = inside
    with torch.no_grad():
        torch.testing.assert_close(kit.out(model, outside), expected[0])
    torch.testing.assert_close(again.found[0], expected[1])


def test_a_pass_ends_with_an_error(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "llama", dk.PromptTuning(length=3)), kit.make_batch()
    expected = kit.out(model, batch)

    def fail(module: Any, args: Any) -> None:
        raise ValueError("no")

    for module in (model, model.get_submodule("layers.1.mlp"), model.layers[0]):
        hook = module.register_forward_pre_hook(fail)
        with pytest.raises(ValueError, match="no"):
            model(**batch)
        hook.remove()
        assert current_pass().owner is None
    torch.testing.assert_close(kit.out(model, batch), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_passes_that_draw_otherwise_before_one_backward(
    kit: SimpleNamespace, reentrant: bool
) -> None:
    one, two = kit.make_batch(2, 5, labels=True), kit.make_batch(2, 6, labels=True)

    def gradients(checkpointed: bool) -> list[dict[str, Tensor]]:
        model, found = attached(kit, "bert", DROP, kind="classify").train(), []
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        for seed in range(4):
            torch.manual_seed(seed)
            model.zero_grad()
            (model(**one).loss + model(**two).loss).backward()
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            found.append({n: g.clone() for n, g in grads.items()})
        return found

    for plain, again in zip(gradients(False), gradients(True), strict=True):
        assert plain.keys() == again.keys()
        for name, value in plain.items():
            torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "kind"), [("vit", "classify"), ("whisper", "seq2seq"), ("clip_vision_model", "bare")]
)
def test_reentrant_checkpointing_where_no_input_has_a_gradient(
    kit: SimpleNamespace, family: str, kind: str
) -> None:
    def gradients(reentrant: bool | None) -> dict[str, Tensor]:
        model = attached(kit, family, dk.LoRA(rank=2), kind).train()
        if reentrant is not None:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        model(**kit.make_inputs(family))[0].square().sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients(None)
    for reentrant in (True, False):
        again = gradients(reentrant)
        assert again.keys() == plain.keys()
        for name, value in plain.items():
            torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4, msg=name)


def test_a_pass_says_what_the_call_was_given(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "llama", dk.LoRA(), "causal"), kit.make_batch()
    numbers = torch.arange(batch["input_ids"].shape[1])[None].expand_as(batch["input_ids"])
    seen: list[tuple[Any, Any]] = []

    def note(module: Any, args: Any) -> None:
        running = current_pass()
        seen.append((running.attention_mask("decoder"), running.position_ids("decoder")))

    model.get_submodule("model.layers.0.mlp").register_forward_pre_hook(note)
    mask = batch["attention_mask"]
    model(**batch, position_ids=numbers)
    model(batch["input_ids"], mask)
    model(batch["input_ids"])
    assert [a is b for a, b in zip(seen[0], (mask, numbers), strict=True)] == [True, True]
    assert seen[1][0] is mask and seen[1][1] is None
    assert seen[2] == (None, None)


def test_a_decoder_has_a_mask_of_its_own(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "t5", dk.LoRA(), "seq2seq"), kit.make_batch(2, 5)
    ids = batch["input_ids"]
    masks, seen = {"attention_mask": torch.ones_like(ids)}, {}

    def note(module: Any, args: Any) -> None:
        seen.update({s: current_pass().attention_mask(s) for s in ("encoder", "decoder")})

    model.get_submodule("decoder.block.0").register_forward_pre_hook(note)
    model(input_ids=ids, decoder_input_ids=ids, **masks)
    assert seen["encoder"] is masks["attention_mask"] and seen["decoder"] is None


def test_checkpointing_functions_come_back(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify").train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = {n: vars(m).get("_gradient_checkpointing_func") for n, m in model.named_modules()}
    dk.attach(model, DROP)
    model(**kit.make_batch(labels=True)).loss.backward()
    dk.detach(model)
    after = {n: vars(m).get("_gradient_checkpointing_func") for n, m in model.named_modules()}
    assert any(before.values()) and after == before


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_has_passes_of_its_own(kit: SimpleNamespace, copied: Any) -> None:
    model, batch = attached(kit, *CASES["mam"]), kit.make_batch()
    twin = copied(model)
    expected = kit.out(model, batch)
    torch.testing.assert_close(kit.out(twin, batch), expected)
    dk.detach(model)
    torch.testing.assert_close(kit.out(twin, batch), expected)


def test_a_replica_is_refused(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "bert", dk.LoRA()), kit.make_batch()
    replica = model._replicate_for_data_parallel()
    with pytest.raises(dk.DeltakitError, match="DistributedDataParallel"):
        replica(**batch)


@pytest.mark.parametrize("case", ["parallel", "prompt", "mam"])
def test_an_inner_model_alone(kit: SimpleNamespace, case: str) -> None:
    family, method = CASES[case]
    model, batch = attached(kit, family, method, "classify"), kit.make_batch()
    states: list[Tensor] = []
    model.base_model.register_forward_hook(lambda m, a, o: states.append(o[0]))
    with torch.no_grad():
        model(**batch)
        model.base_model(**batch)
    torch.testing.assert_close(states[1], states[0])
