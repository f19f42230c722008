"""attach, activate, disabled, detach: the model is changed as said, and given back bit for bit."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.errors import (
    DeltakitError,
    IncompatibleDeltas,
    InvalidConfig,
    NameInUse,
    SiteNotFound,
    UnknownName,
)

TINY = (
    "bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3",
)  # fmt: skip
SPECS = ("lora[targets=all]", "pfeiffer[reduction=4]", "houlsby[reduction=4]", "head", "full",
         "lora+houlsby[bottleneck=3]", "houlsby[reduction=4,train_norms=true]")  # fmt: skip
METHODS = [dk.parse_method(spec) for spec in SPECS]


@pytest.mark.parametrize("method", METHODS, ids=SPECS)
@pytest.mark.parametrize("family", TINY)
def test_detach_gives_the_model_back(kit: SimpleNamespace, family: str, method: Any) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    if family in ("bert", "gpt2"):  # flags of all kinds
        for index, parameter in enumerate(model.base_model.parameters()):
            parameter.requires_grad_(index % 3 != 1)
    model.train()
    model.base_model.eval()
    before, output = kit.snapshot(model), kit.out(model, batch)
    grads = gradients(model, batch)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    kit.train_steps(model, batch, steps=2)
    assert not torch.equal(kit.out(model, batch), output)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)
    again = gradients(model, batch)
    assert again.keys() == grads.keys()
    assert all(torch.equal(again[name], grads[name]) for name in grads)


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.mark.parametrize("family", TINY)
def test_only_the_delta_and_the_head_are_trained(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family, "classify"), kit.make_batch(labels=True)
    base = {id(p) for p in model.base_model.parameters()}
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    names = [n for n, _ in model.named_parameters()]
    dk.attach(model, dk.LoRA(targets="all") + dk.SequentialAdapter(reduction=4))
    kit.randomise_deltas(model)
    assert [n for n, _ in model.named_parameters()][: len(names)] == names
    assert set(gradients(model, batch)) == {
        n
        for n, p in model.named_parameters()
        if id(p) not in base and not n.startswith("deltakit.base.")
    }
    kit.train_steps(model, batch, steps=3)
    for name, parameter in model.named_parameters():
        if name in before and id(parameter) in base:
            assert torch.equal(parameter, before[name]), name
        elif name in before:
            assert not torch.equal(parameter, before[name]), name


def test_a_language_model_keeps_its_head_frozen(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama", "causal")
    dk.attach(model, dk.LoRA())
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("deltakit.") for n in trained)


@pytest.mark.parametrize("method", METHODS, ids=SPECS)
def test_disabled_is_the_base_exactly(kit: SimpleNamespace, method: Any) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    plain, flags = kit.out(model, batch), [p.requires_grad for p in model.parameters()]
    grads = gradients(model, batch)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    kit.train_steps(model, batch, steps=1)
    active, hooks = kit.out(model, batch), kit.hook_count(model)
    inside_flags = [p.requires_grad for p in model.parameters()]
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
        assert kit.hook_count(model) == 0
        assert [p.requires_grad for p in model.parameters()][: len(flags)] == flags
        again = gradients(model, batch)
        assert all(torch.equal(again[n], grads[n]) for n in grads)
    assert torch.equal(kit.out(model, batch), active)
    assert kit.hook_count(model) == hooks
    assert [p.requires_grad for p in model.parameters()] == inside_flags


def test_disabled_comes_back_after_an_exception(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    active = kit.out(model, batch)
    with pytest.raises(KeyboardInterrupt), dk.disabled(model):
        raise KeyboardInterrupt
    assert torch.equal(kit.out(model, batch), active)
    with pytest.raises(RuntimeError), dk.disabled(model), dk.disabled(model):
        raise RuntimeError
    assert torch.equal(kit.out(model, batch), active)


def test_disabled_survives_what_is_attached_inside(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(), name="a")
    kit.randomise_deltas(model)
    active, hooks = kit.out(model, batch), kit.hook_count(model)
    with dk.disabled(model):
        dk.attach(model, dk.SequentialAdapter(reduction=4), name="b")
        kit.randomise_deltas(model, "b")
        dk.activate(model, "a")
        active = kit.out(model, batch)
        dk.activate(model, "b")
    assert kit.hook_count(model) == hooks
    assert torch.equal(kit.out(model, batch), active)


def test_disabled_survives_what_is_detached_inside(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    before, plain = kit.snapshot(model), kit.out(model, batch)
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    with dk.disabled(model):
        dk.detach(model)
    assert torch.equal(kit.out(model, batch), plain)
    kit.assert_same(before, kit.snapshot(model))


# ------------------------------------------------------------------------------- several deltas


@pytest.mark.parametrize("second", ["lora", "full", "head"])
def test_each_of_two_trained_deltas_keeps_its_outputs_and_its_head(
    kit: SimpleNamespace, second: str
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    before, plain = kit.snapshot(model), kit.out(model, batch)
    dk.attach(model, dk.SequentialAdapter(reduction=4), name="a")
    kit.train_steps(model, batch)
    head = model.classifier.weight.detach().clone()
    a = kit.out(model, batch)
    dk.attach(model, dk.parse_method(second), name="b")
    assert torch.equal(model.classifier.weight, before["state"]["classifier.weight"])
    kit.train_steps(model, batch, steps=2)
    b = kit.out(model, batch)
    assert not torch.equal(a, b)
    for _ in range(2):
        dk.activate(model, "a")
        assert torch.equal(kit.out(model, batch), a)
        assert torch.equal(model.classifier.weight, head)
        dk.activate(model, "b")
        assert torch.equal(kit.out(model, batch), b)
        dk.activate(model, None)
        assert torch.equal(kit.out(model, batch), plain)
    dk.activate(model, "a")
    dk.detach(model, "b")
    assert torch.equal(kit.out(model, batch), a)
    dk.detach(model, "a")
    kit.assert_same(before, kit.snapshot(model))


def test_detaching_another_leaves_the_active_one(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(), name="a")
    dk.attach(model, dk.LoRA(), name="b")
    kit.randomise_deltas(model)
    b = kit.out(model, batch)
    dk.detach(model, "a")
    assert torch.equal(kit.out(model, batch), b)
    dk.detach(model, "b")
    assert kit.hook_count(model) == 0


def test_train_says_what_is_trained(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.LoRA(), name="a")
    dk.attach(model, dk.LoRA(), name="b")
    dk.activate(model, dk.Stack("a", "b"), train=["a"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained and all(n.startswith("deltakit.delta_a.") for n in trained)
    dk.activate(model, dk.Stack("a", "b"))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert {n.split(".")[1] for n in trained if n.startswith("deltakit")} == {"delta_a", "delta_b"}
    assert "classifier.weight" in trained


def test_two_owners_of_the_base_cannot_be_active_together(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    dk.attach(model, dk.FullFineTuning(), name="a")
    dk.attach(model, dk.SequentialAdapter(reduction=4, train_norms=True), name="b")
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(IncompatibleDeltas, match="'a' and 'b' both have values for the base's"):
        dk.activate(model, dk.Stack("a", "b"))
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


# ---------------------------------------------------------------------------- names and failures


FAILURES = [
    (dk.LoRA(targets="gate"), "default", SiteNotFound, r"no site 'ffn.gate'. It has: attn.k"),
    (dk.SequentialAdapter(reduction=99), "default", InvalidConfig, "leaves no bottleneck"),
    (dk.AdapterFusion("x"), "default", UnknownName, "unknown delta 'x'"),
    (dk.AdapterFusion(), "default", InvalidConfig, "needs the names of attached deltas"),
    (dk.LoRA() + dk.LoRA(targets="gate"), "default", SiteNotFound, "ffn.gate"),
    (dk.LoRA(), "a.b", InvalidConfig, r"'a.b' cannot name a delta.*letters, digits"),
    (dk.LoRA(), "", InvalidConfig, "'' cannot name a delta"),
    (dk.LoRA(), "a b\n", InvalidConfig, "cannot name a delta"),
]


@pytest.mark.parametrize("first", [True, False], ids=["first", "second"])
@pytest.mark.parametrize(("method", "name", "kind", "message"), FAILURES)
def test_a_failed_attach_leaves_no_trace(
    kit: SimpleNamespace, method: Any, name: str, kind: Any, message: str, first: bool
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    if not first:
        dk.attach(model, dk.LoRA(), name="before")
        kit.train_steps(model, batch, steps=1)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(kind, match=message) as caught:
        dk.attach(model, method, name=name)
    assert "\n" not in str(caught.value)
    assert hasattr(model, "deltakit") is not first
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_a_failed_attach_leaves_a_merged_model_merged(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(), name="a")
    kit.randomise_deltas(model)
    dk.merge(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(InvalidConfig):
        dk.attach(model, dk.SequentialAdapter(reduction=99), name="b")
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_disabled_leaves_a_merged_model_merged(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    plain = kit.out(model, batch)
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    dk.merge(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_names_in_use_and_unknown_names(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(), name="sentiment")
    kit.randomise_deltas(model)
    before, output = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(NameInUse, match="'sentiment' is attached already; detach it"):
        dk.attach(model, dk.LoRA(), name="sentiment")
    unknown = r"unknown delta 'sentimnet'. Did you mean 'sentiment'\? Known: sentiment"
    with pytest.raises(UnknownName, match=unknown):
        dk.activate(model, "sentimnet")
    with pytest.raises(UnknownName, match=unknown):
        dk.activate(model, dk.Mean("sentiment", "sentimnet"))
    with pytest.raises(UnknownName, match=unknown):
        dk.activate(model, "sentiment", train=["sentimnet"])
    with pytest.raises(UnknownName, match=unknown):
        dk.detach(model, "sentimnet")
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), output)


def test_names_that_are_attributes_of_modules(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    before = kit.snapshot(model)
    for name in ("type", "half", "forward", "train", "0", "-", "_modules"):
        dk.attach(model, dk.LoRA(), name=name)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize(
    "act",
    [
        lambda m: dk.activate(m, "a"),
        lambda m: dk.detach(m),
        lambda m: dk.merge(m),
        lambda m: dk.unmerge(m),
        lambda m: dk.save(m, "nowhere"),
        lambda m: dk.disabled(m).__enter__(),
    ],
)
def test_nothing_is_attached(kit: SimpleNamespace, act: Any) -> None:
    message = r"nothing is attached to this BertModel; call attach\(model, method\)"
    with pytest.raises(DeltakitError, match=message):
        act(kit.make_model("bert"))


def test_a_child_of_the_same_name(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    model.deltakit = torch.nn.Linear(1, 1)
    with pytest.raises(DeltakitError, match="has a child module 'deltakit' of its own"):
        dk.attach(model, dk.LoRA())


# ----------------------------------------------------------------------------- copies and saving


@pytest.mark.parametrize("spec", ["lora", "houlsby[reduction=4]", "full", "fusion"])
def test_a_deep_copy_is_independent(kit: SimpleNamespace, spec: str) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    if spec == "fusion":
        kit.attach_fusion(model)
    else:
        dk.attach(model, dk.parse_method(spec), name="fused")
        kit.randomise_deltas(model)
    output = kit.out(model, batch)
    twin = copy.deepcopy(model)
    assert torch.equal(kit.out(twin, batch), output)
    pointers = {p.data_ptr() for p in model.parameters()}
    assert pointers.isdisjoint(p.data_ptr() for p in twin.parameters())
    kit.train_steps(twin, batch, steps=1)
    changed = kit.out(twin, batch)
    assert not torch.equal(changed, output)
    assert torch.equal(kit.out(model, batch), output)
    kit.train_steps(model, batch, steps=2)
    assert torch.equal(kit.out(twin, batch), changed)
    trained = kit.out(model, batch)
    dk.detach(twin)
    assert kit.hook_count(twin) == 0 and not hasattr(twin, "deltakit")
    assert torch.equal(kit.out(twin, batch), kit.out(kit.make_model("bert", "classify"), batch))
    assert torch.equal(kit.out(model, batch), trained)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), kit.out(twin, batch))


def test_a_merged_deep_copy_is_independent(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    before = kit.snapshot(model)
    dk.attach(model, dk.LoRA())
    kit.randomise_deltas(model)
    dk.merge(model)
    merged, twin = kit.out(model, batch), copy.deepcopy(model)
    dk.detach(twin)
    assert torch.equal(kit.out(model, batch), merged)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))
    kit.assert_same({**before, "ids": 0}, {**kit.snapshot(twin), "ids": 0})


def test_state_dict_through_a_file(kit: SimpleNamespace, tmp_path: Any) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    dk.attach(model, dk.LoRA(), name="a")
    kit.train_steps(model, batch)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    other = kit.make_model("bert", "classify")
    dk.attach(other, dk.LoRA(), name="a")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))
    keys = [key for key in model.state_dict() if key.startswith("deltakit.")]
    assert len(keys) == 11  # eight matrices, the head's two, and what the delta is
    dk.detach(other)
    fresh = kit.make_model("bert", "classify")
    assert torch.equal(kit.out(other, batch), kit.out(fresh, batch))


def test_a_model_with_deltas_can_be_pickled(kit: SimpleNamespace, tmp_path: Any) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    kit.attach_fusion(model)
    torch.save(model, tmp_path / "model.pt")
    other = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))
    dk.detach(other)
    assert kit.hook_count(other) == 0


@pytest.mark.parametrize("spec", ["lora", "full"])
def test_trainer_resumes(kit: SimpleNamespace, tmp_path: Any, spec: str) -> None:
    from transformers import PrinterCallback, Trainer, TrainingArguments

    batch = kit.make_batch(rows=4, length=8, labels=True)
    rows = [{k: v[i] for k, v in batch.items()} for i in range(4)]

    def train(folder: Any, resume: Any = None) -> Any:
        model = kit.make_model("bert", "classify")
        torch.manual_seed(1)
        dk.attach(model, dk.parse_method(spec))
        arguments = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=2,
            max_steps=4,
            save_steps=2,
            learning_rate=0.05,
            report_to=[],
            disable_tqdm=True,
            logging_strategy="no",
            use_cpu=True,
            seed=3,
        )
        trainer = Trainer(model, arguments, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=resume)
        return model

    whole = train(tmp_path / "whole")
    resumed = train(tmp_path / "resumed", str(tmp_path / "whole" / "checkpoint-2"))
    torch.testing.assert_close(kit.out(resumed, batch), kit.out(whole, batch), atol=1e-6, rtol=0)
    dk.detach(resumed)
    plain = kit.make_model("bert", "classify")
    assert torch.equal(kit.out(resumed, batch), kit.out(plain, batch))
