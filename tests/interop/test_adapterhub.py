"""AdapterHub's folders against the library's own files, and against what is wrong with files.

`tests/golden/adapterhub.zip` is what the library ``adapters`` wrote and computed;
`tests/golden/check_adapterhub_writes.py` lets it read what is written here.
"""

import functools
import json
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import deltakit as dk
from deltakit.core.composition import One
from deltakit.core.site import Site
from deltakit.errors import CheckpointError
from deltakit.inject.transfer import to_checkpoint
from deltakit.interop.adapterhub import bottleneck
from deltakit.interop.adapterhub.layout import Term, host_of
from deltakit.interop.adapterhub.methods import config_of, method_of
from deltakit.interop.folders import recognise, write_checkpoint
from deltakit.interop.peft.former_names import todays_name
from deltakit.testing.copies import Template

ARCHIVE = Path(__file__).parents[1] / "golden" / "adapterhub.zip"
with zipfile.ZipFile(ARCHIVE) as _archive:
    GOLDEN = json.loads(_archive.read("golden.json"))
CASES = [f"{family}/{case}" for family, cases in GOLDEN["cases"].items() for case in cases]
OLD = ("bert/seq_bn_old", "bert/seq_bn_inv_old", "bert/lora_old")
ELSEWHERE = ("bert/fusion_alone", "t5/lm_inv")
"""Of these, other keys are written: members in a folder, a class of the library's own."""
UNHELD = ("bert/head_deep", "gpt2/head_causal_lm_deep")
UNRUN = "bert/seq_bn_glow"
"""The library writes and reads it, and fails when it runs."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter.safetensors"


def _output(found: Any) -> Tensor:
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits], dim=-1)
    return found.logits if "logits" in found else found.last_hidden_state


class Library:
    """The golden archive, unpacked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs = load_file(folder / "inputs.safetensors")
        self.outputs = load_file(folder / "outputs.safetensors")

    def model(self, case: str, *, kind: str | None = None) -> Any:
        """The model of a case, with the golden weights; a flexible head becomes transformers'."""
        family, _, name = case.partition("/")
        kind = kind or GOLDEN["cases"][family][name]
        return self._template(family, kind, name.startswith("lm_")).copy()

    @functools.cache  # noqa: B019
    def _template(self, family: str, kind: str | None, has_head: bool) -> Template:
        """Building a model takes longer than copying it."""
        import transformers

        base = GOLDEN["bases"][family]
        labels = 2 if "QuestionAnswering" in str(kind) else 3
        config = transformers.AutoConfig.for_model(family, **base["config"], num_labels=labels)
        if family == "gpt2":
            config.bos_token_id = config.eos_token_id = 1
        config._attn_implementation = "eager"
        if kind is None:
            model = transformers.AutoModel.from_config(config, attn_implementation="eager")
        else:
            model = getattr(transformers, kind)(config)
        state = load_file(self.folder / "bases" / f"{base['like']}.safetensors")
        inner = model.base_model
        paths = {name: None for name, _ in inner.named_modules()}
        state = {
            key if key.rpartition(".")[0] in paths else todays_name(key, inner): tensor
            for key, tensor in state.items()
        }
        known = {key: state[key] for key, _ in inner.named_parameters()}
        assert not inner.load_state_dict(known, strict=False).unexpected_keys
        if has_head:
            head = load_file(self.folder / "heads" / f"{family}.safetensors")
            assert not model.load_state_dict(head, strict=False).unexpected_keys
        return Template(model.eval())

    def saved(self, case: str) -> Path:
        """What the library wrote for it."""
        folder = self.folder / case
        return folder / "fused" if case == "bert/fusion_alone" else folder

    @torch.no_grad()
    def deviation(self, case: str, model: Any) -> float:
        """How far the model is from what the library computed, where a token is not padding."""
        given = dict(self.inputs)
        pixels = given.pop("pixel_values")
        if not model.config.is_encoder_decoder:
            del given["decoder_input_ids"]
        if model.config.model_type == "vit":
            given = {"pixel_values": pixels, "attention_mask": torch.ones(0)}
            output = _output(model(pixel_values=pixels))
        else:
            output = _output(model(**given))
        difference = (output - self.outputs[case]).abs()
        if difference.shape[:2] == given["attention_mask"].shape:
            difference = difference * given["attention_mask"].unsqueeze(-1)
        return float(difference.max())


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Library:
    folder = tmp_path_factory.mktemp("adapterhub")
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return Library(folder)


