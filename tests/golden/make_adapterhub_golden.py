"""Write golden folders of the library ``adapters`` (AdapterHub) and what its models return.

Run it in a separate virtual environment; the test suite itself only reads what it writes::

    pip install adapters==1.3.0 torch==2.13.0 safetensors
    python tests/golden/make_adapterhub_golden.py

It writes ``adapterhub.zip`` beside itself.  The values are reproducible: every tensor is drawn from
a generator seeded by the name of its case.  In the archive:

``golden.json``
    ``versions``; ``bases``: for each model type the arguments of its config and the base whose
    tensors it has (``like``); ``cases``: for each model type and case the name of the model's class
``bases/<base>.safetensors``
    the state dict of the plain, bare model
``heads/<model type>.safetensors``
    the language-modelling head of that model type, by transformers' names of its tensors
``inputs.safetensors``, ``outputs.safetensors``
    the batch (``decoder_input_ids`` for encoder-decoders alone); for each ``<model type>/<case>``
    the logits of a model with a head, else ``last_hidden_state``, in eval mode with eager attention
``<model type>/<case>/``
    the folder, as ``save_adapter``, ``save_adapter_fusion`` or ``save_adapter_setup`` wrote it (or
    as an older version would have, where a case edits it)

Each output is that of a fresh model which has loaded the folder.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    AdapterConfig,
    CompacterConfig,
    CompacterPlusPlusConfig,
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

HERE = Path(__file__).resolve().parent
State = dict[str, torch.Tensor]
Edit = Callable[[Path], None]

_BERT = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "pad_token_id": 0,
}
_LLAMA = {
    "vocab_size": 24,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 12,
    "pad_token_id": 0,
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _BERT),
    "roberta": ("bert", _BERT),
    "xlm-roberta": ("bert", _BERT),
    "electra": ("bert", {**_BERT, "embedding_size": 16}),
    "distilbert": (
        "distilbert",
        {
            "vocab_size": 24,
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 20,
            "max_position_embeddings": 12,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "seq_classif_dropout": 0.0,
        },
    ),
    "llama": ("llama", _LLAMA),
    "mistral": ("llama", _LLAMA),
    "gpt2": (
        "gpt2",
        {
            "vocab_size": 24,
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_inner": 20,
            "n_positions": 12,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
            "pad_token_id": 0,
        },
    ),
    "t5": (
        "t5",
        {
            "vocab_size": 24,
            "d_model": 16,
            "d_kv": 4,
            "num_heads": 2,
            "d_ff": 20,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "relative_attention_num_buckets": 4,
            "dropout_rate": 0.0,
            "feed_forward_proj": "gated-gelu",
            "pad_token_id": 0,
        },
    ),
    "bart": (
        "bart",
        {
            "vocab_size": 24,
            "d_model": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 20,
            "decoder_ffn_dim": 20,
            "max_position_embeddings": 12,
            "dropout": 0.0,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "pad_token_id": 0,
        },
    ),
}
BASES["deberta-v2"] = (
    "deberta-v2",
    {
        **{key: value for key, value in _BERT.items() if key != "pad_token_id"},
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "pad_token_id": 0,
    },
)
BASES["vit"] = (
    "vit",
    {
        **{key: _BERT[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")},
        "intermediate_size": 20,
        "image_size": 4,
        "patch_size": 2,
        "num_channels": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
)
ENCODER_DECODERS = ("t5", "bart")
BATCH = ("input_ids", "attention_mask")


@dataclass(kw_only=True)
class Case:
    """One folder: what is added to a model, how it is saved, and what an older version had in it.

    ``setup`` is what is active; None stands for the one adapter.  ``fusions`` are added in order.
    ``how`` is "adapter", "fusion" (its members beside it) or "setup".  ``writers`` are flexible
    language-modelling heads, which are saved with the adapter.  ``language`` gives the model
    a language-modelling head, which is not saved with the adapter.  ``runs`` is false where the
    library itself fails on every input: its GLOW takes the axis of tokens for that of vectors.
    """

    adapters: dict[str, AdapterConfig | ConfigUnion]
    setup: Any = None
    fusions: tuple[tuple[list[str], Any], ...] = ()
    how: str = "adapter"
    safetensors: bool = True
    model: str | None = None
    heads: dict[str, dict[str, Any]] | None = None
    taggers: dict[str, dict[str, Any]] | None = None
    images: dict[str, dict[str, Any]] | None = None
    answers: dict[str, dict[str, Any]] | None = None
    writers: dict[str, dict[str, Any]] | None = None
    language: bool = False
    runs: bool = True
    edit: Edit | None = None


# ------------------------------------------------------------------------------------- the cases


def seq_bn(reduction_factor: Any = 4, **more: Any) -> SeqBnConfig:
    return SeqBnConfig(reduction_factor=reduction_factor, **more)


def double(reduction_factor: Any = 4, **more: Any) -> DoubleSeqBnConfig:
    return DoubleSeqBnConfig(reduction_factor=reduction_factor, **more)


def par_bn(**more: Any) -> ParBnConfig:
    return ParBnConfig(reduction_factor=4, **more)


def lora(**more: Any) -> LoRAConfig:
    return LoRAConfig(**{"r": 2, "alpha": 6, **more})


def lora_all(**more: Any) -> LoRAConfig:
    return lora(attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True, **more)


def prefix(**more: Any) -> PrefixTuningConfig:
    return PrefixTuningConfig(**{"prefix_length": 3, "bottleneck_size": 5, **more})


def inverse(config: Any = seq_bn, block: str = "nice", factor: float = 2, **more: Any) -> Any:
    return config(inv_adapter=block, inv_adapter_reduction_factor=factor, **more)


def compacter(config: Any = CompacterConfig, **more: Any) -> Any:
    return config(**{"reduction_factor": 2, "phm_dim": 2, **more})


def language(model: str, *configs: Any) -> Case:
    """Adapters under a language-modelling head, in a stack where there are several."""
    names = dict(zip("ab", configs, strict=False))
    setup = Stack(*names) if len(names) > 1 else None
    return Case(
        adapters=names,
        model=model,
        language=True,
        setup=setup,
        how="setup" if setup else "adapter",
    )


def language_of_version_1(folder: Path) -> None:
    """A language's adapter as the first versions wrote it."""
    path = folder / "pytorch_adapter.bin"
    weights = torch.load(path, weights_only=True)
    renames = (
        ("output.adapters.", "output.layer_text_lang_adapters."),
        ("invertible_adapters.", "invertible_lang_adapters."),
    )
    for rename in renames:
        weights = {key.replace(*rename): tensor for key, tensor in weights.items()}
    torch.save(weights, path)
    config = json.loads((folder / "adapter_config.json").read_text())["config"]
    config["invertible_adapter"] = {
        "block_type": config.pop("inv_adapter"),
        "non_linearity": "relu",
        "reduction_factor": config.pop("inv_adapter_reduction_factor"),
    }
    edited(version=None, type="text_lang", config=config)(folder)


