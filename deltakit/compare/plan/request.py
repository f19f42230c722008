"""The request of a user, before anything of it is looked up."""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from deltakit._registry import Registry
from deltakit.compare.plan.lr_search import GRID
from deltakit.compare.records.protocol import Protocol
from deltakit.core.checks import check_positive, check_whole
from deltakit.core.method import Method
from deltakit.core.spec import format_method, split_outside_brackets
from deltakit.errors import InvalidConfig, nearest
from deltakit.models.source import DEFAULT_MODEL

FULL_PRECISION = "fp32"
"""The base that every training step is timed against, and rows of other bases are compared with."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The training budget, equal for every method.

    Attributes:
        max_train_samples: training examples of each task; None is all of them.
        max_eval_samples: examples of the test split; None is all of them.
        epochs: passes over the training examples.
        batch_size: examples a step.
        max_length: tokens an example, longer ones are cut.
        lr: the peak learning rate of every method; None is each method's own.
        warmup: part of the steps in which the rate rises; it falls linearly after that.
    """

    max_train_samples: int | None = None
    max_eval_samples: int | None = None
    epochs: float = 3.0
    batch_size: int = 32
    max_length: int = 64
    lr: float | None = None
    warmup: float = 0.06

    def __post_init__(self) -> None:
        check_positive(self, epochs=self.epochs)
        check_whole(self, batch_size=self.batch_size, max_length=self.max_length)
        for name in ("max_train_samples", "max_eval_samples"):
            if (value := getattr(self, name)) is not None:
                check_whole(self, **{name: value})
        if self.lr is not None:
            check_positive(self, lr=self.lr)
        # 3 and 3.0 are the same budget, and must have the same content address.
        for name in ("epochs", "lr", "warmup"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, float(value))


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A budget, a number of seeds and of trials, and shapes to time, under one name.

    `measured` holds the numbers of the measuring protocol that are not its defaults.
    """

    budget: Budget
    seeds: int
    trials: int = 1
    latency: tuple[str, ...] = ()
    measured: Mapping[str, int] = field(default_factory=dict)


PROFILES: Registry[Profile] = Registry("profile", group="profiles")
"""By the name that ``--profile`` takes."""

PROFILES.add(
    "quick",
    Profile(
        budget=Budget(max_train_samples=1000, max_eval_samples=1000, epochs=2),
        seeds=1,
        # Six evaluations, or eleven pairs of steps, take half as long as so short a training.
        measured={"curve_points": 0, "step_repeats": 4},
    ),
)
PROFILES.add(
    "standard",
    Profile(
        budget=Budget(max_train_samples=2000, epochs=3),
        seeds=3,
        trials=4,
        latency=("1x128", "8x128"),
    ),
)
PROFILES.add(
    "paper",
    Profile(
        budget=Budget(epochs=10, max_length=128),
        seeds=5,
        trials=7,
        latency=("1x128", "32x128", "1x512"),
    ),
)

DEFAULT_PROFILE = "quick"
DEFAULT_TASK = "rotten_tomatoes"
DEFAULT_SOURCES = ("imdb", "bbc_news")


OWN_EPOCHS = "@epochs="
"""Before a row's own number of epochs, at the end of its spec: ``adapter@epochs=4``."""


def split_epochs(spec: str) -> tuple[str, float | None]:
    """The spec of a row's method, and the row's own number of epochs; None is the budget's.

    Raises:
        InvalidConfig: what follows ``@`` is no number of epochs.
    """
    inside, bracket, after = spec.rpartition("]")
    name, at, rest = after.partition("@")
    method = inside + bracket + name.rstrip()
    if not at:
        return spec, None
    try:
        epochs = float((at + rest).removeprefix(OWN_EPOCHS))
        Budget(epochs=epochs)
    except (ValueError, InvalidConfig):
        raise InvalidConfig(
            f"{spec!r}: after '@' comes a row's own number of epochs, above zero, as in "
            f"{method}{OWN_EPOCHS}4."
        ) from None
    return method, epochs


