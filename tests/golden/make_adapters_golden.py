"""Write golden values computed by the library ``adapters`` (AdapterHub) on tiny random models.

Run it in a separate virtual environment; the test suite itself only reads what it writes::

    pip install adapters==1.3.0 torch==2.13.0 safetensors
    python tests/golden/make_adapters_golden.py

It writes, beside itself, ``adapters_bert.safetensors``, ``adapters_roberta.safetensors`` and
``adapters_golden.json``.  The values are reproducible: every tensor is drawn from a generator
seeded by the name of its case.

Keys of the safetensors files (all tensors float32, the two inputs int64):

``input_ids``, ``attention_mask``
    the batch, 3 rows of length 9, padded on the right
``output``
    ``last_hidden_state`` of the plain model, without any adapter
``base.<key>``
    the plain transformers model; ``<key>`` is its ``state_dict`` key (bare model, no prefix)
``<case>.state.<key>``
    adapter or fusion tensor; ``<key>`` is the ``state_dict`` key used by ``adapters`` (bare model,
    no prefix).  The copies of the prefix tensors that ``adapters`` repeats below every layer
    (``...prefix_tuning.pool...``) are left out.
``<case>.output``
    ``last_hidden_state`` with the adapters of the case active, in eval mode
``<case>.attention.<layer>.<site>``
    fusion cases only: softmax weights (row, token, adapter), adapters in the order of the JSON;
    ``<site>`` is ``mh_adapter`` (after attention) or ``output_adapter`` (after the feed-forward)

Names of cases contain no dot.  The JSON file has ``versions``, ``attn_implementation``, ``bases``
(base name -> arguments of its config) and ``cases``: for each case its ``composition`` (``single``,
``stack`` or ``fuse``), ``adapters`` (name -> config, in order), ``fusion`` (config or null),
``fusion_name`` (or null) and ``skip_layers``.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    AdapterConfig,
    ConfigUnion,
    DoubleSeqBnConfig,
    IA3Config,
    LoRAConfig,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
)
from adapters.composition import Fuse, Stack
from safetensors.torch import save_file
from transformers import BertConfig, BertModel, PreTrainedModel, RobertaConfig, RobertaModel

HERE = Path(__file__).resolve().parent
ATTENTION = "eager"
CONFIG_ARGS: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
BASES: dict[str, tuple[type, type]] = {
    "bert": (BertConfig, BertModel),
    "roberta": (RobertaConfig, RobertaModel),
}
ROW_LENGTHS = (9, 6, 4)
State = dict[str, torch.Tensor]


@dataclass
class Case:
    """One adapted model: its adapters in order, and how they are put together."""

    adapters: dict[str, AdapterConfig | ConfigUnion]
    composition: str = "single"
    fusion: str | None = None
    skip_layers: list[int] = field(default_factory=list)


def seq_bn(reduction_factor: int = 4) -> SeqBnConfig:
    return SeqBnConfig(reduction_factor=reduction_factor, non_linearity="relu")


def double_seq_bn(reduction_factor: int = 4) -> DoubleSeqBnConfig:
    return DoubleSeqBnConfig(reduction_factor=reduction_factor, non_linearity="swish")


def par_bn(scaling: float | str = 4.0) -> ParBnConfig:
    return ParBnConfig(reduction_factor=4, non_linearity="relu", scaling=scaling)


def lora_everywhere() -> LoRAConfig:
    return LoRAConfig(
        r=4, alpha=8, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True
    )


def prefix(flat: bool = False) -> PrefixTuningConfig:
    return PrefixTuningConfig(flat=flat, prefix_length=5, bottleneck_size=8)


CASES: dict[str, Case] = {
    "seq_bn": Case({"a": seq_bn()}),
    "double_seq_bn": Case({"a": double_seq_bn()}),
    "par_bn": Case({"a": par_bn()}),
    "scaled_par_bn": Case({"a": par_bn("learned")}),
    "lora_qv": Case({"a": LoRAConfig(r=4, alpha=8, attn_matrices=["q", "v"])}),
    "lora_all": Case({"a": lora_everywhere()}),
    "ia3": Case({"a": IA3Config()}),
    "fusion_dynamic": Case({"a": seq_bn(4), "b": seq_bn(8), "c": seq_bn(2)}, "fuse", "dynamic"),
    "fusion_double": Case({"a": double_seq_bn(4), "b": double_seq_bn(8)}, "fuse", "dynamic"),
    "fusion_static": Case({"a": seq_bn(4), "b": seq_bn(8)}, "fuse", "static"),
    "prefix_tuning": Case({"a": prefix()}),
    "prefix_tuning_flat": Case({"a": prefix(flat=True)}),
    "mam": Case({"a": ConfigUnion(prefix(), par_bn())}),
    "seq_bn_drop0": Case({"a": seq_bn()}, skip_layers=[0]),
    "stack": Case({"a": seq_bn(4), "b": seq_bn(8)}, "stack"),
}


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


@torch.no_grad()
def randomise(tensors: State, name: str) -> None:
    """Fill ``tensors`` in place.

    Multipliers (LayerNorm weights, IA3 vectors, learned scalings) are drawn around 1 and all the
    rest around 0, the standard deviation being 0.2; prefix tensors get 0.5, for a visible effect.
    """
    draw = generator(name)
    for key in sorted(tensors):
        tensor = tensors[key]
        std = 0.5 if "prefix_tunings." in key else 0.2
        multiplier = key.endswith(("LayerNorm.weight", ".scaling")) or (
            name.startswith("ia3") and key.endswith("lora_B")
        )
        tensor.normal_(1.0 if multiplier else 0.0, std, generator=draw)


def plain_model(base: str) -> PreTrainedModel:
    config_class, model_class = BASES[base]
    model = model_class(config_class(attn_implementation=ATTENTION, **CONFIG_ARGS)).eval()
    randomise(model.state_dict(), f"base/{base}")
    return model


def batch(pad_token_id: int) -> State:
    mask = torch.zeros(len(ROW_LENGTHS), max(ROW_LENGTHS), dtype=torch.int64)
    for row, length in enumerate(ROW_LENGTHS):
        mask[row, :length] = 1
    # Identifiers below 5 are special in one base or the other.
    ids = torch.randint(5, CONFIG_ARGS["vocab_size"], mask.shape, generator=generator("batch"))
    return {"input_ids": ids.masked_fill(mask == 0, pad_token_id), "attention_mask": mask}


def run_case(base: str, name: str, case: Case, inputs: State) -> tuple[State, dict[str, Any]]:
    """Return the tensors of one case (keys without the case name) and its JSON description."""
    model = plain_model(base)
    adapters.init(model)
    known = set(model.state_dict())
    for adapter, config in case.adapters.items():
        model.add_adapter(adapter, config=config)
    setup: Any = next(iter(case.adapters))
    fusion, fusion_name = None, None
    if case.composition == "fuse":
        setup = Fuse(*case.adapters)
        model.add_adapter_fusion(setup, config=case.fusion)
        fusion_name = setup.name
        fusion = model.adapters_config.get_fusion(fusion_name)[0].to_dict()
    elif case.composition == "stack":
        setup = Stack(*case.adapters)
    model.set_active_adapters(setup, skip_layers=case.skip_layers or None)
    model.eval()

    added = {
        key: tensor
        for key, tensor in model.state_dict().items()
        if key not in known and ".prefix_tuning.pool." not in key
    }
    randomise(added, f"{name}/{base}")
    with torch.no_grad():
        result = model(**inputs, output_adapter_fusion_attentions=fusion is not None)
    tensors = {f"state.{key}": tensor for key, tensor in added.items()}
    tensors["output"] = result.last_hidden_state
    if fusion is not None:
        for layer, sites in result.adapter_fusion_attentions[fusion_name].items():
            for site, weights in sites.items():
                tensors[f"attention.{layer}.{site}"] = torch.from_numpy(weights)
    description = {
        "composition": case.composition,
        "adapters": {key: model.adapters_config.get(key).to_dict() for key in case.adapters},
        "fusion": fusion,
        "fusion_name": fusion_name,
        "skip_layers": case.skip_layers,
    }
    return tensors, description


def main() -> None:
    torch.set_num_threads(1)
    descriptions: dict[str, Any] = {}
    for base in BASES:
        model = plain_model(base)
        inputs = batch(model.config.pad_token_id)
        with torch.no_grad():
            output = model(**inputs).last_hidden_state
        tensors = {**inputs, "output": output}
        tensors |= {f"base.{key}": value for key, value in model.state_dict().items()}
        for name, case in CASES.items():
            found, descriptions[name] = run_case(base, name, case, inputs)
            if (found["output"] - output).abs().max() < 0.05:
                raise RuntimeError(f"{base}: the adapters of case {name} have no visible effect")
            tensors |= {f"{name}.{key}": value for key, value in found.items()}
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, HERE / f"adapters_{base}.safetensors")

    golden = {
        "versions": {
            "adapters": adapters.__version__,
            "torch": torch.__version__.split("+")[0],
            "transformers": transformers.__version__,
        },
        "attn_implementation": ATTENTION,
        "bases": dict.fromkeys(BASES, CONFIG_ARGS),
        "cases": descriptions,
    }
    text = json.dumps(golden, indent=2) + "\n"
    (HERE / "adapters_golden.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
