"""A comparison before it runs: what is trained on what, resolved to cells with stable ids.

Everything that changes a score is part of a cell's id, so a cell is never run twice and never
mistaken for another. Everything that can be wrong is tried here, on a model without weights.
"""

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit.arch.bases import Floating
from deltakit.compare.match import described, matched, matched_label
from deltakit.compare.metrics import METRICS
from deltakit.compare.model import DEFAULT_MODEL, BaseChoice, ModelSource, device, find_model
from deltakit.compare.search import GRID, TUNING_SEED, rates
from deltakit.compare.shapes import shape_of
from deltakit.compare.subject import subject_of
from deltakit.compare.tasks import ColumnNames, load_task, subsample
from deltakit.core.checks import check_positive, check_whole
from deltakit.core.foreign import Subject
from deltakit.core.method import METHODS, CombiningMethod, Method, Role, method_to_dict
from deltakit.errors import DeltakitError, InvalidConfig, unknown

if TYPE_CHECKING:
    from deltakit.arch.bases import Base
    from deltakit.compare.tasks.base import TaskData

FULL_PRECISION = "fp32"
"""The base that every training step is timed against, and rows of other bases are compared with."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every method gets alike.

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
    """A budget, a number of seeds and of trials, and shapes to time, under one name."""

    budget: Budget
    seeds: int
    trials: int = 1
    latency: tuple[str, ...] = ()


PROFILES: dict[str, Profile] = {
    "quick": Profile(
        budget=Budget(max_train_samples=1000, max_eval_samples=1000, epochs=2), seeds=1
    ),
    "standard": Profile(
        budget=Budget(max_train_samples=2000, epochs=3),
        seeds=3,
        trials=4,
        latency=("1x128", "8x128"),
    ),
    "paper": Profile(
        budget=Budget(epochs=10, max_length=128),
        seeds=5,
        trials=7,
        latency=("1x128", "32x128", "1x512"),
    ),
}
DEFAULT_PROFILE = "quick"
DEFAULT_TASK = "rotten_tomatoes"
DEFAULT_SOURCES = ("imdb", "bbc_news")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asks for. `resolve` makes it a `Plan`.

    Attributes:
        methods: specs such as ``lora[rank=16]``.
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
        latency: shapes that a forward pass, or prefill and decode, are timed at beside the usual
            ones: "8x128" is eight texts of 128 tokens.
        baseline: the row, by its label, that all others are compared with; none by default.
        kind: the kind of task, where it is local or on the Hub; None is what it looks like.
        metric: what scores are; None is what the kind of task usually has.
        text_column: names of columns, where the task is local or on the Hub.
        label_separator: what stands between several labels in one cell of a table.
    """

    methods: tuple[str, ...]
    model: str = DEFAULT_MODEL
    task: str = DEFAULT_TASK
    bases: tuple[str, ...] = (FULL_PRECISION,)
    compute_dtype: str | None = None
    source_tasks: tuple[str, ...] = DEFAULT_SOURCES
    budget: Budget = field(default_factory=lambda: PROFILES[DEFAULT_PROFILE].budget)
    seeds: int = 1
    trials: int = 1
    lr_grid: tuple[float, float] = GRID
    match_params: int | None = None
    latency: tuple[str, ...] = ()
    baseline: str | None = None
    kind: str | None = None
    metric: str | None = None
    text_column: str | None = None
    pair_column: str | None = None
    label_column: str | None = None
    label_separator: str | None = None


@dataclass(frozen=True, kw_only=True)
class Training:
    """One training: everything that decides what comes out of it.

    With several `rates` it stands for the best of them, which trials on the target task find.
    """

    method: Method
    task: str
    task_fingerprint: str
    model_fingerprint: str
    base: BaseChoice
    budget: Budget
    rates: tuple[float, ...]
    seed: int
    members: tuple["Member", ...] = ()

    @property
    def lr(self) -> float:
        """The learning rate, where there is one."""
        (rate,) = self.rates
        return rate

    @property
    def id(self) -> str:
        """Content address: equal trainings have equal ids."""
        content = {
            "deltakit": dk.__version__,
            "method": method_to_dict(self.method),
            "task": self.task_fingerprint,
            "model": self.model_fingerprint,
            "base": dataclasses.asdict(self.base),
            "budget": dataclasses.asdict(dataclasses.replace(self.budget, max_eval_samples=None)),
            "rates": self.rates,
            "seed": self.seed,
            "members": [[m.name, m.id] for m in self.members],
        }
        return content_id(content)