def edited(**changes: Any) -> Edit:
    """Changes top-level keys of the adapter's config; None takes one away."""

    def edit(folder: Path) -> None:
        path = folder / "adapter_config.json"
        config = {**json.loads(path.read_text()), **changes}
        config = {key: value for key, value in config.items() if value is not None}
        path.write_text(json.dumps(config, indent=2, sort_keys=True))

    return edit


def made_by_version_1(folder: Path) -> None:
    """The keys of the weights as they were, a type, no version, and a config with fewer keys."""
    path = folder / "pytorch_adapter.bin"
    weights = torch.load(path, weights_only=True)
    rename = ("output.adapters.", "output.layer_text_task_adapters.")
    torch.save({key.replace(*rename): tensor for key, tensor in weights.items()}, path)
    kept = ("mh_adapter", "output_adapter", "ln_before", "ln_after", "original_ln_before")
    kept = (*kept, "original_ln_after", "residual_before_ln", "non_linearity", "reduction_factor")
    config = json.loads((folder / "adapter_config.json").read_text())["config"]
    config = {key: config[key] for key in (*kept, "adapter_residual_before_ln")}
    config["invertible_adapter"] = {
        "block_type": "nice",
        "non_linearity": "relu",
        "reduction_factor": 2,
    }
    edited(version=None, type="text_task", config=config)(folder)