@pytest.fixture
def saved(library: Library, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a golden folder, to be damaged."""

    def copy(case: str) -> Path:
        return Path(shutil.copytree(library.folder / case, tmp_path / case.replace("/", "-")))

    return copy


def held(path: Path) -> dict[str, Tensor]:
    safe = path.suffix == ".safetensors"
    return load_file(path) if safe else torch.load(path, weights_only=True)


def weights(folder: Path) -> dict[str, Tensor]:
    """All tensors below a folder, by their file's folder and key."""
    files = [p for p in sorted(folder.rglob("*")) if p.suffix in (".safetensors", ".bin")]
    return {
        f"{path.parent.relative_to(folder)}:{key}": tensor
        for path in files
        for key, tensor in held(path).items()
    }


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def edit(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; a key of the config where there is one of that name."""
    content = json.loads(path.read_text())
    for key, value in changes.items():
        inner = isinstance(content.get("config"), dict) and key not in content
        (content["config"] if inner else content)[key] = value
    path.write_text(json.dumps(content))


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".bin"))
    tensors = held(path)
    change(tensors)
    save = save_file if path.suffix == ".safetensors" else torch.save
    save(tensors, path)


def refused(kit: SimpleNamespace, model: Any, folder: Path, **options: Any) -> str:
    """The one line with which loading fails; the model is as it was."""
    before = kit.snapshot(model)
    with pytest.raises(CheckpointError) as caught:
        dk.load(model, folder, **options)
    kit.assert_same(before, kit.snapshot(model))
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------------------- the library's files


@pytest.mark.parametrize("case", [case for case in CASES if case not in (*UNHELD, UNRUN)])
def test_golden(case: str, library: Library, tmp_path: Path) -> None:
    """Loaded, it computes what the library computes; saved, it is the same file again."""
    model = library.model(case)
    dk.load(model, library.saved(case))
    assert library.deviation(case, model) < 1e-5
    composition = model.deltakit.active
    before = to_checkpoint(model, composition)
    dk.save(model, tmp_path / "ours", composition, format="adapterhub")
    again = library.model(case)
    dk.load(again, tmp_path / "ours")
    after = to_checkpoint(again, composition)
    assert (after.parts, after.composition) == (before.parts, before.composition)
    assert_equal(after.tensors, before.tensors)
    assert library.deviation(case, again) < 1e-5


WRITTEN = [c for c in CASES if c not in (*OLD, *ELSEWHERE) and "/head" not in c]


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=[pytest.mark.slow] * (i % 2)) for i, c in enumerate(WRITTEN)],
)
def test_what_is_written_is_what_the_library_wrote(
    case: str, library: Library, tmp_path: Path
) -> None:
    model = library.model(case)
    dk.load(model, library.saved(case))
    dk.save(model, tmp_path, model.deltakit.active, format="adapterhub")
    theirs = {k: t for k, t in weights(library.saved(case)).items() if ".a,b,c." not in k}
    host = host_of(library.model(case))
    if "/compacter" in case:  # the library's model has a class for heads around the base
        theirs = {key.replace(f":{host.base_prefix}", ":"): t for key, t in theirs.items()}
    assert_equal(weights(tmp_path), theirs)
    for path in library.saved(case).rglob("*.json"):
        mine, golden = (
            json.loads((folder / path.relative_to(library.saved(case))).read_text())
            for folder in (tmp_path, library.saved(case))
        )
        if path.name == CONFIG:
            wanted = method_of(golden.pop("config"), host, "")
            assert config_of(method_of(mine.pop("config"), host, ""), host) == config_of(
                wanted, host
            )
        elif path.name == "adapter_fusion_config.json":
            assert golden["config"].pop("dropout_prob") is None  # the model's, which is 0 here
            assert mine["config"].pop("dropout_prob") == 0.0
        mine.pop("deltakit", None)
        if "/lm_" in case or "/compacter" in case:  # the library's head is a class of its own
            assert mine.pop("model_class", None) in (None, type(model).__name__)
            golden.pop("model_class", None)
        assert mine == golden


METHODS = {
    "bert/seq_bn": dk.SequentialAdapter(reduction=4, activation="relu", initialisation="normal"),
    "bert/seq_bn_bin": dk.SequentialAdapter(
        reduction=4, activation="gelu", initialisation="normal", scale=0.5, dropout=0.1
    ),
    "bert/seq_bn_wide": dk.SequentialAdapter(
        bottleneck=1, activation="relu", initialisation="truncated_normal"
    ),
    "bert/seq_bn_old": dk.SequentialAdapter(
        reduction=4, activation="gelu_new", initialisation="normal"
    ),
    "bert/scaled_par_bn": dk.ParallelAdapter(
        reduction=4, scale=1.0, learned_scale=True, activation="tanh"
    ),
    "bert/lora_old": dk.LoRA(
        rank=2, alpha=2, targets=("attn.q", "attn.v"), initialisation="kaiming"
    ),
    "bert/lora_leave_out": dk.AdapterDrop(
        dk.LoRA(rank=2, alpha=6, targets=("attn.k",), initialisation="kaiming"), layers=1
    ),
    "llama/ia3": dk.IA3(feedforward="pre_activation"),
    "llama/par_bn": dk.ParallelAdapter(reduction=4, reads="stream"),
    "t5/seq_bn_leave_out": dk.AdapterDrop(
        dk.SequentialAdapter(reduction=4, activation="relu", initialisation="normal"), layers=0
    ),
    "bart/prefix_flat": dk.PrefixTuning(length=3, bottleneck=None),
}


@pytest.mark.parametrize("case", METHODS)
def test_methods(case: str, library: Library) -> None:
    model = library.model(case)
    dk.load(model, library.saved(case))
    (part,) = to_checkpoint(model, "a").parts
    assert part.method == METHODS[case]


def test_reduction_factors_by_layer(library: Library) -> None:
    model = library.model("bert/seq_bn_by_layer")
    dk.load(model, library.saved("bert/seq_bn_by_layer"))
    shapes = {k: tuple(t.shape) for k, t in model.deltakit.get("a").tensors() if "down.w" in k}
    assert shapes == {
        "encoder.0.block.out.down.weight": (8, 16),
        "encoder.1.block.out.down.weight": (2, 16),
    }


def test_a_fusion_has_its_members_and_a_name_of_ours(library: Library) -> None:
    model = library.model("bert/fusion")
    model.config.attention_probs_dropout_prob = 0.25
    dk.load(model, library.saved("bert/fusion"))
    assert list(model.deltakit.attached) == ["a", "b", "a-b"]
    fusion = model.deltakit.get("a-b").method
    assert fusion == dk.AdapterFusion("a", "b", dropout=0.25)
    static = library.model("bert/fusion_alone")
    dk.load(static, library.saved("bert/fusion_alone"), name="other")
    assert static.deltakit.get("other").method == dk.AdapterFusion(
        "a", "b", value=False, regularisation=0.0
    )


def test_a_head_that_no_class_holds(library: Library, kit: SimpleNamespace) -> None:
    for case, of in zip(UNHELD, ("Bert", "GPT2"), strict=True):
        model = library.model(case)
        message = refused(kit, model, library.saved(case))
        assert re.search(
            rf"left over 'heads.a.*bias of a {of}AdapterModel with a .* head'", message
        )
        assert message.endswith("To load the delta without its task head, pass head=False.")
        dk.load(model, library.saved(case), head=False)
    bare = library.model("bert/head", kind="BertModel")
    assert "head=False" in refused(kit, bare, library.saved("bert/head"))
    dk.load(bare, library.saved("bert/head"), head=False)
    tokens = library.model("bert/head", kind="BertForTokenClassification")
    message = refused(kit, tokens, library.saved("bert/head"))
    assert "'classifier.bias of a BertForSequenceClassification'" in message


def test_a_head_with_the_pooler_of_its_own(library: Library, tmp_path: Path) -> None:
    """BertAdapterModel's default head is BERT's pooler and classifier: both are the delta's."""
    case = "bert/head_default"
    model = library.model(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dk.load(model, library.saved(case))
    assert model.deltakit.get("a").method.parts[1] == dk.PartialFineTuning(
        parameters=("bert.pooler.dense.bias", "bert.pooler.dense.weight")
    )
    dk.save(model, tmp_path, "a", format="adapterhub")
    config = json.loads((tmp_path / "head_config.json").read_text())["config"]
    theirs = json.loads((library.saved(case) / "head_config.json").read_text())["config"]
    kept = ("head_type", "layers", "activation_function", "use_pooler", "num_labels")
    assert [config[key] for key in kept] == [theirs[key] for key in kept]
    mine, golden = (
        load_file(tmp_path / "model_head.safetensors"),
        load_file(library.saved(case) / "model_head.safetensors"),
    )
    assert_equal(mine, {key: t for key, t in golden.items() if key.startswith("heads.a.")})
    dk.detach(model)
    assert_equal(dict(model.state_dict()), before)
    dk.load(model, library.saved(case), head=False)
    assert torch.equal(model.bert.pooler.dense.weight, before["bert.pooler.dense.weight"])
    assert isinstance(model.deltakit.get("a").method, dk.SequentialAdapter)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("bert/head_masked_lm", {"heads.a.3.weight": 1}, "left over 'heads.a.3.weight of a Bert"),
        ("gpt2/head_causal_lm", {"heads.a.0.weight": 1}, "left over 'heads.a.0.weight of a GPT2"),
        ("gpt2/head_causal_lm", {"heads.a.0.bias": 1}, "left over 'heads.a.0.bias of a GPT2Ada"),
        ("llama/head_causal_lm", {"heads.a.0.bias": 1}, "with a causal_lm head"),
        ("bert/head_masked_lm", {"head_type": "dependency_parsing"}, "a dependency_parsing head"),
        ("bert/head_masked_lm", {"head_type": "causal_lm"}, "with a causal_lm head"),
        ("bert/head_masked_lm", {"activation_function": "relu"}, "with a masked_lm head"),
        ("bert/head_masked_lm", {"layer_norm": False}, "with a masked_lm head"),
        ("bert/head_masked_lm", {"layers": 3}, "with a masked_lm head"),
    ],
)
def test_language_heads_that_the_class_does_not_have(
    case: str,
    change: dict[str, Any],
    message: str,
    saved: Callable[[str], Path],
    library: Library,
    kit: SimpleNamespace,
) -> None:
    """Another table than the base's, a bias where the class has none, other layers."""
    folder = saved(case)
    path, (key, value) = folder / "model_head.safetensors", next(iter(change.items()))
    tensors = load_file(path)
    if key in tensors:
        save_file({**tensors, key: tensors[key] + value}, path)
    else:
        edit(folder / "head_config.json", **change)
    model = library.model(case)
    assert message in refused(kit, model, folder)
    dk.load(model, folder, head=False)


def test_a_language_head_is_the_deltas(library: Library) -> None:
    """It is put into the base's parameters while its delta is active, and taken out after."""
    model = library.model("bert/head_masked_lm")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dk.load(model, library.saved("bert/head_masked_lm"))
    own = load_file(library.saved("bert/head_masked_lm") / "model_head.safetensors")
    assert torch.equal(model.cls.predictions.decoder.bias, own["heads.a.3.bias"])
    assert torch.equal(model.cls.predictions.transform.dense.weight, own["heads.a.0.weight"])
    dk.detach(model)
    assert_equal(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "relu"}, {"use_pooler": True}, {"head_type": "tagging"},
        {"bias": False}, {"layers": 1}, {"head_type": "multiple_choice"},
    ],
)  # fmt: skip
def test_heads_of_other_settings_are_refused(
    changes: dict[str, Any], saved: Callable[[str], Path], library: Library, kit: SimpleNamespace
) -> None:
    folder = saved("bert/head_default")
    edit(folder / "head_config.json", **changes)
    message = refused(kit, library.model("bert/head_default"), folder)
    assert "left over 'heads.a." in message or "is missing" in message


