"""Write golden values of UniPELT and Compacter, computed by ``adapters`` on a tiny random BERT.

Run it in a separate virtual environment; the test suite itself only reads what it writes::

    pip install adapters==1.3.0 torch==2.13.0 safetensors
    python tests/golden/make_unipelt_golden.py

It writes ``adapters_unipelt.safetensors``: ``input_ids`` (3 rows of 7 tokens, no padding, because
``adapters`` averages UniPELT's gates over padding too), ``base.<key>`` for the model, and for each
case ``<case>.state.<key>`` for the adapter's tensors and ``<case>.output`` for the last hidden
state.
"""

import zlib
from pathlib import Path

import adapters
import torch
from adapters import (
    CompacterConfig,
    CompacterPlusPlusConfig,
    LoRAConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    UniPELTConfig,
)
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

HERE = Path(__file__).resolve().parent
CONFIG = BertConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=32,
    max_position_embeddings=40,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    attn_implementation="eager",
)
CASES = {
    "unipelt": UniPELTConfig(
        PrefixTuningConfig(prefix_length=3, flat=True, use_gating=True),
        SeqBnConfig(reduction_factor=4, use_gating=True),
        LoRAConfig(r=2, alpha=2, use_gating=True),
    ),
    "compacter": CompacterConfig(reduction_factor=4, phm_dim=2),
    "compacterpp": CompacterPlusPlusConfig(reduction_factor=4, phm_dim=2),
}


@torch.no_grad()
def randomise(model: torch.nn.Module, names: set[str], label: str) -> None:
    draw = torch.Generator().manual_seed(zlib.crc32(label.encode()))
    for name, parameter in model.named_parameters():
        if name in names:
            centre = 1.0 if "LayerNorm.weight" in name else 0.0
            parameter.copy_(centre + 0.3 * torch.randn(parameter.shape, generator=draw))


def main() -> None:
    model = BertModel(CONFIG, add_pooling_layer=False).eval()
    plain = {name for name, _ in model.named_parameters()}
    randomise(model, plain, "base")
    tensors = {f"base.{key}": tensor.clone() for key, tensor in model.state_dict().items()}
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 64, (3, 7), generator=draw)
    tensors["input_ids"] = ids
    adapters.init(model)
    for case, config in CASES.items():
        before = {name for name, _ in model.named_parameters()}
        model.add_adapter("a", config=config)
        names = {name for name, _ in model.named_parameters()} - before
        randomise(model, names, case)
        model.set_active_adapters("a")
        with torch.no_grad():
            tensors[f"{case}.output"] = model(input_ids=ids).last_hidden_state.clone()
        state = dict(model.named_parameters())
        for name in names:
            tensors[f"{case}.state.{name}"] = state[name].detach().clone()
        model.delete_adapter("a")
    save_file(tensors, HERE / "adapters_unipelt.safetensors")


if __name__ == "__main__":
    main()
