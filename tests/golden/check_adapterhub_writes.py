"""Check that the library ``adapters`` reads what deltakit writes: all of it, with equal outputs.

The two libraries need different versions of transformers, so it takes two environments::

    python tests/golden/check_adapterhub_writes.py write FOLDER     # where deltakit is installed
    python tests/golden/check_adapterhub_writes.py check FOLDER     # where adapters==1.3.0 is

The second prints the largest deviation of each method on each model type, and fails where a key is
missing or left over, or an output differs by more than 1e-5.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import torch

LIMIT = 1e-5
FAMILIES = (
    "bert",
    "roberta",
    "electra",
    "distilbert",
    "deberta-v2",
    "llama",
    "mistral",
    "gpt2",
    "t5",
    "bart",
    "vit",
)
PRE_LN = ("llama", "mistral", "gpt2", "t5", "vit")
ENCODER_DECODERS = ("t5", "bart")
MASKED = ("llama", "mistral", "gpt2")
"""Where the library computes something else for padding, which is left out of the comparison."""
T5_BODY = ("transformer.shared", "transformer.encoder", "transformer.decoder")
"""What the library takes for the head of T5ForSequenceClassification, beside the head."""
SETUPS = ("fusion", "stack", "stack of fusion", "stack on fusion")


def output(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        found = model(**inputs)
    return found.logits if "logits" in found else found.last_hidden_state


# ------------------------------------------------------------------------------------- writing


def methods(family: str) -> dict[str, Any]:
    """By its name in the table, what is saved."""
    import deltakit as dk

    reads = {"reads": "stream"} if family in PRE_LN else {}
    projections = ("q", "k", "v", "up", "down")
    found: dict[str, Any] = {
        "pfeiffer": dk.SequentialAdapter(reduction=4),
        "pfeiffer, width 3": dk.SequentialAdapter(bottleneck=3, activation="gelu", scale=0.5),
        "pfeiffer, by layer": dk.AdapterDrop(dk.SequentialAdapter(bottleneck=5), layers=0)
        + dk.AdapterDrop(dk.SequentialAdapter(bottleneck=2), layers=1),
        "houlsby": dk.SequentialAdapter(placement="houlsby", reduction=4),
        "compacter": dk.Compacter(n=2, reduction=2, cross_attention=True),
        "compacter++": dk.Compacter(n=4, rank=2, placement="ffn", reduction=2),
        "compacter++, Pfeiffer's place": dk.AdapterDrop(
            dk.Compacter(placement="pfeiffer", reduction=4), layers=0
        ),
        "PHM": dk.Compacter(n=4, rank=None, reduction=4),
        "parallel": dk.ParallelAdapter(reduction=4, **reads),
        "parallel, learned": dk.ParallelAdapter(reduction=4, learned_scale=True, **reads),
        "LoRA": dk.LoRA(rank=3, alpha=5),
        "LoRA, all": dk.LoRA(rank=3, rslora=True, targets=projections),
        "LoRA + pfeiffer": dk.LoRA(rank=2) + dk.AdapterDrop(dk.SequentialAdapter(), layers=1),
        "pfeiffer + houlsby": dk.AdapterDrop(dk.SequentialAdapter(), layers=0)
        + dk.AdapterDrop(dk.SequentialAdapter(placement="houlsby"), layers=1),
        "(IA)3": dk.IA3(feedforward="pre_activation"),
        "(IA)3, targets": dk.IA3(targets=("attn.q", "attn.v", "ffn.down")),
    }
    if family in ENCODER_DECODERS:
        houlsby = dk.SequentialAdapter(placement="houlsby", reduction=4)
        found["houlsby, not across"] = dk.AdapterDrop(houlsby, stacks="cross")
    if family != "vit":
        bottleneck = dk.SequentialAdapter(reduction=4)
        found["invertible"] = dk.InvertibleAdapter(reduction=3)
        found["invertible + pfeiffer"] = dk.InvertibleAdapter() + bottleneck
    positions: Any = {"positions": "counted"} if family == "t5" else {}
    found["prefix"] = dk.PrefixTuning(length=3, bottleneck=5, **positions)
    found["prefix, flat"] = dk.PrefixTuning(length=3, bottleneck=None, **positions)
    if family in ENCODER_DECODERS:
        decoder = dk.AdapterDrop(found["prefix"], stacks=("encoder", "cross"))
        found["prefix, decoder alone"] = decoder
    if family != "t5":
        found["prefix, by layer"] = dk.AdapterDrop(dk.PrefixTuning(length=3), layers=0)
    if family not in PRE_LN:
        found["MAM"] = dk.MAM(length=3, prefix_bottleneck=5, bottleneck=4)
    return {**found, **dict.fromkeys(SETUPS), "head": None}


def attached(model: Any, name: str, method: Any) -> Any:
    """Attaches what is saved; the name or composition that says so."""
    import deltakit as dk

    if name not in SETUPS:
        dk.attach(model, method or dk.SequentialAdapter(reduction=4), "a")
        return "a"
    for index, each in enumerate("abc"):
        dk.attach(model, dk.SequentialAdapter(bottleneck=index + 2), each)
    if "fusion" in name:
        dk.attach(model, dk.AdapterFusion("a", "b"), "fused")
    return {
        "fusion": "fused",
        "stack": dk.Stack("c", "a"),
        "stack of fusion": dk.Stack("c", "fused"),
        "stack on fusion": dk.Stack("fused", "c"),
    }[name]


def randomise_head(model: Any) -> None:
    from deltakit.inject.base_names import head_names

    for key in head_names(model):
        model.get_parameter(key).data.normal_(0, 0.3)


def former(key: str, family: str) -> str:
    """A parameter of a ViT by its name in the library's transformers."""
    from deltakit.interop.adapterhub.layout import LAYOUTS

    found = re.fullmatch(r"(.*\b|)layers\.(\d+)\.(.+)\.(\w+)", key)
    if family != "vit" or found is None:
        return key
    start, layer, module, last = found.groups()
    module = LAYOUTS[family].modules.get(module, module)
    return f"{start}encoder.layer.{layer}.{module}.{last}"


