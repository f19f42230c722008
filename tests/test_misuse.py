"""Ten misuses: each says in one line what is wrong, what there is and what to do; nothing changes.

The whole sentence is compared, so that a change of wording is a change that somebody looks at.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import deltakit as dk
from deltakit.errors import (
    CheckpointError,
    DeltakitError,
    IncompatibleDeltas,
    InvalidConfig,
    NotMergeable,
    SiteNotFound,
    UnknownName,
)


def refuses(
    kit: SimpleNamespace,
    model: Any,
    misuse: Callable[[], Any],
    error: type[DeltakitError],
    message: str,
    family: str = "bert",
) -> None:
    """The misuse raises exactly this, and the model is what it was, in values and in outputs."""
    batch = kit.make_inputs(family)
    before, deltas, expected = kit.snapshot(model), record(model), kit.out(model, batch)
    attention = model.config._attn_implementation
    with pytest.raises(error) as caught:
        misuse()
    assert str(caught.value) == message
    assert "\n" not in message
    assert type(caught.value) is error
    kit.assert_same(before, kit.snapshot(model))
    assert record(model) == deltas
    assert model.config._attn_implementation == attention
    assert torch.equal(kit.out(model, batch), expected)


def record(model: Any) -> Any:
    """What is attached and what of it is active."""
    attachments = model._modules.get("deltakit")
    return attachments and (
        list(attachments.attached),
        attachments.active,
        attachments.trained,
        attachments.dropped,
    )


@pytest.fixture
def saved(kit: SimpleNamespace, tmp_path: Path) -> Path:
    """A LoRA of a tiny BERT, on disk."""
    model = kit.make_model("bert")
    dk.attach(model, dk.LoRA(rank=2), name="mine")
    dk.save(model, tmp_path, name="mine")
    return tmp_path


def occupied(kit: SimpleNamespace, family: str = "bert", **config: Any) -> Any:
    """A model that has a delta already, which must survive."""
    model = kit.make_model(family, **config)
    dk.attach(model, dk.SequentialAdapter(bottleneck=3), name="other")
    kit.randomise_deltas(model)
    return model


def test_incompatible_members_of_a_fusion(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    dk.attach(model, dk.SequentialAdapter(bottleneck=3), name="imdb")
    dk.attach(model, dk.SequentialAdapter(placement="houlsby", bottleneck=3), name="news")
    refuses(
        kit,
        model,
        lambda: dk.attach(model, dk.AdapterFusion("imdb", "news"), name="fused"),
        IncompatibleDeltas,
        "AdapterFusion needs members at the same sites, but 'imdb' and 'news' differ at "
        "'encoder.0.attn.out'. Fuse deltas of one placement.",
    )


def test_prefixes_are_no_members_of_a_fusion(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert")
    for name in ("imdb", "news"):
        dk.attach(model, dk.PrefixTuning(length=2, bottleneck=None), name=name)
    refuses(
        kit,
        model,
        lambda: dk.attach(model, dk.AdapterFusion("imdb", "news"), name="fused"),
        IncompatibleDeltas,
        "AdapterFusion weighs changes, and those at 'encoder.0.attn.kv' are positions of a "
        "sequence, which cannot be weighed. Members with 'attn.kv' cannot be fused.",
    )


@pytest.mark.parametrize("method", [dk.PrefixTuning(), dk.MAM(), dk.LoRA() + dk.PrefixTuning()])
@pytest.mark.parametrize("family", ["bloom", "mpnet"])
def test_a_prefix_where_attention_has_no_hooks(
    kit: SimpleNamespace, family: str, method: dk.Method
) -> None:
    for model in (kit.make_model(family), occupied(kit, family)):
        refuses(
            kit,
            model,
            lambda model=model: dk.attach(model, method, name="prefix"),
            SiteNotFound,
            "this model has no site 'attn.kv': its attention does not call transformers' attention "
            "interface. It has: attn.k, attn.mid, attn.o, attn.out, attn.q, attn.v, block.out, "
            "embed, embed.out, ffn.down, ffn.mid, ffn.out, ffn.up, tokens. Take a method whose "
            "sites are among these.",
            family,
        )


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (
            dk.LoRA() + dk.SequentialAdapter(placement="houlsby"),
            "Bottleneck at 'encoder.0.attn.out' does not fold into a weight: it is not a linear "
            "change of one linear projection. Activate without it, then merge.",
        ),
        (
            dk.LoRA() + dk.PrefixTuning(length=2, bottleneck=None),
            "Prefix at 'encoder.0.attn.kv' does not fold into a weight; only a sum of linear "
            "changes of a linear projection does, such as LoRA's. Activate without it, then merge.",
        ),
    ],
    ids=["adapter", "prefix"],
)
def test_merging_a_sum_with_a_part_that_does_not_merge(
    kit: SimpleNamespace, method: dk.Method, message: str
) -> None:
    model = kit.make_model("bert")
    dk.attach(model, method)
    kit.randomise_deltas(model)
    refuses(kit, model, lambda: dk.merge(model), NotMergeable, message)


@pytest.mark.parametrize("wrap", [str, dk.Stack, dk.Mean, lambda name: dk.PerRow([name, None])])
def test_activating_an_unknown_name(kit: SimpleNamespace, wrap: Callable[[str], Any]) -> None:
    model = occupied(kit)
    refuses(
        kit,
        model,
        lambda: dk.activate(model, wrap("othr")),
        UnknownName,
        "unknown delta 'othr'. Did you mean 'other'? Known: other. `attach` or `load` it first.",
    )


@pytest.mark.parametrize("make", ["make_model", "occupied"])
def test_a_checkpoint_for_another_architecture(
    kit: SimpleNamespace, saved: Path, make: str
) -> None:
    model = occupied(kit, "roberta") if make == "occupied" else kit.make_model("roberta")
    refuses(
        kit,
        model,
        lambda: dk.load(model, saved),
        CheckpointError,
        f"{saved} was made on a base with model_type='bert'; this RobertaModel has "
        "model_type='roberta'. Load it on a model like its own.",
        "roberta",
    )


@pytest.mark.parametrize(
    ("config", "theirs", "here"),
    [
        ({"hidden_size": 24}, "encoder width=16", "encoder width=24"),
        ({"num_hidden_layers": 3}, "encoder layers=2", "encoder layers=3"),
    ],
    ids=["width", "depth"],
)
def test_a_checkpoint_for_other_dimensions(
    kit: SimpleNamespace, saved: Path, config: dict[str, int], theirs: str, here: str
) -> None:
    model = occupied(kit, **config)
    refuses(
        kit,
        model,
        lambda: dk.load(model, saved),
        CheckpointError,
        f"{saved} was made on a base with {theirs}; this BertModel has {here}. Load it on a model "
        "like its own.",
    )


def test_a_checkpoint_with_a_renamed_tensor(kit: SimpleNamespace, saved: Path) -> None:
    path = saved / "delta.safetensors"
    tensors = load_file(path)
    key = "mine/encoder.1.attn.v.lora_B"
    save_file({**{k: t for k, t in tensors.items() if k != key}, f"{key}2": tensors[key]}, path)
    config = json.loads((saved / "delta.json").read_text())
    config["weights"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (saved / "delta.json").write_text(json.dumps(config))
    model = occupied(kit)
    refuses(
        kit,
        model,
        lambda: dk.load(model, saved),
        CheckpointError,
        f"{saved} does not fit this model: missing 'encoder.1.attn.v.lora_B', left over "
        "'encoder.1.attn.v.lora_B2'. Copy the files again, as `save` wrote them.",
    )


def test_a_checkpoint_with_a_truncated_file(kit: SimpleNamespace, saved: Path) -> None:
    path = saved / "delta.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    model = occupied(kit)
    refuses(
        kit,
        model,
        lambda: dk.load(model, saved),
        CheckpointError,
        f"{path} is not the file that its delta.json was written for (its SHA-256 differs): it was "
        "cut short or replaced. Copy both files again.",
    )


@pytest.mark.parametrize(
    "method",
    [dk.LoRA(rank=2), dk.SequentialAdapter(bottleneck=3), dk.IA3(),
     dk.PrefixTuning(length=2, bottleneck=None)],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
@pytest.mark.parametrize("rows", [1, 3])
def test_per_row_of_the_wrong_length(kit: SimpleNamespace, method: dk.Method, rows: int) -> None:
    model, two = kit.make_model("bert"), kit.make_batch(2)
    dk.attach(model, method, name="mine")
    kit.randomise_deltas(model)
    dk.activate(model, dk.PerRow(["mine", None]))
    before, expected = kit.snapshot(model), kit.out(model, two)
    message = (
        f"PerRow has entries for 2 rows, but the batch has {rows}. "
        "Activate a PerRow with one entry for each row of this batch."
    )
    with pytest.raises(IncompatibleDeltas, match=f"^{re.escape(message)}$"):
        kit.out(model, kit.make_batch(rows))
    kit.assert_same(before, kit.snapshot(model))
    assert torch.equal(kit.out(model, two), expected)


@pytest.mark.parametrize(
    ("fields", "layer"), [({"first": 3}, 2), ({"layers": [0, 7]}, 7), ({"layers": [-1]}, -1)]
)
def test_dropping_a_layer_that_does_not_exist(
    kit: SimpleNamespace, fields: dict[str, Any], layer: int
) -> None:
    model = occupied(kit)
    dk.drop(model, layers=[1])
    message = f"layer {layer} cannot be dropped: this model has layers 0 to 1. Name some of those."
    refuses(kit, model, lambda: dk.drop(model, **fields), InvalidConfig, message)
    if layer < 0:
        return
    refuses(
        kit,
        model,
        lambda: dk.attach(model, dk.AdapterDrop(**fields), name="specialised"),
        InvalidConfig,
        message,
    )
