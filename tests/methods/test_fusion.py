"""AdapterFusion: golden values, the formula as written, and its regulariser in every loop."""

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

import deltakit as dk
from deltakit.errors import DeltakitError, IncompatibleDeltas, InvalidConfig, UnknownName
from deltakit.methods.forms.fusion import Fusion

GOLDEN = {
    "fusion_dynamic": (("a", 4), ("b", 8), ("c", 2)),
    "fusion_double": (("a", 4), ("b", 8)),
    "fusion_static": (("a", 4), ("b", 8)),
}


def attach_golden(golden: Any, case: str) -> Any:
    model = golden.model()
    double = case == "fusion_double"
    for name, reduction in GOLDEN[case]:
        method = dk.SequentialAdapter(
            placement="houlsby" if double else "pfeiffer",
            activation="swish" if double else "relu",
            reduction=reduction,
        )
        dk.attach(model, method, name=name)
    names = [name for name, _ in GOLDEN[case]]
    dk.attach(model, dk.AdapterFusion(*names, value=case != "fusion_static"), name="fused")
    golden.fill(model, case, ffn="ffn.out" if double else "block.out")
    return model


@pytest.mark.parametrize("case", list(GOLDEN))
def test_golden(golden: Any, kit: SimpleNamespace, case: str) -> None:
    model = attach_golden(golden, case)
    expected = golden.tensors[f"{case}.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", list(GOLDEN))
def test_golden_attention(golden: Any, kit: SimpleNamespace, case: str) -> None:
    model = attach_golden(golden, case)
    with dk.fusion_attention(model) as seen:
        kit.out(model, golden.batch)
    output = "ffn.out" if case == "fusion_double" else "block.out"
    sites = {"mh_adapter": "attn.out", "output_adapter": output}
    prefix = f"{case}.attention."
    theirs = {k.removeprefix(prefix): v for k, v in golden.tensors.items() if k.startswith(prefix)}
    assert len(theirs) == len(seen.weights)
    mask = golden.batch["attention_mask"].bool()
    for key, expected in theirs.items():
        layer, _, site = key.partition(".")
        mine = f"encoder.{layer}.{sites[site]}"
        torch.testing.assert_close(seen.weights[mine], expected, atol=1e-5, rtol=0)
        mean = dict(zip(seen.members[mine], expected[mask].mean(0).tolist(), strict=True))
        assert seen.mean()[mine] == pytest.approx(mean, abs=1e-5)


