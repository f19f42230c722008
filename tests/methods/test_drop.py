"""AdapterDrop: golden values, which layers go without, what is drawn, and dropping while in use."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import DeltakitError, InvalidConfig
from deltakit.runtime.passes import current_pass

ADAPTER = dk.SequentialAdapter(bottleneck=4)
DEPTH = 4


def deep(kit: SimpleNamespace, method: dk.Method, family: str = "bert", kind: str = "bare") -> Any:
    model = kit.make_model(family, kind, num_hidden_layers=DEPTH)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    return model


def layers_of(model: Any) -> list[int]:
    """The layers that have deltas."""
    keys = model.deltakit.attached["default"].leaves
    return sorted({model.deltakit.handles[key].layer for key in keys})


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_golden(golden: Any, kit: SimpleNamespace, attention: str) -> None:
    whole = golden.model(attention)
    dk.attach(whole, dk.SequentialAdapter(reduction=4), name="a")
    golden.fill(whole, "seq_bn_drop0", ffn="block.out")
    expected = golden.tensors["seq_bn_drop0.output"]
    dk.drop(whole, first=1)
    torch.testing.assert_close(kit.out(whole, golden.batch), expected, atol=1e-5, rtol=0)

    made = golden.model(attention)
    dk.attach(made, dk.AdapterDrop(dk.SequentialAdapter(reduction=4), layers=0), name="a")
    theirs = dict(kit.attachments(whole).get("a").tensors())
    with torch.no_grad():
        for key, tensor in kit.attachments(made).get("a").tensors():
            tensor.copy_(theirs[key])
    torch.testing.assert_close(kit.out(made, golden.batch), expected, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------- fixed: never made


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [2, 3]),
        ({"first": 0}, [0, 1, 2, 3]),
        ({"first": 3}, [3]),
        ({"layers": (1, 3)}, [0, 2]),
        ({"layers": 0}, [1, 2, 3]),
        ({"first": 1, "layers": (3,)}, [1, 2]),
        ({"random_up_to": 2}, [0, 1, 2, 3]),
        ({"first": 1, "random_up_to": 2}, [1, 2, 3]),
    ],
)
def test_layers(kit: SimpleNamespace, fields: dict[str, Any], expected: list[int]) -> None:
    method = dk.AdapterDrop(ADAPTER, **fields)
    assert layers_of(deep(kit, method)) == expected


@pytest.mark.parametrize(
    "method",
    [ADAPTER, dk.LoRA(rank=2), dk.IA3(), dk.PrefixTuning(length=3, bottleneck=4),
     dk.MAM(length=3, prefix_bottleneck=4), ADAPTER + dk.LoRA(rank=2)],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_dropping_later_is_never_having_had_them(kit: SimpleNamespace, method: dk.Method) -> None:
    batch, whole = kit.make_batch(), deep(kit, method)
    everything = kit.out(whole, batch)
    dk.drop(whole, first=1, layers=[2])
    dropped = kit.out(whole, batch)
    made = deep(kit, dk.AdapterDrop(method, first=1, layers=(2,)))
    dk.deploy(whole)  # so that the network of a prefix, which is one for all, is out of the way
    dk.deploy(made)
    theirs = dict(kit.attachments(whole).get("default").tensors())
    with torch.no_grad():
        for key, tensor in kit.attachments(made).get("default").tensors():
            tensor.copy_(theirs[key])
    torch.testing.assert_close(kit.out(whole, batch), dropped, atol=1e-6, rtol=1e-6)
    assert torch.equal(kit.out(made, batch), kit.out(whole, batch))
    assert not torch.equal(dropped, everything)


def test_a_prefix_whose_first_layer_is_dropped_trains_and_comes_back(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    """The first layer that is left has the network."""
    method = dk.AdapterDrop(dk.PrefixTuning(length=3, bottleneck=4), first=2)
    model, batch = deep(kit, method, kind="classify"), kit.make_batch(labels=True)
    kit.train_steps(model, batch)
    dk.save(model, tmp_path)
    fresh = kit.make_model("bert", "classify", num_hidden_layers=DEPTH)
    dk.load(fresh, tmp_path)
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))
    assert kit.attachments(fresh).get("default").method == method
    dk.deploy(fresh)
    torch.testing.assert_close(kit.out(fresh, batch), kit.out(model, batch), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("first", [0, 1, 3])
def test_no_gradient_flows_below_the_lowest_delta(kit: SimpleNamespace, first: int) -> None:
    model = deep(kit, dk.AdapterDrop(ADAPTER, first=first), kind="classify").train()
    needs: list[bool] = []
    reached: list[int] = []

    def see(index: int, module: Any, args: Any, output: Tensor) -> None:
        needs.append(output.requires_grad)
        if output.requires_grad:
            output.register_hook(lambda grad: reached.append(index))

    for index, layer in enumerate(model.bert.encoder.layer):
        layer.register_forward_hook(partial(see, index))
    model(**kit.make_batch(labels=True)).loss.backward()
    assert needs == [layer >= first for layer in range(DEPTH)]
    assert min(reached) == first
    lowest = min(
        int(name.split("encoder_")[1][0])
        for name, parameter in model.named_parameters()
        if "encoder_" in name and parameter.grad is not None and parameter.grad.any()
    )
    assert lowest == first


def test_dropping_in_use_spares_the_gradient_too(kit: SimpleNamespace) -> None:
    model = deep(kit, ADAPTER, kind="classify").train()
    dk.drop(model, first=2)
    model(**kit.make_batch(labels=True)).loss.backward()
    for name, parameter in model.deltakit.delta_default.named_parameters():
        if name.startswith("own."):
            continue
        layer = int(name.split("encoder_")[1][0])
        assert (parameter.grad is None) == (layer < 2)


# ------------------------------------------------------------------------------ drawn in training


def noted(found: list[int], *hooked: Any) -> None:
    """A hook on a model that notes what its pass has drawn."""
    found.append(max(current_pass().dropped.values(), default=0))


def draws(model: Any, batch: dict[str, Tensor], count: int) -> list[int]:
    found: list[int] = []
    hook = model.register_forward_hook(partial(noted, found), prepend=True)
    for _ in range(count):
        model(**batch)
    hook.remove()
    return found


@pytest.mark.parametrize("up_to", [1, 3])
def test_draws_cover_all_and_follow_the_seed(kit: SimpleNamespace, up_to: int) -> None:
    model, batch = deep(kit, dk.AdapterDrop(ADAPTER, random_up_to=up_to)), kit.make_batch(1, 3)
    model.train()
    torch.manual_seed(1)
    with torch.no_grad():
        one = draws(model, batch, 40)
        assert set(one) == set(range(up_to + 1))
        assert all(one.count(n) > 40 / (up_to + 1) / 3 for n in set(one))
        torch.manual_seed(1)
        assert draws(model, batch, 8) == one[:8]
        model.eval()
        assert set(draws(model, batch, 5)) == {0}


def test_what_is_drawn_is_left_out(kit: SimpleNamespace) -> None:
    batch, model = kit.make_batch(), deep(kit, dk.AdapterDrop(ADAPTER, random_up_to=DEPTH))
    expected = []
    for first in range(DEPTH + 1):
        dk.drop(model, first=first)
        expected.append(kit.out(model, batch))
    dk.drop(model)
    model.train()
    seen, drawn = set(), list[int]()
    model.register_forward_hook(partial(noted, drawn), prepend=True)
    for _ in range(12):
        output = kit.out(model, batch)
        seen.add(drawn[-1])
        assert torch.equal(output, expected[drawn[-1]])
    assert len(seen) > 2


def test_a_gate_is_open_again_in_evaluation(kit: SimpleNamespace) -> None:
    model, batch = deep(kit, dk.AdapterDrop(ADAPTER, random_up_to=DEPTH)), kit.make_batch()
    expected = kit.out(model, batch)
    model.train()
    draws(model, batch, 5)
    assert torch.equal(kit.out(model.eval(), batch), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spec", ["pfeiffer[bottleneck=4]", "prefix[length=3,bottleneck=4]"])
def test_a_recomputed_pass_has_the_same_draw(
    kit: SimpleNamespace, spec: str, reentrant: bool
) -> None:
    method = dk.AdapterDrop(dk.parse_method(spec), random_up_to=3)
    model, batch = deep(kit, method, kind="classify"), kit.make_batch(labels=True)
    model.train()

    def gradients(seed: int) -> dict[str, Tensor]:
        model.zero_grad()
        torch.manual_seed(seed)
        model(**batch).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = [gradients(seed) for seed in range(4)]
    assert len({len(each) for each in plain}) > 1
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for seed, expected in enumerate(plain):
        again = gradients(seed)
        assert again.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(again[name], value, atol=1e-6, rtol=1e-5, msg=name)


def test_copies_draw_and_drop_for_themselves(kit: SimpleNamespace) -> None:
    import copy

    batch, model = kit.make_batch(), deep(kit, dk.AdapterDrop(ADAPTER, random_up_to=2))
    expected = kit.out(model, batch)
    twin = copy.deepcopy(model)
    dk.drop(twin, first=DEPTH)
    draws(twin.train(), batch, 3)
    assert torch.equal(kit.out(model, batch), expected)


# ---------------------------------------------------------------------------------- while in use


@pytest.mark.parametrize(
    "method",
    [ADAPTER, dk.LoRA(rank=2), dk.MAM(length=3, prefix_bottleneck=4)],
    ids=lambda method: type(method).__name__,
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_all_dropped_is_the_base_and_none_dropped_is_all(
    kit: SimpleNamespace, family: str, method: dk.Method
) -> None:
    model, batch = kit.make_model(family, num_hidden_layers=DEPTH), kit.make_batch()
    plain, bare = kit.out(model, batch), kit.hook_count(model)
    dk.attach(model, method)
    kit.randomise_deltas(model)
    whole, before = kit.out(model, batch), kit.snapshot(model)
    outputs = [whole]
    for first in range(1, DEPTH + 1):
        dk.drop(model, first=first)
        outputs.append(kit.out(model, batch))
    assert torch.equal(outputs[-1], plain)
    assert kit.hook_count(model) == bare
    assert all(not torch.equal(a, b) for a, b in zip(outputs, outputs[1:], strict=False))
    dk.drop(model)
    assert torch.equal(kit.out(model, batch), whole)
    kit.assert_same(before, kit.snapshot(model))


def test_it_survives_activate_disabled_and_save(kit: SimpleNamespace, tmp_path: Any) -> None:
    model, batch = deep(kit, ADAPTER), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=2), name="other")
    kit.randomise_deltas(model)
    other = kit.out(model, batch)
    dk.activate(model, "default")
    dk.drop(model, layers=(0, 3))
    dropped = kit.out(model, batch)
    with dk.disabled(model):
        pass
    assert torch.equal(kit.out(model, batch), dropped)
    dk.activate(model, "other")
    assert not torch.equal(kit.out(model, batch), other)
    dk.activate(model, dk.Stack("default", "other"))
    dk.activate(model, "default")
    assert torch.equal(kit.out(model, batch), dropped)
    dk.save(model, tmp_path)
    fresh = kit.make_model("bert", num_hidden_layers=DEPTH)
    dk.load(fresh, tmp_path)
    assert not torch.equal(kit.out(fresh, batch), dropped)
    dk.drop(model)
    assert torch.equal(kit.out(fresh, batch), kit.out(model, batch))


def test_layers_of_a_fusion(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", num_hidden_layers=DEPTH), kit.make_batch()
    plain = kit.out(model, batch)
    kit.attach_fusion(model)
    whole = kit.out(model, batch)
    dk.drop(model, first=2)
    with dk.fusion_attention(model) as seen:
        dropped = kit.out(model, batch)
    assert {key.split(".")[1] for key in seen.mean()} == {"2", "3"}
    assert not torch.equal(dropped, whole)
    dk.drop(model, first=DEPTH)
    assert torch.equal(kit.out(model, batch), plain)
    dk.drop(model)
    assert torch.equal(kit.out(model, batch), whole)


def test_merged_deltas_are_not_dropped(kit: SimpleNamespace) -> None:
    model, batch = deep(kit, dk.LoRA(rank=2)), kit.make_batch()
    dk.merge(model)
    merged, before = kit.out(model, batch), kit.snapshot(model)
    with pytest.raises(InvalidConfig, match="merged into the weights; unmerge"):
        dk.drop(model, first=1)
    assert torch.equal(kit.out(model, batch), merged)
    kit.assert_same(before, kit.snapshot(model))
    dk.unmerge(model)
    dk.drop(model, first=1)
    dropped = kit.out(model, batch)
    dk.merge(model)  # what is dropped is not folded in
    torch.testing.assert_close(kit.out(model, batch), dropped, atol=1e-4, rtol=1e-4)


def test_in_every_stack(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("t5"), kit.make_inputs("t5")
    plain = kit.out(model, batch)
    dk.attach(model, dk.AdapterDrop(dk.PrefixTuning(length=3, bottleneck=None), first=1))
    keys = set(kit.attachments(model).get("default").leaves)
    assert keys == {f"{stack}.1.attn.kv" for stack in ("encoder", "decoder", "cross")}
    dk.drop(model, first=2)
    assert torch.equal(kit.out(model, batch), plain)


def test_a_prompt_is_in_no_layer(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.PromptTuning(length=3) + dk.LoRA(rank=2))
    kit.randomise_deltas(model)
    plain = kit.make_model("bert")
    dk.drop(model, first=2)
    assert not torch.equal(kit.out(model, batch), kit.out(plain, batch))
    with pytest.raises(InvalidConfig, match="PromptTuning.*nothing into any layer"):
        dk.AdapterDrop(dk.PromptTuning())


# -------------------------------------------------------------------------------------- messages


@pytest.mark.parametrize(
    "fields",
    [{"first": 5}, {"layers": (0, 4)}, {"layers": (-1,)}, {"first": 1, "layers": [7]}],
)
def test_a_layer_that_does_not_exist(kit: SimpleNamespace, fields: dict[str, Any]) -> None:
    model, batch = deep(kit, ADAPTER), kit.make_batch()
    before, expected = kit.snapshot(model), kit.out(model, batch)
    with pytest.raises(InvalidConfig, match=r"layer -?\d cannot be dropped.*layers 0 to 3"):
        dk.drop(model, **fields)
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, batch), expected)


@pytest.mark.parametrize("fields", [{"first": 5}, {"layers": (4,)}, {"random_up_to": 5}])
def test_a_layer_that_does_not_exist_when_attaching(
    kit: SimpleNamespace, fields: dict[str, Any]
) -> None:
    model = kit.make_model("bert", num_hidden_layers=DEPTH)
    before = kit.snapshot(model)
    with pytest.raises(InvalidConfig, match="layer 4 cannot be dropped.*layers 0 to 3"):
        dk.attach(model, dk.AdapterDrop(ADAPTER, **fields))
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize("first", [-1, 1.0, True, "2"])
def test_how_many_is_a_whole_number(kit: SimpleNamespace, first: Any) -> None:
    model = deep(kit, ADAPTER)
    with pytest.raises(InvalidConfig, match="drop\\(first=.*whole number of layers"):
        dk.drop(model, first=first)


def test_nothing_to_drop(kit: SimpleNamespace) -> None:
    with pytest.raises(DeltakitError, match="nothing is attached"):
        dk.drop(kit.make_model("bert"), first=1)


@pytest.mark.parametrize(
    "setting", [{"first": -1}, {"first": 1.5}, {"layers": (-1,)}, {"random_up_to": -2}]
)
def test_settings(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(InvalidConfig, match=f"AdapterDrop\\({name}="):
        dk.AdapterDrop(ADAPTER, **setting)


def test_stacks(kit: SimpleNamespace) -> None:
    """Deltas in some stacks of an encoder-decoder alone; another model has no such stack."""
    model = kit.make_model("t5", "seq2seq")
    houlsby = dk.SequentialAdapter(placement="houlsby", bottleneck=2)
    dk.attach(model, dk.AdapterDrop(houlsby, stacks="cross"), "d")
    keys = {key.split(".")[0] for key in model.deltakit.get("d").sites()}
    assert keys == {"encoder", "decoder"}
    both = dk.AdapterDrop(dk.LoRA(rank=1), stacks=("encoder",), layers=0)
    dk.attach(model, both, "e")
    assert {key.rpartition(".attn")[0] for key in model.deltakit.get("e").sites()} == {
        "decoder.1",
        "cross.1",
    }
    with pytest.raises(InvalidConfig, match="stack 'cross' cannot be dropped: this model has enc"):
        dk.attach(kit.make_model("bert"), dk.AdapterDrop(houlsby, stacks="cross"))
    with pytest.raises(InvalidConfig, match=r"AdapterDrop\(stacks=\('',\)"):
        dk.AdapterDrop(houlsby, stacks="")


def test_what_it_modifies() -> None:
    assert dk.parse_method("adapterdrop[method=houlsby,first=3]") == dk.AdapterDrop(
        dk.SequentialAdapter(placement="houlsby"), first=3
    )
    assert dk.AdapterDrop(dk.LoRA()).learning_rate == dk.LoRA.learning_rate
    with pytest.raises(InvalidConfig, match=r"Layers of a fusion are dropped with deltakit\.drop"):
        dk.AdapterDrop(dk.AdapterFusion("a"))
    with pytest.raises(InvalidConfig, match="nothing into any layer"):
        dk.AdapterDrop(dk.BitFit())


@pytest.mark.parametrize("fields", [{"first": 10**12}, {"layers": (10**12,)}])
def test_more_layers_than_any_model_has(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidConfig, match="no model has 1,000,000,000,000 layers"):
        dk.AdapterDrop(**fields)
