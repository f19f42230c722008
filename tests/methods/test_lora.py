"""LoRA: golden values, hand-made merged weights, PEFT, initialisation, settings."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.errors import InvalidConfig, SiteNotFound, UnknownName

SITES = {  # PEFT's module names, by family and our site
    "bert": {
        "attn.q": "encoder.layer.{}.attention.self.query",
        "attn.v": "encoder.layer.{}.attention.self.value",
        "attn.o": "encoder.layer.{}.attention.output.dense",
        "ffn.up": "encoder.layer.{}.intermediate.dense",
        "ffn.down": "encoder.layer.{}.output.dense",
    },
    "distilbert": {
        "attn.q": "transformer.layer.{}.attention.q_lin",
        "attn.k": "transformer.layer.{}.attention.k_lin",
        "ffn.down": "transformer.layer.{}.ffn.lin2",
    },
    "llama": {
        "attn.q": "layers.{}.self_attn.q_proj",
        "attn.k": "layers.{}.self_attn.k_proj",
        "attn.v": "layers.{}.self_attn.v_proj",
        "attn.o": "layers.{}.self_attn.o_proj",
        "ffn.gate": "layers.{}.mlp.gate_proj",
        "ffn.up": "layers.{}.mlp.up_proj",
        "ffn.down": "layers.{}.mlp.down_proj",
    },
    "gpt2": {
        "attn.o": "h.{}.attn.c_proj",
        "ffn.up": "h.{}.mlp.c_fc",
        "ffn.down": "h.{}.mlp.c_proj",
    },
}


def tensors(model: Any, name: str = "default") -> dict[str, Tensor]:
    return dict(model.deltakit.attached[name].tensors())


@pytest.mark.parametrize(
    ("case", "targets"),
    [("lora_qv", ("q", "v")), ("lora_all", ("q", "k", "v", "up", "down"))],
)
def test_golden(golden: Any, kit: SimpleNamespace, case: str, targets: tuple[str, ...]) -> None:
    model = golden.model()
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets=targets), name="a")
    golden.fill(model, case, ffn="ffn.out")
    expected = golden.tensors[f"{case}.output"]
    torch.testing.assert_close(kit.out(model, golden.batch), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", list(SITES))
def test_equals_peft(kit: SimpleNamespace, family: str, rslora: bool) -> None:
    peft = pytest.importorskip("peft")
    sites = SITES[family]
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=7, rslora=rslora, targets=tuple(sites)))
    kit.randomise_deltas(model)
    config = peft.LoraConfig(
        r=4,
        lora_alpha=7,
        use_rslora=rslora,
        fan_in_fan_out=family == "gpt2",
        target_modules=[path.format(layer) for path in sites.values() for layer in (0, 1)],
    )
    other = peft.get_peft_model(kit.make_model(family), config).eval()
    theirs = dict(other.base_model.model.named_parameters())
    used = set()
    with torch.no_grad():
        for key, tensor in tensors(model).items():
            _, layer, site_and_name = key.split(".", 2)
            site, _, matrix = site_and_name.rpartition(".")
            name = f"{sites[site].format(layer)}.{matrix}.default.weight"
            theirs[name].copy_(tensor)
            used.add(name)
    assert used == {name for name in theirs if "lora_" in name}
    expected = kit.out(other, batch)
    torch.testing.assert_close(kit.out(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("initialisation", ["gaussian", "kaiming"])
@pytest.mark.parametrize(
    "family",
    ["bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3"],
)
def test_bit_equal_to_the_base_at_the_start(
    kit: SimpleNamespace, family: str, initialisation: Any
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    before = kit.out(model, batch)
    dk.attach(model, dk.LoRA(targets="all", initialisation=initialisation))
    assert torch.equal(kit.out(model, batch), before)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("family", "path"),
    [
        ("bert", "encoder.layer.{}.attention.self.query"),
        ("llama", "layers.{}.self_attn.q_proj"),
    ],
)
def test_equals_a_weight_merged_by_hand(
    kit: SimpleNamespace, family: str, path: str, rslora: bool
) -> None:
    model, batch = kit.make_model(family), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=3, targets="q", rslora=rslora))
    kit.randomise_deltas(model)
    merged, weights = kit.make_model(family), tensors(model)
    stack = "encoder" if family == "bert" else "decoder"
    with torch.no_grad():
        for layer in (0, 1):
            a, b = (weights[f"{stack}.{layer}.attn.q.lora_{m}"] for m in "AB")
            scale = 3 / 2 if rslora else 3 / 4  # alpha / sqrt(r), alpha / r
            merged.get_submodule(path.format(layer)).weight.add_(scale * b @ a)
    torch.testing.assert_close(kit.out(model, batch), kit.out(merged, batch), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "targets", [("q",), ("k",), ("v",), ("q", "v"), ("q", "k", "v"), ("q", "v", "o", "down")]
)
def test_fused_columns_equal_a_weight_merged_by_hand(
    kit: SimpleNamespace, targets: tuple[str, ...]
) -> None:
    model, batch = kit.make_model("gpt2"), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets=targets))
    kit.randomise_deltas(model)
    merged, weights = kit.make_model("gpt2"), tensors(model)
    with torch.no_grad():
        for layer, block in enumerate(merged.h):
            for index, target in enumerate("qkv"):
                if target in targets:
                    a, b = (weights[f"decoder.{layer}.attn.{target}.lora_{m}"] for m in "AB")
                    columns = slice(16 * index, 16 * index + 16)
                    block.attn.c_attn.weight[:, columns] += 2 * (b @ a).T
            for site, module in (("attn.o", block.attn), ("ffn.down", block.mlp)):
                if site.partition(".")[2] in targets:
                    a, b = (weights[f"decoder.{layer}.{site}.lora_{m}"] for m in "AB")
                    module.c_proj.weight += 2 * (b @ a).T
    torch.testing.assert_close(kit.out(model, batch), kit.out(merged, batch), atol=1e-5, rtol=1e-5)


def test_initialisations_have_their_papers_spread(kit: SimpleNamespace) -> None:
    handle = SimpleNamespace(d_in=4096, d_out=8)
    gaussian = dk.LoRA(rank=8).form(handle)
    kaiming = dk.LoRA(rank=8, initialisation="kaiming").form(handle)
    assert gaussian.lora_A.std().item() == pytest.approx(1 / 8, rel=0.03)
    assert kaiming.lora_A.abs().max().item() == pytest.approx(1 / 64, rel=0.01)
    assert not gaussian.lora_B.any() and not kaiming.lora_B.any()


def test_dropout_is_on_the_input_in_training(kit: SimpleNamespace) -> None:
    form = dk.LoRA(rank=2, dropout=0.5).form(SimpleNamespace(d_in=6, d_out=6))
    torch.nn.init.ones_(form.lora_B)
    x = torch.ones(1000, 6)
    form.eval()
    torch.testing.assert_close(form(x), x @ form.weight_change().T, atol=1e-5, rtol=1e-5)
    form.train()
    torch.manual_seed(0)
    dropped = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    torch.testing.assert_close(form(x), dropped @ form.weight_change().T, atol=1e-6, rtol=1e-5)


def test_a_delta_takes_the_mode_of_its_model(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert"), kit.make_batch()
    dk.attach(model, dk.LoRA(dropout=0.5))
    kit.randomise_deltas(model)
    assert torch.equal(kit.out(model, batch), kit.out(model, batch))


def test_targets_by_word_name_and_all(kit: SimpleNamespace) -> None:
    assert dk.LoRA(targets=("v", "q")).sites() == (dk.Site.ATTN_Q, dk.Site.ATTN_V)
    assert dk.LoRA(targets="ffn.down").sites() == (dk.Site.FFN_DOWN,)
    assert dk.LoRA(targets=["q", "v"]) == dk.LoRA()
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(targets="all"))
    keys = {key.rpartition(".")[0].split(".", 2)[2] for key in tensors(model)}
    assert keys == {"attn.q", "attn.k", "attn.v", "attn.o", "ffn.up", "ffn.down"}


def test_all_is_not_a_target_among_others() -> None:
    with pytest.raises((InvalidConfig, UnknownName), match="all") as caught:
        dk.LoRA(targets=("q", "all"))
    assert "Did you mean 'all'" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "kind", "message"),
    [
        ({"rank": 0}, InvalidConfig, r"rank=0.*whole number above zero"),
        ({"rank": 2.0}, InvalidConfig, r"rank=2.0"),
        ({"alpha": -1}, InvalidConfig, r"alpha=-1"),
        ({"alpha": float("inf")}, InvalidConfig, r"alpha=inf"),
        ({"dropout": 1}, InvalidConfig, r"dropout=1"),
        ({"initialisation": "gausian"}, InvalidConfig, r"gaussian, kaiming"),
        ({"targets": ()}, InvalidConfig, r"name at least one site"),
        ({"targets": "quary"}, UnknownName, r"unknown LoRA target 'quary'.*Known: .*attn\.q"),
        ({"targets": "mid"}, UnknownName, r"unknown LoRA target 'mid'"),
        ({"targets": 3}, InvalidConfig, r"targets=3"),
        ({"targets": (3,)}, (InvalidConfig, UnknownName), r"3"),
        ({"rslora": "yes"}, InvalidConfig, r"rslora='yes'"),
    ],
)
def test_bad_settings(fields: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        dk.LoRA(**fields)


# ------------------------------------------------------------------------- the table of embeddings


def tables(kit: SimpleNamespace, model: Any, name: str = "default") -> dict[str, Any]:
    """The deltas of the tables, by the path of each."""
    attachments = kit.attachments(model)
    leaves = attachments.get(name).leaves
    handles = [h for h in attachments.handles.values() if h.site is dk.Site.EMBED]
    return {h.path: leaves[h.key][0].delta for h in handles}


EMBEDDED = ("bert", "electra", "gpt2", "llama", "gemma2", "gemma3_text", "t5", "bart", "mbart")


@pytest.mark.filterwarnings("ignore:Model has .tie_word_embeddings=True.:UserWarning")  # PEFT's
@pytest.mark.parametrize("family", EMBEDDED)
def test_the_table_is_pefts(kit: SimpleNamespace, family: str) -> None:
    from peft import LoraConfig, get_peft_model

    scale = {"scale_embedding": True} if family in ("bart", "mbart") else {}
    model, inputs = kit.make_model(family, **scale), kit.make_inputs(family)
    base = kit.out(model, inputs)
    paths = [h.path for h in dk.resolve(model) if h.site is dk.Site.EMBED]
    assert len(paths) == 1 + (family in ("t5", "bart", "mbart"))
    config = LoraConfig(r=4, lora_alpha=8, target_modules=paths, init_lora_weights=False)
    theirs = get_peft_model(copy.deepcopy(model), config).eval()
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets="embed"))
    assert torch.equal(kit.out(model, inputs), base)
    for path, delta in tables(kit, model).items():
        layer = theirs.base_model.model.get_submodule(path)
        delta.lora_A.data = layer.lora_embedding_A["default"].data
        delta.lora_B.data = layer.lora_embedding_B["default"].data
    found = kit.out(model, inputs)
    assert (found - base).abs().max() > 1e-2
    torch.testing.assert_close(found, kit.out(theirs, inputs), atol=1e-5, rtol=1e-5)


def test_the_table_beside_projections(kit: SimpleNamespace) -> None:
    """In a column of A there is one token."""
    model, inputs = kit.make_model("llama", "causal"), kit.make_inputs("llama")
    base = kit.out(model, inputs)
    dk.attach(model, dk.LoRA(rank=4, alpha=8, targets=("q", "embed")))
    kit.randomise_deltas(model)
    found, (delta,) = kit.out(model, inputs), tables(kit, model).values()
    ids, table = inputs["input_ids"], model.get_input_embeddings()
    change = 2 * (delta.lora_B @ delta.lora_A).T
    torch.testing.assert_close(table(ids), table.weight[ids] + change[ids])
    model(**inputs)[0].sum().backward()
    received = delta.lora_A.grad.any(0).nonzero().flatten().tolist()
    assert received == ids.unique().tolist()
    before = kit.snapshot(model)
    dk.merge(model)
    assert torch.equal(table.weight, before["state"]["model.embed_tokens.weight"] + change)
    torch.testing.assert_close(kit.out(model, inputs), found, atol=1e-5, rtol=1e-5)
    dk.unmerge(model)
    kit.assert_same(before, kit.snapshot(model))
    dk.detach(model)
    assert torch.equal(kit.out(model, inputs), base)


@pytest.mark.parametrize(
    ("family", "kind"), [("gpt2", "causal"), ("gemma2", "causal"), ("t5", "bare"), ("bart", "bare")]
)
def test_tied_tables_are_not_merged(kit: SimpleNamespace, family: str, kind: str) -> None:
    model = kit.make_model(family, kind)
    dk.attach(model, dk.LoRA(targets=("q", "embed")))
    before = kit.snapshot(model)
    with pytest.raises(dk.NotMergeable, match=r"the weight of '.*' is '.*weight' too \(tied\)"):
        dk.merge(model)
    kit.assert_same(before, kit.snapshot(model))


@pytest.mark.parametrize("family", ["gemma2", "bart"])
def test_an_untied_scaled_table_is_merged(kit: SimpleNamespace, family: str) -> None:
    scale = {"scale_embedding": True} if family == "bart" else {}
    model = kit.make_model(family, tie_word_embeddings=False, **scale)
    inputs = kit.make_inputs(family)
    base = kit.out(model, inputs)
    dk.attach(model, dk.LoRA(rank=2, targets="embed"))
    kit.randomise_deltas(model)
    found = kit.out(model, inputs)
    assert (found - base).abs().max() > 1e-2
    dk.merge(model)
    torch.testing.assert_close(kit.out(model, inputs), found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "llama", "gemma2", "t5"])
@pytest.mark.parametrize("rank", [2, 3])
def test_rows_look_up_their_own(kit: SimpleNamespace, family: str, rank: int) -> None:
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    dk.attach(model, dk.LoRA(rank=2, alpha=1, targets="embed"), name="a")
    dk.attach(model, dk.LoRA(rank=rank, alpha=1, targets="embed"), name="b")
    kit.randomise_deltas(model)
    alone = {}
    for name in ("a", "b", None):
        dk.activate(model, name)
        alone[name] = kit.out(model, inputs)
    dk.activate(model, dk.PerRow(["b", None, "a"]))
    expected = torch.stack([alone["b"][0], alone[None][1], alone["a"][2]])
    torch.testing.assert_close(kit.out(model, inputs), expected, atol=1e-5, rtol=1e-5)
    dk.activate(model, dk.PerRow(["b", "a", "b"]))
    expected = torch.stack([alone["b"][0], alone["a"][1], alone["b"][2]])
    torch.testing.assert_close(kit.out(model, inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_prompts_stand_among_changed_vectors(kit: SimpleNamespace, family: str) -> None:
    """The prompt's are its own, the tokens' are those that the table now has."""
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    dk.attach(model, dk.PromptTuning(length=2), name="prompt")
    dk.attach(model, dk.LoRA(rank=2, targets="embed"), name="table")
    kit.randomise_deltas(model)
    dk.activate(model, dk.Stack("prompt", "table"))
    both = kit.out(model, inputs)
    changes = {path: d.weight_change() * 8 for path, d in tables(kit, model, "table").items()}
    dk.activate(model, "prompt")
    assert (kit.out(model, inputs) - both).abs().max() > 1e-3
    for path, change in changes.items():
        table = model.get_submodule(path)
        table.weight = torch.nn.Parameter(table.weight.detach() + change.detach().T)
    torch.testing.assert_close(kit.out(model, inputs), both, atol=1e-5, rtol=1e-5)


def test_layers_are_dropped_around_the_table(kit: SimpleNamespace) -> None:
    method = dk.AdapterDrop(dk.LoRA(targets=("q", "embed")), first=1, random_up_to=2)
    model, inputs = kit.make_model("bert"), kit.make_inputs("bert")
    dk.attach(model, method)
    assert set(kit.attachments(model).get("default").leaves) == {
        "encoder.1.attn.q",
        "input.0.embed",
    }
    kit.randomise_deltas(model)
    (delta,) = tables(kit, model).values()
    seen: list[Tensor] = []
    delta.register_forward_hook(lambda _, args, output: seen.append(output))
    model.train()
    for _ in range(5):
        model(**inputs)
    dk.drop(model, first=2)
    model.eval()(**inputs)
    assert len(seen) == 6
    with pytest.raises(InvalidConfig, match="it puts nothing into any layer"):
        dk.AdapterDrop(dk.LoRA(targets="embed"))


def test_a_sum_of_tables(kit: SimpleNamespace) -> None:
    model, inputs = kit.make_model("gemma2"), kit.make_inputs("gemma2")
    for name, rank in (("a", 2), ("b", 3)):
        dk.attach(model, dk.LoRA(rank=rank, targets=("embed",)), name=name)
    kit.randomise_deltas(model)
    dk.task_arithmetic(model, {"a": 0.5, "b": -2.0}, name="sum")
    deltas = [next(iter(tables(kit, model, name).values())) for name in ("a", "b", "sum")]
    a, b, total = (delta.weight_change() for delta in deltas)
    torch.testing.assert_close(total, 0.5 * 8 * a - 2.0 * 16 / 3 * b)
    dk.activate(model, dk.Mean("a", "b", weights=[0.5, -2.0]))
    mean = kit.out(model, inputs)
    dk.activate(model, "sum")
    torch.testing.assert_close(kit.out(model, inputs), mean, atol=1e-5, rtol=1e-5)


def test_the_authors_code_has_a_zero_in_the_table(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", vocab_size=4096)
    for how in ("gaussian", "kaiming"):
        dk.attach(model, dk.LoRA(rank=8, targets="embed", initialisation=how), name=how)
    (paper,), (code,) = (tables(kit, model, name).values() for name in ("gaussian", "kaiming"))
    assert paper.lora_A.std().item() == pytest.approx(1 / 8, rel=0.03) and not paper.lora_B.any()
    assert code.lora_B.std().item() == pytest.approx(1, rel=0.2) and not code.lora_A.any()


def test_all_leaves_the_table_out(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(targets="all"))
    assert "input.0.embed" not in kit.attachments(model).get("default").leaves


@pytest.mark.parametrize("family", ["vit", "clip_vision_model"])
def test_a_model_without_a_table(kit: SimpleNamespace, family: str) -> None:
    with pytest.raises(SiteNotFound, match="no site 'embed': no table is known in it that only"):
        dk.attach(kit.make_model(family), dk.LoRA(targets="embed"))