@dataclass(frozen=True, kw_only=True)
class Member:
    """A delta that a combining method is over: trained in the first stage, or given as a folder."""

    name: str
    training: Training | None = None
    folder: str | None = None

    @property
    def id(self) -> str:
        """Content address."""
        if self.training is not None:
            return self.training.id
        assert self.folder is not None
        return content_id([p.read_text() for p in sorted(Path(self.folder).glob("*.json"))])

    def with_training(self, change: Callable[[Training], Training]) -> "Member":
        """The member with another training; one that is given as a folder has none to change."""
        training = None if self.training is None else change(self.training)
        return dataclasses.replace(self, training=training)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of results: a method on a base at a seed.

    Without a training it is the constant prediction.
    """

    label: str
    base: str
    seed: int
    task: str
    task_fingerprint: str
    model_fingerprint: str
    max_eval_samples: int | None
    training: Training | None
    latency: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Content address."""
        content = {
            "label": self.label,
            "base": self.base,
            "seed": self.seed,
            "task": self.task_fingerprint,
            "model": self.model_fingerprint,
            "max_eval_samples": self.max_eval_samples,
            "training": None if self.training is None else self.training.id,
            "latency": self.latency,
        }
        return content_id(content)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A resolved comparison, ready to run."""

    request: Request
    model: ModelSource
    tasks: Mapping[str, "TaskData"]
    cells: tuple[Cell, ...]
    roles: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Content address of the whole: the same request on the same data and model."""
        return content_id([cell.id for cell in self.cells])

    @property
    def task(self) -> "TaskData":
        """The target task."""
        return self.tasks[self.cells[0].task]

    def stages(self) -> Iterator[tuple[Cell, tuple[Training, ...]]]:
        """The cells in the order in which they run, those with members last.

        With each come the trials and the first-stage trainings that no cell before it has done.
        """
        seen: set[str] = set()
        for cell in sorted(self.cells, key=_has_members):
            before = () if cell.training is None else tuple(self._before(cell.training))
            fresh = {training.id: training for training in before if training.id not in seen}
            seen |= set(fresh)
            if cell.training is not None:
                seen.add(cell.training.id)
            yield cell, tuple(fresh.values())

    def _before(self, training: Training) -> Iterator[Training]:
        """What has to be trained before a training: trials, members, and what those need."""
        for member in training.members:
            if member.training is not None:
                yield from self._before(member.training)
                yield member.training
        for trial in self.trials(training):
            yield from self._before(trial)
            yield trial

    def trials(self, training: Training) -> tuple[Training, ...]:
        """What finds the rate of a training: one for each rate, on the target task.

        They, and their members, are at the tuning seed. None for a training of one rate.
        """
        if len(training.rates) == 1:
            return ()
        if training.task != self.task.name:
            training = dataclasses.replace(
                training, task=self.task.name, task_fingerprint=self.task.fingerprint
            )
        tuning = at_seed(training, TUNING_SEED)
        return tuple(dataclasses.replace(tuning, rates=(rate,)) for rate in training.rates)


def at_seed(training: Training, seed: int) -> Training:
    """The training and its members at another seed."""
    members = (m.with_training(lambda its: at_seed(its, seed)) for m in training.members)
    return dataclasses.replace(training, seed=seed, members=tuple(members))


def _has_members(cell: Cell) -> bool:
    return cell.training is not None and bool(cell.training.members)