def across() -> dict[str, Case]:
    """Prefixes of some stacks of an encoder-decoder."""
    return {
        "prefix_not_across": Case(adapters={"a": prefix(cross_prefix=False)}, safetensors=False),
        "prefix_of_decoder": Case(
            adapters={"a": prefix(encoder_prefix=False, flat=True)}, safetensors=False
        ),
        "prefix_of_decoder_alone": Case(
            adapters={"a": prefix(encoder_prefix=False, cross_prefix=False)}, safetensors=False
        ),
    }


def shared(model: str, config: Any) -> Case:
    """Adapters with a rule in common: in a bare model's file, the library leaves that rule out."""
    return Case(adapters={"a": config}, safetensors=False, model=f"{model}AdapterModel")


def common(model: str, crosses: bool = False, invertible: bool = True) -> dict[str, Case]:
    """What every family has."""
    plus = compacter(CompacterPlusPlusConfig)
    return {
        **({"seq_bn_inv": Case(adapters={"a": inverse()})} if invertible else {}),
        "seq_bn": Case(adapters={"a": seq_bn()}),
        "double_seq_bn": Case(adapters={"a": double(cross_adapter=crosses)}),
        **({"double_seq_bn_default": Case(adapters={"a": double()})} if crosses else {}),
        "compacter": shared(model, compacter(cross_adapter=crosses)),
        "compacter++": shared(model, plus),
        "par_bn": Case(adapters={"a": par_bn()}),
        "scaled_par_bn": Case(adapters={"a": par_bn(scaling="learned", non_linearity="tanh")}),
        "lora_qv": Case(adapters={"a": lora()}),
        "lora_all": Case(adapters={"a": lora_all()}),
        "ia3": Case(adapters={"a": IA3Config()}),
        "prefix": Case(adapters={"a": prefix()}, safetensors=False),
        "prefix_flat": Case(adapters={"a": prefix(flat=True)}, safetensors=False),
        **(across() if crosses else {}),
        "mam": Case(adapters={"a": ConfigUnion(prefix(), par_bn())}, safetensors=False),
    }


def classifier(model: str, **head: Any) -> Case:
    """A model with a flexible head; "ab" is another one, which its filter also catches."""
    heads = {"a": {"num_labels": 3, **head}, "ab": {"num_labels": 2}}
    return Case(adapters={"a": seq_bn()}, model=model, heads=heads)


def tagger(model: str, **head: Any) -> Case:
    """A model with a flexible head for tokens: dropout and one linear layer."""
    return Case(adapters={"a": seq_bn()}, model=model, taggers={"a": {"num_labels": 3, **head}})


def writer(model: str, **head: Any) -> Case:
    """A model with a flexible language-modelling head."""
    return Case(adapters={"a": seq_bn()}, model=model, writers={"a": head})


def phm(**more: Any) -> Any:
    """PHM adapters: full rank, and a rule for each projection."""
    return compacter(phm_dim=4, factorized_phm_W=False, shared_phm_rule=False, **more)


