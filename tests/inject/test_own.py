"""A delta owns what it trains: its head, norms, biases and embeddings are parameters of its own."""

import copy
import socket
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

import deltakit as dk
from deltakit.testing.models import make_batch, make_model

SPECS = ("lora", "bitfit", "norms", "head", "lora+bitfit", "full", "ia3+norms")


def two(kit: SimpleNamespace, spec: str, family: str = "bert", **config: Any) -> Any:
    """A model with the deltas a and b, which differ in all that they own; a is active."""
    model = kit.make_model(family, "classify", **config)
    torch.manual_seed(0)
    for name in ("a", "b"):
        dk.attach(model, dk.parse_method(spec), name)
    randomise_all(kit, model)
    dk.activate(model, "a")
    return model


@torch.no_grad()
def randomise_all(kit: SimpleNamespace, model: Any) -> None:
    for attached in kit.attachments(model).attached.values():
        for parameter in (*attached.parameters(), *attached.own.values()):
            parameter.add_(0.3 * torch.randn_like(parameter))


def outputs(kit: SimpleNamespace, model: Any, batch: dict[str, Tensor]) -> dict[Any, Tensor]:
    found = {}
    for name in ("a", "b", None):
        dk.activate(model, name)
        found[name] = kit.out(model, batch)
    return found


@pytest.mark.parametrize("spec", SPECS)
def test_each_delta_has_parameters_of_its_own_from_the_start(
    kit: SimpleNamespace, spec: str
) -> None:
    model = two(kit, spec)
    own = [set(map(id, kit.attachments(model).get(name).own.values())) for name in ("a", "b")]
    everything = {id(p) for p in model.parameters()}
    assert own[0] and own[0].isdisjoint(own[1]) and own[0] | own[1] <= everything
    keys = list(model.state_dict())
    for active in ("b", dk.Stack("a", "b") if spec == "lora" else "a", None):
        dk.activate(model, active)
        assert list(model.state_dict()) == keys
        assert {id(p) for p in model.parameters()} == everything


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("saved_with", "assign"), [("a", False), ("b", True), (None, True)])
def test_a_state_dict_holds_the_base_and_every_delta(
    kit: SimpleNamespace, spec: str, saved_with: str | None, assign: bool
) -> None:
    model, batch = two(kit, spec), kit.make_batch()
    with torch.no_grad():
        for parameter in model.base_model.parameters():
            parameter.mul_(1.1)
    expected = outputs(kit, model, batch)
    dk.activate(model, saved_with)
    state = copy.deepcopy(model.state_dict())
    other = two(kit, spec)
    dk.activate(other, "b")
    other.load_state_dict(state, assign=assign)
    for name, output in outputs(kit, other, batch).items():
        assert torch.equal(output, expected[name]), name
    dk.detach(other)
    assert torch.equal(kit.out(other, batch), expected[None])


def test_a_state_dict_of_before_is_read_into_the_active_delta(kit: SimpleNamespace) -> None:
    model, batch = two(kit, "lora"), kit.make_batch()
    expected, state = kit.out(model, batch), model.state_dict()
    for key in [key for key in state if ".own." in key]:
        value = state.pop(key)
        if "delta_a" in key:
            state[key.partition(".own.")[2]] = value
    other = two(kit, "lora")
    head = kit.attachments(other).base.tensors()["classifier.weight"].clone()
    other.load_state_dict(state, strict=False)
    assert torch.equal(kit.out(other, batch), expected)
    assert torch.equal(kit.attachments(other).base.tensors()["classifier.weight"], head)


# --------------------------------------------------------------------------------- data-parallel


