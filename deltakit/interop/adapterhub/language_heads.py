"""Language-modelling heads of the library that are the heads of transformers' classes.

The last layer of the library's head has the embeddings' table as its weight where the model ties
them, and files repeat the table. It belongs to the base, so a file's must be equal to the base's.
The library's causal head has a bias, which the heads of some classes have not: it is read where it
is zero.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deltakit.interop.adapterhub.layout import Host


@dataclass(frozen=True, kw_only=True)
class LanguageHead:
    """A language-modelling head of the library that is the head of a class.

    Attributes:
        kinds: what its config may have as "head_type"; the layers of these are equal.
        output: path of the layer that gives the logits.
        bias: that layer's bias, by the model's name for it; None where it has none.
        dense: path of a layer in front of it.
        norm: path of the norm between them.
        activation: the config's key for the activation in front of the norm.
    """

    kinds: tuple[str, ...]
    output: str
    bias: str | None = None
    dense: str | None = None
    norm: str | None = None
    activation: str = "hidden_act"

    def fits(self, config: Mapping[str, Any], host: Host) -> bool:
        """True if a config describes this head."""
        mine = self.config(host, {})
        kind = config.get("head_type")
        alike = {"layers": mine["layers"], "shift_labels": kind == "causal_lm"}
        if self.dense is not None:
            named = ("activation_function", "layer_norm", "bias", "embedding_size")
            alike |= {key: mine[key] for key in named}
        return kind in self.kinds and alike.items() <= config.items()

    def config(self, host: Host, labels: Mapping[str, Any]) -> dict[str, Any]:
        """Its config, which has no labels."""
        del labels
        settings, deep = host.config, self.dense is not None
        return {
            "head_type": self.kinds[0],
            "vocab_size": settings.vocab_size,
            "embedding_size": settings.to_dict().get("embedding_size", host.width),
            "layers": 2 if deep else 1,
            "activation_function": getattr(settings, self.activation) if deep else None,
            "layer_norm": deep,
            "bias": self.bias is not None,
            "shift_labels": self.kinds[0] == "causal_lm",
            "label2id": None,
        }

    def keys(self, stem: str, host: Host) -> dict[str, str]:
        """The model's parameters by the library's keys, which begin with `stem`."""
        last = 0 if self.dense is None else 3
        found = {f"{stem}.{last}.bias": self.bias} if self.bias is not None else {}
        if not _tied(host):
            found[f"{stem}.{last}.weight"] = f"{self.output}.weight"
        for index, layer in {0: self.dense, 2: self.norm}.items():
            if layer is not None:
                found |= {f"{stem}.{index}.{kind}": f"{layer}.{kind}" for kind in _KINDS}
        return found

    def spare(self, tensors: Mapping[str, Tensor], stem: str, host: Host) -> set[str]:
        """The keys of what the base has already: its own table, and a bias of zeros."""
        last = f"{stem}.{0 if self.dense is None else 3}"
        table, bias = tensors.get(f"{last}.weight"), tensors.get(f"{last}.bias")
        found = set()
        if table is not None and _tied(host) and _is_table(table, host):
            found.add(f"{last}.weight")
        if bias is not None and self.bias is None and not bias.any():
            found.add(f"{last}.bias")
        return found


_KINDS = ("weight", "bias")


def _tied(host: Host) -> bool:
    output = host.model.get_output_embeddings()
    return output is not None and output.weight is host.model.get_input_embeddings().weight


def _is_table(tensor: Tensor, host: Host) -> bool:
    """Whether a tensor is the base's table; a base without values has any table of that shape."""
    table: Any = host.model.get_input_embeddings().weight
    if tensor.shape != table.shape or table.is_meta:
        return tensor.shape == table.shape
    return torch.equal(tensor.to(table.dtype), table.detach().cpu())


def _deep(kind: str, stem: str, output: str, bias: str, **more: str) -> LanguageHead:
    given = {"dense": f"{stem}dense", "norm": f"{stem}LayerNorm", **more}
    return LanguageHead(kinds=(kind,), output=output, bias=bias, **given)


def _bert(kind: str) -> LanguageHead:
    output, bias = "cls.predictions.decoder", "cls.predictions.bias"
    return _deep(kind, "cls.predictions.transform.", output, bias)


def _roberta(kind: str) -> LanguageHead:
    return _deep(kind, "lm_head.", "lm_head.decoder", "lm_head.bias", norm="lm_head.layer_norm")


def _flat(kind: str) -> tuple[LanguageHead, ...]:
    return (LanguageHead(kinds=(kind,), output="lm_head"),)


LANGUAGE_HEADS: dict[str, tuple[LanguageHead, ...]] = {
    "BertForMaskedLM": (_bert("masked_lm"),),
    "BertLMHeadModel": (_bert("causal_lm"),),
    "DebertaV2ForMaskedLM": (_bert("masked_lm"),),
    "RobertaForMaskedLM": (_roberta("masked_lm"),),
    "RobertaForCausalLM": (_roberta("causal_lm"),),
    "XLMRobertaForMaskedLM": (_roberta("masked_lm"),),
    "XLMRobertaForCausalLM": (_roberta("causal_lm"),),
    "ElectraForMaskedLM": (
        _deep("masked_lm", "generator_predictions.", "generator_lm_head", "generator_lm_head.bias"),
    ),
    "DistilBertForMaskedLM": (
        _deep(
            "masked_lm",
            "",
            "vocab_projector",
            "vocab_projector.bias",
            dense="vocab_transform",
            norm="vocab_layer_norm",
            activation="activation",
        ),
    ),
    "GPT2LMHeadModel": _flat("causal_lm"),
    "LlamaForCausalLM": _flat("causal_lm"),
    "MistralForCausalLM": _flat("causal_lm"),
    "T5ForConditionalGeneration": _flat("seq2seq_lm"),
    "BartForConditionalGeneration": _flat("seq2seq_lm"),
}
"""By the class: the library's head that is its own."""