def bert() -> dict[str, Case]:
    several = {"a": seq_bn(4), "b": seq_bn(8), "c": seq_bn(2)}
    by_layer = {"0": 2, "default": 8}
    return {
        **common("Bert"),
        "seq_bn_bin": Case(
            adapters={"a": seq_bn(non_linearity="gelu", scaling=0.5, dropout=0.1)},
            safetensors=False,
        ),
        "seq_bn_by_layer": Case(adapters={"a": seq_bn(by_layer, non_linearity="leakyrelu")}),
        "seq_bn_leave_out": Case(adapters={"a": seq_bn(leave_out=[0])}),
        "seq_bn_wide": Case(adapters={"a": seq_bn(99.5, init_weights="houlsby")}),
        "seq_bn_old": Case(
            adapters={"a": seq_bn(non_linearity="gelu")},
            safetensors=False,
            edit=made_by_version_1,
        ),
        "compacter_settings": shared(
            "Bert", compacter(phm_dim=4, phm_rank=2, non_linearity="gelu_new", leave_out=[0])
        ),
        "compacter_ffn": shared("Bert", compacter(mh_adapter=False)),
        "compacter_inv": shared("Bert", inverse(compacter, factor=3)),
        "phm": Case(adapters={"a": phm()}),
        "compacter_union": shared(
            "Bert",
            ConfigUnion(
                lora(), seq_bn(leave_out=[1]), compacter(CompacterPlusPlusConfig, leave_out=[0])
            ),
        ),
        "head_masked_lm": writer("BertAdapterModel"),
        "head_causal_lm": writer("BertAdapterModel", causal=True),
        "lora_leave_out": Case(adapters={"a": lora(leave_out=[1], attn_matrices=["k"])}),
        "lora_old": Case(adapters={"a": lora()}, edit=edited(version="adapters.1.0.1")),
        "prefix_leave_out": Case(adapters={"a": prefix(leave_out=[0])}, safetensors=False),
        "prefix_flat_leave_out": Case(
            adapters={"a": prefix(flat=True, leave_out=[0])}, safetensors=False
        ),
        "union": Case(adapters={"a": ConfigUnion(lora(), seq_bn(leave_out=[1]))}),
        "fusion": Case(
            adapters=several,
            setup=Fuse("a", "b"),
            fusions=((["a", "b"], "dynamic"), (["a", "b", "c"], "dynamic")),
            how="setup",
        ),
        "fusion_alone": Case(
            adapters={"a": seq_bn(4), "b": seq_bn(8)},
            setup=Fuse("a", "b"),
            fusions=((["a", "b"], "static"),),
            how="fusion",
            safetensors=False,
        ),
        "fusion_double": Case(
            adapters={"a": double(4), "b": double(8)},
            setup=Fuse("a", "b"),
            fusions=((["a", "b"], "dynamic"),),
            how="setup",
        ),
        "stack": Case(
            adapters={"a": seq_bn(4), "b": seq_bn(8)}, setup=Stack("a", "b"), how="setup"
        ),
        "stack_of_fusion": Case(
            adapters=several,
            setup=Stack("c", Fuse("a", "b")),
            fusions=((["a", "b"], "dynamic"),),
            how="setup",
        ),
        "double_seq_bn_inv": Case(adapters={"a": inverse(double, factor=3)}, safetensors=False),
        "seq_bn_glow": Case(adapters={"a": inverse(block="glow")}, runs=False),
        "inv_alone": Case(adapters={"a": inverse(mh_adapter=False, output_adapter=False)}),
        "seq_bn_inv_old": Case(
            adapters={"a": inverse(non_linearity="relu")},
            safetensors=False,
            edit=language_of_version_1,
        ),
        "lm_inv": language("BertAdapterModel", inverse()),
        "lm_inv_under_task": language("BertAdapterModel", inverse(), seq_bn(8)),
        "head": Case(adapters={"a": seq_bn()}, model="BertForSequenceClassification"),
        "head_pooled": classifier("BertAdapterModel", layers=1, use_pooler=True),
        "head_default": classifier("BertAdapterModel"),
        "head_deep": classifier("BertAdapterModel", layers=3),
        "head_tagging": tagger("BertAdapterModel"),
        "head_qa": Case(
            adapters={"a": seq_bn()}, model="BertAdapterModel", answers={"a": {"layers": 1}}
        ),
        "head_of_fusion": Case(
            adapters={"a": seq_bn(4), "b": seq_bn(8)},
            setup=Fuse("a", "b"),
            fusions=((["a", "b"], "dynamic"),),
            how="setup",
            model="BertForSequenceClassification",
        ),
    }