def _replica(rank: int, port: int, spec: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    model = make_model("bert", "classify")
    torch.manual_seed(0)
    for name in ("a", "b"):
        dk.attach(model, dk.parse_method(spec), name)
    parallel = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    optimiser = torch.optim.Adam(parallel.parameters(), lr=0.01)
    batch = make_batch(labels=True)
    for step, name in enumerate("baab"):
        dk.activate(model, name)
        optimiser.zero_grad()
        labels = (batch["labels"] + rank + step) % 2
        parallel(**{**batch, "labels": labels}).loss.backward()
        optimiser.step()
    queue.put((rank, {n: t.tolist() for n, t in model.state_dict().items() if "delta_" in n}))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_stay_equal_whatever_is_activated_later() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [
        context.Process(target=_replica, args=(rank, port, "lora+norms", queue))
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    found = dict(queue.get() for _ in range(2))
    for process in processes:
        process.join()
    assert found[0] and found[0] == found[1]


def test_a_replica_of_data_parallel_is_refused(kit: SimpleNamespace) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    dk.attach(model, dk.LoRA())
    replica = model._replicate_for_data_parallel()
    with pytest.raises(dk.DeltakitError, match="DistributedDataParallel"):
        replica(**batch)


# ----------------------------------------------------------------------------------------- flags


@pytest.mark.parametrize(
    "act",
    [
        lambda m: dk.activate(m, "a"),
        lambda m: (dk.activate(m, "b"), dk.activate(m, "a")),
        lambda m: (dk.activate(m, None), dk.activate(m, "a")),
        lambda m: (dk.merge(m), dk.unmerge(m)),
        lambda m: (dk.drop(m, first=1), dk.drop(m)),
        lambda m: dk.disabled(m).__enter__() or dk.activate(m, "a"),
        lambda m: (dk.attach(m, dk.LoRA(), "c"), dk.activate(m, "a"), dk.detach(m, "c")),
        lambda m: (dk.activate(m, "b", train=()), dk.activate(m, "a")),
        lambda m: (dk.attach(m, dk.AdapterFusion("x", "y"), "f"), dk.activate(m, "a")),
    ],
)
def test_flags_stay_as_the_user_has_set_them(kit: SimpleNamespace, act: Any) -> None:
    model = kit.make_model("bert", "classify")
    plain = {n: p.requires_grad for n, p in model.named_parameters()}
    for name in ("x", "y"):
        dk.attach(model, dk.SequentialAdapter(bottleneck=2), name)
    for name in ("a", "b"):
        dk.attach(model, dk.LoRA(), name)
    dk.activate(model, "a")
    for name, parameter in model.named_parameters():
        if "LayerNorm" in name or "embeddings" in name:
            parameter.requires_grad_(True)
        if "lora_A" in name or name == "classifier.bias":
            parameter.requires_grad_(False)
    before = {n: p.requires_grad for n, p in model.named_parameters() if "delta_b" not in n}
    act(model)
    after = {n: p.requires_grad for n, p in model.named_parameters()}
    ours = ("a", "x", "y") if "f" in kit.attachments(model).attached else ("a", "b", "x", "y")
    for name, flag in before.items():
        if not name.startswith("deltakit.") or name.split(".")[1] == f"delta_{ours[0]}":
            assert after[name] is flag, name
    dk.detach(model)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == plain


def test_what_is_named_to_be_trained_is_trained_though_all_of_it_was_frozen(
    kit: SimpleNamespace,
) -> None:
    model = two(kit, "lora")
    model.requires_grad_(False)
    dk.activate(model, "b")
    assert not any(p.requires_grad for p in model.parameters())
    dk.activate(model, "b", train=["b"])
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "classifier.weight" in trained and not any("delta_a" in n for n in trained)


# ---------------------------------------------------------------- what is done to the model later


@pytest.mark.parametrize("size", [40, 80])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("active", ["emb", "lora", None])
def test_a_table_that_is_resized_later(
    kit: SimpleNamespace, size: int, tied: bool, active: str | None
) -> None:
    model = kit.make_model("llama", "causal", tie_word_embeddings=tied)
    names = ("model.embed_tokens.weight", "lm_head.weight")
    dk.attach(model, dk.PartialFineTuning(parameters=names[: 1 + tied]), "emb")
    randomise_all(kit, model)
    own = kit.attachments(model).get("emb").own[names[0]].detach().clone()
    dk.attach(model, dk.LoRA(), "lora")
    dk.activate(model, active)
    plain = kit.attachments(model).base.tensors().get(names[0], model.model.embed_tokens.weight)
    plain, rows = plain.detach().clone(), min(size, own.shape[0])
    model.resize_token_embeddings(size)
    batch = {"input_ids": torch.tensor([[3, 5, size - 1]])}
    for name, value in (("emb", own), ("lora", plain), (None, plain), ("emb", own)):
        dk.activate(model, name)
        assert model(**batch).logits.shape[-1] == size
        assert model.model.embed_tokens.weight.shape[0] == size
        assert torch.equal(model.model.embed_tokens.weight[:rows], value[:rows]), name
        assert (model.lm_head.weight is model.model.embed_tokens.weight) is tied
    dk.detach(model)
    assert torch.equal(model.model.embed_tokens.weight[:rows], plain[:rows])


def test_a_head_that_is_replaced_while_active_is_the_deltas(kit: SimpleNamespace) -> None:
    model, batch = two(kit, "lora"), kit.make_batch()
    before = kit.attachments(model).base.tensors()["classifier.weight"].clone()
    model.classifier.weight = nn.Parameter(torch.ones_like(model.classifier.weight))
    output = kit.out(model, batch)
    dk.activate(model, None)
    assert torch.equal(model.classifier.weight, before)
    dk.activate(model, "a")
    assert torch.equal(kit.out(model, batch), output)


@pytest.mark.parametrize("spec", ["lora", "bitfit"])
def test_a_module_that_is_added_later_is_left_alone(
    kit: SimpleNamespace, spec: str, tmp_path: Any
) -> None:
    model, batch = two(kit, spec), kit.make_batch()
    expected = outputs(kit, model, batch)
    model.value_head = nn.Linear(16, 1)
    model.value_head.bias.requires_grad_(False)
    dk.attach(model, dk.HeadOnly(), "c")
    with dk.disabled(model):
        assert model.value_head.weight.requires_grad
    for name, output in outputs(kit, model, batch).items():
        assert torch.equal(output, expected[name])
    dk.save(model, tmp_path, "a")
    dk.detach(model)
    assert [p.requires_grad for p in model.value_head.parameters()] == [True, False]


# ------------------------------------------------------------------------------- half precision


HALF = ("lora", "ia3", "bitfit", "norms", "head", "lora+bitfit", "full", "pfeiffer[bottleneck=3]")


@pytest.mark.parametrize("spec", HALF)
@pytest.mark.parametrize(
    ("family", "dtype"), [("bert", torch.float16), ("gpt2", torch.bfloat16), ("t5", torch.float16)]
)
def test_half_precision_bases_are_trained_in_single(
    kit: SimpleNamespace, spec: str, family: str, dtype: torch.dtype
) -> None:
    if (spec, family) in (("bitfit", "llama"), ("bitfit", "t5"), ("head", "t5")):
        pytest.skip("the model has nothing of the kind")
    kind = "bare" if family == "t5" else "classify"
    model, batch = kit.make_model(family, kind).to(dtype), kit.make_inputs(family, kind)
    base, plain = model.dtype, kit.out(model, batch)
    dk.attach(model, dk.parse_method(spec))
    assert model.dtype is base
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert trained and {p.dtype for p in trained.values()} == {torch.float32}
    summary = dk.summary(model)
    assert summary.delta_bytes == 4 * summary.deployed_params
    before = {n: p.detach().clone() for n, p in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=1e-4, weight_decay=0.0)
    for _ in range(2):
        output = kit.first(model.train()(**batch))
        assert output.dtype is dtype
        (output.float() * torch.linspace(-1, 1, output.numel()).view_as(output)).sum().backward()
        optimiser.step()
    moved = [n for n, p in trained.items() if not torch.equal(p, before[n])]
    assert len(moved) > len(trained) / 2 and all(p.isfinite().all() for p in trained.values())
    unmerged = kit.out(model.eval(), batch)
    with dk.disabled(model):
        assert torch.equal(kit.out(model, batch), plain)
    assert torch.equal(kit.out(model, batch), unmerged)
    if "pfeiffer" not in spec:
        dk.merge(model, tolerance=2.0)
        assert {p.dtype for n, p in model.named_parameters() if "deltakit" not in n} == {dtype}
        dk.unmerge(model)
        assert torch.equal(kit.out(model, batch), unmerged)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), plain)


