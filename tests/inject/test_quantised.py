"""Every method on every base: what is counted, trained, saved, merged, and given back."""

import copy
import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import deltakit as dk
from deltakit.models.quantised import codec_of
from deltakit.runtime import trunk
from deltakit.testing.models import make_model

bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quant')")

FAMILIES = ("bert", "llama")
BASES = ("bf16", "int8", "nf4")
METHODS: dict[str, str] = {
    "houlsby": "houlsby",
    "adapter": "adapter",
    "parallel": "parallel[bottleneck=4]",
    "learned": "parallel[bottleneck=4,learned_scale=true]",
    "lora": "lora[targets=all,dropout=0.1]",
    "embed": "lora[targets=q/embed]",
    "dora": "dora[rank=2]",
    "vera": "vera[rank=3]",
    "compacter": "compacter[bottleneck=4,n=2]",
    "hyperformer": "hyperformer[bottleneck=3,embedding=4,hidden=5]",
    "moa": "moa[method=lora[rank=2,targets=q/down]+parallel[bottleneck=3]]",
    "adamix": "adamix[experts=2,method=adapter[bottleneck=4,placement=ffn]]",
    "mola": "mola[experts=2/3,balance=0.1,method=lora[rank=2]]",
    "sequence": "mixture[experts=2,route=sequence,method=ia3]",
    "unipelt": "unipelt[method=prefix[length=3,bottleneck=none]+adapter+lora[rank=2]]",
    "sparse": "sparse[keep=0.5,method=adapter[bottleneck=4]]",
    "invertible": "invertible",
    "ia3": "ia3",
    "prefix": "prefix[length=3,bottleneck=8]",
    "shifted": "prefix[length=3,bottleneck=8,positions=shifted]",
    "prompt": "prompt[length=3]",
    "mam": "prefix[length=3,bottleneck=8]+parallel[bottleneck=4]",
    "adapterdrop": "adapterdrop[first=1]",
    "bitfit": "bitfit",
    "partial": "partial[parameters=*orm.weight]",
    "head": "head",
    "fusion": "fusion",
}


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """With two, these tiny 4-bit products wait for one another most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quantised")


@pytest.fixture(scope="module")
def base(folders: Path) -> Callable[..., Any]:
    """A tiny model of a family in a base, as it was loaded from disk: each once, then copies."""
    loaded: dict[Any, Any] = {}

    def load(family: str, kind: str, task: str = "classify", **arguments: Any) -> Any:
        folder = folders / f"{family}-{task}"
        if not folder.exists():
            make_model(family, task).save_pretrained(folder)
        key = (family, kind, task, *arguments.items())
        if key not in loaded:
            loaded[key] = dk.load_base(folder, kind, task=task, **arguments)
        return copy.deepcopy(loaded[key])

    return load


def attach(kit: SimpleNamespace, model: Any, name: str) -> None:
    """Attaches a method of the table, all random, under the name "default"."""
    if name == "fusion":
        for index, member in enumerate("ab"):
            dk.attach(model, dk.SequentialAdapter(bottleneck=index + 3), name=member)
        dk.attach(model, dk.AdapterFusion("a", "b"))
    else:
        dk.attach(model, dk.parse_method(METHODS[name]))
    kit.randomise_deltas(model, std=0.05)


def held(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the base, packed weights with their statistics."""
    codecs = {n: (codec_of(m), m) for n, m in model.named_modules()}
    stored = {f"{n}/{i}": t.clone() for n, (codec, m) in codecs.items() if codec is not None
              for i, t in enumerate(codec.stored(m))}  # fmt: skip
    return {n: p.detach().clone() for n, p in model.named_parameters() if "delta" not in n} | stored


