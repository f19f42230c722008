"""Constraints on a choice, the facts that they are about, and what they rule out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltakit.compare.report.number_format import format_bytes, format_count, format_ratio
from deltakit.errors import InvalidConfig, unknown

ABILITIES = ("merge", "compose", "peft", "adapterhub")
"""What ``--must`` takes: folds into the weights, sums with others of its kind, is saved so."""

_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}
_AMOUNT = re.compile(r"\s*([0-9.]+(?:e[+-]?[0-9]+)?)\s*(%|[kmg]?)(i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Amount:
    """A limit on a number: of parameters, of bytes, or of per cent of the base's parameters."""

    number: float
    of_base: bool = False
    text: str = ""

    def limit(self, base_params: int) -> float:
        """The limit as a number."""
        return self.number / 100 * base_params if self.of_base else self.number

    def __str__(self) -> str:
        return self.text or f"{self.number:g}"


def amount(option: str, text: object) -> Amount:
    """A limit as people write it: ``1%``, ``300k``, ``2.5M``, ``1.5GB``, ``800MiB``.

    Raises:
        InvalidConfig: it is not a number above zero.
    """
    found = _AMOUNT.fullmatch(str(text))
    try:
        number = float(found[1]) if found else 0.0
    except ValueError:
        number = 0.0
    if found is None or number <= 0:
        raise InvalidConfig(
            f"{option} {text}: give a number above zero, as in 1%, 300k, 2.5M, 800MiB or 1.5GB."
        )
    unit = found[2].lower()
    if unit == "%":
        return Amount(number=number, of_base=True, text=str(text))
    exponent = {"": 0, "k": 1, "m": 2, "g": 3}[unit]
    factor = 1024**exponent if found[3] else _UNITS[unit]
    return Amount(number=number * factor, text=str(text))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The facts of a candidate, before it is trained or as measured after that.

    What has not been measured is None. Sizes are in bytes, latency is over that of the base.
    """

    trained_params: int
    deployed_params: int
    base_params: int
    disk_bytes: int
    train_peak_bytes: int | None = None
    infer_peak_bytes: int | None = None
    latency: float | None = None
    abilities: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """The constraints of a choice; None is no limit.

    Attributes:
        max_params: trained parameters.
        max_deployed: parameters that are kept in addition to the base.
        max_memory: bytes at the peak of a training step.
        max_infer_memory: bytes at the peak of a forward pass of eight texts.
        max_latency: the time of a forward pass of one text, over that of the base.
        max_disk: bytes of the saved delta.
        must: abilities of the result.
    """

    max_params: Amount | None = None
    max_deployed: Amount | None = None
    max_memory: Amount | None = None
    max_infer_memory: Amount | None = None
    max_latency: float | None = None
    max_disk: Amount | None = None
    must: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for ability in self.must:
            if ability not in ABILITIES:
                raise unknown("--must", ability, ABILITIES)
        if self.max_latency is not None and not self.max_latency > 0:
            raise InvalidConfig(f"--max-latency {self.max_latency:g}: give a ratio, as in 1.1.")

    @property
    def need_measuring(self) -> bool:
        """True if an untrained delta has to be measured or tried."""
        measured = (self.max_memory, self.max_infer_memory, self.max_latency)
        return bool(self.must) or any(limit is not None for limit in measured)

    def to_dict(self) -> dict[str, Any]:
        """The constraints that are set, as JSON holds them."""
        limits = {name: getattr(self, name) for name in _LIMITS}
        shown = {
            name: str(limit) if isinstance(limit, Amount) else limit
            for name, limit in limits.items()
            if limit is not None
        }
        return {**shown, **({"must": list(self.must)} if self.must else {})}


@dataclass(frozen=True, kw_only=True)
class _Limit:
    fact: str
    what: str
    bytes: bool = False
    ratio: bool = False

    def words(self, number: float) -> str:
        if self.ratio:
            return f"{format_ratio(number)} the base's"
        return format_bytes(number) if self.bytes else f"{format_count(number)} parameters"


_LIMITS = {
    "max_params": _Limit(fact="trained_params", what="trains"),
    "max_deployed": _Limit(fact="deployed_params", what="deploys"),
    "max_disk": _Limit(fact="disk_bytes", what="takes on disk", bytes=True),
    "max_memory": _Limit(fact="train_peak_bytes", what="takes in training", bytes=True),
    "max_infer_memory": _Limit(fact="infer_peak_bytes", what="takes at inference", bytes=True),
    "max_latency": _Limit(fact="latency", what="has a latency of", ratio=True),
}


def option_of(name: str) -> str:
    """The option of a constraint's name."""
    return f"--{name.replace('_', '-')}"


