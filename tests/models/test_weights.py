"""Loading a base: what is quantised and what is not, what is kept, what is refused."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import deltakit as dk
from deltakit.errors import InvalidConfig, MissingExtra, UnknownName
from deltakit.models import weights as bases
from deltakit.models.loading import read_base
from deltakit.models.quantised import codec_of

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quant')")

FLOATING = {"fp32": torch.float32, "bf16": torch.bfloat16}
QUANTISED = ("int8", "nf4", "fp4")


@pytest.fixture(autouse=True, scope="module")
def _quiet() -> Any:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
    logging.set_verbosity(before)
    logging.enable_progress_bar()


@pytest.fixture
def folder(kit: SimpleNamespace, tmp_path: Path) -> Any:
    """Saves a tiny model and says where. BERT's language model has no pooler."""

    def save(family: str, kind: str = "causal") -> Path:
        kit.make_model(family, kind).save_pretrained(tmp_path / family)
        return tmp_path / family

    return save


def plain_linears(model: nn.Module) -> set[str]:
    return {n for n, m in model.named_modules() if type(m) is nn.Linear}


@pytest.mark.parametrize("base", [*FLOATING, *QUANTISED])
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_heads_and_fresh_modules_are_not_quantised(
    kit: SimpleNamespace, folder: Any, family: str, base: str
) -> None:
    model, missing = read_base(folder(family), base, task="classify", labels=4)
    dtype = FLOATING.get(base, torch.bfloat16)
    head = {"classifier", "bert.pooler.dense"} if family == "bert" else {"score"}
    assert {name.rpartition(".")[0] for name in missing} == head
    if base in QUANTISED:
        assert plain_linears(model) == head
        assert all(codec_of(m) for m in model.modules() if isinstance(m, nn.Linear) and
                   type(m) is not nn.Linear)  # fmt: skip
    logits = kit.out(model, kit.make_batch())
    assert (logits.dtype, logits.shape, model.training) == (dtype, (3, 4), False)
    assert logits.isfinite().all()


def test_the_head_that_predicts_tokens_is_not_quantised(folder: Any) -> None:
    model = dk.load_base(folder("llama"), "nf4", task="causal")
    assert plain_linears(model) == {"lm_head"}
    assert plain_linears(dk.load_base(folder("t5", "seq2seq"), "nf4", task="seq2seq")) == {
        "lm_head", *(n for n in plain_linears(dk.load_base(folder("t5", "seq2seq"))) if "wo" in n)
    }  # fmt: skip


def test_four_bits_are_quantised_twice_and_compute_in_what_is_said(folder: Any) -> None:
    for base in ("nf4", "fp4"):
        model = dk.load_base(folder("llama"), base, dtype=torch.float32)
        linear = model.layers[0].mlp.up_proj
        state = linear.weight.quant_state
        assert (state.quant_type, state.nested) == (base, True)
        assert (linear.compute_dtype, model.dtype) == (torch.float32, torch.float32)


def test_a_floating_base_is_what_transformers_loads(kit: SimpleNamespace, folder: Any) -> None:
    before = kit.make_model("bert", "causal")
    after = dk.load_base(folder("bert"), task="causal")
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


@pytest.mark.parametrize("base", QUANTISED)
def test_a_quantised_checkpoint_is_kept(folder: Any, tmp_path: Path, base: str) -> None:
    first = dk.load_base(folder("llama"), base, task="causal")
    first.save_pretrained(tmp_path / base)
    for asked in (None, base):
        again = dk.load_base(tmp_path / base, asked, task="causal")
        ours, theirs = again.state_dict(), first.state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    # Another head than the one that was left out of it.
    assert plain_linears(dk.load_base(tmp_path / base, task="classify")) == {"score"}
    for other in {"fp32", "nf4", "int8"} - {base}:
        with pytest.raises(InvalidConfig, match=f"quantised as '{base}' already") as error:
            dk.load_base(tmp_path / base, other, task="causal")
        assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_quantiser_is_refused(folder: Any) -> None:
    path = folder("llama")
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (path / "config.json").write_text(json.dumps(config))
    for base in (None, "nf4", "fp32"):
        with pytest.raises(InvalidConfig, match="quantised by 'gptq', which load_base does not"):
            dk.load_base(path, base)


def test_a_missing_package_is_named(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"base 'nf4' needs .* pip install -e \"\.\[quant\]\""):
        dk.load_base(folder("bert"), "nf4")
    dk.load_base(folder("bert"), "bf16")


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"base": "nf8"}, UnknownName, "unknown base 'nf8'. Did you mean 'nf4'"),
        ({"task": "clasify"}, UnknownName, "unknown task 'clasify'. Did you mean 'classify'"),
        ({"base": "nf4", "dtype": torch.int8}, InvalidConfig, "no model computes in torch.int8"),
        ({"base": "bf16", "dtype": torch.float32}, InvalidConfig, "base 'bf16' is torch.bfloat16"),
        ({"base": "nf4", "device": "meta"}, InvalidConfig, "does not run on 'meta', only on"),
        ({"task": "classify_images"}, InvalidConfig, "Unrecognized configuration class"),
    ],
)
def test_refusals(folder: Any, arguments: dict[str, Any], kind: type, message: str) -> None:
    with pytest.raises(kind) as error:
        dk.load_base(folder("bert"), **arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_that_does_not_compute(folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("no kernel for BFloat16\nmore")

    monkeypatch.setattr(torch, "ones", fails)
    with pytest.raises(InvalidConfig, match="'cpu' does not compute in torch.bfloat16 here: no"):
        dk.load_base(folder("bert"), "bf16")


def test_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="cannot be loaded"):
        dk.load_base(tmp_path / "none", "nf4", local_files_only=True)