def content_id(content: Any) -> str:
    """The first 16 hex digits of the SHA-256 of `content` as canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


CONSTANT = "majority"
"""Label of the row that predicts what is most frequent in the training split (`Kind.constant`)."""


def resolve(request: Request) -> Plan:
    """Finds the model and the tasks, reads the methods, and tries them on an empty model.

    Raises:
        DeltakitError: whatever is wrong with the request; nothing has been trained or written.
    """
    if not request.methods:
        raise InvalidConfig("--methods is empty. Name at least one, for example --methods lora.")
    check_whole(request, seeds=request.seeds, trials=request.trials)
    _check_search(request)
    methods = _methods(request.methods)
    model = find_model(request.model)
    bases = _bases(request, model)
    target = _task(request)
    methods, sizes = _matched(request, methods, model.skeleton(target.kind.head))
    sources, folders = _sources(request, methods, target)
    tasks = {target.name: target, **sources}
    cells = tuple(
        cell
        for seed in range(request.seeds)
        for cell in _cells(request, methods, model, bases, target, sources, folders, seed)
    )
    plan = Plan(
        request=request,
        model=model,
        tasks=tasks,
        cells=cells,
        roles=_roles(request, methods),
        notes=(*_notes(methods, bases), *sizes),
    )
    try_out(plan)
    model.check_complete()
    return plan


def _methods(specs: tuple[str, ...]) -> dict[str, Method]:
    """The asked methods by label, the baselines that every table needs in front."""
    asked: dict[str, Method] = {}
    for spec in specs:
        if spec == CONSTANT:
            continue
        if spec in asked:
            raise InvalidConfig(f"--methods names {spec!r} twice.")
        asked[spec] = dk.parse_method(spec)
    baselines = {
        name: METHODS.get(name).build()
        for role in (Role.FLOOR, Role.CEILING)
        for name in METHODS
        if METHODS.get(name).cls.role is role
    }
    for label, method in asked.items():
        if isinstance(method, CombiningMethod) and method.names:
            raise InvalidConfig(
                f"{label!r} names members, but a comparison trains its own: name the tasks with "
                "--source-tasks instead."
            )
    return {**{k: v for k, v in baselines.items() if v not in asked.values()}, **asked}


def _matched(
    request: Request, methods: dict[str, Method], skeleton: Any
) -> tuple[dict[str, Method], tuple[str, ...]]:
    """The methods at the size that was asked for, and a sentence on each."""
    target = request.match_params
    if target is None:
        return methods, ()
    check_whole(request, match_params=target)

    def trained(method: Method) -> int:
        subject = subject_of(copy.deepcopy(skeleton), method)
        subject.attach()
        return subject.counts().trained_params

    sized: dict[str, Method] = {}
    notes: list[str] = []
    for label, method in methods.items():
        if method.role is not Role.METHOD or isinstance(method, CombiningMethod):
            sized[label] = method
            continue
        new = matched(method, target, trained)
        sized[matched_label(label, new)] = new
        notes.append(described(label, new, target, trained))
    return sized, tuple(notes)


def _check_search(request: Request) -> None:
    if request.trials == 1:
        if request.lr_grid != GRID:
            raise InvalidConfig("--lr-grid is for a search: give --trials too, as in --trials 4.")
        return
    rates(request.trials, request.lr_grid)
    if request.budget.lr is not None:
        raise InvalidConfig(
            f"--lr {request.budget.lr:g} and --trials {request.trials} exclude each other: a rate "
            "is given or searched for. Leave one out."
        )


def _rates(request: Request, method: Method) -> tuple[float, ...]:
    if request.trials > 1:
        return rates(request.trials, request.lr_grid)
    return (request.budget.lr or method.learning_rate,)


def _bases(request: Request, model: ModelSource) -> dict[BaseChoice, "Base"]:
    """The asked bases, each checked to be had here."""
    if not request.bases:
        raise InvalidConfig("--bases is empty. Name at least one, for example --bases fp32.")
    bases: dict[BaseChoice, Base] = {}
    for name in request.bases:
        if name in {choice.name for choice in bases}:
            raise InvalidConfig(f"--bases names {name!r} twice.")
        choice = BaseChoice(name=name)
        if not isinstance(model.check_base(choice), Floating):
            choice = BaseChoice(name=name, dtype=request.compute_dtype or _default_dtype())
        bases[choice] = model.check_base(choice)
    if request.compute_dtype and not any(choice.dtype for choice in bases):
        raise InvalidConfig(
            f"--compute-dtype {request.compute_dtype} is for quantised bases, and --bases names "
            "none. Leave it out, or add int8, nf4 or fp4."
        )
    return bases


def _default_dtype() -> str:
    # In bf16 a CPU is slower, and what quantising costs would be mixed with what rounding does.
    return "float32" if device().type == "cpu" else "bfloat16"


def _has_row(method: Method, base: "Base") -> bool:
    """Whether the method can train on the base: what trains all weights needs them as numbers."""
    return method.role is not Role.CEILING or isinstance(base, Floating)


def _notes(methods: Mapping[str, Method], bases: Mapping[BaseChoice, "Base"]) -> tuple[str, ...]:
    missing = {
        label: [choice.name for choice, base in bases.items() if not _has_row(method, base)]
        for label, method in methods.items()
    }
    return tuple(
        f"{label} has no row on {', '.join(names)}: quantised weights cannot be trained."
        for label, names in missing.items()
        if names
    )


def _roles(request: Request, methods: Mapping[str, Method]) -> dict[str, str]:
    roles = {m.role.value: label for label, m in methods.items() if m.role is not Role.METHOD}
    if request.baseline is None:
        return roles
    if request.baseline not in methods:
        raise unknown("--baseline", request.baseline, methods, hint="It is the label of a row.")
    return {**roles, "baseline": request.baseline}


def _task(request: Request) -> "TaskData":
    names = ColumnNames(
        text=request.text_column,
        pair=request.pair_column,
        label=request.label_column,
        separator=request.label_separator,
    )
    data = _scored(load_task(request.task, names, kind=request.kind), request.metric)
    budget = request.budget
    return subsample(data, max_train=budget.max_train_samples, max_eval=budget.max_eval_samples)


def _scored(data: "TaskData", metric: str | None) -> "TaskData":
    """The task with the metric that was asked for."""
    if metric is None:
        return data
    if metric not in data.kind.metrics:
        fit = ", ".join(data.kind.metrics)
        raise InvalidConfig(
            f"--metric {METRICS.get(metric).name} does not fit the task {data.name!r}, which is "
            f"{data.kind.name} ({data.kind.words}). Fitting: {fit}."
        )
    return dataclasses.replace(data, metric=metric)


def _sources(
    request: Request, methods: Mapping[str, Method], target: "TaskData"
) -> tuple[dict[str, "TaskData"], dict[str, str]]:
    """First-stage tasks to train on, and deltas that are trained already, by name."""
    needed = any(isinstance(m, CombiningMethod) and not m.names for m in methods.values())
    tasks: dict[str, TaskData] = {}
    folders: dict[str, str] = {}
    for source in request.source_tasks if needed else ():
        name, equals, folder = source.partition("=")
        data = None if equals else load_task(name)
        name = name if data is None else data.name
        if name in {*tasks, *folders}:
            raise InvalidConfig(
                f"--source-tasks names {name!r} twice. Rename one of the folders, or leave it out."
            )
        if data is None:
            folders[name] = folder
        else:
            limit = request.budget.max_train_samples
            tasks[name] = subsample(data, max_train=limit, max_eval=None)
    if target.name in {*tasks, *folders}:
        raise InvalidConfig(
            f"--source-tasks names the target task {target.name!r}; its own delta is a member "
            "anyway. Name other tasks."
        )
    return tasks, folders


def _cells(
    request: Request,
    methods: Mapping[str, Method],
    model: ModelSource,
    bases: Mapping[BaseChoice, "Base"],
    target: "TaskData",
    sources: Mapping[str, "TaskData"],
    folders: Mapping[str, str],
    seed: int,
) -> Iterator[Cell]:
    def training(
        method: Method, base: BaseChoice, data: "TaskData", members: tuple[Member, ...] = ()
    ) -> Training:
        return Training(
            method=method,
            task=data.name,
            task_fingerprint=data.fingerprint,
            model_fingerprint=model.fingerprint,
            base=base,
            budget=request.budget,
            rates=_rates(request, method),
            seed=seed,
            members=members,
        )

    def cell(label: str, base: BaseChoice, its: Training | None) -> Cell:
        return Cell(
            label=label,
            base=base.name,
            seed=seed,
            task=target.name,
            task_fingerprint=target.fingerprint,
            model_fingerprint=model.fingerprint,
            max_eval_samples=request.budget.max_eval_samples,
            training=its,
            latency=tuple(str(shape_of(text)) for text in request.latency),
        )

    def combined(method: CombiningMethod, base: BaseChoice) -> Training:
        trained = (*sources.values(), target)
        members = (
            *(Member(name=delta_name(name), folder=path) for name, path in folders.items()),
            *(
                Member(name=delta_name(data.name), training=training(method.member, base, data))
                for data in trained
            ),
        )
        over = dataclasses.replace(method, names=tuple(m.name for m in members))
        return training(over, base, target, members)

    yield cell(CONSTANT, next(iter(bases)), None)
    for label, method in methods.items():
        for choice in (each for each, base in bases.items() if _has_row(method, base)):
            if isinstance(method, CombiningMethod):
                yield cell(label, choice, combined(method, choice))
            else:
                yield cell(label, choice, training(method, choice, target))


def delta_name(task: str) -> str:
    """A task's name as the name of a delta."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", Path(task).name).strip("-") or "source"