def assert_held(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = held(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# ------------------------------------------------------------------------------------ the matrix


def every_method_on_every_base() -> list[tuple[str, str, str]]:
    """The families take turns; Llama has no biases to train."""
    pairs = itertools.product(enumerate(METHODS), enumerate(BASES))
    return [
        (name, "bert" if name == "bitfit" else FAMILIES[(i + j) % 2], kind)
        for (i, name), (j, kind) in pairs
    ]


@pytest.mark.parametrize(("name", "family", "kind"), every_method_on_every_base())
def test_every_method_trains_on_every_base(
    kit: SimpleNamespace, base: Any, folders: Path, name: str, family: str, kind: str
) -> None:
    model, batch = base(family, kind), kit.make_batch(labels=True)
    before = held(model)
    attach(kit, model, name)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    start = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=0.02)
    model.train()
    for _ in range(3):
        optimiser.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
    for parameter, value in trained.items():
        assert value.grad is not None and value.isfinite().all(), parameter
        assert not torch.equal(value, start[parameter]), parameter
    model.eval()
    del batch["labels"]
    logits = kit.out(model, batch)
    assert logits.dtype == torch.bfloat16 and logits.isfinite().all()
    again, folder = base(family, kind), folders / "trained" / f"{family}.{kind}.{name}"
    dk.save(model, folder)
    dk.load(again, folder)
    assert torch.equal(kit.out(again, batch), logits)
    torch.save(logits, folder / "logits.pt")
    dk.detach(model)
    assert_held(model, before)


def test_a_fresh_process_reads_them_all(kit: SimpleNamespace, folders: Path) -> None:
    """What the tests above have saved."""
    if not (folders / "trained").exists():
        pytest.skip("nothing has been trained in this run")
    batch = {key: value.tolist() for key, value in kit.make_batch().items()}
    code = """
import json, sys, warnings
from pathlib import Path
import torch, deltakit as dk
torch.set_num_threads(1)
folders, batch = Path(sys.argv[1]), json.loads(sys.argv[2])
batch = {key: torch.tensor(value) for key, value in batch.items()}
models, differ = {}, []
for folder in sorted((folders / "trained").iterdir()):
    family, kind, _ = folder.name.split(".")
    if (family, kind) not in models:
        models[family, kind] = dk.load_base(folders / f"{family}-classify", kind, task="classify")
    model = models[family, kind]
    dk.load(model, folder)
    with torch.no_grad():
        logits = model(**batch).logits
    if not torch.equal(logits, torch.load(folder / "logits.pt")):
        differ.append(folder.name)
    dk.detach(model)
print(json.dumps(differ))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(folders), json.dumps(batch)],
        capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(Path(dk.__file__).parents[1]), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("name", ["lora", "adapter", "ia3", "prefix", "fusion"])
def test_full_precision_parameters_on_a_half_precision_base(
    kit: SimpleNamespace, base: Any, name: str
) -> None:
    model, batch = base("llama", "nf4"), kit.make_batch(labels=True)
    if name == "fusion":
        for member in "ab":
            dk.attach(model, dk.SequentialAdapter(bottleneck=3), name=member, dtype=torch.float32)
        dk.attach(model, dk.AdapterFusion("a", "b"), dtype=torch.float32)
    else:
        dk.attach(model, dk.parse_method(METHODS[name]), dtype=torch.float32)
    deltas = [p for n, p in model.named_parameters() if "deltakit" in n]
    assert {p.dtype for p in deltas} == {torch.float32}
    kit.train_steps(model, batch)
    assert model(**batch).logits.dtype == torch.bfloat16


def remember(seen: list[Tensor], module: nn.Module, args: Any, output: Any) -> None:
    seen.append(output[0] if isinstance(output, tuple) else output)


def test_every_site_keeps_the_dtype(kit: SimpleNamespace, base: Any) -> None:
    for kind in ("int8", "nf4"):
        model = base("bert", kind)
        assert {h.dtype for h in dk.resolve(model)} == {torch.bfloat16}
        attach(kit, model, "lora")
        seen: list[Tensor] = []
        for layer in model.bert.encoder.layer:
            for module in layer.modules():
                module.register_forward_hook(partial(remember, seen))
        kit.out(model, kit.make_batch())
        assert {output.dtype for output in seen} == {torch.bfloat16}


def test_packed_in_a_floating_dtype(kit: SimpleNamespace, folders: Path, base: Any) -> None:
    """What packed bits are stored as is no dtype to compute in, and no weight to train."""
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    base("bert", "fp32")  # makes the folder
    packed = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_quant_storage=torch.float32,
        bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["classifier"],
    )  # fmt: skip
    model = AutoModelForSequenceClassification.from_pretrained(
        folders / "bert-classify", quantization_config=packed, dtype=torch.bfloat16
    )
    assert model.bert.encoder.layer[0].intermediate.dense.weight.dtype == torch.float32
    assert {h.dtype for h in dk.resolve(model)} == {torch.bfloat16}
    assert dk.summary(model).base_params == dk.summary(base("bert", "fp32")).base_params
    with pytest.raises(dk.DeltakitError, match="which is quantised"):
        dk.attach(model, dk.FullFineTuning())


# ------------------------------------------------------------------------------------- counting


def wide(kit: SimpleNamespace, folder: Path, kind: str, **options: Any) -> Any:
    """A model of realistic width, quantised when it is loaded."""
    from transformers import AutoModel, BitsAndBytesConfig

    if not folder.exists():
        wider = {"hidden_size": 1024, "intermediate_size": 2048, "num_hidden_layers": 1}
        kit.make_model("llama", **wider).save_pretrained(folder)
    if not options:
        return dk.load_base(folder, kind)
    quantise = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=kind, **options)
    return AutoModel.from_pretrained(folder, quantization_config=quantise, dtype=torch.bfloat16)


def test_base_bytes(kit: SimpleNamespace, folders: Path) -> None:
    folder = folders / "wide"
    full = dk.summary(wide(kit, folder, "bf16"))
    linears = [m for m in wide(kit, folder, "bf16").modules() if isinstance(m, nn.Linear)]
    numbers = sum(m.weight.numel() for m in linears)
    rows = sum(m.out_features for m in linears)

    def bytes_of_linears(model: Any) -> int:
        found = dk.summary(model)
        assert found.base_params == full.base_params
        return found.base_bytes - (full.base_bytes - 2 * numbers)

    double = bytes_of_linears(wide(kit, folder, "nf4"))
    single = bytes_of_linears(wide(kit, folder, "nf4", bnb_4bit_use_double_quant=False))
    assert 8 * double / numbers == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=0.01)
    assert 8 * single / numbers == pytest.approx(4 + 32 / 64, abs=0.001)
    assert bytes_of_linears(wide(kit, folder, "int8")) == numbers + 4 * rows


@pytest.mark.parametrize("kind", ["int8", "nf4", "fp4"])
def test_parameters_are_counted_as_numbers(kit: SimpleNamespace, base: Any, kind: str) -> None:
    def counted(kind: str) -> Any:
        model = base("bert", kind)
        attach(kit, model, "lora")
        return dk.summary(model)

    ours, full = counted(kind), counted("fp32")
    for name in ("trained_params", "deployed_params", "head_params", "base_params", "trained_pct"):
        assert getattr(ours, name) == getattr(full, name), name
    assert ours.base_bytes < full.base_bytes


def test_merged_deltas_change_no_count(kit: SimpleNamespace, base: Any) -> None:
    for kind in ("int8", "nf4"):
        model = base("bert", kind)
        attach(kit, model, "lora")
        before = dk.summary(model)
        for dequantise in (False, True):
            dk.merge(model, dequantise=dequantise, tolerance=float("inf"))
            assert dk.summary(model) == before
            dk.unmerge(model)


# ---------------------------------------------------------------------------------- the backward


@pytest.mark.parametrize("first", [0, 1])
def test_no_gradient_below_the_lowest_delta(kit: SimpleNamespace, base: Any, first: int) -> None:
    model = base("llama", "nf4")
    dk.attach(model, dk.AdapterDrop(dk.SequentialAdapter(bottleneck=2), first=first))
    seen: list[Tensor] = []
    for layer in model.model.layers:
        layer.register_forward_hook(partial(remember, seen))
    model.train()(**kit.make_batch(labels=True)).loss.backward()
    assert [output.requires_grad for output in seen] == [index >= first for index in range(2)]
    assert model.get_input_embeddings().weight.grad is None


def test_checkpointed_layers_give_the_same_gradients(kit: SimpleNamespace, base: Any) -> None:
    """No preparation is needed, neither for one kind of checkpointing nor for the other."""
    batch, found = kit.make_batch(labels=True), []
    for reentrant in (None, False, True):
        model = base("llama", "nf4").train()
        attach(kit, model, "adapter")
        if reentrant is not None:
            model.activation_checkpointing_enable({"use_reentrant": reentrant})
        model(**batch).loss.backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


def test_checkpointing_need_not_reach_below_the_lowest_delta(
    kit: SimpleNamespace, base: Any
) -> None:
    """transformers makes the embeddings' output need a gradient; that can be taken back."""
    model, seen = base("llama", "nf4").train(), list[Tensor]()
    dk.attach(model, dk.AdapterDrop(dk.SequentialAdapter(bottleneck=2), first=1))
    model.activation_checkpointing_enable()
    model.disable_input_require_grads()
    model.model.layers[0].register_forward_hook(partial(remember, seen))
    model(**kit.make_batch(labels=True)).loss.backward()
    assert not seen[0].requires_grad
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_a_kept_trunk_is_read_off_the_packed_weights_once(
    kit: SimpleNamespace, base: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = base("bert", "nf4").train(), kit.make_batch(labels=True)
    attach(kit, model, "adapterdrop")
    read, digests = trunk.digest_of, list[bytes]()
    monkeypatch.setattr(trunk, "digest_of", lambda each: digests.append(read(each)) or digests[-1])
    expected = model(**batch).loss
    with dk.kept_trunk(model) as kept:
        for _ in range(3):
            torch.testing.assert_close(model(**batch).loss, expected)
    assert (kept.begun, kept.computed, len(digests)) == (2, 1, 1)


def test_evaluating_first_changes_nothing(kit: SimpleNamespace, base: Any) -> None:
    """On some CPUs bitsandbytes repacks 4-bit weights in evaluation, and cannot train them then."""
    model, batch = base("bert", "nf4"), kit.make_batch(labels=True)
    before = held(model)
    kit.out(model, kit.make_batch())
    attach(kit, model, "lora")
    kit.out(model, kit.make_batch())
    kit.train_steps(model.train(), batch)
    kit.out(model.eval(), kit.make_batch())
    dk.detach(model)
    assert_held(model, before)


def test_a_base_that_somebody_else_loaded_and_evaluated(
    kit: SimpleNamespace, folders: Path
) -> None:
    model = wide(kit, folders / "wide", "nf4", bnb_4bit_use_double_quant=True)
    linear = model.layers[0].mlp.up_proj
    kit.out(model, kit.make_batch())
    before = vars(linear).get("support_avx512bf16_for_cpu")
    dk.attach(model, dk.LoRA(targets="all"))
    assert not linear.support_avx512bf16_for_cpu
    model.train()(**kit.make_batch()).last_hidden_state.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    dk.detach(model)
    assert (linear.support_avx512bf16_for_cpu, model.is_quantized) == (before, True)


def test_the_trainer_trains_on_it(kit: SimpleNamespace, base: Any, tmp_path: Path) -> None:
    from transformers import Trainer, TrainingArguments

    model, batch = base("llama", "nf4"), kit.make_batch(labels=True)
    attach(kit, model, "lora")
    start = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    arguments = TrainingArguments(
        tmp_path, max_steps=2, report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no",
        learning_rate=0.01,
    )  # fmt: skip
    rows = [{"input_ids": ids, "labels": n % 3} for n, ids in enumerate(batch["input_ids"])]
    Trainer(model=model, args=arguments, train_dataset=rows).train()
    ends = [p for p in model.parameters() if p.requires_grad]
    assert all(not torch.equal(a, b) for a, b in zip(start, ends, strict=True))
    dk.detach(model)
    assert model.is_quantized


def saved_bytes(model: Any, batch: dict[str, Tensor]) -> int:
    """What a forward pass keeps for the backward pass, the parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(**batch).loss
    size = sum(kept.values())
    loss.backward()
    return size


@pytest.mark.parametrize("kind", ["bf16", "nf4"])
def test_no_more_activations_are_saved_than_with_peft(
    kit: SimpleNamespace, base: Any, kind: str
) -> None:
    peft = pytest.importorskip("peft")
    batch = kit.make_batch(rows=4, length=16, labels=True)
    ours = base("llama", kind, "causal").train()
    batch["labels"] = batch["input_ids"]
    dk.attach(ours, dk.LoRA(rank=2, targets="all"))
    config = peft.LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    theirs = base("llama", kind, "causal").train()
    theirs = peft.get_peft_model(theirs, config)
    assert saved_bytes(ours, batch) <= saved_bytes(theirs, batch)


# ------------------------------------------------------------------------------------- merging


MERGEABLE = {
    "lora": dk.LoRA(rank=2, targets="all"),
    "ia3": dk.IA3(),
    "both": dk.LoRA(rank=2, targets=("q", "v", "down")) + dk.IA3(),
    "wider": dk.ParallelAdapter(bottleneck=4, activation="gelu"),
}
TIGHT = {"fp32": 1e-6, "bf16": 0.1, "int8": 0.5, "nf4": 2.0, "fp4": 3.0}


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("kind", ["fp32", "bf16", "int8", "nf4", "fp4"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MERGEABLE)
def test_merge_and_unmerge(
    kit: SimpleNamespace, base: Any, name: str, family: str, kind: str, dequantise: bool
) -> None:
    if (name, family) == ("wider", "llama"):
        pytest.skip("Llama's feed-forward is gated")
    model, batch = base(family, kind), kit.make_batch()
    before, identities = held(model), [id(m) for m in model.modules()]
    dk.attach(model, MERGEABLE[name])
    kit.randomise_deltas(model, std=0.2)
    unmerged = kit.out(model, batch)
    report = dk.merge(model, dequantise=dequantise, tolerance=float("inf"))
    assert dk.merge(model) is report
    if dequantise:
        assert not any(codec_of(model.get_submodule(each.path)) for each in report.linears)
    assert 0 <= report.mean <= report.largest
    assert report.relative <= TIGHT["bf16" if dequantise and kind != "fp32" else kind]
    merged = kit.out(model, batch)
    assert merged.dtype == unmerged.dtype and merged.isfinite().all()
    with dk.disabled(model):
        assert_held(model, before)
    assert torch.equal(kit.out(model, batch), merged)
    dk.unmerge(model)
    assert torch.equal(kit.out(model, batch), unmerged)
    assert_held(model, before)
    dk.detach(model)
    assert [id(m) for m in model.modules()] == identities
    assert_held(model, before)


@pytest.mark.parametrize("kind", ["int8", "nf4"])
@pytest.mark.parametrize("targets", [("q", "v"), "all"])
def test_a_dequantised_model_is_saved_and_loaded(
    kit: SimpleNamespace, kind: str, targets: Any, tmp_path: Path
) -> None:
    """Its config says which linears are quantised still, if any are."""
    wide = kit.make_model("llama", "causal", hidden_size=64, intermediate_size=64)
    wide.save_pretrained(tmp_path / "base")
    model, batch = dk.load_base(tmp_path / "base", kind, task="causal"), kit.make_batch()
    dk.attach(model, dk.LoRA(rank=2, targets=targets))
    kit.randomise_deltas(model)
    before = model.config.quantization_config
    dk.merge(model, dequantise=True, keep=True, tolerance=float("inf"))
    dk.unmerge(model)
    assert model.config.quantization_config is before
    dk.merge(model, dequantise=True, keep=True, tolerance=float("inf"))
    expected = kit.out(model, batch)
    dk.detach(model)
    assert hasattr(model.config, "quantization_config") is (targets != "all")
    model.save_pretrained(tmp_path / "merged")
    again = type(model).from_pretrained(tmp_path / "merged", dtype=torch.bfloat16).eval()
    assert [*map(type, again.modules())] == [*map(type, model.modules())]
    far = (kit.out(again, batch) - expected).abs().max()
    assert far < 0.05 * expected.abs().max()  # as far as the plain base is, saved and loaded


def weight(module: nn.Module) -> Tensor:
    """The weight that a linear multiplies with, seen from outside."""
    dtype = torch.bfloat16
    identity = torch.eye(module.in_features, dtype=dtype)
    zero = module(torch.zeros(1, module.in_features, dtype=dtype))
    return (module.train()(identity) - zero).T.float()


@pytest.mark.parametrize("dequantise", [False, True])
@pytest.mark.parametrize("kind", ["int8", "nf4"])
@torch.no_grad()
def test_the_error_is_the_one_that_is_there(
    kit: SimpleNamespace, base: Any, kind: str, dequantise: bool
) -> None:
    model = base("llama", kind)
    dk.attach(model, dk.LoRA(rank=2, alpha=2, targets="up"))
    kit.randomise_deltas(model, std=0.3)
    path = "model.layers.0.mlp.up_proj"
    plain = weight(linear_of(model, path))
    delta = kit.attachments(model).attached["default"].leaves["decoder.0.ffn.up"][0].delta
    change = delta.weight_change().float()
    report = dk.merge(model, dequantise=dequantise, tolerance=float("inf"))
    row = next(each for each in report.linears if each.path == path)
    now = weight(model.get_submodule(path))
    assert row.effect == pytest.approx(change.norm().item(), rel=0.01)
    assert row.error == pytest.approx((now - plain - change).norm().item(), rel=0.2, abs=0.01)
    assert row.relative == row.error / row.effect
    assert str(report).splitlines()[2].split()[0] in {each.path for each in report.linears}
    assert f"{report.relative:.2%}" in str(report)


def linear_of(model: Any, path: str) -> nn.Module:
    """A copy, without the delta's hook."""
    with dk.disabled(model):
        module = copy.deepcopy(model.get_submodule(path))
    module._forward_hooks.clear()
    return module


def test_a_lossy_merge_warns(kit: SimpleNamespace, base: Any) -> None:
    model = base("llama", "nf4")
    dk.attach(model, dk.LoRA(rank=2))
    kit.randomise_deltas(model, std=0.05)
    with pytest.warns(
        UserWarning, match=r"merging loses \d+% .* merge.model, dequantise=True"
    ) as w:
        report = dk.merge(model)
    assert w[0].filename == __file__
    assert report.relative > 0.05
    dk.unmerge(model)
    dk.merge(model, tolerance=report.relative)  # as much as was allowed
    dk.unmerge(model)
    with pytest.warns(UserWarning, match="In float32 it loses nothing; unmerge"):
        dk.merge(model, dequantise=True, tolerance=1e-4)
    full = base("llama", "fp32")
    dk.attach(full, dk.LoRA(rank=2))
    kit.randomise_deltas(full, std=0.05)
    assert dk.merge(full).relative == 0


def test_full_precision_loses_less(kit: SimpleNamespace, base: Any) -> None:
    for kind in ("int8", "nf4", "fp4"):
        model = base("bert", kind, dtype=torch.float32)
        attach(kit, model, "lora")
        again = dk.merge(model, tolerance=float("inf"))
        dk.unmerge(model)
        full = dk.merge(model, dequantise=True)
        assert full.relative < 1e-6 < again.relative
        merged = kit.out(model, kit.make_batch())
        dk.unmerge(model)
        assert torch.allclose(merged, kit.out(model, kit.make_batch()), atol=0.02)


def test_what_no_delta_changes_is_not_quantised_again(kit: SimpleNamespace, base: Any) -> None:
    model = base("bert", "nf4")
    before = held(model)
    dk.attach(model, dk.LoRA(rank=2))  # B is zero
    report = dk.merge(model)
    assert (report.relative, report.largest, len(report.linears)) == (0, 0, 4)
    assert_held(model, before)
    dk.unmerge(model)
    dk.detach(model)
    assert_held(model, before)


def test_rescaled_rows_merge_almost_exactly(kit: SimpleNamespace, base: Any) -> None:
    """A row of int8 has a statistic of its own, so rescaling it loses next to nothing."""
    model = base("bert", "int8")
    dk.attach(model, dk.IA3(feedforward="pre_activation"))
    kit.randomise_deltas(model)
    assert dk.merge(model).relative < 0.01


def test_hooks_of_others_run_while_merged(kit: SimpleNamespace, base: Any) -> None:
    for dequantise in (False, True):
        model, seen = base("llama", "nf4"), list[type]()
        module = model.model.layers[0].self_attn.q_proj
        module.register_forward_hook(partial(remember_type, seen))
        dk.attach(model, dk.LoRA(rank=2))
        kit.randomise_deltas(model)
        dk.merge(model, dequantise=dequantise, tolerance=float("inf"))
        kit.out(model, kit.make_batch())
        assert seen == [nn.Linear if dequantise else type(module)]


def remember_type(seen: list[type], module: nn.Module, args: Any, output: Any) -> None:
    seen.append(type(module))


def test_a_merged_model_is_copied_and_changes_mode(kit: SimpleNamespace, base: Any) -> None:
    model, batch = base("bert", "nf4"), kit.make_batch()
    attach(kit, model, "lora")
    plain = kit.out(model, batch)
    dk.merge(model.train(), tolerance=float("inf"))
    model.eval()
    twin = copy.deepcopy(model)
    assert torch.equal(kit.out(twin, batch), kit.out(model, batch))
    for each in (twin, model):
        dk.unmerge(each)
        assert not any(module.training for module in each.modules())
        assert torch.equal(kit.out(each, batch), plain)
