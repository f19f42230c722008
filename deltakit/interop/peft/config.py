"""``adapter_config.json``: every key is understood, or the folder is refused."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltakit.errors import CheckpointError, nearest
from deltakit.interop.origin import AUTO

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FILE = "adapter_config.json"
ABOUT = (
    "peft_type",
    "task_type",
    "auto_mapping",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "runtime_config",
)
"""Keys of every tuner that change nothing of what a saved adapter computes."""
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}
"""What PEFT adds to modules_to_save for a task, whether the model has it or not."""
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
}
"""PEFT's task by the end of the name of a text model's class."""
Names = str | tuple[str, ...]
"""Names of modules, or one regular expression."""


@dataclass(frozen=True)
class Config:
    """The config of one adapter. Every look at a value checks its type."""

    path: Path
    values: Mapping[str, Any]

    def refusal(self, key: str, why: str) -> CheckpointError:
        """The error for a value that is not taken."""
        return CheckpointError(f"{self.path}: {key} is {self.values.get(key)!r}; {why}")

    def check(self, known: Iterable[str], off: Mapping[str, str]) -> None:
        """Raises `CheckpointError` for an unknown key, and for a variant that is switched on.

        An unknown key of another version says nothing where its value is null, false or empty.

        Args:
            known: keys that are read, or that make no difference once an adapter is trained.
            off: keys that switch a variant on, and what the variant is called.
        """
        keys = {*known, *off, *ABOUT}
        for key, value in self.values.items():
            if key not in keys and not _is_off(value):
                raise CheckpointError(
                    f"{self.path}: unknown key {key!r}.{nearest(key, keys)} What it changes is not "
                    "known, so nothing is loaded."
                )
        for key, variant in off.items():
            if self.values.get(key):
                raise self.refusal(key, f"{variant} cannot be loaded by deltakit.")

    def _value(self, key: str, default: Any, fits: Callable[[Any], bool], what: str) -> Any:
        value = self.values.get(key, default)
        if not fits(value):
            raise self.refusal(key, f"it must be {what}.")
        return value

    def flag(self, key: str) -> bool:
        """True or false; false where it is not said."""
        return self._value(key, False, lambda v: v is None or isinstance(v, bool), "a bool") is True

    def whole(self, key: str, default: int | None) -> int:
        """A whole number above zero."""
        return self._value(key, default, _is_count, "a whole number above zero")

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        return self._value(key, default, _is_number, "a number")

    def choice(self, key: str, choices: tuple[str | None, ...]) -> str | None:
        """One of some words; the first where it is not said."""
        listed = ", ".join(map(str, choices))
        return self._value(key, choices[0], lambda v: v in choices, f"one of {listed}")

    def names(self, key: str) -> Names | None:
        """A list of names, or a regular expression."""
        value = self._value(
            key, None, lambda v: v is None or isinstance(v, str) or _is_names(v), "names or a regex"
        )
        if isinstance(value, str):
            self._compiles(key, value)
        return tuple(value) if isinstance(value, list) else value

    def listed(self, key: str) -> tuple[str, ...]:
        """A list of names; empty where it is not said."""
        return tuple(self._value(key, None, lambda v: v is None or _is_names(v), "names") or ())

    def numbers(self, key: str) -> dict[str, float]:
        """A table of numbers by regular expressions, in the file's order."""
        return self._table(key, _is_number, "a table of numbers")

    def counts(self, key: str) -> dict[str, int]:
        """A table of whole numbers above zero by regular expressions, in the file's order."""
        return self._table(key, _is_count, "a table of whole numbers above zero")

    def _table(self, key: str, fits: Callable[[Any], bool], what: str) -> dict[str, Any]:
        table = self._value(
            key,
            None,
            lambda v: v is None or (isinstance(v, dict) and all(map(fits, v.values()))),
            what,
        )
        for pattern in table or {}:
            self._compiles(key, pattern)
        return dict(table or {})

    def layers(self) -> tuple[int, ...]:
        """The layers to transform; none where all are."""
        value = self._value(
            "layers_to_transform", None, lambda v: v is None or _are_layers(v), "layers' numbers"
        )
        return (value,) if isinstance(value, int) else tuple(value or ())

    def layer_lists(self) -> tuple[str, ...]:
        """The names of the lists of layers; empty where any name is right."""
        names = self.names("layers_pattern") or ()
        return (names,) if isinstance(names, str) else names

    @property
    def saved(self) -> tuple[str, ...]:
        """The modules that are saved whole, with those that the task adds."""
        names = self.listed("modules_to_save")
        for name in names:
            self._compiles("modules_to_save", name)
        return tuple(dict.fromkeys((*names, *self.task_heads)))

    @property
    def task(self) -> str | None:
        """The task."""
        return self.choice("task_type", (None, *AUTO))

    @property
    def task_heads(self) -> tuple[str, ...]:
        """The modules that the task adds to those saved whole."""
        return TASK_HEADS.get(self.task or "", ())

    def _compiles(self, key: str, pattern: str) -> None:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise self.refusal(key, f"{pattern!r} is not a regular expression ({error}).") from None


def _is_off(value: object) -> bool:
    """Whether a value switches nothing on; zero is a number, which may mean something."""
    return value is None or value is False or value in ([], {})


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: object) -> bool:
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) < 1 << 53
    return isinstance(value, float) and math.isfinite(value)


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and name for name in value)


def _are_layers(value: object) -> bool:
    layers = value if isinstance(value, list) else [value]
    return all(_is_count(layer) or (_is_number(layer) and layer == 0) for layer in layers)


def about(model: "PreTrainedModel") -> dict[str, Any]:
    """The config's description of the model."""
    kind = type(model)
    text = model.main_input_name == "input_ids"
    task = next(
        (task for end, task in _TASKS.items() if text and kind.__name__.endswith(end)), None
    )
    mapping = {"base_model_class": kind.__name__, "parent_library": kind.__module__}
    return {
        "task_type": task,
        "auto_mapping": None if task else mapping,
        "base_model_name_or_path": model.name_or_path or None,
        "inference_mode": True,
    }