CASES: dict[str, dict[str, Case]] = {
    "bert": bert(),
    "roberta": {
        **common("Roberta"),
        "lm_inv": language("RobertaAdapterModel", inverse()),
        "head_flexible": classifier("RobertaAdapterModel"),
        "head_masked_lm": writer("RobertaAdapterModel"),
        "head_causal_lm": writer("RobertaAdapterModel", causal=True),
        "head_tagging": tagger("RobertaAdapterModel"),
    },
    "xlm-roberta": {
        **common("XLMRoberta"),
        "lm_inv": language("XLMRobertaAdapterModel", inverse()),
        "head_flexible": classifier("XLMRobertaAdapterModel"),
        "head_masked_lm": writer("XLMRobertaAdapterModel"),
    },
    "electra": {
        **common("Electra"),
        "head_flexible": classifier("ElectraAdapterModel", activation_function="gelu"),
        "head_masked_lm": writer("ElectraAdapterModel"),
        "head_tagging": tagger("ElectraAdapterModel"),
    },
    "distilbert": {
        **common("DistilBert"),
        "head_flexible": classifier("DistilBertAdapterModel", activation_function="relu"),
        "head_masked_lm": writer("DistilBertAdapterModel"),
    },
    "llama": {
        **common("Llama"),
        "ia3": Case(adapters={"a": IA3Config(intermediate_lora=False, output_lora=True)}),
        "ia3_default": Case(adapters={"a": IA3Config()}),
        "lm_inv": language("LlamaAdapterModel", inverse()),
        "head": Case(adapters={"a": seq_bn()}, model="LlamaForSequenceClassification"),
        "head_causal_lm": writer("LlamaAdapterModel", causal=True, layers=1),
    },
    "mistral": {
        **common("Mistral"),
        "head_causal_lm": writer("MistralAdapterModel", causal=True, layers=1),
    },
    "gpt2": {
        **common("GPT2"),
        "head_causal_lm": writer("GPT2AdapterModel", causal=True, layers=1),
        "head_causal_lm_deep": writer("GPT2AdapterModel", causal=True),
        "lm_inv": language("GPT2AdapterModel", inverse()),
        "lora_kv": Case(adapters={"a": lora(attn_matrices=["v", "k"], output_lora=True)}),
    },
    "t5": {
        **common("T5", crosses=True),
        "seq_bn_leave_out": Case(adapters={"a": seq_bn(leave_out=[0, 2])}),
        "lm_inv": language("T5AdapterModel", inverse()),
        "head_seq2seq_lm": writer("T5AdapterModel", seq2seq=True),
    },
    "bart": {
        **common("Bart", crosses=True),
        "prefix_leave_out": Case(adapters={"a": prefix(leave_out=[1, 3])}, safetensors=False),
        "lm_inv": language("BartAdapterModel", inverse()),
        "head_seq2seq_lm": writer("BartAdapterModel", seq2seq=True),
    },
    "deberta-v2": {
        **common("DebertaV2"),
        "head_flexible": classifier("DebertaV2AdapterModel", activation_function="gelu"),
        "head_masked_lm": writer("DebertaV2AdapterModel"),
        "head_tagging": tagger("DebertaV2AdapterModel"),
    },
    "vit": {
        **common("ViT", invertible=False),
        "head_flexible": Case(
            adapters={"a": seq_bn()},
            model="ViTAdapterModel",
            images={"a": {"num_labels": 3, "layers": 1}},
        ),
    },
}


# ------------------------------------------------------------------------------------ the models


def generator(name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(name.encode()))


@torch.no_grad()
def randomise(tensors: State, name: str) -> None:
    """Fill ``tensors`` in place: multipliers around 1, the rest around 0, sigma 0.2 (prefixes 0.5).

    Values are rounded to bfloat16, which makes the archive smaller.
    """
    draw = generator(name)
    for key in sorted(tensors):
        tensor = tensors[key]
        if not tensor.is_floating_point():
            continue
        norm = "norm" in key.lower() or ".ln_" in f".{key}"
        vector = "ia3" in name and key.endswith("lora_B")
        around = (
            1.0 if (norm and key.endswith("weight")) or key.endswith("scaling") or vector else 0
        )
        tensor.normal_(around, 0.5 if "prefix_tunings." in key else 0.2, generator=draw)
        tensor.copy_(tensor.bfloat16())


