"""PerRow: each row of a batch is what its own delta makes of it."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import deltakit as dk
from deltakit.core.composition import composition_from_plain
from deltakit.errors import IncompatibleDeltas
from deltakit.inject.switch import active_nodes
from deltakit.runtime.batch_rows import PerRowNode

METHODS: dict[str, dk.Method] = {
    "lora": dk.LoRA(rank=3),
    "lora2": dk.LoRA(rank=3, alpha=5),
    "wide": dk.LoRA(rank=5, targets="all"),
    "seq": dk.SequentialAdapter(bottleneck=3),
    "gelu": dk.SequentialAdapter(bottleneck=3, activation="gelu"),
    "houlsby": dk.SequentialAdapter(placement="houlsby", bottleneck=4),
    "par": dk.ParallelAdapter(bottleneck=4),
    "learned": dk.ParallelAdapter(bottleneck=4, learned_scale=True),
    "ia3": dk.IA3(),
    "ia3b": dk.IA3(),
    "long": dk.PrefixTuning(length=4, bottleneck=3),
    "short": dk.PrefixTuning(length=2, bottleneck=None),
    "mam": dk.MAM(length=3, prefix_bottleneck=None, bottleneck=4),
}
ROWS = ["lora", None, *[name for name in METHODS if name != "lora"]]


def attached(kit: SimpleNamespace, family: str, kind: str, names: list[str]) -> Any:
    model = kit.make_model(family, kind)
    for name in names:
        dk.attach(model, METHODS[name], name=name)
    kit.randomise_deltas(model)
    if kind == "classify":
        for index, entry in enumerate(kit.attachments(model).attached.values()):
            for value in entry.own.values():
                value.data += 0.1 * (index + 1)
    return model


def alone(kit: SimpleNamespace, model: Any, batch: dict[str, Any], rows: list[Any]) -> Any:
    outs = []
    for index, row in enumerate(rows):
        dk.activate(model, row)
        outs.append(kit.out(model, {k: v[index : index + 1] for k, v in batch.items()}))
    return torch.cat(outs)


@pytest.mark.parametrize("kind", ["bare", "classify"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama", "opt"])
def test_each_row_is_its_own(
    kit: SimpleNamespace, family: str, kind: str, implementation: str
) -> None:
    rows: list[Any] = [*ROWS, "short", dk.Stack("lora", "par"), dk.Mean("seq", "lora2"), "lora"]
    model = attached(kit, family, kind, list(METHODS))
    model.set_attn_implementation(implementation)
    batch = kit.make_batch(rows=3, length=7)
    batch = {k: v.repeat(6, 1)[: len(rows)] for k, v in batch.items()}
    dk.activate(model, dk.PerRow(rows))
    together = kit.out(model, batch)
    torch.testing.assert_close(together, alone(kit, model, batch, rows), atol=1e-5, rtol=1e-5)


def test_heads_are_used_row_by_row_and_given_back(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("roberta", "classify"), kit.make_batch()
    before, plain = kit.snapshot(model), kit.out(model, batch)
    for name in ("a", "b"):
        dk.attach(model, dk.HeadOnly(), name=name)
        entry = kit.attachments(model).get(name)
        dk.activate(model, None)
        for value in entry.own.values():
            value.data += torch.randn_like(value)
    single = alone(kit, model, batch, ["a", None, "b"])
    dk.activate(model, dk.PerRow(["a", None, "b"]))
    together = kit.out(model, batch)
    torch.testing.assert_close(together, single, atol=1e-6, rtol=1e-6)
    assert torch.equal(together[1], plain[1])
    assert not any(p.requires_grad for p in model.classifier.parameters())
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
    assert torch.equal(kit.out(model, batch), together)
    dk.detach(model)
    kit.assert_same(before, kit.snapshot(model))


def test_rows_train_their_own_deltas(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    names = ["lora", "lora2", "seq", "short"]
    for name in names:
        dk.attach(model, METHODS[name], name=name)
    kit.randomise_deltas(model)
    dk.activate(model, dk.PerRow(["lora2", "seq", None]))
    model(**batch).loss.backward()
    for name in names:
        reached = {p.grad is not None for p in kit.attachments(model).get(name).parameters()}
        assert reached == {name in ("lora2", "seq")}, name
    wanted = {
        (n, k): p.grad.clone()
        for n in ("lora2", "seq")
        for k, p in kit.attachments(model).get(n).tensors()
    }
    for row, name in enumerate(("lora2", "seq")):
        model.zero_grad()
        dk.activate(model, name)
        for parameter, value in kit.attachments(model).base.tensors().items():
            model.get_parameter(parameter).data = value.data
        loss = model(**{k: v[row : row + 1] for k, v in batch.items()}).loss / 3
        loss.backward()
        for key, parameter in kit.attachments(model).get(name).tensors():
            torch.testing.assert_close(parameter.grad, wanted[name, key], atol=1e-6, rtol=1e-4)


def test_many_rows_are_a_few_products(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    for index in range(6):
        dk.attach(model, dk.LoRA(rank=3, alpha=index + 1), name=f"d{index}")
    kit.randomise_deltas(model)
    dk.activate(model, dk.PerRow([f"d{i}" for i in (3, 0, 0, 5, 1, 2, 4, 4)]))
    node = active_nodes(kit.attachments(model))["encoder.0.attn.q"]
    assert isinstance(node, PerRowNode) and len(node.groups()) == 1


def test_a_batch_of_another_size(kit: SimpleNamespace) -> None:
    model = attached(kit, "bert", "bare", ["lora", "short"])
    for rows in (["lora", None], ["short", None]):
        dk.activate(model, dk.PerRow(rows))
        with pytest.raises(IncompatibleDeltas, match="entries for 2 rows, but the batch has 3"):
            kit.out(model, kit.make_batch())


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (dk.BitFit(), "'x' has values of its own for the base's .*which all rows"),
        (dk.PromptTuning(length=2), "PerRow cannot choose at 'input.0.tokens'"),
    ],
)
def test_what_rows_cannot_have(kit: SimpleNamespace, method: dk.Method, message: str) -> None:
    model, batch = attached(kit, "bert", "bare", ["lora"]), kit.make_batch()
    dk.attach(model, method, name="x")
    before = kit.out(model, batch)
    with pytest.raises(IncompatibleDeltas, match=message):
        dk.activate(model, dk.PerRow(["lora", "x", None]))
    assert torch.equal(kit.out(model, batch), before)


def test_merging_rows_is_refused(kit: SimpleNamespace) -> None:
    model = attached(kit, "bert", "bare", ["lora", "lora2"])
    dk.activate(model, dk.PerRow(["lora", "lora2", None]))
    with pytest.raises(dk.NotMergeable, match="'encoder.0.attn.q' does not fold"):
        dk.merge(model)


def test_a_row_of_nothing_is_the_base(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, "llama", "bare", ["lora", "mam"]), kit.make_batch()
    with dk.disabled(model):
        plain = kit.out(model, batch)
    dk.activate(model, dk.PerRow([None, "lora", None]))
    together = kit.out(model, batch)
    assert torch.equal(together[0], plain[0]) and torch.equal(together[2], plain[2])
    assert not torch.equal(together[1], plain[1])
    dk.activate(model, dk.PerRow([None, None, None]))
    assert torch.equal(kit.out(model, batch), plain)


def test_generation_row_by_row(kit: SimpleNamespace) -> None:
    model = attached(kit, "llama", "causal", ["lora", "mam", "seq"])
    prompt = torch.randint(5, 60, (4, 5))
    names: list[Any] = ["mam", None, "seq", "lora"]
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    dk.activate(model, dk.PerRow(names))
    together = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)
    for row, name in enumerate(names):
        dk.activate(model, name)
        one = prompt[row : row + 1]
        single = model.generate(one, attention_mask=torch.ones_like(one), **settings)
        assert torch.equal(together[row : row + 1], single)


COMPOSITIONS: list[dk.Composition] = [
    dk.Stack("seq", "lora"),
    dk.Mean("seq", "lora", weights=[0.25, 2.0]),
    dk.Stack("par", dk.Mean("seq", "lora")),
    dk.Mean(dk.Stack("seq", "par"), "lora"),
    dk.PerRow(["seq", None, dk.Stack("lora", "short")]),
    dk.Stack("short", "long"),
]


@pytest.mark.parametrize("composition", COMPOSITIONS, ids=repr)
def test_every_composition_trains_saves_and_loads(
    kit: SimpleNamespace, composition: dk.Composition, tmp_path: Path
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch(labels=True)
    for name in ("seq", "par", "lora", "short", "long"):
        dk.attach(model, METHODS[name], name=name)
    kit.randomise_deltas(model)
    dk.activate(model, composition)
    before = kit.out(model, batch)
    kit.train_steps(model, batch)
    trained = kit.out(model, batch)
    assert not torch.equal(before, trained)
    dk.save(model, tmp_path, composition)
    fresh = kit.make_model("bert", "classify")
    dk.load(fresh, tmp_path)
    assert kit.attachments(fresh).active == composition
    assert set(kit.attachments(fresh).attached) == set(composition.names)
    assert torch.equal(kit.out(fresh, batch), trained)
    with pytest.raises(dk.DeltakitError, match="keep their names; load it without name='x'"):
        dk.load(fresh, tmp_path, name="x")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: dk.Stack("a", dk.PerRow(["b"])), "PerRow inside Stack: .*is the outermost"),
        (lambda: dk.Mean(dk.PerRow(["b"])), "PerRow inside Mean"),
        (lambda: dk.PerRow([dk.PerRow(["b"])]), "PerRow inside PerRow"),
        (lambda: dk.PerRow([]), "PerRow needs an entry for each row"),
        (lambda: dk.PerRow("a"), "a list with one entry for each row"),
        (lambda: dk.Stack("a", 3), "names of attached deltas and compositions of them; got 3"),
        (lambda: composition_from_plain({"stack": ["a"], "more": 1}), "describes no composition"),
    ],
)
def test_refused(build: Any, message: str) -> None:
    with pytest.raises(dk.DeltakitError, match=message):
        build()


@pytest.mark.parametrize("names", [("short", "long"), ("mam", "short")])
def test_positions_cannot_be_weighed(kit: SimpleNamespace, names: tuple[str, str]) -> None:
    model, batch = attached(kit, "bert", "bare", list(names)), kit.make_batch()
    before = kit.out(model, batch)
    with pytest.raises(IncompatibleDeltas, match="'encoder.0.attn.kv' are positions"):
        dk.activate(model, dk.Mean(*names))
    with pytest.raises(IncompatibleDeltas, match="'attn.kv' cannot be fused"):
        dk.attach(model, dk.AdapterFusion("short"), name="fused")
    assert torch.equal(kit.out(model, batch), before)


# ------------------------------------------------------------------------- many rows, and few


def with_ranks(kit: SimpleNamespace, family: str, ranks: list[int]) -> Any:
    model = kit.make_model(family)
    for index, rank in enumerate(ranks):
        dk.attach(model, dk.LoRA(rank=rank), name=f"d{index}")
    kit.randomise_deltas(model)
    return model


@pytest.mark.parametrize("tokens", [1, 4])
def test_64_loras_of_different_ranks(kit: SimpleNamespace, tokens: int) -> None:
    model = with_ranks(kit, "llama", [1 + index % 5 for index in range(64)])
    ids = torch.randint(1, 30, (64, tokens))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    rows = [f"d{(7 * index) % 64}" for index in range(64)]
    dk.activate(model, dk.PerRow(rows))
    (node, *_) = active_nodes(model.deltakit).values()
    assert isinstance(node, PerRowNode) and len(node.groups()) == 5
    found = kit.out(model, batch)
    torch.testing.assert_close(found, alone(kit, model, batch, rows), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "products"),
    [
        (["d0", "d0", "d1", "d1"], [2]),
        (["d0", "d1", "d0", "d1"], [4]),
        (["d0", "d0", "d0", "d1"], [4]),
        ([None, "d0", "d0", "d1"], [3]),
        (["d1", "d1", None, None], [1]),
        ([None, None, "d0", "d2"], [1, 1]),
        (["d2", None, "d2", "d0"], [1, 1]),
    ],
)
def test_runs_of_one_delta_are_one_product(
    kit: SimpleNamespace, rows: list[Any], products: list[int]
) -> None:
    model, batch = with_ranks(kit, "bert", [2, 2, 3]), kit.make_batch()
    batch = {name: value.repeat(2, 1)[:4] for name, value in batch.items()}
    dk.activate(model, dk.PerRow(rows))
    (node, *_) = active_nodes(model.deltakit).values()
    assert isinstance(node, PerRowNode)
    found, counts = kit.out(model, batch), [len(group.parts) for group in node.groups()]
    assert sorted(counts) == sorted(products)
    torch.testing.assert_close(found, alone(kit, model, batch, rows), atol=1e-5, rtol=1e-5)


def test_rows_without_a_delta_are_not_read(kit: SimpleNamespace) -> None:
    model, batch = with_ranks(kit, "bert", [2]), kit.make_batch()
    dk.activate(model, dk.PerRow([None, "d0", None][: len(batch["input_ids"])]))
    seen: list[int] = []
    for attached in model.deltakit.attached.values():
        for leaves in attached.leaves.values():
            leaves[0].delta.register_forward_pre_hook(
                lambda module, args: seen.append(args[0].shape[0])
            )
    kit.out(model, batch)
    assert seen and set(seen) == {1}


@pytest.mark.parametrize("spec", ["lora", "pfeiffer", "ia3"])
def test_rows_follow_parameters_that_are_replaced(kit: SimpleNamespace, spec: str) -> None:
    """A state dict that is assigned, and a functional call, put others into their places."""
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    for name in ("a", "b"):
        dk.attach(model, dk.parse_method(spec), name)
    kit.randomise_deltas(model)
    dk.activate(model, dk.PerRow(["a", None, "b"]))
    kit.out(model, batch)  # what is kept is there
    other = copy.deepcopy(model)
    with torch.no_grad():
        for key, value in other.named_parameters():
            value.mul_(1.5 if key.startswith("deltakit.") else 1.0)
    expected = kit.out(other, batch)
    changed = dict(other.named_parameters())
    with torch.no_grad():
        called = torch.func.functional_call(model, changed, (), batch).logits
    torch.testing.assert_close(called, expected)
    model.load_state_dict(other.state_dict(), assign=True)
    torch.testing.assert_close(kit.out(model, batch), expected)
