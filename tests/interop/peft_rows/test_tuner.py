"""PEFT's tuners as methods, and a model with one on it, treated as one with a delta of ours."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import deltakit as dk
from deltakit.compare.adapted import DeltakitModel, adapted_model
from deltakit.core.method import method_from_dict, method_to_dict
from deltakit.core.provider import AdaptedModel
from deltakit.core.spec import format_method, parse_method
from deltakit.errors import (
    CheckpointError,
    DeltakitError,
    InvalidConfig,
    MissingExtra,
    NotMergeable,
    UnknownName,
)
from deltakit.interop.peft_rows.papers import PAPERS, RATES
from deltakit.interop.peft_rows.tuner import ALIASES, PeftTuner
from deltakit.models.quantised import codec_of, dequantised_linear

peft = pytest.importorskip("peft", reason="PEFT is not installed (extra 'peft')")
pytestmark = [
    pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning"),  # torch, of SHiRA
    pytest.mark.filterwarnings("ignore:Unsupported layer type:UserWarning"),  # PEFT, of norms
]

WEIGHTS = {
    "lora": "peft:lora[r=4]",
    "dora": "peft:dora[r=4]",
    "rslora": "peft:rslora[r=4]",
    "adalora": "peft:adalora[init_r=4,target_r=2]",
    "vera": "peft:vera[r=8]",
    "ia3": "peft:ia3",
    "loha": "peft:loha[r=2]",
    "oft": "peft:oft[oft_block_size=4,r=0]",
    "ln_tuning": "peft:ln_tuning",
    "shira": "peft:shira[r=2]",
}
QUANTISED = ("lora", "dora", "adalora", "vera", "ia3", "ln_tuning")
PROMPTS = {
    "prefix": "peft:prefix_tuning[num_virtual_tokens=3]",
    "projected": "peft:prefix_tuning[num_virtual_tokens=3,prefix_projection=true,"
    "encoder_hidden_size=8]",
    "prompt": "peft:prompt_tuning[num_virtual_tokens=3]",
    "p_tuning": "peft:p_tuning[num_virtual_tokens=3,encoder_hidden_size=8]",
}
ALL = {**WEIGHTS, **PROMPTS}
SMALLER_DEPLOYED = ("projected", "p_tuning")


def put_on(
    kit: SimpleNamespace, spec: str, family: str = "bert", *, head: bool = True
) -> AdaptedModel:
    """A tiny classifier with the method on it, drawn anew where it starts from nothing."""
    torch.manual_seed(3)
    adapted = adapted_model(kit.make_model(family, "classify").eval(), parse_method(spec))
    adapted.attach()
    adapted.model.eval()
    if head:
        randomise(adapted)
    return adapted


def randomise(adapted: AdaptedModel) -> None:
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=draw))


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


# ------------------------------------------------------------------------------ as a method


@pytest.mark.parametrize(
    ("spec", "written"),
    [
        ("peft:lora", "peft:lora"),
        ("peft:LoRA[]", "peft:lora"),
        (" peft : lora [ r = 8 ] ", "peft:lora[r=8]"),
        ("peft:lora[r=8,lora_alpha=4]", "peft:lora[lora_alpha=4,r=8]"),
        ("peft:dora[r=8]", "peft:dora[r=8]"),
        ("peft:lora[target_modules=query/key]", "peft:lora[target_modules=query/key]"),
        ("peft:lora[init_lora_weights=false,bias=none]", None),
    ],
)
def test_the_grammar_round_trips(spec: str, written: str | None) -> None:
    method = parse_method(spec)
    assert isinstance(method, PeftTuner)
    assert written is None or format_method(method) == written
    assert parse_method(format_method(method)) == method
    assert method_from_dict(json.loads(json.dumps(method_to_dict(method)))) == method
    assert hash(method) == hash(method_from_dict(method_to_dict(method)))


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("peft:lroa", UnknownName, "unknown PEFT tuner 'lroa'. Did you mean.*'lora'"),
        ("peft:", UnknownName, "unknown PEFT tuner ''"),
        ("pfet:lora", UnknownName, "unknown provider 'pfet'. Did you mean 'peft'"),
        ("peft:lora[rr=8]", InvalidConfig, "peft:lora has no setting 'rr'. Did you mean 'r'?"),
        ("peft:lora[task_type=CAUSAL_LM]", InvalidConfig, "no setting 'task_type'"),
        ("peft:lora[modules_to_save=pooler]", InvalidConfig, "no setting 'modules_to_save'"),
        ("peft:dora[use_dora=false]", InvalidConfig, "no setting 'use_dora'"),
        ("peft:adalora[total_step=9]", InvalidConfig, "no setting 'total_step'"),
        ("peft:adalora[orth_reg_weight=-1]", InvalidConfig, "PEFT refuses it .ValueError.: `orth"),
        ("peft:lora[r]", InvalidConfig, "cannot read 'r'"),
    ],
)
def test_messages(spec: str, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        parse_method(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("settings", [8, (8,), (("r", 8, 9),), ((1, 2),)])
def test_settings_are_pairs(settings: Any) -> None:
    with pytest.raises(InvalidConfig, match="pairs of a name and a value"):
        PeftTuner(name="lora", settings=settings)


def test_without_peft_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingExtra, match=r"'peft', which is not installed.*\.\[peft\]") as caught:
        parse_method("peft:lora")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*PAPERS, *RATES, *ALIASES])
def test_what_is_said_of_a_tuner_is_of_one_that_exists(name: str) -> None:
    length = "[num_virtual_tokens=1]" if name.startswith("p") else ""
    method = parse_method(f"peft:{name}{length}")
    assert method.paper.key in method.paper.bibtex() and 0 < method.learning_rate < 1


def test_a_tuner_without_a_known_paper_has_the_librarys() -> None:
    assert parse_method("peft:hira").paper.key == "peft"
    assert parse_method("peft:dora").paper.arxiv == "2402.09353"


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("spec", ["peft:lora", "lora+peft:lora", "adapterdrop[method=peft:lora]"])
def test_only_a_comparison_takes_it(kit: SimpleNamespace, spec: str, family: str) -> None:
    model = kit.make_model(family, "classify")
    before = kit.snapshot(model)
    with pytest.raises(InvalidConfig, match="put on a model by peft, not by deltakit"):
        dk.attach(model, parse_method(spec))
    kit.assert_same(before, kit.snapshot(model))


def test_widths_for_the_same_number_of_parameters() -> None:
    assert format_method(parse_method("peft:lora[r=8,lora_alpha=16]").sized(4)) == (
        "peft:lora[lora_alpha=8.0,r=4]"
    )
    rooted = parse_method("peft:rslora[r=4,lora_alpha=8]").sized(16)
    assert format_method(rooted) == "peft:rslora[lora_alpha=16.0,r=16]"
    assert format_method(parse_method("peft:prompt_tuning").sized(7)) == (
        "peft:prompt_tuning[num_virtual_tokens=7]"
    )
    assert parse_method("peft:ia3").sized(4) is None


# --------------------------------------------------------------------- beside our own LoRA


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "gpt2", "t5"])
def test_a_lora_of_theirs_and_one_of_ours_count_alike(kit: SimpleNamespace, family: str) -> None:
    theirs = put_on(kit, "peft:lora[r=4]", family).counts()
    ours = put_on(kit, "lora[rank=4,alpha=8]", family).counts()
    assert theirs == ours
    assert theirs.trained_params > 0 and theirs.head_params > 0


def test_from_the_same_values_they_train_alike(kit: SimpleNamespace) -> None:
    batch = kit.make_batch(labels=True)
    theirs = put_on(kit, "peft:lora[r=4,lora_alpha=8]", head=False)
    ours = put_on(kit, "lora[rank=4,alpha=8,initialisation=kaiming]", head=False)
    values = dict(theirs.model.named_parameters())
    with torch.no_grad():
        for name, parameter in ours.model.named_parameters():
            if name.endswith("lora_A"):
                layer, site = name.split("encoder_")[1].split("_attn_")
                word = {"q": "query", "v": "value"}[site.split(".")[0]]
                parameter.copy_(next(
                    v for k, v in values.items()
                    if f"layer.{layer}." in k and f"{word}.lora_A" in k
                ))  # fmt: skip
    for adapted in (theirs, ours):
        kit.train_steps(adapted.model.train(), batch, steps=5)
        adapted.model.eval()
    assert logits(theirs.model, batch).std() > 0
    torch.testing.assert_close(logits(theirs.model, batch), logits(ours.model, batch))


def test_new_parameters_have_the_dtype_of_the_base(kit: SimpleNamespace) -> None:
    adapted = adapted_model(
        kit.make_model("bert", "classify").bfloat16(), parse_method("peft:lora")
    )
    adapted.attach()
    assert {p.dtype for p in adapted.model.parameters()} == {torch.bfloat16}


def in_full(model: Any) -> Any:
    """The same numbers in plain linears."""
    for path, module in list(model.named_modules()):
        codec = codec_of(module)
        if codec is not None:
            model.set_submodule(path, dequantised_linear(module, codec.weight(module)))
    vars(model).update(is_quantized=False, is_loaded_in_4bit=False)
    return model


@pytest.mark.parametrize("spec", ["lora[rank=4]", *(WEIGHTS[n] for n in QUANTISED)])
def test_on_four_bits_it_is_what_it_is_on_the_same_weights_in_full(
    kit: SimpleNamespace, spec: str, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed (extra 'quant')")
    kit.make_model("bert", "classify").save_pretrained(tmp_path)
    outputs = []
    for held in (lambda model: model, in_full):
        model = dk.load_base(tmp_path, "nf4", task="classify", labels=3, dtype=torch.float32)
        torch.manual_seed(3)
        adapted = adapted_model(held(model).eval(), parse_method(spec))
        adapted.attach()
        adapted.model.eval()
        before = logits(adapted.model, kit.make_batch())
        randomise(adapted)
        outputs.append((before, logits(adapted.model, kit.make_batch())))
    (packed, changed), (plain, expected) = outputs
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5)
    torch.testing.assert_close(changed, expected, rtol=0, atol=1e-4)
    assert not torch.allclose(changed, packed, atol=1e-3)


# ------------------------------------------------------------------------- what a row needs


@pytest.mark.parametrize("name", ALL)
def test_disabled_is_the_plain_base_bit_for_bit(kit: SimpleNamespace, name: str) -> None:
    batch = kit.make_batch()
    plain = kit.make_model("bert", "classify").eval()
    expected, kinds = logits(plain, batch), [type(m) for m in plain.modules()]
    adapted = put_on(kit, ALL[name])
    active = logits(adapted.model, batch)
    assert not torch.equal(active, expected)
    with adapted.disabled() as base:
        assert torch.equal(logits(base, batch), expected)
        assert [type(m) for m in base.modules()] == kinds
    assert torch.equal(logits(adapted.model, batch), active)


@pytest.mark.parametrize("name", WEIGHTS)
def test_merged_is_a_plain_model_with_the_same_outputs(kit: SimpleNamespace, name: str) -> None:
    batch = kit.make_batch()
    kinds = [type(m) for m in kit.make_model("bert", "classify").modules()]
    adapted = put_on(kit, WEIGHTS[name])
    expected = logits(adapted.model, batch)
    with adapted.merged() as base:
        assert [type(m) for m in base.modules()] == kinds
        torch.testing.assert_close(logits(base, batch), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(adapted.model, batch), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spec", [*PROMPTS.values(), "peft:lily", "peft:osf"])
def test_what_does_not_merge_says_so(kit: SimpleNamespace, spec: str) -> None:
    with pytest.raises(NotMergeable) as caught, put_on(kit, spec).merged():
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_what_is_saved_is_loaded_as_it_was(kit: SimpleNamespace, name: str, tmp_path: Path) -> None:
    batch, adapted = kit.make_batch(), put_on(kit, ALL[name])
    adapted.save(tmp_path)
    torch.manual_seed(3)
    again = adapted_model(kit.make_model("bert", "classify").eval(), parse_method(ALL[name]))
    again.load(tmp_path)
    again.model.eval()
    assert torch.equal(logits(again.model, batch), logits(adapted.model, batch))
    assert again.counts() == adapted.counts()


@pytest.mark.parametrize("name", ALL)
def test_peft_reads_the_folder_too(kit: SimpleNamespace, name: str, tmp_path: Path) -> None:
    batch, adapted = kit.make_batch(), put_on(kit, ALL[name])
    adapted.save(tmp_path)
    plain = kit.make_model("bert", "classify")
    theirs = peft.PeftModel.from_pretrained(plain, tmp_path).eval()
    torch.testing.assert_close(
        logits(theirs, batch), logits(adapted.model, batch), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("name", ALL)
def test_deployed_is_what_the_file_holds(kit: SimpleNamespace, name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    batch, adapted = kit.make_batch(), put_on(kit, ALL[name])
    expected, counts = logits(adapted.model, batch), adapted.counts()
    adapted.save(tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert counts.deployed_params == sum(t.numel() for t in stored.values()) - counts.head_params
    smaller = counts.deployed_params < counts.trained_params
    assert smaller == (name in SMALLER_DEPLOYED)
    before = sum(p.numel() for p in adapted.model.parameters())
    assert adapted.deploy() is False
    assert (sum(p.numel() for p in adapted.model.parameters()) < before) == smaller
    torch.testing.assert_close(logits(adapted.model, batch), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_a_second_one_is_switched_to_and_taken_off(
    kit: SimpleNamespace, name: str, tmp_path: Path
) -> None:
    adapted, batch = put_on(kit, ALL[name]), kit.make_batch()
    adapted.deploy()
    before = logits(adapted.model, batch)
    adapted.save(tmp_path)
    for _ in range(2):
        with adapted.second_copy(tmp_path) as swap:
            for _ in range(3):
                assert torch.allclose(logits(adapted.model, batch), before, atol=1e-6)
                swap()
        assert torch.equal(logits(adapted.model, batch), before)
        assert list(adapted.model.peft_config) == ["default"]


@pytest.mark.parametrize("name", ALL)
def test_it_is_tried_and_counted_without_weights(kit: SimpleNamespace, name: str) -> None:
    from transformers import AutoModelForSequenceClassification

    config = kit.make_model("bert", "classify").config
    with torch.device("meta"):
        skeleton = AutoModelForSequenceClassification.from_config(config)
    adapted = adapted_model(skeleton, parse_method(ALL[name]))
    adapted.attach()
    found, true = adapted.counts(), put_on(kit, ALL[name]).counts()
    assert found.head_params == true.head_params
    # On the meta device PEFT forgets that AdaLoRA's record of ranks, a number a layer, is fixed.
    ranks = 4 if name == "adalora" else 0
    assert found.trained_params - ranks == true.trained_params


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("peft:lora[r=many]", "PEFT refuses it .TypeError."),
        ("peft:lora[target_modules=nope]", "PEFT refuses it .*target"),
        ("peft:poly", "takes several tasks at once"),
        ("peft:xlora[hidden_size=16]", "LoRAs that are trained already"),
        ("peft:prefix_tuning", r"peft:prefix_tuning\[num_virtual_tokens=20\]"),
        ("peft:trainable_tokens", "does not train the task head .classifier."),
        ("peft:adaption_prompt", "Unsupported model type"),
    ],
)
def test_what_does_not_fit_is_one_line(kit: SimpleNamespace, spec: str, message: str) -> None:
    with pytest.raises(InvalidConfig, match=message) as caught:
        put_on(kit, spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("family", "spec", "words", "ending"),
    [
        ("distilbert", "peft:lora", "the query and value projections", ("q_lin", "v_lin")),
        ("modernbert", "peft:vera", "the query and value projections", ("Wqkv",)),
        ("bert", "peft:ln_tuning", "the norms", ("LayerNorm",)),
        ("electra", "peft:ia3", "the key, value and second feed-forward projections",
         ("key", "value", "output.dense")),
    ],
)  # fmt: skip
def test_where_peft_has_no_targets_ours_are_taken_and_named(
    kit: SimpleNamespace, family: str, spec: str, words: str, ending: tuple[str, ...]
) -> None:
    adapted = put_on(kit, spec, family)
    layers = {
        name
        for name, module in adapted.model.get_base_model().named_modules()
        if isinstance(module, peft.tuners.tuners_utils.BaseTunerLayer)
    }
    assert layers and all(name.endswith(ending) for name in layers)
    assert any(words in note and repr(family) in note for note in adapted.notes)


@pytest.mark.parametrize(
    ("family", "spec"),
    [("bert", "peft:lora"), ("distilbert", "peft:lora[target_modules=.*q_lin]")],
)
def test_nothing_is_noted_where_nothing_was_chosen(
    kit: SimpleNamespace, family: str, spec: str
) -> None:
    assert put_on(kit, spec, family).notes == ()


def test_a_folder_of_another_tuner_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    put_on(kit, "peft:lora[r=4]").save(tmp_path)
    model = kit.make_model("bert", "classify")
    with pytest.raises(CheckpointError, match="does not fit"):
        adapted_model(model, parse_method("peft:ia3")).load(tmp_path)


def test_adalora_moves_ranks_while_it_trains(kit: SimpleNamespace) -> None:
    adapted = put_on(kit, "peft:adalora[init_r=4,target_r=2]")
    (callback,) = adapted.callbacks()
    batch, state = kit.make_batch(labels=True), SimpleNamespace(max_steps=4, global_step=0)
    callback.on_train_begin(None, state, None)
    for step in range(4):
        adapted.model(**batch).loss.backward()
        callback.on_optimizer_step(None, SimpleNamespace(global_step=step), None)
        adapted.model.zero_grad()
    pattern = adapted.model.peft_config["default"].rank_pattern
    # Four sites of rank four, of which half is left.
    assert sum(sum(kept) for kept in pattern.values()) == 2 * 4
    assert put_on(kit, "peft:lora").callbacks() == ()
    with pytest.raises(DeltakitError, match="tinit=0 and tfinal=0 leave none of the 0 steps"):
        callback.on_train_begin(None, SimpleNamespace(max_steps=0), None)


def test_our_own_deltas_are_subjects_of_our_own(kit: SimpleNamespace) -> None:
    adapted = adapted_model(kit.make_model("bert", "classify"), dk.LoRA())
    assert isinstance(adapted, DeltakitModel) and adapted.callbacks() == () and adapted.notes == ()