def plain_state(model_type: str) -> State:
    """The tensors of the base, those of shared parameters once."""
    model = bare(model_type)
    state = dict(model.named_parameters())
    randomise(state, f"base/{model_type}")
    return {key: tensor.detach().clone() for key, tensor in state.items()}


def bare(model_type: str) -> Any:
    config = transformers.AutoConfig.for_model(model_type, **BASES[model_type][1])
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


LANGUAGE_MODELS: dict[str, tuple[str, str, dict[str, str]]] = {
    "bert": (
        "BertForMaskedLM",
        "add_masked_lm_head",
        {
            "0": "cls.predictions.transform.dense",
            "2": "cls.predictions.transform.LayerNorm",
            "3": "cls.predictions.decoder",
        },
    ),
    **{
        model_type: (
            kind,
            "add_masked_lm_head",
            {"0": "lm_head.dense", "2": "lm_head.layer_norm", "3": "lm_head.decoder"},
        )
        for model_type, kind in {
            "roberta": "RobertaForMaskedLM",
            "xlm-roberta": "XLMRobertaForMaskedLM",
        }.items()
    },
    "gpt2": ("GPT2LMHeadModel", "add_causal_lm_head", {"0": "lm_head"}),
    "llama": ("LlamaForCausalLM", "add_causal_lm_head", {"0": "lm_head"}),
    "t5": ("T5ForConditionalGeneration", "add_seq2seq_lm_head", {"0": "lm_head"}),
    "bart": ("BartForConditionalGeneration", "add_seq2seq_lm_head", {"0": "lm_head"}),
}
"""By model type: transformers' class, how the library adds a head like its, and what its parts are
called there."""
LANGUAGE_HEADS: dict[str, State] = {}
WRITERS: dict[tuple[str, str], str] = {
    **{(key, "masked"): kind for key, (kind, add, _) in LANGUAGE_MODELS.items() if "mask" in add},
    **{(key, "causal"): kind for key, (kind, add, _) in LANGUAGE_MODELS.items() if "causal" in add},
    **{(key, "seq2seq"): kind for key, (kind, add, _) in LANGUAGE_MODELS.items() if "seq2" in add},
    ("bert", "causal"): "BertLMHeadModel",
    ("roberta", "causal"): "RobertaForCausalLM",
    ("mistral", "causal"): "MistralForCausalLM",
    ("electra", "masked"): "ElectraForMaskedLM",
    ("distilbert", "masked"): "DistilBertForMaskedLM",
    ("deberta-v2", "masked"): "DebertaV2ForMaskedLM",
}
"""By model type and kind of flexible head: transformers' class."""


def add_language_head(model: Any, model_type: str) -> None:
    """A head with random tensors, which are the same each time; they are kept to be written."""
    _, add, paths = LANGUAGE_MODELS[model_type]
    causal = add == "add_causal_lm_head"
    getattr(model, add)("lm", **({"layers": 1} if causal else {}))
    head = model.heads["lm"]
    own = dict(head.named_parameters())
    table = model.get_input_embeddings().weight
    state = {name: p.data for name, p in own.items() if p is not table}
    randomise(state, f"head/{model_type}")
    if causal:  # transformers' has none
        own.pop("0.bias").data.zero_()
    LANGUAGE_HEADS[model_type] = {
        f"{paths[name.partition('.')[0]]}.{name.partition('.')[2]}": p.detach().clone()
        for name, p in own.items()
        if p is not table
    }