def test_heads_of_members_that_differ(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    folder = saved("bert/head_of_fusion")
    head = load_file(folder / "b" / "model_head.safetensors")
    save_file({k: t + 1 for k, t in head.items()}, folder / "b" / "model_head.safetensors")
    model = library.model("bert/head_of_fusion")
    assert "'classifier.bias of b'" in refused(kit, model, folder)
    dk.load(model, folder, head=False)


def test_the_fused_projection_of_gpt2_is_taken_apart(library: Library) -> None:
    model = library.model("gpt2/lora_kv")
    dk.load(model, library.saved("gpt2/lora_kv"))
    tensors = dict(model.deltakit.get("a").tensors())
    whole = load_file(library.saved("gpt2/lora_kv") / WEIGHTS)
    for index, site in enumerate(("k", "v")):
        for kind, rows in (("lora_A", 2), ("lora_B", 16)):
            theirs = whole[f"h.0.attn.c_attn.loras.a.{kind}"][index * rows : (index + 1) * rows]
            assert torch.equal(tensors[f"decoder.0.attn.{site}.{kind}"], theirs)


def test_reading_needs_no_real_model_and_no_random_numbers(library: Library) -> None:
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        config = AutoConfig.for_model("bert", **GOLDEN["bases"]["bert"]["config"])
        model = AutoModel.from_config(config)
    before = torch.random.get_rng_state()
    for case in ("bert/mam", "bert/fusion"):
        found = recognise(library.saved(case)).read(library.saved(case), model)
        assert {t.device.type for t in found.tensors.values()} == {"cpu"}
    assert torch.equal(torch.random.get_rng_state(), before)


# ----------------------------------------------------------------------------------- our own


OURS = {
    "settings": dk.SequentialAdapter(bottleneck=3, scale=0.5, dropout=0.1),
    "houlsby": dk.SequentialAdapter(placement="houlsby", reduction=2.5, activation="silu"),
    "parallel": dk.ParallelAdapter(bottleneck=5, scale=2.0, initialisation="normal"),
    "compacter": dk.Compacter(n=2, bottleneck=6, rank=3, activation="relu", dropout=0.1),
    "compacter++": dk.AdapterDrop(dk.Compacter(placement="ffn", reduction=4), layers=0),
    "phm": dk.Compacter(n=4, rank=None, placement="pfeiffer", reduction=2),
    "phm by layer": dk.AdapterDrop(dk.Compacter(rank=None, bottleneck=4), layers=0)
    + dk.AdapterDrop(dk.Compacter(rank=None, bottleneck=8), layers=1),
    "compacter and another": dk.AdapterDrop(dk.Compacter(reduction=4), layers=0)
    + dk.AdapterDrop(dk.SequentialAdapter(), layers=1)
    + dk.LoRA(rank=2),
    "learned": dk.ParallelAdapter(scale=3.0, learned_scale=True, dropout=0.2),
    "lora": dk.LoRA(rank=3, alpha=5, targets=("v", "q"), dropout=0.1),
    "rslora": dk.LoRA(rank=3, rslora=True, targets=("q", "up", "down")),
    "ia3": dk.IA3(feedforward="pre_activation"),
    "ia3 elsewhere": dk.IA3(targets=("attn.q", "attn.v", "ffn.down")),
    "prefix": dk.PrefixTuning(length=2, bottleneck=3, dropout=0.1),
    "flat": dk.PrefixTuning(length=2, bottleneck=None),
    "mam": dk.MAM(length=2, prefix_bottleneck=3, bottleneck=4, scale=2.0),
    "dropped": dk.AdapterDrop(dk.LoRA(rank=2), first=1, random_up_to=1),
    "language": dk.InvertibleAdapter(activation="tanh", reduction=3)
    + dk.SequentialAdapter(activation="tanh", bottleneck=3),
    "glow": dk.InvertibleAdapter(block="glow"),
    "inverse in layers": dk.AdapterDrop(
        dk.InvertibleAdapter() + dk.LoRA(rank=2) + dk.SequentialAdapter(), layers=0
    ),
    "sum": dk.IA3(feedforward="pre_activation") + dk.SequentialAdapter(placement="houlsby"),
    "kinds": dk.AdapterDrop(dk.SequentialAdapter(), layers=0)
    + dk.AdapterDrop(dk.SequentialAdapter(placement="houlsby"), layers=1),
    "layers": dk.AdapterDrop(dk.SequentialAdapter(bottleneck=2), layers=0)
    + dk.AdapterDrop(dk.SequentialAdapter(bottleneck=3), layers=1),
}


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, name) for family in ("bert", "bart") for name in OURS]
    + [(family, name) for family in ("llama", "gpt2") for name in OURS if name != "mam"],
)
def test_ours_comes_back_bit_for_bit(
    family: str, name: str, kit: SimpleNamespace, tmp_path: Path
) -> None:
    method = OURS[name]
    if family in ("llama", "gpt2") and isinstance(method, dk.ParallelAdapter):
        method = replace(method, reads="stream")
    model, inputs = kit.make_model(family), kit.make_inputs(family)
    dk.attach(model, method, "mine")
    kit.randomise_deltas(model)
    dk.save(model, tmp_path, "mine", format="adapterhub")
    again = kit.make_model(family)
    dk.load(again, tmp_path)
    before, after = to_checkpoint(model, "mine"), to_checkpoint(again, "mine")
    assert before.parts == after.parts and after.parts[0].method == method
    assert_equal(before.tensors, after.tensors)
    assert torch.equal(kit.out(model, inputs), kit.out(again, inputs))