def violations(facts: Facts, constraints: Constraints, *, slack: float = 1.0) -> dict[str, str]:
    """The constraints that a candidate breaks, each with the figure that breaks it.

    Args:
        facts: of the candidate. A fact that is None breaks nothing.
        constraints: all of them.
        slack: factor on limits, for facts that were measured with noise.
    """
    found: dict[str, str] = {}
    for name, limit in _LIMITS.items():
        asked, fact = getattr(constraints, name), getattr(facts, limit.fact)
        if asked is None or fact is None:
            continue
        most = asked.limit(facts.base_params) if isinstance(asked, Amount) else asked
        if fact > most * slack:
            found[name] = f"{limit.what} {limit.words(fact)} ({option_of(name)} {asked})"
    missing = [ability for ability in constraints.must if ability not in facts.abilities]
    if missing:
        found["must"] = f"cannot {' or '.join(map(_ability, missing))} (--must)"
    return found


def _ability(name: str) -> str:
    return name if name in ("merge", "compose") else f"be saved for {name}"


def check_feasible(
    facts: Mapping[str, Facts], constraints: Constraints, others: Mapping[str, str]
) -> None:
    """Raises `InvalidConfig` where no candidate keeps all constraints.

    The message has, for each limit, the figure nearest to it among those who break it.

    Args:
        facts: of each candidate, by label.
        constraints: all of them.
        others: candidates that do not fit the model, with the reason.
    """
    broken = {label: violations(each, constraints) for label, each in facts.items()}
    if any(not each for each in broken.values()):
        return
    if not broken:
        reasons = "; ".join(f"{label}: {why}" for label, why in others.items())
        raise InvalidConfig(f"no candidate fits the model ({reasons}). Name other --methods.")
    raise InvalidConfig(
        f"no candidate keeps the constraints. Nearest: {'; '.join(_nearest(broken, facts))}. "
        "Loosen one of them, or name other --methods."
    )


def _nearest(broken: Mapping[str, Mapping[str, str]], facts: Mapping[str, Facts]) -> Iterable[str]:
    """For the candidates that break the fewest constraints: what each constraint comes down to."""
    fewest = min(map(len, broken.values()))
    near = {label: each for label, each in broken.items() if len(each) == fewest}
    names = dict.fromkeys(name for each in near.values() for name in each)
    for name in names:
        labels = [label for label, each in near.items() if name in each]
        label = min(labels, key=lambda each: _figure(facts[each], name))
        yield f"{label} {near[label][name]}"


def _figure(facts: Facts, name: str) -> float:
    limit = _LIMITS.get(name)
    return 0.0 if limit is None else float(getattr(facts, limit.fact) or 0.0)


def constraints_of(given: Mapping[str, Any]) -> Constraints:
    """The constraints that options or keywords ask for, by name.

    Raises:
        InvalidConfig: a limit is not a number above zero.
        UnknownName: an ability that does not exist.
    """
    fields: dict[str, Any] = {}
    for name in _LIMITS:
        value = given.get(name)
        if value is not None:
            fields[name] = float(value) if name == "max_latency" else amount(option_of(name), value)
    must = given.get("must") or ()
    several: Sequence[str] = must.split(",") if isinstance(must, str) else tuple(must)
    return Constraints(**fields, must=tuple(each.strip() for each in several if each.strip()))


NAMES = (*_LIMITS, "must")
"""The constraints by name."""