def fresh(model_type: str, model_class: str | None, *, language: bool = False) -> Any:
    """A model with the base's tensors, ready for adapters."""
    config = transformers.AutoConfig.for_model(model_type, **BASES[model_type][1], num_labels=3)
    config._attn_implementation = "eager"
    if model_class is None:
        model = bare(model_type)
    elif model_class.endswith("AdapterModel"):
        model = getattr(adapters, model_class)(config)
    else:
        model = getattr(transformers, model_class)(config)
    inner = getattr(model, model.base_model_prefix, model)
    state = load_base(BASES[model_type][0])
    known = dict(inner.named_parameters())
    inner.load_state_dict({key: state[key] for key in known}, strict=False)
    if not hasattr(model, "adapters_config"):
        adapters.init(model)
    if language:
        add_language_head(model, model_type)
    return model.eval()


STATES: dict[str, State] = {}


def load_base(base: str) -> State:
    if base not in STATES:
        STATES[base] = plain_state(base)
    return STATES[base]


def inputs_for(model_type: str, inputs: State) -> State:
    names = (*BATCH, "decoder_input_ids") if model_type in ENCODER_DECODERS else BATCH
    names = ("pixel_values",) if model_type == "vit" else names
    return {name: inputs[name] for name in names}


def output(model: Any, inputs: State) -> torch.Tensor:
    if not getattr(model, "heads", {0}):  # T5's class without a head scales what it returns
        model = model.base_model
    with torch.no_grad():
        found = model(**inputs)
    if "start_logits" in found:
        return torch.stack([found.start_logits, found.end_logits], dim=-1)
    return found.logits if "logits" in found else found.last_hidden_state


def filled(model_type: str, name: str, case: Case) -> Any:
    """A model with everything of the case added, random and active."""
    model = fresh(model_type, case.model, language=case.language)
    known, given = set(model.base_model.state_dict()), set(dict(model.named_parameters()))
    for adapter, config in case.adapters.items():
        model.add_adapter(adapter, config=config)
    for members, config in case.fusions:
        model.add_adapter_fusion(members, config=config)
    for head, settings in (case.heads or {}).items():
        model.add_classification_head(head, **settings)
    for head, settings in (case.taggers or {}).items():
        model.add_tagging_head(head, **settings)
    for head, settings in (case.images or {}).items():
        model.add_image_classification_head(head, **settings)
    for head, settings in (case.answers or {}).items():
        model.add_qa_head(head, **settings)
    for head, settings in (case.writers or {}).items():
        add_writer(model, head, **settings)
    inner = model.base_model
    added = {k: t for k, t in inner.state_dict().items() if k not in known and ".pool." not in k}
    heads = dict(model.named_parameters()) if inner is not model else {}
    prefix = f"{model.base_model_prefix}."
    added |= {key: tensor.data for key, tensor in heads.items() if not key.startswith(prefix)}
    added = {k: t for k, t in added.items() if k not in given or not case.language}
    randomise(added, f"{name}/{model_type}")
    for head, settings in (case.writers or {}).items():
        if settings.get("layers") == 1:  # transformers' classes have no bias there
            dict(model.heads[head].named_parameters())["0.bias"].data.zero_()
    activate(model, case)
    return model


def add_writer(
    model: Any, head: str, *, causal: bool = False, seq2seq: bool = False, **settings: Any
) -> None:
    kind = "seq2seq" if seq2seq else "causal" if causal else "masked"
    getattr(model, f"add_{kind}_lm_head")(head, **settings)


def activate(model: Any, case: Case) -> None:
    model.set_active_adapters(case.setup or "a")
    if case.heads or case.taggers or case.images or case.answers or case.writers:
        model.active_head = "a"
    if case.language:
        model.active_head = "lm"


def save(model: Any, folder: Path, case: Case) -> None:
    how = {"use_safetensors": case.safetensors}
    if case.how == "setup":
        model.save_adapter_setup(str(folder), case.setup, **how)
    elif case.how == "adapter":
        model.save_adapter(str(folder), "a", **how)
    else:
        for name in case.adapters:
            model.save_adapter(str(folder / name), name, **how)
        model.save_adapter_fusion(str(folder / "fused"), list(case.adapters), **how)
    for readme in folder.rglob("README.md"):
        readme.unlink()