@pytest.mark.parametrize(
    "what", ["fused", dk.Stack("b", "a"), dk.Stack("b", "fused"), dk.Stack("fused", "a")]
)
@pytest.mark.parametrize("family", ["bert", "llama"])
def test_ours_of_several_comes_back_bit_for_bit(
    what: Any, family: str, kit: SimpleNamespace, tmp_path: Path
) -> None:
    def made() -> Any:
        return kit.make_model(family, "classify")

    model, batch = made(), kit.make_batch()
    for index, name in enumerate("ab"):
        dk.attach(model, dk.SequentialAdapter(bottleneck=index + 3, activation="gelu"), name)
    dk.attach(model, dk.AdapterFusion("a", "b", regularisation=0.1, dropout=0.2), "fused")
    kit.randomise_deltas(model)
    for name in ("a", "b", "fused"):
        dk.activate(model, name)
        kit.train_steps(model, kit.make_batch(labels=True), steps=1)
    dk.activate(model, what)
    dk.save(model, tmp_path, what, format="adapterhub")
    again = made()
    dk.load(again, tmp_path)
    before, after = to_checkpoint(model, what), to_checkpoint(again, what)
    assert (before.composition, before.tensors.keys()) == (after.composition, after.tensors.keys())
    assert {part.name: part for part in before.parts} == {part.name: part for part in after.parts}
    assert_equal(before.tensors, after.tensors)
    assert torch.equal(kit.out(model, batch), kit.out(again, batch))