def test_the_dtype_that_is_asked_for_is_that_of_all_it_trains(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    model = kit.make_model("bert", "classify").to(torch.bfloat16)
    dk.attach(model, dk.LoRA() + dk.NormTuning(), dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.bfloat16}
    dk.save(model, tmp_path)
    other = kit.make_model("bert", "classify").to(torch.bfloat16)
    dk.load(other, tmp_path)
    assert {p.dtype for p in other.parameters() if p.requires_grad} == {torch.bfloat16}


def test_own_values_of_another_dtype_compile(kit: SimpleNamespace) -> None:
    torch.compiler.reset()
    model, batch = kit.make_model("bert", "classify").bfloat16(), kit.make_batch()
    dk.attach(model, dk.BitFit())
    randomise_all(kit, model)
    expected = kit.out(model, batch)
    found = kit.out(torch.compile(model, fullgraph=True, backend="eager"), batch)
    torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-2)
    torch.compiler.reset()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_and_pickles_own_what_they_train(
    kit: SimpleNamespace, dtype: torch.dtype, tmp_path: Any
) -> None:
    model, batch = two(kit, "bitfit").to(dtype), kit.make_batch()
    dk.attach(model, dk.NormTuning(), "c")
    expected = outputs(kit, model, batch)
    torch.save(model, tmp_path / "model.pt")
    for other in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1.0)
        for name, output in outputs(kit, other, batch).items():
            assert torch.equal(output, expected[name])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(1.0)


