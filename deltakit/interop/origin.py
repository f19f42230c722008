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
    kinds = [kind for config in configs for kind in _kinds(config) if kind]
    return Origin(base=next(filter(None, bases), ""), kinds=tuple(dict.fromkeys(kinds)))


def _kinds(config: dict[str, Any]) -> tuple[str, ...]:
    made = config.get("auto_mapping")
    own = _text(made, "base_model_class") if isinstance(made, dict) else ""
    return own, AUTO.get(_text(config, "task_type"), ""), _text(config, "model_class")


def _text(config: dict[str, Any], key: str) -> str:
    value = config.get(key)
    return value if isinstance(value, str) else ""
