"""What else runs a model goes on working: checkpointing, compile, bf16, padding, generate."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk

SPECS = ("lora[targets=all]", "pfeiffer[reduction=4]", "houlsby[reduction=4]", "fusion")
TINY = (
    "bert", "roberta", "electra", "distilbert", "gpt2", "llama", "mistral", "qwen2", "qwen3",
)  # fmt: skip


def attached(
    kit: SimpleNamespace, family: str, spec: str, kind: str = "bare", **config: Any
) -> Any:
    model = kit.make_model(family, kind, **config)
    attach(kit, model, spec)
    return model


def attach(kit: SimpleNamespace, model: Any, spec: str) -> None:
    if spec == "fusion":
        kit.attach_fusion(model)
    else:
        dk.attach(model, dk.parse_method(spec))
        kit.randomise_deltas(model)
    model.train(model.training)


def delta_grads(model: Any, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_gradient_checkpointing(
    kit: SimpleNamespace, family: str, spec: str, reentrant: bool
) -> None:
    model, batch = attached(kit, family, spec, "classify").train(), kit.make_batch(labels=True)
    model.config.use_cache = False
    plain = delta_grads(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    checkpointed = delta_grads(model, batch)
    assert any(n.startswith("deltakit.") for n in plain) and plain.keys() == checkpointed.keys()
    for name, value in plain.items():
        torch.testing.assert_close(checkpointed[name], value, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.parametrize(
    ("family", "spec"),
    [
        ("bert", "lora"),
        ("llama", "fusion"),
    ],
)
def test_compile_without_a_graph_break(kit: SimpleNamespace, family: str, spec: str) -> None:
    torch.compiler.reset()
    model, batch = attached(kit, family, spec), kit.make_batch()
    expected = kit.out(model, batch)
    # The tracer without the code generator: what deltakit adds is traced, nothing is compiled.
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(kit.out(compiled, batch), expected, atol=1e-5, rtol=1e-5)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the tracer's
@pytest.mark.parametrize("spec", [pytest.param("lora", marks=pytest.mark.slow), "fusion"])
def test_compiled_training_step(kit: SimpleNamespace, spec: str) -> None:
    torch.compiler.reset()
    model, batch = attached(kit, "bert", spec, "classify").train(), kit.make_batch(labels=True)
    plain = delta_grads(model, batch)
    model.zero_grad()
    torch.compile(model, backend="aot_eager")(**batch).loss.backward()
    torch.compiler.reset()
    for name, value in plain.items():
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, value, atol=1e-5, rtol=1e-4, msg=name)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", TINY)
def test_bf16_stays_bf16_at_every_module(kit: SimpleNamespace, family: str, spec: str) -> None:
    model, batch = kit.make_model(family).to(torch.bfloat16), kit.make_batch()
    wanted = dtypes(model, batch)
    attach(kit, model, spec)
    assert {p.dtype for p in model.deltakit.parameters()} == {torch.float32}
    found = dtypes(model, batch)
    assert {name: found[name] for name in wanted} == wanted
    assert kit.out(model, batch).dtype is torch.bfloat16
    assert kit.out(model, batch).isfinite().all()


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_fp32_deltas_on_a_bf16_base(kit: SimpleNamespace, family: str, spec: str) -> None:
    model, batch = kit.make_model(family).to(torch.bfloat16), kit.make_batch()
    wanted = dtypes(model, batch)
    if spec == "fusion":
        for name in ("a", "b"):
            dk.attach(model, dk.SequentialAdapter(reduction=4), name=name, dtype=torch.float32)
        dk.attach(model, dk.AdapterFusion("a", "b"), name="fused", dtype=torch.float32)
    else:
        dk.attach(model, dk.parse_method(spec), dtype=torch.float32)
    kit.randomise_deltas(model)
    assert {p.dtype for p in model.deltakit.parameters()} == {torch.float32}
    found = dtypes(model, batch)
    assert {name: found[name] for name in wanted} == wanted


def dtypes(model: Any, batch: dict[str, Tensor]) -> dict[str, torch.dtype]:
    """What dtype each of the model's own modules returns."""
    found: dict[str, torch.dtype] = {}

    def note(name: str) -> Any:
        def hook(_m: Any, _a: Any, y: Any) -> None:
            y = y[0] if isinstance(y, tuple) else y
            if isinstance(y, Tensor):
                found[name] = y.dtype

        return hook

    hooks = [
        module.register_forward_hook(note(name))
        for name, module in model.named_modules()
        if not name.startswith("deltakit")
    ]
    with torch.no_grad():
        model(**batch)
    for hook in hooks:
        hook.remove()
    return found