# ------------------------------------------------------------- heads, and what no checkpoint holds


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_what_no_checkpoint_holds_is_trained_and_saved(
    kit: SimpleNamespace, family: str, tmp_path: Any
) -> None:
    import transformers as tf

    small = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 4, "max_position_embeddings": 40}
    masked, classify, config = {
        "bert": (tf.BertForMaskedLM, tf.BertForSequenceClassification, tf.BertConfig(**small)),
        "albert": (
            tf.AlbertForMaskedLM,
            tf.AlbertForSequenceClassification,
            tf.AlbertConfig(**small, embedding_size=12),
        ),
    }[family]
    masked(config).save_pretrained(tmp_path / "base")

    def load() -> Any:
        return classify.from_pretrained(tmp_path / "base", num_labels=3).eval()

    model, batch = load(), kit.make_batch()
    dk.attach(model, dk.LoRA())
    randomise_all(kit, model)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert any("pooler" in name for name in trained) and "classifier.weight" in trained
    dk.save(model, tmp_path / "delta")
    again = load()
    plain = classify(again.config).eval()
    dk.load(again, tmp_path / "delta")
    assert torch.equal(kit.out(again, batch), kit.out(model, batch))
    dk.attach(again, dk.LoRA(), "other")
    dk.activate(again, dk.Stack("default", "other"))
    plain.load_state_dict(
        {k: v for k, v in again.state_dict().items() if "deltakit" not in k}, strict=False
    )
    dk.load(plain, tmp_path / "delta")  # a base that was not loaded marks nothing as fresh
    assert torch.equal(kit.out(plain, batch), kit.out(model, batch))


@pytest.mark.parametrize("head", [True, False])
def test_a_tied_table_fits_a_class_that_has_it_once(
    kit: SimpleNamespace, head: bool, tmp_path: Any
) -> None:
    import transformers as tf

    config = make_model("bert", "bare").config
    language, batch = tf.BertForMaskedLM(config).eval(), kit.make_batch()
    names = ("*word_embeddings.weight", "cls.predictions.decoder.weight")
    dk.attach(
        language, dk.SequentialAdapter(reduction=4) + dk.PartialFineTuning(parameters=names), "fi"
    )
    randomise_all(kit, language)
    dk.save(language, tmp_path, "fi")
    for model in (tf.BertForTokenClassification(config), tf.BertModel(config)):
        dk.load(model, tmp_path, head=head)
        table = kit.attachments(language).get("fi").own["bert.embeddings.word_embeddings.weight"]
        assert torch.equal(model.get_input_embeddings().weight, table)
        assert kit.out(model.eval(), batch).isfinite().all()


# ------------------------------------------------------------------------ offloaded, 8-bit floats