def try_out(plan: Plan) -> None:
    """Attaches every method to a model without weights, members and given folders included.

    Raises:
        DeltakitError: what does not fit, naming the row.
    """
    model = plan.model.skeleton(plan.task.kind.head)
    tried: set[str] = set()
    for cell in plan.cells:
        if cell.training is None or cell.label in tried:
            continue
        tried.add(cell.label)
        try:
            attach_all(copy.deepcopy(model), cell.training, given_folder)
        except DeltakitError as error:
            raise type(error)(f"{cell.label}: {error}") from None


def given_folder(member: Member) -> Path | None:
    """Where a member that was not trained here is; None where it was."""
    return None if member.folder is None else Path(member.folder)


def attach_all(
    model: Any, training: Training, folder_of: Callable[[Member], Path | None]
) -> Subject:
    """Attaches a training's method over its members.

    Args:
        model: the base.
        training: what is trained.
        folder_of: where a member is stored; None attaches it as it is before any training.
    """
    for member in training.members:
        folder = folder_of(member)
        if folder is not None:
            dk.load(model, folder, member.name, head=False)
        elif member.training is not None:
            dk.attach(model, member.training.method, member.name)
    subject = subject_of(model, training.method)
    subject.attach()
    return subject


def profile(name: str) -> Profile:
    """A profile by its name. Raises `UnknownName`."""
    if name not in PROFILES:
        raise unknown("profile", name, PROFILES)
    return PROFILES[name]
