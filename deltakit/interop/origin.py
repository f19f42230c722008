"""The base model that a folder of another library names."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deltakit.interop.files import read_json

AUTO = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "FEATURE_EXTRACTION": "AutoModel",
}
"""PEFT's task types, and the class of transformers that a model is made with for each."""


FLEXIBLE = {
    "classification": AUTO["SEQ_CLS"],
    "multilabel_classification": AUTO["SEQ_CLS"],
    "tagging": AUTO["TOKEN_CLS"],
    "question_answering": AUTO["QUESTION_ANS"],
    "image_classification": "AutoModelForImageClassification",
    "masked_lm": "AutoModelForMaskedLM",
    "causal_lm": AUTO["CAUSAL_LM"],
    "seq2seq_lm": AUTO["SEQ_2_SEQ_LM"],
}
"""AdapterHub's types of flexible heads, and the class of transformers whose head may equal one."""


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The model that deltas were made on, as far as a folder names it.

    Attributes:
        base: its name on the Hub, or a folder; "" where nothing is said.
        kinds: names of its class, or of Auto classes, the likeliest first.
    """

    base: str
    kinds: tuple[str, ...]


def origin_of(folder: Path) -> Origin:
    """The folder's configs, or those in its folders: a fusion has one for each member."""
    files = [*sorted(folder.glob("adapter*_config.json"))]
    files += sorted(folder.glob("*/adapter*_config.json"))
    configs = [read_json(file) for file in files]
    bases = [_text(c, "base_model_name_or_path") or _text(c, "model_name") for c in configs]
    heads = [*folder.glob("head_config.json"), *sorted(folder.glob("*/head_config.json"))]
    kinds = [kind for config in configs for kind in _kinds(config) if kind]
    kinds += [kind for file in heads if (kind := _kind_of_head(read_json(file)))]
    return Origin(base=next(filter(None, bases), ""), kinds=tuple(dict.fromkeys(kinds)))


def _kinds(config: dict[str, Any]) -> tuple[str, ...]:
    made = config.get("auto_mapping")
    own = _text(made, "base_model_class") if isinstance(made, dict) else ""
    return own, AUTO.get(_text(config, "task_type"), ""), _text(config, "model_class")


def _kind_of_head(config: dict[str, Any]) -> str:
    flexible = config.get("config")
    return FLEXIBLE.get(_text(flexible, "head_type"), "") if isinstance(flexible, dict) else ""


def _text(config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""