@pytest.mark.parametrize(
    "spec",
    ["lora", "bitfit", "lora+norms", "houlsby", "parallel", "ia3", "full", "prompt[length=2]"]
    + ["prefix[length=2,bottleneck=4]", "lora[targets=embed]"],
)
def test_an_offloaded_base_computes_with_deltas(kit: SimpleNamespace, spec: str) -> None:
    accelerate = pytest.importorskip("accelerate")
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    torch.manual_seed(3)
    dk.attach(model, dk.parse_method(spec))
    randomise_all(kit, model)
    expected = kit.out(model, batch)
    big = kit.make_model("bert", "classify")
    plain = kit.out(big, batch)
    accelerate.cpu_offload(big, execution_device=torch.device("cpu"))
    torch.manual_seed(3)
    dk.attach(big, dk.parse_method(spec))
    randomise_all(kit, big)
    assert {p.device.type for p in big.deltakit.parameters()} == {"cpu"}
    assert torch.equal(kit.out(big, batch), expected)
    with pytest.raises(dk.NotMergeable):
        dk.merge(big)
    assert torch.equal(kit.out(big, batch), expected)
    with dk.disabled(big):
        assert torch.equal(kit.out(big, batch), plain)


@pytest.mark.parametrize("spec", ["bitfit", "lora+norms", "lora"])
def test_an_offloaded_base_computes_with_deltas_of_one_thread(
    kit: SimpleNamespace, spec: str
) -> None:
    accelerate = pytest.importorskip("accelerate")
    batch, models = kit.make_batch(), [kit.make_model("bert", "classify") for _ in range(2)]
    big = models[1]
    accelerate.cpu_offload(big, execution_device=torch.device("cpu"))
    for model in models:
        torch.manual_seed(5)
        for name in ("a", "b"):
            dk.attach(model, dk.parse_method(spec), name)
        randomise_all(kit, model)
    expected = outputs(kit, models[0], batch)
    dk.activate(big, "a")
    for name in ("b", None, "a"):
        with dk.using(big, name):
            torch.testing.assert_close(kit.out(big, batch), expected[name], msg=str(name))
    torch.testing.assert_close(kit.out(big, batch), expected["a"])
    if spec == "lora":  # rows choose no norms and biases, but a head
        mixed = ["b", None, "a"]
        with dk.using(big, dk.PerRow(mixed)):
            rows = torch.stack([expected[name][row] for row, name in enumerate(mixed)])
            torch.testing.assert_close(kit.out(big, batch), rows)
    assert {p.device.type for n, p in big.named_parameters() if "delta" not in n} == {"meta"}


def test_threads_take_turns_on_an_offloaded_base(kit: SimpleNamespace) -> None:
    """Accelerate takes a module's weights away behind it, also from another thread's pass."""
    accelerate = pytest.importorskip("accelerate")
    batch, model = kit.make_batch(), kit.make_model("bert", "classify")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for name in ("a", "b"):
        dk.attach(model, dk.LoRA(rank=2), name)
    randomise_all(kit, model)
    expected = outputs(kit, model, batch)
    dk.activate(model, "a")

    def answer(name: str | None) -> bool:
        with dk.using(model, name):
            return torch.allclose(kit.out(model, batch), expected[name], atol=1e-6)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(answer, ["a", "b", None] * 16))
    with pytest.raises(ValueError, match="specify exactly one|either input_ids"):
        model(input_ids=batch["input_ids"], inputs_embeds=batch["input_ids"])
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(answer, "b").result()


def test_a_method_that_reads_offloaded_weights_is_refused(kit: SimpleNamespace) -> None:
    accelerate = pytest.importorskip("accelerate")
    model = kit.make_model("bert", "classify")
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with pytest.raises(dk.DeltakitError, match=r"query' is offloaded.*such as LoRA"):
        dk.attach(model, dk.DoRA())
    assert not hasattr(model, "deltakit")


def test_nothing_is_merged_into_8_bit_floats(kit: SimpleNamespace) -> None:
    model = kit.make_model("llama")
    dk.attach(model, dk.LoRA())
    query = model.layers[0].self_attn.q_proj
    query.weight.data = query.weight.data.to(torch.float8_e4m3fn)
    with pytest.raises(dk.NotMergeable, match="quantised"):
        dk.merge(model)
    dk.detach(model)
    with pytest.raises(dk.DeltakitError, match=r"held in torch.float8_e4m3fn.*such as LoRA"):
        dk.attach(model, dk.DoRA())