def write(folder: Path) -> None:
    import deltakit as dk
    from deltakit.testing.models import CONFIGS, make_inputs, make_model
    from deltakit.testing.probes import randomise_deltas

    for family in FAMILIES:
        for name, method in methods(family).items():
            kind = "classify" if name == "head" else "bare"
            model, inputs = make_model(family, kind), make_inputs(family, kind)
            state = model.state_dict().items()
            base = {former(key, family): tensor.clone() for key, tensor in state}
            plain = output(model, inputs)
            what = attached(model, name, method)
            randomise_deltas(model)
            dk.activate(model, what)
            if name == "head":
                randomise_head(model)
            found = output(model, inputs)
            if (found - plain).abs().max() < 0.05:
                raise RuntimeError(f"{family}: {name} has no visible effect")
            at = folder / family / name
            dk.save(model, at / "saved", what, format="adapterhub")
            torch.save(
                {
                    "class": type(model).__name__,
                    "config": CONFIGS[family] | ({"num_labels": 3} if kind == "classify" else {}),
                    "base": base,
                    "inputs": inputs,
                    "output": found,
                },
                at / "expected.pt",
            )


# ------------------------------------------------------------------------------------ checking


def fresh(family: str, expected: dict[str, Any]) -> Any:
    import adapters
    import transformers

    config = transformers.AutoConfig.for_model(family, **expected["config"])
    config._attn_implementation = "eager"
    model = getattr(transformers, expected["class"])(config)
    model.load_state_dict(expected["base"])
    adapters.init(model)
    return model.eval()


def load(model: Any, folder: Path) -> None:
    """Loads a folder, and fails where a key is missing or left over."""
    from adapters.loading import AdapterFusionLoader

    setup = (folder / "adapter_setup.json").exists()
    if setup:
        model.load_adapter_setup(str(folder), set_active=True, use_safetensors=True)
    for child in sorted(p for p in folder.iterdir() if p.is_dir()) if setup else [folder]:
        info: dict[str, list[str]] = {}
        if (child / "adapter_fusion_config.json").exists():
            AdapterFusionLoader(model, use_safetensors=True).load(str(child), loading_info=info)
        else:
            model.load_adapter(str(child), loading_info=info, use_safetensors=True)
        missing = [key for key in info["missing_keys"] if not key.startswith(T5_BODY)]
        if missing or info["unexpected_keys"]:
            raise RuntimeError(f"{child}: {info}")
    if not setup:
        model.set_active_adapters("a")


def check(folder: Path) -> None:
    worst: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*/*/expected.pt")):
        family, name = path.parts[-3:-1]
        expected = torch.load(path, weights_only=True)
        model = fresh(family, expected)
        load(model, path.parent / "saved")
        difference = (output(model.eval(), expected["inputs"]) - expected["output"]).abs()
        if family in MASKED and difference.ndim == 3:
            difference = difference * expected["inputs"]["attention_mask"].unsqueeze(-1)
        worst.setdefault(name, {})[family] = float(difference.max())
    print(json.dumps({"limit": LIMIT, "deviations": worst}, indent=1))
    print("| |" + "|".join(FAMILIES) + "|")
    for name, row in worst.items():
        cells = (f"{row[family]:.0e}" if family in row else "-" for family in FAMILIES)
        print(f"|{name}|" + "|".join(cells) + "|")
    if max(value for row in worst.values() for value in row.values()) > LIMIT:
        raise SystemExit(f"an output differs by more than {LIMIT}")


if __name__ == "__main__":
    {"write": write, "check": check}[sys.argv[1]](Path(sys.argv[2]))