def load(model: Any, folder: Path, case: Case) -> None:
    how = {"use_safetensors": case.safetensors}
    if case.how == "setup":
        model.load_adapter_setup(str(folder), **how)
    elif case.how == "adapter":
        model.load_adapter(str(folder), **how)
    else:
        for name in case.adapters:
            model.load_adapter(str(folder / name), **how)
        model.load_adapter_fusion(str(folder / "fused"), **how)


def run_case(model_type: str, name: str, case: Case, folder: Path, inputs: State) -> State:
    """Saves the case's folder; what a fresh model that has loaded it returns, by its name."""
    model = filled(model_type, name, case)
    if not case.runs:
        save(model, folder, case)
        return {}
    before = output(model, inputs)
    save(model, folder, case)
    if case.edit is not None:
        case.edit(folder)
    again = fresh(model_type, case.model, language=case.language)
    load(again, folder, case)
    activate(again, case)
    after = output(again.eval(), inputs)
    if case.edit is None and not torch.allclose(before, after, atol=1e-6):
        raise RuntimeError(f"{model_type}/{name}: the library does not read what it wrote")
    if case.model is None:
        plain = output(fresh(model_type, None), inputs)
        if (after - plain).abs().max() < 0.02:
            raise RuntimeError(f"{model_type}/{name}: the adapters have no visible effect")
    return {f"{model_type}/{name}": after.contiguous()}


def named(model_type: str, case: Case) -> str | None:
    """The class of transformers' that has the head; the library's has all of them."""
    if case.language:
        return LANGUAGE_MODELS[model_type][0]
    if case.writers:
        return WRITERS[model_type, next(iter(case.writers["a"]), "masked")]
    kinds = {"TokenClassification": case.taggers, "QuestionAnswering": case.answers}
    kinds |= {"ImageClassification": case.images, "SequenceClassification": case.heads}
    kind = next((kind for kind, heads in kinds.items() if heads), "")
    if not kind and case.model and case.model.endswith("AdapterModel"):
        return None
    return case.model and case.model.replace("AdapterModel", f"For{kind}")


def batch() -> State:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    draw = generator("batch")
    ids = torch.randint(5, 24, mask.shape, generator=draw).masked_fill(mask == 0, 0)
    decoder = torch.randint(5, 24, (2, 4), generator=draw)
    pixels = torch.randn(2, 1, 4, 4, generator=draw)
    named = {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder}
    return {**named, "pixel_values": pixels}


def pack(folder: Path, target: Path) -> None:
    """All files of a folder in an archive that is the same each time."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            info = zipfile.ZipInfo(str(path.relative_to(folder)), (2020, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bases").mkdir()
        outputs: State = {}
        inputs = batch()
        save_file(inputs, folder / "inputs.safetensors")
        for model_type, cases in CASES.items():
            for case_name, case in cases.items():
                at = folder / model_type / case_name
                at.mkdir(parents=True)
                given = inputs_for(model_type, inputs)
                outputs |= run_case(model_type, case_name, case, at, given)
        save_file(outputs, folder / "outputs.safetensors")
        for base, state in STATES.items():
            save_file(state, folder / "bases" / f"{base}.safetensors")
        (folder / "heads").mkdir()
        for model_type, state in LANGUAGE_HEADS.items():
            save_file(state, folder / "heads" / f"{model_type}.safetensors")
        golden = {
            "versions": {
                "adapters": adapters.__version__,
                "torch": torch.__version__.split("+")[0],
                "transformers": transformers.__version__,
            },
            "bases": {key: {"like": like, "config": c} for key, (like, c) in BASES.items()},
            "cases": {
                model_type: {name: named(model_type, case) for name, case in cases.items()}
                for model_type, cases in CASES.items()
            },
        }
        (folder / "golden.json").write_text(json.dumps(golden, indent=2) + "\n")
        pack(folder, HERE / "adapterhub.zip")


if __name__ == "__main__":
    main()