class EightBits(torch.nn.Linear):
    """A linear that holds its weight in 8-bit floats and computes in the dtype of its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear(x, self.weight.to(x.dtype), self.bias)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec",
    ["lora", "ia3", "pfeiffer[bottleneck=3]", "houlsby[bottleneck=3]", "parallel[bottleneck=3]",
     "prefix", "prompt", "norms", "head", "loreft", "vera", "compacter[reduction=4]", "molora",
     "lora+norms"],
)  # fmt: skip
def test_deltas_of_a_base_in_8_bit_floats_are_trained_in_single(
    kit: SimpleNamespace, spec: str, dtype: torch.dtype
) -> None:
    model, batch = kit.make_model("llama", "classify").to(dtype), kit.make_batch(labels=True)
    for module in model.model.layers.modules():
        if isinstance(module, torch.nn.Linear):
            module.__class__ = EightBits
            module.weight.data = module.weight.data.to(torch.float8_e4m3fn)
            module.weight.requires_grad_(False)
    dk.attach(model, dk.parse_method(spec))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained and {p.dtype for p in trained} == {torch.float32}
    loss = model.train()(**batch).loss
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in trained)


# ------------------------------------------------------------------------- merged, to be kept


@pytest.mark.parametrize("spec", ["lora+bitfit", "ia3", "head"])
def test_a_merge_that_is_kept_stays_when_its_delta_is_detached(
    kit: SimpleNamespace, spec: str
) -> None:
    model, batch = kit.make_model("bert", "classify"), kit.make_batch()
    flags = {n: p.requires_grad for n, p in model.named_parameters()}
    dk.attach(model, dk.LoRA(), "other")
    dk.attach(model, dk.parse_method(spec), "a")
    randomise_all(kit, model)
    dk.merge(model, keep=True)
    merged = kit.out(model, batch)
    dk.detach(model)
    assert torch.equal(kit.out(model, batch), merged) and not hasattr(model, "deltakit")
    assert {n: p.requires_grad for n, p in model.named_parameters()} == flags


@pytest.mark.parametrize("family", ["bert", "albert"])
def test_the_config_says_how_wide_a_merged_model_is(
    kit: SimpleNamespace, family: str, tmp_path: Any
) -> None:
    """ALBERT's layers share their feed-forwards, so they are fewer than the layers."""
    model, batch = kit.make_model(family), kit.make_batch()
    narrow = model.config.intermediate_size
    dk.attach(model, dk.ParallelAdapter(bottleneck=4, activation=model.config.hidden_act))
    randomise_all(kit, model)
    dk.merge(model, keep=True)
    assert model.config.intermediate_size == narrow + 4
    dk.unmerge(model)
    assert model.config.intermediate_size == narrow
    dk.merge(model, keep=True)
    expected = kit.out(model, batch)
    dk.detach(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(kit.out(again, batch), expected)


def test_the_config_of_an_encoder_decoder_says_both_widths(
    kit: SimpleNamespace, tmp_path: Any
) -> None:
    model, batch = kit.make_model("bart", "seq2seq"), kit.make_inputs("bart", "seq2seq")
    dk.attach(model, dk.ParallelAdapter(bottleneck=4, activation="gelu"))
    randomise_all(kit, model)
    dk.merge(model, keep=True)
    expected = kit.out(model, batch)
    assert (model.config.encoder_ffn_dim, model.config.decoder_ffn_dim) == (36, 36)
    dk.detach(model)
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    torch.testing.assert_close(kit.out(again, batch), expected)


@pytest.mark.parametrize("spec", ["lora+norms", "prefix", "bitfit"])
def test_what_is_attached_in_inference_mode_is_trained(
    kit: SimpleNamespace, spec: str, tmp_path: Any
) -> None:
    model, batch = two(kit, spec), kit.make_batch(labels=True)
    dk.save(model, tmp_path / "a", "a")
    expected = outputs(kit, model, kit.make_batch())["a"]
    other = kit.make_model("bert", "classify")
    with torch.inference_mode():
        dk.attach(other, dk.parse_method(spec), "new")
        dk.load(other, tmp_path / "a")
    assert torch.equal(kit.out(other, kit.make_batch()), expected)
    for name in ("new", "a"):
        dk.activate(other, name)
        other(**batch).loss.backward()
        held = other.deltakit.named_parameters()
        trained = [p for n, p in held if p.requires_grad and f"_{name}." in n]
        assert trained and all(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("last", ["b", None])
def test_a_layer_that_runs_again_has_the_values_that_it_had(
    kit: SimpleNamespace, dtype: torch.dtype, reentrant: bool, last: str | None
) -> None:
    """Biases of another delta, or of the base, are at their places in the backward pass."""
    model, batch = two(kit, "bitfit").to(dtype).train(), kit.make_batch()
    own = {name: kit.attachments(model).get(name).own for name in ("a", "b")}

    def gradients(names: tuple[str, ...], last: str | None) -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        total = torch.zeros(())
        for name in names:
            dk.activate(model, name)
            total = total + model(**batch).logits.float().pow(2).sum()
        dk.activate(model, last)
        total.backward()
        return {
            f"{name}.{key}": value.grad.clone()
            for name in names
            for key, value in own[name].items()
            if value.grad is not None
        }

    expected = gradients(("a",), "a") | gradients(("b",), "b")
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    found = gradients(("a", "b"), last)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, msg=key, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_no_checkpoint_holds_are_trained_and_saved(
    kit: SimpleNamespace, tied: bool, tmp_path: Any
) -> None:
    """Tokens are added before a delta is attached: their rows are drawn, and elsewhere others."""
    made = kit.make_model("llama", "causal", tie_word_embeddings=tied)
    made.save_pretrained(tmp_path / "base")

    def load(seed: int) -> Any:
        model = type(made).from_pretrained(tmp_path / "base").eval()
        torch.manual_seed(seed)
        model.resize_token_embeddings(70, mean_resizing=False)
        return model

    model, other = load(0), load(1)
    with pytest.warns(UserWarning, match="has more rows than the checkpoint") as told:
        dk.attach(model, dk.LoRA(rank=2))
    assert {each.filename for each in told} == {__file__}
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "model.embed_tokens.weight" in names and ("lm_head.weight" in names) is not tied
    randomise_all(kit, model)
    batch = {"input_ids": torch.tensor([[5, 68, 9, 66]])}
    dk.save(model, tmp_path / "delta")
    with pytest.warns(UserWarning, match="has more rows than the checkpoint"):
        dk.load(other, tmp_path / "delta")
    assert torch.equal(kit.out(other, batch), kit.out(model, batch))
    left = load(0)
    left.get_input_embeddings().weight.requires_grad_(False)
    left.get_output_embeddings().weight.requires_grad_(False)
    dk.attach(left, dk.LoRA(rank=2))  # pytest makes an error of a warning
    assert not kit.attachments(left).get("default").own


def test_what_is_merged_and_deployed_in_inference_mode_is_trained_on(
    kit: SimpleNamespace,
) -> None:
    model, batch = kit.make_model("llama", "causal"), kit.make_batch()
    dk.attach(model, dk.PrefixTuning(length=2, bottleneck=3), "prefix")
    dk.attach(model, dk.LoRA(rank=2), "lora")
    kit.randomise_deltas(model)
    with torch.inference_mode():
        dk.deploy(model, "prefix")
        dk.merge(model, keep=True)
        dk.detach(model, "lora")
    dk.activate(model, "prefix")
    model.train()(**batch).logits.sum().backward()
    dk.attach(model, dk.NormTuning())
    model(**batch).logits.sum().backward()
    assert all(p.grad is not None for p in kit.attachments(model).get("default").own.values())


def test_a_width_that_no_config_can_say_is_told(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    wide = dk.ParallelAdapter(bottleneck=4, activation=model.config.hidden_act)
    dk.attach(model, dk.AdapterDrop(wide, first=1))
    with pytest.warns(UserWarning, match=r"encoder.layer.1.*does not load. Save the delta instead"):
        dk.merge(model, keep=True)