PADDED = [
    *((family, "right") for family in ("bert", "roberta", "distilbert", "gpt2", "llama", "qwen3")),
    *((family, "left") for family in ("gpt2", "llama", "qwen3")),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize(("family", "side"), PADDED)
def test_a_padded_row_equals_the_row_alone(
    kit: SimpleNamespace, family: str, spec: str, side: str
) -> None:
    model = attached(kit, family, spec)
    row = kit.make_batch(rows=1, length=5)
    before = (3, 0) if side == "left" else (0, 3)
    padded = {k: torch.nn.functional.pad(v, before) for k, v in row.items()}
    extra = {}
    if side == "left":
        extra["position_ids"] = (padded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    found = kit.out(model, {**padded, **extra})
    found = found[:, 3:] if side == "left" else found[:, :5]
    torch.testing.assert_close(found, kit.out(model, row), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", TINY)
def test_sdpa_equals_eager(kit: SimpleNamespace, family: str, spec: str) -> None:
    model = attached(kit, family, spec)
    batch = kit.make_batch()
    eager = kit.out(model, batch)
    model.set_attn_implementation("sdpa")
    mask = batch["attention_mask"].bool()
    assert model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(kit.out(model, batch)[mask], eager[mask], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("spec", [None, *SPECS])
@pytest.mark.parametrize("family", ["gpt2", "llama", "qwen3"])
def test_cached_generation_equals_uncached(
    kit: SimpleNamespace, family: str, spec: str | None
) -> None:
    model = kit.make_model(family, "causal")
    prompt = kit.make_batch(rows=1, length=5)
    plain = generate(model, prompt, use_cache=True)
    if spec is not None:
        attach(kit, model, spec)
    cached, uncached = (generate(model, prompt, use_cache=cache) for cache in (True, False))
    torch.testing.assert_close(cached.sequences, uncached.sequences)
    for one, other in zip(cached.logits, uncached.logits, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    if spec is not None:
        assert not torch.equal(cached.logits[0], plain.logits[0])
        with dk.disabled(model):
            again = generate(model, prompt, use_cache=True)
        assert torch.equal(again.sequences, plain.sequences)
        assert all(torch.equal(a, b) for a, b in zip(again.logits, plain.logits, strict=True))


def generate(model: Any, prompt: dict[str, Tensor], *, use_cache: bool) -> Any:
    return model.generate(
        **prompt,
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        use_cache=use_cache,
        return_dict_in_generate=True,
        output_logits=True,
    )


@pytest.mark.parametrize("spec", SPECS)
def test_autocast(kit: SimpleNamespace, spec: str) -> None:
    model, batch = attached(kit, "bert", spec, "classify").train(), kit.make_batch(labels=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(**batch).loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("family", TINY)
def test_every_delta_parameter_gets_a_gradient(kit: SimpleNamespace, family: str) -> None:
    model, batch = kit.make_model(family, "classify").train(), kit.make_batch(labels=True)
    method = dk.LoRA(targets="all") + dk.SequentialAdapter(
        placement="houlsby", activation="gelu", reduction=4
    )
    dk.attach(model, method + dk.SequentialAdapter(activation="gelu", reduction=4))
    kit.randomise_deltas(model)
    grads = delta_grads(model, batch)
    for name, _ in model.named_parameters():
        if name.startswith("deltakit.delta_"):
            assert grads[name].abs().max() > 0, name