def test_an_edited_config_is_what_it_says(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Our own words in the file count only where they agree with its config."""
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(rank=2, alpha=4), "a")
    dk.save(model, tmp_path, "a", format="adapterhub")
    edit(tmp_path / CONFIG, alpha=6)
    again = kit.make_model("bert")
    dk.load(again, tmp_path)
    method = again.deltakit.get("a").method
    assert (method.alpha, method.initialisation) == (6, "kaiming")


def test_a_prefix_is_stored_once(kit: SimpleNamespace, tmp_path: Path) -> None:
    """The library repeats it under a key for each layer, of one storage."""
    model = kit.make_model("bert")
    dk.attach(model, dk.PrefixTuning(length=64, bottleneck=64), "a")
    dk.save(model, tmp_path, "a", format="adapterhub")
    path = tmp_path / "pytorch_adapter.bin"
    tensors = held(path)
    assert len(tensors) == 15 and len({t.data_ptr() for t in tensors.values()}) == 5
    assert path.stat().st_size < 1.5 * 4 * sum(p.numel() for p in model.deltakit.parameters())


def test_files_of_an_earlier_delta_are_replaced(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert")
    for name, method in (("a", dk.PrefixTuning(length=2)), ("b", dk.LoRA(rank=2))):
        dk.attach(model, method, name)
        dk.save(model, tmp_path, name, format="adapterhub")
    assert sorted(path.name for path in tmp_path.iterdir()) == [WEIGHTS, CONFIG]
    again = kit.make_model("bert")
    dk.load(again, tmp_path)
    assert list(again.deltakit.attached) == ["b"]


@pytest.mark.parametrize("width", [16, 30, 768])
def test_every_width_has_a_reduction_factor(width: int) -> None:
    for m in range(1, 2 * width):
        term = Term(method=dk.SequentialAdapter(bottleneck=m))
        assert int(width // bottleneck._factor(term, width)) == m


def test_a_checkpoint_of_theirs_can_be_written_natively(library: Library, tmp_path: Path) -> None:
    model = library.model("bert/mam")
    found = recognise(library.saved("bert/mam")).read(library.saved("bert/mam"), model)
    write_checkpoint(tmp_path, found, model, "deltakit")
    dk.load(model, tmp_path)
    assert library.deviation("bert/mam", model) < 1e-5


CONVERTED = [
    "seq_bn",
    "mam",
    "compacter",
    "fusion",
    "head",
    "head_pooled",
    "head_masked_lm",
    "stack",
]


@pytest.mark.parametrize("case", CONVERTED)
def test_conversions(case: str, library: Library, tmp_path: Path, base: Any) -> None:
    """To deltakit and back with a config for a base, as on the command line."""
    model = library.model(f"bert/{case}")
    there = base(model)
    dk.convert(library.saved(f"bert/{case}"), tmp_path / "native", to="deltakit", base=there)
    dk.load(model, tmp_path / "native")
    assert library.deviation(f"bert/{case}", model) < 1e-5
    dk.convert(tmp_path / "native", tmp_path / "theirs", to="adapterhub", base=there)
    dk.convert(tmp_path / "theirs", tmp_path / "again", to="deltakit", base=there)
    assert_equal(weights(tmp_path / "native"), weights(tmp_path / "again"))
    one, other = (tmp_path / each / "delta.json" for each in ("native", "again"))
    assert one.read_text() == other.read_text()


# ------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("seq_bn", {"ln_before": True}, r"ln_before=True cannot be loaded: deltakit's bottlenecks"),
        ("seq_bn", {"ln_after": True}, "ln_after=True"),
        ("seq_bn", {"use_gating": True}, "use_gating=True .* average over padding"),
        ("seq_bn", {"original_ln_after": False}, "original_ln_after=False"),
        ("seq_bn", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ("seq_bn", {"phm_layer": True}, "phm_rule' is missing"),
        ("compacter", {"is_parallel": True}, "is_parallel=True .* is sequential"),
        ("compacter", {"scaling": 2.0}, "scaling=2.0 .* no scale"),
        ("compacter", {"shared_W_phm": True}, "shared_W_phm=True .* not the matrices"),
        ("compacter", {"factorized_phm_rule": True}, "factorized_phm_rule=True .* not a product"),
        ("compacter", {"learn_phm": False}, "learn_phm=False .* trains the rule"),
        ("compacter", {"phm_bias": False}, "phm_bias=False .* has biases"),
        ("compacter", {"shared_phm_rule": False}, "shared_phm_rule=False .* only there"),
        ("phm", {"shared_phm_rule": True}, "shared_phm_rule=True .* only there"),
        ("compacter", {"output_adapter": False}, "output_adapter=False, .* Compacter has"),
        ("compacter", {"residual_before_ln": "post_add"}, "residual_before_ln='post_add'"),
        ("compacter", {"phm_dim": 3}, "not a multiple of 3"),
        ("compacter", {"phm_dim": 4}, "describes another"),
        ("compacter", {"phm_rank": 2}, "describes another"),
        ("compacter", {"reduction_factor": {"0": 2, "1": 4}}, "one width where layers share"),
        ("compacter", {"phm_layer": "yes"}, "phm_layer='yes' .* true or false"),
        ("seq_bn", {"inv_adapter": "nice"}, "inv_adapter_reduction_factor=None .* a number"),
        ("seq_bn", {"inv_adapter": "realnvp"}, "inv_adapter='realnvp' .* nice, glow"),
        ("seq_bn_inv", {"inv_adapter": None}, "invertible_adapters.a.F.0"),
        ("seq_bn_inv", {"inv_adapter_reduction_factor": 4}, "describes another"),
        ("seq_bn_inv", {"inv_adapter_reduction_factor": 99}, "leaves no bottleneck"),
        ("seq_bn", {"stochastic_depth": 0.1}, "stochastic_depth=0.1"),
        ("seq_bn", {"scaling": "learned"}, "scaling='learned' cannot be loaded: it must be a num"),
        ("seq_bn", {"scaling": -1.0}, r"SequentialAdapter\(scale=-1.0\)"),
        ("seq_bn", {"mh_adapter": True}, "mh_adapter=True, output_adapter=True, original_ln_bef"),
        ("seq_bn", {"mh_adapter": "yes"}, "mh_adapter='yes' cannot be loaded: it must be true or"),
        ("seq_bn", {"non_linearity": "quick_gelu"}, "non_linearity='quick_gelu' .* deltakit has"),
        ("seq_bn", {"init_weights": "zero"}, "init_weights='zero' .* bert, houlsby, mam_adapter"),
        ("seq_bn", {"reduction_factor": 0}, "reduction_factor=0 .* above zero"),
        ("seq_bn", {"reduction_factor": {"0": 2}}, "reduction_factor=.* every layer needs one"),
        ("seq_bn", {"reduction_factor": 5e-324}, "reduction_factor=5e-324"),
        ("seq_bn", {"reduction_factor": 1e-17}, "does not fit this BertModel|describes another"),
        ("seq_bn", {"leave_out": [7]}, r"it says something of the layers \[7\] of 2"),
        ("seq_bn", {"leave_out": "0"}, "leave_out='0' .* a list of layers' numbers"),
        ("seq_bn", {"non_linarity": "relu"}, "'non_linarity' .* Did you mean 'non_linearity'"),
        ("seq_bn", {"architecture": "reft"}, "architecture='reft' cannot be loaded"),
        ("seq_bn", {"architecture": ["lora"]}, "architecture=.'lora'. cannot be loaded"),
        ("par_bn", {"mh_adapter": True}, "mh_adapter=True .* parallel to the feed-forward"),
        ("par_bn", {"scaling": "channel"}, "scaling='channel'"),
        ("lora_qv", {"use_dora": True}, "use_dora=True .* rescales the bias"),
        ("lora_qv", {"vera_d": 0.1}, "vera_d=0.1 .* trains its projections"),
        ("lora_qv", {"use_gating": True}, "use_gating=True"),
        ("lora_qv", {"init_weights": "bert"}, "init_weights='bert'"),
        ("lora_qv", {"attn_matrices": ["q", "o"]}, r"attn_matrices=\['q', 'o'\]"),
        ("lora_qv", {"attn_matrices": []}, "it adapts nothing"),
        ("lora_qv", {"dtype": "float16"}, "dtype='float16'"),
        ("lora_qv", {"composition_mode": "swap"}, "composition_mode='swap'"),
        ("lora_qv", {"alpha": 0}, r"LoRA\(alpha=0\)"),
        ("lora_qv", {"r": 10**30}, "does not fit this BertModel"),
        ("lora_qv", {"r": 2.5}, "r=2.5 cannot be loaded: it must be a whole number"),
        ("ia3", {"alpha": 2}, "alpha=2 .* no scale"),
        ("ia3", {"output_lora": True}, r"output.dense.loras.*lora_B' is missing"),
        ("prefix", {"use_gating": True}, "use_gating=True"),
        ("prefix", {"non_linearity": "relu"}, "non_linearity='relu' .* has a tanh"),
        ("prefix", {"prefix_length": 0}, r"PrefixTuning\(length=0\)"),
        ("mam", {"configs": []}, "a union has a list of 'configs'"),
        ("mam", {"configs": [{"architecture": "union"}]}, "architecture='union' cannot"),
        ("mam", {"version": "adapters.1.0.0", "configs": [{"architecture": "lora", "r": 2}]},
         "trained LoRA with a scale of one"),
        ("seq_bn", {"config": None}, "a config must be a JSON object"),
        ("seq_bn", {"model_type": "roberta"}, "made for a base with model_type='roberta'; this Be"),
        ("seq_bn", {"hidden_size": 768}, "hidden_size=768; this BertModel has hidden_size=16"),
        ("seq_bn", {"name": None}, "'name' must be"),
    ],
)  # fmt: skip
def test_configs_that_deltakit_has_no_counterpart_of(
    case: str,
    changes: dict[str, Any],
    message: str,
    library: Library,
    saved: Callable[[str], Path],
    kit: SimpleNamespace,
) -> None:
    folder = saved(f"bert/{case}")
    edit(folder / CONFIG, **changes)
    assert re.search(message, refused(kit, library.model(f"bert/{case}"), folder))


@pytest.mark.parametrize(
    ("case", "changes", "message"),
    [
        ("t5/double_seq_bn", {"cross_adapter": False}, "layer.1.adapters.*which belong to nothing"),
        ("t5/double_seq_bn_default", {"cross_adapter": True}, "layer.1.adapters.* is missing"),
        ("bart/seq_bn", {"cross_adapter": True}, "cross_adapter=True .* with all others"),
        ("t5/seq_bn", {"leave_out": [0]}, r"layers \[0\] of 4.* encoder and decoder alike"),
        ("bart/prefix", {"cross_prefix": False}, "cross_prefix.*which belong to nothing"),
        ("llama/ia3", {"intermediate_lora": True}, "down_proj.loras.*lora_B' is missing"),
    ],
)
def test_configs_that_no_other_model_has(
    case: str,
    changes: dict[str, Any],
    message: str,
    library: Library,
    saved: Callable[[str], Path],
    kit: SimpleNamespace,
) -> None:
    folder = saved(case)
    edit(folder / CONFIG, **changes)
    assert re.search(message, refused(kit, library.model(case), folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query_before_ln": True}, "query_before_ln=True"),
        ({"temperature": True}, "temperature=True .* no temperature"),
        ({"residual_before": True}, "residual_before=True"),
        ({"value_initialized": False}, "value_initialized=False"),
        ({"dropout_prob": "0.1"}, "dropout_prob='0.1' cannot be loaded: it must be a number"),
        ({"key": False}, "key=False"),
        ({"kee": True}, "has a key 'kee'"),
        ({"adapter_names": ["b", "a"]}, "is not a fusion of a, b as adapter_setup.json says"),
        ({"adapter_names": "a"}, "'adapter_names' must be a list"),
        ({"dropout_prob": 1.5}, r"AdapterFusion\(dropout=1.5\)"),
    ],
)
def test_fusions_that_deltakit_has_no_counterpart_of(
    changes: dict[str, Any],
    message: str,
    library: Library,
    saved: Callable[[str], Path],
    kit: SimpleNamespace,
) -> None:
    folder = saved("bert/fusion")
    edit(folder / "a,b" / "adapter_fusion_config.json", **changes)
    assert re.search(message, refused(kit, library.model("bert/fusion"), folder))


FIRST = "encoder.layer.0.output.adapters.a.adapter_down.0.weight"


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("seq_bn", lambda t: t.pop(FIRST), "adapter_down.0.weight' is missing. Did you mean"),
        ("seq_bn", lambda t: t.update(extra=torch.ones(1)), "holds 'extra', which belong to noth"),
        ("seq_bn", lambda t: t.update({FIRST.replace("0", "7", 1): t.pop(FIRST)}), "is missing"),
        ("seq_bn", lambda t: t.update({FIRST: t[FIRST].T.contiguous()}), r"has shape \(16, 4\)"),
        ("seq_bn", lambda t: t.update({FIRST: t[FIRST][:2].contiguous()}), "describes another"),
        ("seq_bn", lambda t: t[FIRST].fill_(torch.nan), "not finite"),
        ("seq_bn", lambda t: t.update({FIRST: t[FIRST].half()}), "several dtypes"),
        ("seq_bn", lambda t: t.update({f"bert.{FIRST}": t[FIRST].clone()}), "two of its tensors"),
        ("ia3", lambda t: t.update({k: v.repeat(1, 2) for k, v in t.items()}), "has shape"),
        ("prefix", lambda t: t.update({k: t[k] + 1 for k in list(t)[:1]}), "must repeat .* differ"),
        ("prefix_flat", lambda t: t.update({k: v[:-1] for k, v in t.items()}), "has shape"),
    ],
)
def test_tensors_that_do_not_fit(
    case: str,
    change: Callable[[dict[str, Tensor]], Any],
    message: str,
    library: Library,
    saved: Callable[[str], Path],
    kit: SimpleNamespace,
) -> None:
    folder = saved(f"bert/{case}")
    edit_tensors(folder, change)
    assert re.search(message, refused(kit, library.model(f"bert/{case}"), folder))


def test_files_that_are_wrong(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (open, (str(trace), "w"))

    model, folder = library.model("bert/prefix"), saved("bert/prefix")
    trace = folder / "trace"
    torch.save({"x": Evil()}, folder / "pytorch_adapter.bin")
    assert "nothing in it was run" in refused(kit, model, folder) and not trace.exists()
    save_file({"x": torch.ones(1)}, folder / WEIGHTS)
    assert "holds both adapter.safetensors and pytorch_adapter.bin" in refused(kit, model, folder)
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_adapter.bin").unlink()
    assert "has no weights" in refused(kit, model, folder)
    (folder / CONFIG).write_text('{"config": {}, "model_type": "bert", "peft_type": "LORA"}')
    assert "has no weights: none of adapter_model" in refused(kit, model, folder)  # PEFT's now
    (folder / CONFIG).write_text("{")
    assert "is not JSON" in refused(kit, model, folder)


def test_a_model_type_without_a_layout(library: Library, kit: SimpleNamespace) -> None:
    message = refused(kit, kit.make_model("opt"), library.saved("bert/seq_bn"))
    assert "in a model of type 'opt' is not known to deltakit. It is for bart, bert," in message


def block(kind: str, *children: Any, **more: Any) -> dict[str, Any]:
    inner = [{"type": "single", "children": [c]} if isinstance(c, str) else c for c in children]
    return {"type": kind, "children": inner, **more}


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (block("Average", "a", "b", kwargs={"weights": [0.5, 0.5]}), "Average .* divides by the"),
        (block("Parallel", "a", "b"), "Parallel cannot be loaded: deltakit has PerRow"),
        (block("BatchSplit", "a", "b", kwargs={"batch_sizes": [1, 1]}), "BatchSplit cannot be"),
        (block("Stack", block("Average", "a", "b"), "a"), "Average cannot be loaded"),
        (block("Fuse", block("Stack", "a", "b"), "c"), "stacks of adapters and of fusions"),
        (block("Stack", "../a", "b"), "'../a' is not the name of a file in this folder"),
        (block("Stack", "/a"), "'/a' is not the name of a file"),
        (block("Stack", ".."), r"'..' is not the name of a file"),
        (block("Fuse", "a", "..\\b"), "is not the name of a file in this folder"),
        (block("Stack", "a", "missing"), "missing.*adapter_config.json is missing"),
        (block("Stack", "a,b"), "adapter_config.json is missing"),
        (block("Stack", "a", colour="red"), "is neither a stack nor a fusion"),
        (block("Stack"), "is neither a stack nor a fusion"),
        ("a", "is neither a stack nor a fusion"),
        (None, "is neither a stack nor a fusion"),
    ],
)
def test_setups_that_deltakit_has_no_counterpart_of(
    setup: Any, message: str, library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    folder = saved("bert/stack_of_fusion")
    edit(folder / "adapter_setup.json", adapter_setup=setup)
    assert re.search(message, refused(kit, library.model("bert/fusion"), folder))


def test_setups_whose_members_do_not_go_together(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    model, folder = library.model("bert/stack"), saved("bert/stack")

    def put(case: str) -> None:
        shutil.rmtree(folder / "b")
        shutil.copytree(library.saved(f"bert/{case}"), folder / "b")
        edit(folder / "b" / CONFIG, name="b")
        edit_tensors(
            folder / "b",
            lambda t: t.update({k.replace(".a.", ".b."): t.pop(k) for k in list(t)}),
        )

    put("double_seq_bn")
    assert "different placements (houlsby, pfeiffer)" in refused(kit, model, folder)
    for case in ("lora_qv", "par_bn"):
        put(case)
        assert "stack and fuse sequential adapters of one" in refused(kit, model, folder)
    put("seq_bn")
    edit(folder / "adapter_setup.json", head_setup={"type": "Parallel"})
    assert "head_setup={'type': 'Parallel'} cannot be loaded" in refused(kit, model, folder)
    edit(folder / "adapter_setup.json", adapter_setup=block("Stack", "a", "c"))
    (folder / "b").rename(folder / "c")
    assert "holds 'b', not 'c'" in refused(kit, model, folder)


def test_a_head_that_is_not_there(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    folder = saved("bert/head_of_fusion")
    edit(folder / "adapter_setup.json", head_setup=True)
    message = refused(kit, library.model("bert/head_of_fusion"), folder)
    assert "says that there is a head in" in message


def test_a_model_that_attends_across(library: Library, kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", is_decoder=True, add_cross_attention=True)
    message = refused(kit, model, library.saved("bert/seq_bn"))
    assert "attends across (add_cross_attention)" in message


def test_names_that_deltakit_does_not_have(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    folder = saved("bert/seq_bn")
    edit(folder / CONFIG, name="sst 2@ukp")
    edit_tensors(
        folder, lambda t: t.update({k.replace(".a.", ".sst 2@ukp."): t.pop(k) for k in list(t)})
    )
    model = library.model("bert/seq_bn")
    dk.load(model, folder)
    assert list(model.deltakit.attached) == ["sst-2-ukp"]
    twice = saved("bert/fusion_alone")
    edit(twice / "fused" / "adapter_fusion_config.json", adapter_names=["a", "a"])
    again = library.model("bert/fusion_alone")
    assert "two of its deltas are called 'a'" in refused(kit, again, twice / "fused")


def test_configs_of_the_first_versions(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    """Only configs of tasks named invertible adapters that they did not have."""
    folder, model = saved("bert/seq_bn_old"), library.model("bert/seq_bn_old")
    edit(folder / CONFIG, type="text_lang")
    assert "'invertible_adapters.a.F.0.weight' is missing" in refused(kit, model, folder)
    edit(folder / CONFIG, type="text_task", non_linearity=["gelu"])
    assert "non_linearity=['gelu'] cannot be loaded" in refused(kit, model, folder)
    edit(folder / CONFIG, non_linearity="gelu_orig")
    dk.load(model, folder)
    assert model.deltakit.get("a").method.activation == "gelu"
    lora = saved("bert/lora_qv")
    for version, alpha in {"1.0.9": 2, "1.1.0.dev0": 2, "1.1.0": 6, "1.10.0": 6}.items():
        edit(lora / CONFIG, version=f"adapters.{version}")
        fresh = library.model("bert/lora_qv")
        dk.load(fresh, lora)
        assert fresh.deltakit.get("a").method.alpha == alpha


def test_a_fusion_without_its_members(
    library: Library, saved: Callable[[str], Path], kit: SimpleNamespace
) -> None:
    folder = saved("bert/fusion_alone")
    (folder / "b").rename(folder / "elsewhere")
    model = library.model("bert/fusion_alone")
    message = refused(kit, model, folder / "fused")
    assert "without its member 'b'" in message and "save_adapter_setup" in message
    (folder / "elsewhere").rename(folder / "fused" / "b")
    dk.load(model, folder / "fused")
    edit(folder / "fused" / "b" / CONFIG, leave_out=[0])
    edit_tensors(
        folder / "fused" / "b", lambda t: [t.pop(key) for key in list(t) if "layer.0" in key]
    )
    again = library.model("bert/fusion_alone")
    assert "its member 'b' leaves some out" in refused(kit, again, folder / "fused")


TWO_PREFIXES = dk.AdapterDrop(dk.PrefixTuning(length=2), layers=0) + dk.AdapterDrop(
    dk.PrefixTuning(length=3), layers=1
)


TWO_RULES = dk.AdapterDrop(dk.Compacter(reduction=4), layers=0) + dk.AdapterDrop(
    dk.Compacter(reduction=2), layers=1
)
TWO_KINDS = dk.AdapterDrop(dk.Compacter(reduction=4), layers=0) + dk.AdapterDrop(
    dk.Compacter(reduction=4, rank=None), layers=1
)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("bert", dk.SequentialAdapter(bias=False), "bias=False"),
        ("bert", dk.SequentialAdapter(train_norms=True), "own for the base's .*LayerNorm"),
        ("bert", dk.LoRA(targets="o"), "LoRA at 'attn.o' has no words"),
        ("bert", dk.LoRA(targets="all"), "LoRA at 'attn.o' has no words"),
        ("llama", dk.LoRA(targets="gate"), "LoRA at 'ffn.gate' has no words"),
        ("bert", dk.IA3(), r"train IA3\(feedforward='pre_activation'\)"),
        ("llama", dk.ParallelAdapter(), "reads='input'.*reads the stream before the norm"),
        ("llama", dk.MAM(), "reads='input'"),
        ("bert", dk.BitFit(), "BitFit has no words in AdapterHub's format"),
        ("bert", dk.PromptTuning(), "PromptTuning has no words"),
        ("t5", dk.PrefixTuning(), "in this T5.* positions='counted'"),
        ("bert", dk.PrefixTuning(positions="shifted"), "in this Bert.* positions='kept'"),
        (
            "t5",
            dk.AdapterDrop(dk.PrefixTuning(positions="counted"), layers=0),
            "loses the relative positions",
        ),
        (
            "bert",
            dk.SequentialAdapter() + dk.ParallelAdapter(),
            "one place for Sequential.* and Para",
        ),
        ("bert", dk.SequentialAdapter() + dk.SequentialAdapter(bottleneck=3), "puts two there"),
        ("bert", TWO_RULES, "has one shared rule in a delta, and this sum has 2"),
        ("bert", TWO_KINDS, "one place for Compacter.* and Compacter"),
        ("bert", dk.Compacter(reduction=4, train_norms=True), "own for the base's .*LayerNorm"),
        ("bert", dk.Gated(dk.LoRA()), "Gated has no words in AdapterHub's format"),
        (
            "bert",
            dk.InvertibleAdapter(activation="tanh") + dk.SequentialAdapter(),
            "one nonlinearity for both",
        ),
        ("vit", dk.InvertibleAdapter(), "no invertible adapters in a ViT"),
        ("opt", dk.LoRA(), "in a model of type 'opt' is not known"),
        ("bert", dk.LoRA() + dk.IA3(feedforward="pre_activation"), "one place for LoRA.* and IA3"),
        ("bert", dk.LoRA(targets="q") + dk.LoRA(targets="v"), "one place for LoRA.* and LoRA"),
        ("bert", TWO_PREFIXES, "one place for PrefixTuning"),
    ],
)
def test_methods_that_the_library_has_no_words_for(
    family: str, method: dk.Method, message: str, kit: SimpleNamespace, tmp_path: Path
) -> None:
    model = kit.make_model(family)
    dk.attach(model, method)
    with pytest.raises(CheckpointError, match=message) as caught:
        dk.save(model, tmp_path / "new", format="adapterhub")
    assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_compositions_that_the_library_computes_otherwise(
    kit: SimpleNamespace, tmp_path: Path
) -> None:
    model = kit.make_model("bert")
    methods = {
        "a": dk.SequentialAdapter(),
        "b": dk.SequentialAdapter(),
        "lora": dk.LoRA(),
        "double": dk.SequentialAdapter(placement="houlsby"),
        "keys": dk.SequentialAdapter(),
        "parallel": dk.ParallelAdapter(),
        "language": dk.InvertibleAdapter() + dk.SequentialAdapter(),
        "also": dk.ParallelAdapter(),
    }
    for name, method in methods.items():
        dk.attach(model, method, name)
    dk.attach(model, dk.AdapterFusion("parallel", "also"), "fused")
    dk.attach(model, dk.AdapterFusion("a", "b"), "one")
    dk.attach(model, dk.AdapterFusion("a", "b"), "two")
    dk.attach(model, dk.AdapterFusion("a"), "single")
    for what, message in {
        dk.Mean("a", "b"): "has no words in AdapterHub's format that its library computes alike",
        dk.Stack("a", dk.Stack("b")): "has no words",
        dk.Stack("a", "language"): "'language' is Sum",
        dk.Stack("a", "lora"): "'lora' is LoRA",
        dk.Stack("a", "double"): "different placements",
        One("keys"): "cannot call an adapter 'keys'",
        One("fused"): "'parallel' is ParallelAdapter",
        dk.Stack("one", "two"): "one folder 'a,b' for two deltas",
        One("single"): "one folder 'a' for two deltas",
    }.items():
        with pytest.raises(CheckpointError, match=message):
            dk.save(model, tmp_path / "new", what, format="adapterhub")
        assert not (tmp_path / "new").exists()


def test_a_folder_is_not_shared_with_another_format(kit: SimpleNamespace, tmp_path: Path) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA())
    dk.save(model, tmp_path)
    with pytest.raises(CheckpointError, match="holds a delta of deltakit"):
        dk.save(model, tmp_path, format="adapterhub")


def test_the_sites_of_the_layouts_are_those_of_the_families(kit: SimpleNamespace) -> None:
    """Each stack of a layout is one of the model's, and its modules are where it says."""
    for family in ("bert", "distilbert", "llama", "gpt2", "t5", "bart"):
        model = kit.make_model(family)
        host = host_of(model)
        assert set(host.depths) == set(host.layout.stacks)
        for stack, place in host.layout.stacks.items():
            assert len(model.get_submodule(place.layers)) == host.depths[stack]
        assert {Site.FFN_UP, Site.FFN_DOWN} == {host.layout.intermediate, host.layout.output}