@dataclass(frozen=True)
class NamedMethod:
    """A method under a label of the user's choice: a `Method`, or a spec."""

    label: str
    method: Method | str

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, kw_only=True)
class Request:
    """The request of a user. `build_plan` makes it a `Plan`.

    Attributes:
        methods: specs such as ``lora[rank=16]``, which are the labels too, or methods under labels.
            ``adapter@epochs=4`` is a row with a number of epochs of its own.
        model: a shipped name, a folder or a Hub name.
        task: a shipped name, a folder, a file or a Hub name.
        bases: how the model's weights are held: "fp32", "bf16", "int8", "nf4", "fp4".
        compute_dtype: what quantised bases compute in; by default float32 on a CPU and bfloat16
            on an accelerator.
        source_tasks: what a combining method's first stage trains on, as task names, or as
            ``name=FOLDER`` for a delta that is trained already.
        budget: what every method gets.
        seeds: how many; they are 0, 1, ...
        trials: learning rates that are tried for every method; 1 takes `budget`'s, or each
            method's own.
        lr_grid: the lowest and the highest rate that is tried.
        match_params: trained parameters that every method's width is solved for; None leaves the
            methods as they are asked for.
        latency: shapes that a forward pass, or prefill and decode, are timed at, after the usual
            ones: "8x128" is eight texts of 128 tokens.
        baseline: the row, by its label, that all others are compared with; none by default.
        kind: the kind of task, where it is local or on the Hub; None is what it looks like.
        positive: the class, of two, that F1 and other metrics of one class are of; None is the
            second.
        beams: of the search by which texts are generated; None is greedy.
        metric: what scores are; None is what the kind of task usually has.
        text_column: names of columns, where the task is local or on the Hub.
        label_separator: the text between several labels in one cell of a table.
        image_column: the column of pictures, where the task is local or on the Hub.
        columns: the names of the columns of a local file without a header.
        encoding: the encoding of local files, where they do not show it.
        delimiter: the character between the cells of local files, where they do not show it.
        general: a file of the passages that what was forgotten is measured on; None is the text
            that deltakit ships.
        protocol: how often things are measured; by default that of the profile, with the numbers
            that the environment variable ``DELTAKIT_PROTOCOL`` changes.
        imports: Python files and modules that register what the request names.
    """

    methods: tuple[str | NamedMethod, ...]
    model: str = DEFAULT_MODEL
    task: str = DEFAULT_TASK
    bases: tuple[str, ...] = (FULL_PRECISION,)
    compute_dtype: str | None = None
    source_tasks: tuple[str, ...] = DEFAULT_SOURCES
    budget: Budget = field(default_factory=lambda: PROFILES.get(DEFAULT_PROFILE).budget)
    seeds: int = 1
    trials: int = 1
    lr_grid: tuple[float, float] = GRID
    match_params: int | None = None
    latency: tuple[str, ...] = ()
    baseline: str | None = None
    kind: str | None = None
    metric: str | None = None
    positive: str | None = None
    beams: int | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None
    image_column: str | None = None
    columns: tuple[str, ...] = ()
    encoding: str | None = None
    delimiter: str | None = None
    general: str | None = None
    protocol: Protocol = field(default_factory=Protocol.from_environment)
    imports: tuple[str, ...] = ()


def profile(name: str) -> Profile:
    """A profile by its name. Raises `UnknownName`."""
    return PROFILES.get(name)


ALL = "all"
"""No limit, where a budget limits a number of examples."""
_PLACES = ("model", "task", "general")
"""The settings that may be a path."""
LISTS = ("bases", "source_tasks", "latency", "imports", "columns")
"""The settings that are several names; as a text they are separated by commas."""


def request_of(methods: object, settings: Mapping[str, Any]) -> Request:
    """The request that the command line's options, or Python's keywords, ask for.

    Args:
        methods: a spec or several, separated by commas; a `Method`; several of both; or a mapping
            from labels to either.
        settings: the fields of `Request` and of `Budget` by name, ``profile``, and ``weights``,
            which is another name for ``bases``. None is the default.

    Raises:
        InvalidConfig: a setting that does not exist, or a value out of range.
        UnknownName: a profile that does not exist.
    """
    given = {key: value for key, value in settings.items() if value is not None}
    if "weights" in given:
        given["bases"] = given.pop("weights")
    _check_settings(given)
    chosen = profile(given.pop("profile", DEFAULT_PROFILE))
    for key in set(LISTS) & set(given):
        given[key] = _several(given[key])
    limits = {each.name for each in dataclasses.fields(Budget)} & set(given)
    changes: dict[str, Any] = {key: given.pop(key) for key in limits}
    lifted: dict[str, Any] = {key: None for key, value in changes.items() if value == ALL}
    budget = dataclasses.replace(chosen.budget, **{**changes, **lifted})
    trials = 1 if "lr" in changes else chosen.trials  # a rate that is given needs no search
    protocol = Protocol.from_environment(chosen.measured)
    defaults = {
        "seeds": chosen.seeds,
        "trials": trials,
        "latency": chosen.latency,
        "protocol": protocol,
    }
    texts: dict[str, Any] = {key: str(given[key]) for key in _PLACES if key in given}
    asked = _methods(methods)
    fields: dict[str, Any] = {**defaults, **given, **texts, "methods": asked, "budget": budget}
    return Request(**fields)


def _check_settings(given: Mapping[str, Any]) -> None:
    fields = {each.name for cls in (Request, Budget) for each in dataclasses.fields(cls)}
    known = fields - {"methods", "budget"} | {"profile", "weights"}
    for key in given:
        if key not in known:
            raise InvalidConfig(
                f"a comparison has no setting {key!r}.{nearest(key, known)} It has: "
                f"{', '.join(sorted(known))}."
            )


def _several(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        items = split_outside_brackets(value, ",")
        return tuple(item.strip() for item in items if item.strip())
    return tuple(map(str, value)) if isinstance(value, Iterable) else (str(value),)


def _methods(methods: object) -> tuple[str | NamedMethod, ...]:
    if isinstance(methods, str):
        return _several(methods)
    if isinstance(methods, Mapping):
        return tuple(NamedMethod(str(label), method) for label, method in methods.items())
    each = (methods,) if isinstance(methods, Method) else methods
    if not isinstance(each, Iterable):
        raise InvalidConfig(
            f"methods={methods!r}: give specs such as 'lora[rank=16]', methods such as "
            "dk.LoRA(rank=16), or a dictionary from labels to either."
        )
    return tuple(_labelled(one) for one in each)


def _labelled(method: object) -> str | NamedMethod:
    if isinstance(method, str):
        return method.strip()
    if isinstance(method, Method):
        return NamedMethod(format_method(method), method)
    raise InvalidConfig(f"{method!r} is not a method: give a spec such as 'lora', or a dk.Method.")