def as_written(fusion: Fusion, query: Tensor, deltas: list[Tensor]) -> Tensor:
    """Every key and value is computed, as in the paper: (1 + 2N) d² multiply-adds."""
    q = query @ fusion.query.weight.T + fusion.query.bias
    u = torch.stack(deltas, dim=-2)
    k = u @ fusion.key.weight.T + fusion.key.bias
    v = u if fusion.value is None else u @ fusion.value.weight.T
    weights = torch.einsum("...d,...nd->...n", q, k).softmax(-1)
    return torch.einsum("...n,...nd->...d", weights, v)


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 5),
    width=st.integers(1, 12),
    value=st.booleans(),
    seed=st.integers(0, 2**31 - 1),
)
def test_equals_the_formula_as_written(members: int, width: int, value: bool, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    names = tuple("abcde"[:members])
    fusion = Fusion(width, members=names, value=value).double().eval()
    query = torch.randn(2, 3, width, generator=draw, dtype=torch.float64)
    deltas = [torch.randn(query.shape, generator=draw, dtype=torch.float64) for _ in names]
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        expected = as_written(fusion, query, deltas)
        torch.testing.assert_close(fusion(query, deltas), expected, atol=1e-9, rtol=1e-9)


def test_equals_the_formula_as_written_in_single_precision() -> None:
    fusion = Fusion(16, members=("a", "b", "c")).eval()
    query, *deltas = (torch.randn(4, 16) * 0.5 for _ in range(4))
    torch.nn.init.normal_(fusion.value.weight, std=0.2)
    torch.nn.init.normal_(fusion.key.bias, std=0.2)
    expected = as_written(fusion, query, deltas)
    torch.testing.assert_close(fusion(query, deltas), expected, atol=1e-6, rtol=0)


def test_one_member_and_identity_is_that_adapter(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    kit.attach_fusion(model, ("a",))
    for key, tensor in kit.attachments(model).get("fused").tensors():
        if "value" in key:
            torch.nn.init.eye_(tensor)
    fused = kit.out(model, batch)
    dk.activate(model, "a")
    torch.testing.assert_close(fused, kit.out(model, batch), atol=1e-6, rtol=1e-6)


def test_value_starts_near_the_identity() -> None:
    fusion = Fusion(5, members=("a",))
    expected = torch.full((5, 5), 1e-6).fill_diagonal_(1.0)
    assert torch.equal(fusion.value.weight, expected)
    assert not fusion.query.bias.any() and not fusion.key.bias.any()


@pytest.mark.parametrize("weight", [0.01, 0.5])
def test_penalty_value(weight: float) -> None:
    fusion = Fusion(4, members=("a",), regularisation=weight)
    torch.nn.init.normal_(fusion.value.weight)
    expected = weight * sum(
        (float(i == j) - fusion.value.weight[i, j].item()) ** 2 for i in range(4) for j in range(4)
    )
    assert fusion.penalty().item() == pytest.approx(expected, rel=1e-5)
    assert Fusion(4, members=("a",), value=False).penalty().item() == 0


def test_dropout_acts_on_scores_in_training_only() -> None:
    fusion = Fusion(8, members=("a", "b", "c"), dropout=0.5)
    torch.nn.init.normal_(fusion.query.weight)
    query, *deltas = (torch.randn(50, 8) for _ in range(4))
    fusion.eval()
    torch.testing.assert_close(
        fusion(query, deltas), as_written(fusion, query, deltas), atol=1e-4, rtol=1e-4
    )
    fusion.train()
    assert (fusion(query, deltas) - as_written(fusion, query, deltas)).abs().max() > 1e-3


# ------------------------------------------------------------------ the regulariser in a loop


def fused(kit: SimpleNamespace, family: str = "bert", kind: str = "classify") -> Any:
    model = kit.make_model(family, kind)
    kit.attach_fusion(model)
    return model.train()


def grads(model: Any) -> dict[str, Tensor]:
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def without_penalty(model: Any) -> contextlib.AbstractContextManager[Any]:
    """The same model, its regularisers silent."""
    patch = pytest.MonkeyPatch.context()

    @contextlib.contextmanager
    def silent() -> Any:
        with patch as monkey:
            zero = lambda self: self.query.weight.new_zeros(())  # noqa: E731
            monkey.setattr(Fusion, "penalty", zero)
            yield

    return silent()


def expected_grads(model: Any, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """Autograd of (task loss + penalty), written as one sum."""
    names = {n: p for n, p in model.named_parameters() if p.requires_grad}
    fusions = [m for m in model.modules() if isinstance(m, Fusion)]
    values = {f: 0.01 * (torch.eye(16) - f.value.weight).square().sum() for f in fusions}
    with without_penalty(model):
        task = loss()
    found = torch.autograd.grad(task + sum(values.values()), list(names.values()))
    return dict(zip(names, found, strict=True))


def own_loss(model: Any, batch: dict[str, Tensor], *, give_labels: bool) -> Tensor:
    given = batch if give_labels else {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(model(**given).logits, batch["labels"])


def both_losses(model: Any, batch: dict[str, Tensor]) -> Tensor:
    output = model(**batch)
    return 0.5 * output.loss + 0.5 * F.cross_entropy(output.logits, batch["labels"])


LOOPS: dict[str, Callable[[Any, dict[str, Tensor]], Tensor]] = {
    "outputs.loss": lambda model, batch: model(**batch).loss,
    "tuple": lambda model, batch: model(**batch, return_dict=False)[0],
    "logits": lambda model, batch: own_loss(model, batch, give_labels=False),
    "logits, labels given": lambda model, batch: own_loss(model, batch, give_labels=True),
    "both": lambda model, batch: both_losses(model, batch),
}


@pytest.mark.parametrize("loop", ["outputs.loss", "tuple", "logits", "logits, labels given"])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_gradient_is_that_of_loss_plus_penalty(
    kit: SimpleNamespace, family: str, loop: str
) -> None:
    model, batch = fused(kit, family), kit.make_batch(labels=True)
    expected = expected_grads(model, lambda: LOOPS[loop](model, batch))
    LOOPS[loop](model, batch).backward()
    found = grads(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_a_loss_of_both_never_doubles_the_penalty(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch(labels=True)
    LOOPS["both"](model, batch).backward()
    found = grads(model)
    model.zero_grad()
    with without_penalty(model):
        LOOPS["both"](model, batch).backward()
    for name, plain in grads(model).items():
        extra = found[name] - plain
        weight = model.get_parameter(name).detach()
        penalty = 0.02 * (weight - torch.eye(16)) if "value" in name else torch.zeros_like(weight)
        assert (extra.abs() <= penalty.abs() * (1 + 1e-4) + 1e-6).all(), name
        if "value" in name:
            assert extra.abs().max() > 1e-3


@pytest.mark.parametrize("output", ["last_hidden_state", "pooler_output", "hidden_states"])
def test_penalty_reaches_every_output_of_a_bare_model(kit: SimpleNamespace, output: str) -> None:
    model, batch = fused(kit, kind="bare"), kit.make_batch()

    def loss() -> Tensor:
        found = model(**batch, output_hidden_states=True)[output]
        return (found[-1] if isinstance(found, tuple) else found).square().mean()

    expected = expected_grads(model, loss)
    loss().backward()
    for name, value in expected.items():
        torch.testing.assert_close(
            model.get_parameter(name).grad, value, atol=1e-6, rtol=1e-5, msg=name
        )


def test_loss_contains_the_penalty_in_training_only(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch(labels=True)
    penalty = sum(m.penalty() for m in model.modules() if isinstance(m, Fusion)).item()
    training = model(**batch).loss.item()
    with torch.no_grad():
        assert model(**batch).loss.item() == pytest.approx(training - penalty, abs=1e-5)
    model.eval()
    assert model(**batch).loss.item() == pytest.approx(training - penalty, abs=1e-5)
    assert penalty > 0.01


@pytest.mark.parametrize("what", ["a", None])
def test_no_penalty_when_the_fusion_is_not_active(kit: SimpleNamespace, what: Any) -> None:
    model, batch = fused(kit), kit.make_batch(labels=True)
    dk.activate(model, what)
    loss = model(**batch).loss
    with without_penalty(model):
        assert torch.equal(model(**batch).loss, loss)
    if what is not None:
        loss.backward()
        assert not any("value" in name for name in grads(model))


def test_members_and_base_get_no_gradient(kit: SimpleNamespace) -> None:
    model, batch = fused(kit), kit.make_batch(labels=True)
    model(**batch).loss.backward()
    got = set(grads(model))
    fusion = {n for n, _ in model.named_parameters() if n.startswith("deltakit.delta_fused.")}
    assert got == fusion | {"classifier.weight", "classifier.bias"}


def one_step(
    model: Any, batch: dict[str, Tensor], folder: Any, *, accumulation: int, own: bool
) -> dict[str, Tensor]:
    """What one step of the Trainer, SGD with a learning rate of 1, takes off each parameter."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    rows = [{k: v[i] for k, v in batch.items()} for i in range(4)]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}

    def compute(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
        return F.cross_entropy(outputs.logits, labels, reduction="sum") / num_items_in_batch

    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        train_sampling_strategy="sequential",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="no",
        use_cpu=True,
    )
    compute_loss = compute if own else None
    trainer = Trainer(model, arguments, train_dataset=rows, compute_loss_func=compute_loss)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {n: before[n] - p.detach() for n, p in model.named_parameters()}


@pytest.mark.parametrize("own", [False, True])
def test_trainer_step_is_that_of_loss_plus_penalty(
    kit: SimpleNamespace, tmp_path: Any, own: bool
) -> None:
    model, batch = fused(kit), kit.make_batch(rows=4, length=8, labels=True)
    expected = expected_grads(model, lambda: model(**batch).loss)
    steps = one_step(model, batch, tmp_path, accumulation=1, own=own)
    for name, value in expected.items():
        torch.testing.assert_close(steps[name], value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("kind", ["causal", "classify"])
def test_trainer_adds_the_penalty_once_a_step_however_many_micro_batches(
    kit: SimpleNamespace, tmp_path: Any, kind: str
) -> None:
    model, batch = fused(kit, "llama", kind), kit.make_batch(rows=4, length=8, labels=True)
    if kind == "causal":
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    start = {k: v.clone() for k, v in model.state_dict().items()}
    with without_penalty(model):
        plain = one_step(model, batch, tmp_path, accumulation=2, own=False)
    model.load_state_dict(start)
    steps = one_step(model, batch, tmp_path, accumulation=2, own=False)
    for name, step in steps.items():
        if name.startswith("deltakit.") and "value" in name:
            expected = 0.02 * (start[name] - torch.eye(16))
            torch.testing.assert_close(step - plain[name], expected, atol=1e-5, rtol=1e-3)


# ------------------------------------------------------------------ members, settings, messages


def test_members_at_different_sites(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.SequentialAdapter(reduction=4), name="a")
    dk.attach(model, dk.SequentialAdapter(placement="houlsby", reduction=4), name="b")
    dk.attach(model, dk.HeadOnly(), name="none")
    dk.attach(model, dk.SequentialAdapter(reduction=2), name="c")
    dk.attach(model, dk.AdapterFusion("a", "c"), name="fused")
    before = kit.snapshot(model)
    with pytest.raises(IncompatibleDeltas, match="same sites, but 'a' and 'b' differ"):
        dk.attach(model, dk.AdapterFusion("a", "b"), name="f")
    with pytest.raises(IncompatibleDeltas, match="cannot have 'none' as a member: a HeadOnly"):
        dk.attach(model, dk.AdapterFusion("a", "none"), name="f")
    with pytest.raises(IncompatibleDeltas, match="cannot have 'fused' as a member"):
        dk.attach(model, dk.AdapterFusion("a", "fused"), name="f")
    with pytest.raises(UnknownName, match="unknown delta 'cc'.*Did you mean 'c'"):
        dk.attach(model, dk.AdapterFusion("a", "cc"), name="f")
    with pytest.raises(InvalidConfig, match=r"needs the names of attached deltas.*Attached: a, b"):
        dk.attach(model, dk.AdapterFusion(), name="f")
    kit.assert_same(before, kit.snapshot(model))


def test_a_member_cannot_be_detached_alone(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    before = kit.snapshot(model)
    kit.attach_fusion(model)
    fused_output = kit.out(model, batch)
    with pytest.raises(IncompatibleDeltas, match="'a' is a member of 'fused'; detach that first"):
        dk.detach(model, "a")
    assert torch.equal(kit.out(model, batch), fused_output)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_no_fusion_to_look_at(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    with pytest.raises(DeltakitError, match="nothing is attached"), dk.fusion_attention(model):
        pass
    dk.attach(model, dk.LoRA())
    message = "no fusion is active"
    with pytest.raises(IncompatibleDeltas, match=message), dk.fusion_attention(model):
        pass


def test_looking_leaves_no_hook(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    kit.attach_fusion(model)
    hooks = kit.hook_count(model)
    with pytest.raises(KeyError), dk.fusion_attention(model):
        raise KeyError
    assert kit.hook_count(model) == hooks
    with dk.fusion_attention(model) as seen:
        kit.out(model, batch)
        kit.out(model, batch)
    assert kit.hook_count(model) == hooks
    for weights in seen.mean().values():
        assert sum(weights.values()) == pytest.approx(1.0, abs=1e-5)


def test_a_fusion_is_no_term_of_a_sum() -> None:
    with pytest.raises(IncompatibleDeltas, match="AdapterFusion composes deltas"):
        dk.LoRA() + dk.AdapterFusion("a")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"names": ("a", "a")}, "names a member twice: a, a"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"regularisation": -1}, "regularisation=-1"),
        ({"regularisation": float("nan")}, "regularisation=nan"),
        ({"regularisation": "x"}, "regularisation='x'"),
        ({"value": "no"}, "value='no'"),
        ({"member": "houlsby"}, "member='houlsby'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidConfig, match=message):
        dk.AdapterFusion(**fields)


def test_one_name_is_a_name_not_its_letters() -> None:
    assert dk.parse_method("fusion[names=imdb]") == dk.AdapterFusion("imdb")
    assert dk.parse_method("fusion[names=imdb/news]") == dk.AdapterFusion("imdb", "news")
    member = dk.parse_method("fusion[member=houlsby[reduction=8]]").member
    assert member == dk.SequentialAdapter(placement="houlsby", reduction=8)
