"""Any of PEFT's tuners as a row of the comparison: ``peft:vera[r=256]``.

A name is a tuner's type in PEFT, in lower case, and a setting is a field of its configuration. PEFT
is imported inside functions, so it need not be installed until it is used.
"""

import dataclasses
import logging
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, ClassVar, TypeVar

from deltakit.core.method import Method, Paper
from deltakit.core.provider import ExternalMethod, register_provider, settings_of
from deltakit.core.spec import format_method
from deltakit.errors import DeltakitError, InvalidConfig, MissingExtra, nearest, unknown
from deltakit.interop.peft_rows.papers import LIBRARY, PAPERS, RATES, USUAL_RATE

E = TypeVar("E", bound=DeltakitError)

LONGEST = 200
"""Characters of a message of PEFT's."""

ALIASES: dict[str, tuple[str, dict[str, Any]]] = {
    "dora": ("lora", {"use_dora": True}),
    "rslora": ("lora", {"use_rslora": True}),
    "eva": ("lora", {"init_lora_weights": "eva"}),
    "corda": ("lora", {"init_lora_weights": "corda"}),
    "lora_ga": ("lora", {"init_lora_weights": "lora_ga"}),
}
"""Methods that PEFT has as a setting of another: name -> (the other, the setting)."""

OURS = {
    "task_type": "SEQ_CLS",
    "total_step": 1 << 40,  # AdaLoRA must be told something; training tells it the true number
    "inference_mode": False,
    "modules_to_save": None,
    "use_asa": False,  # AdaMSS's allocation needs a callback of its own
}
"""Settings that the comparison makes, where a tuner has them: they are not the user's."""
NOT_SETTINGS = {"peft_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"}


@register_provider("peft")
@dataclass(frozen=True, kw_only=True)
class PeftTuner(ExternalMethod):
    """One of PEFT's tuners, trained and measured as deltakit's methods are.

    Args:
        name: the tuner's type in lower case ("lora", "vera", "prefix_tuning"), or "dora", "rslora",
            "eva", "corda" or "lora_ga", which are LoRA with a setting.
        settings: fields of its configuration, as pairs of a name and a value.

    Raises:
        MissingExtra: PEFT is not installed.
        UnknownName: a name that is none of PEFT's tuners.
        InvalidConfig: a setting that the tuner does not have, or values that PEFT refuses.
    """

    adapted_by: ClassVar[str] = "deltakit.interop.peft_rows.adapted:PeftAdaptedModel"
    usage: ClassVar[str] = (
        "In a comparison any tuner of PEFT is a row too, by its name and settings there: "
        "peft:dora[r=8]."
    )

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.lower())
        object.__setattr__(self, "settings", settings_of(self.settings))
        known = self.fields() - {*OURS, *NOT_SETTINGS, *self._alias[1]}
        for key, _ in self.settings:
            if key not in known:
                raise InvalidConfig(
                    f"{self.provider}:{self.name} has no setting {key!r}.{nearest(key, known)} It "
                    f"has: {', '.join(sorted(known))}."
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they come again where it is put on a model
            self.config()

    @property
    def paper(self) -> Paper:
        """The tuner's own where it is known, else the library's."""
        return PAPERS.get(self.name, LIBRARY)

    @property
    def learning_rate(self) -> float:
        """The rate of the same method in deltakit, where there is one."""
        return RATES.get(self.name, USUAL_RATE)

    @property
    def given(self) -> dict[str, Any]:
        """The settings that differ from the tuner's own, those of its name among them."""
        return {**self._alias[1], **dict(self.settings)}

    @property
    def _alias(self) -> tuple[str, dict[str, Any]]:
        return ALIASES.get(self.name, (self.name, {}))

    def fields(self) -> set[str]:
        """The names of the fields of its configuration."""
        return {field.name for field in dataclasses.fields(self._config_class())}

    def config(self, **more: Any) -> Any:
        """PEFT's configuration, with `more` fields where the user gives none.

        Raises:
            InvalidConfig: PEFT refuses it.
        """
        ours = {key: value for key, value in OURS.items() if key in self.fields()}
        given = {k: list(v) if isinstance(v, tuple) else v for k, v in self.settings}
        try:
            return self._config_class()(**{**ours, **self._alias[1], **more, **given})
        except Exception as error:  # PEFT has no class of its own for what it refuses
            raise refusal(error, InvalidConfig, f"{format_method(self)}: ") from None

    def sized(self, width: int) -> Method | None:
        """Another rank of a LoRA, at the same scale of the change; another length of a prompt."""
        config = self.config()
        if self._alias[0] == "lora":
            grown = (width / config.r) ** (0.5 if config.use_rslora else 1.0)
            changes = {"r": width, "lora_alpha": config.lora_alpha * grown}
        elif config.is_prompt_learning:
            changes = {"num_virtual_tokens": width}
        else:
            return None
        settings = {**dict(self.settings), **changes}
        return dataclasses.replace(self, settings=settings_of(settings))

    def added_positions(self) -> int:
        config = self.config()
        return (config.num_virtual_tokens or 0) if config.is_prompt_learning else 0

    def _config_class(self) -> Any:
        tuners = _tuners()
        tuner = self._alias[0]
        if tuner not in tuners:
            raise unknown("PEFT tuner", self.name, {*tuners, *ALIASES})
        return tuners[tuner]


def _tuners() -> dict[str, Any]:
    """PEFT's classes of configurations by their tuners' names."""
    if find_spec("peft") is None:
        raise MissingExtra(
            "a row of PEFT's needs the package 'peft', which is not installed. From a checkout: "
            'pip install -e ".[peft]".'
        )
    # What a library that PEFT imports has to say about its kernels is for another day.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    return {kind.value.lower(): cls for kind, cls in PEFT_TYPE_TO_CONFIG_MAPPING.items()}


def refusal(error: Exception, kind: type[E], start: str = "") -> E:
    """PEFT's error as a deltakit error, in one line."""
    return kind(f"{start}PEFT refuses it ({type(error).__name__}): {first_line(error)}")


def first_line(said: object) -> str:
    """The first line of a message of PEFT's, cut to a sentence's length."""
    lines = (line.strip() for line in str(said).splitlines())
    line = next((line for line in lines if line), "it gives no reason.")
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
