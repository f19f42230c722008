"""A request whose names, numbers, files and columns are right: judged before torch is imported.

All that can be told from the request and the data alone is told here, in well under a second. What
takes the model is in `deltakit.compare.plan.resolve`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import deltakit as dk
from deltakit._imports import Extension, import_extension
from deltakit.compare.plan.lr_search import GRID, rates
from deltakit.compare.plan.plan import CONSTANT
from deltakit.compare.plan.request import NamedMethod, Request, split_epochs
from deltakit.compare.records.latency import shape_of
from deltakit.compare.records.protocol import VARIABLE
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks import ColumnNames, check_task_name, load_task, subsample
from deltakit.compare.tasks.beams import with_beams
from deltakit.compare.tasks.data.form import FileForm
from deltakit.compare.tasks.general import GeneralText, general_text
from deltakit.compare.tasks.kinds import KINDS, fitting_metrics
from deltakit.compare.tasks.positive import with_positive
from deltakit.compare.tasks.task import TaskData
from deltakit.core.checks import check_whole
from deltakit.core.method import METHODS, CombiningMethod, Method, Role, know_classes
from deltakit.errors import InvalidConfig, unknown
from deltakit.models.find import check_found
from deltakit.models.source import BaseChoice
from deltakit.models.weights import WEIGHT_FORMATS, Floating, WeightFormat


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A request of which every name is known and the data is read.

    Attributes:
        request: what was asked for.
        imports: the users' files that were imported for it.
        methods: the rows by label, baselines in front.
        epochs: the rows that have a number of epochs of their own, by label.
        formats: the weight formats by name.
        target: the task.
        sources: first-stage tasks to train on, by name.
        folders: first-stage deltas that are trained already, by name.
        general: the text that what was forgotten is measured on; None where that is not measured.
    """

    request: Request
    imports: tuple[Extension, ...]
    methods: Mapping[str, Method]
    epochs: Mapping[str, float]
    formats: Mapping[str, WeightFormat]
    target: TaskData
    sources: Mapping[str, TaskData]
    folders: Mapping[str, str]
    general: GeneralText | None


def draft_of(request: Request) -> Draft:
    """Looks up every name of a request, and reads its data.

    Raises:
        DeltakitError: a name, a number, a file or a column that is wrong.
    """
    if not request.methods:
        raise InvalidConfig("--methods is empty. Name at least one, for example --methods lora.")
    imports = tuple(map(import_extension, request.imports))
    _check_numbers(request)
    methods = _methods(request.methods)
    formats = _formats(request)
    epochs = _own_epochs(request, methods)
    _check_names(request, methods)
    general = _general(request)
    target = _task(request)
    sources, folders = _sources(request, methods, target)
    return Draft(
        request=request,
        imports=imports,
        methods=methods,
        epochs=epochs,
        formats=formats,
        target=target,
        sources=sources,
        folders=folders,
        general=general,
    )


def _general(request: Request) -> GeneralText | None:
    passages = request.protocol.general_passages
    if request.general is not None and not passages:
        raise InvalidConfig(
            f"--general {request.general} and general_passages=0 in {VARIABLE} exclude each other: "
            "the one names a text, the other reads none. Leave one out."
        )
    return general_text(request.general, passages) if passages else None


def _check_numbers(request: Request) -> None:
    check_whole(request, seeds=request.seeds, trials=request.trials)
    if request.beams is not None:
        check_whole(request, beams=request.beams)
    if request.match_params is not None:
        check_whole(request, match_params=request.match_params)
    _check_search(request)
    for shape in request.latency:
        shape_of(shape)


def _check_names(request: Request, methods: Mapping[str, Method]) -> None:
    check_found(request.model)
    if request.kind is not None:
        KINDS.get(request.kind)
    if request.metric is not None:
        METRICS.get(request.metric)
    for source in request.source_tasks if _needs_sources(methods) else ():
        if "=" not in source:
            check_task_name(source)
    if request.match_params is None:  # which gives rows other labels
        roles_of(request, methods)


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


def _methods(specs: tuple[str | NamedMethod, ...]) -> dict[str, Method]:
    """The asked methods by label, the baselines that every table needs in front."""
    asked: dict[str, Method] = {}
    for spec in specs:
        if spec == CONSTANT:
            continue
        label = str(spec)
        if label in asked:
            raise InvalidConfig(f"--methods names {label!r} twice. Leave one of the two out.")
        asked[label] = _method(spec)
    baselines = {
        name: METHODS.get(name).build()
        for role in (Role.FLOOR, Role.CEILING)
        for name in METHODS
        if METHODS.get(name).cls.role is role
    }
    for label, method in asked.items():
        if label == CONSTANT or baselines.get(label, method) != method:
            raise InvalidConfig(
                f"{label!r} is the label of a baseline, which every table has. Choose another."
            )
        if isinstance(method, CombiningMethod) and method.names:
            raise InvalidConfig(
                f"{label!r} names members, but a comparison trains its own: name the tasks with "
                "--source-tasks instead."
            )
    return {**{k: v for k, v in baselines.items() if v not in asked.values()}, **asked}


def _given(asked: str | NamedMethod) -> str | Method:
    return asked if isinstance(asked, str) else asked.method


def _method(asked: str | NamedMethod) -> Method:
    """The method that was asked for. Its class is known by its name from now on."""
    given = _given(asked)
    method = dk.parse_method(split_epochs(given)[0]) if isinstance(given, str) else given
    know_classes(method)
    return method


def _own_epochs(request: Request, methods: Mapping[str, Method]) -> dict[str, float]:
    """The rows with a number of epochs of their own."""
    specs = {str(asked): _given(asked) for asked in request.methods}
    found = {label: split_epochs(spec)[1] for label, spec in specs.items() if isinstance(spec, str)}
    own = {label: epochs for label, epochs in found.items() if epochs is not None}
    for label in own:
        if methods[label].role is not Role.METHOD:
            raise InvalidConfig(
                f"{label!r}: a baseline has the budget of the table. Leave '@' out."
            )
        if request.match_params is not None:
            raise InvalidConfig(
                f"--match-params and {label!r} exclude each other: matching gives rows other "
                "labels. Leave one of the two out."
            )
    return own


def _formats(request: Request) -> dict[str, WeightFormat]:
    """The asked weight formats by name."""
    if not request.bases:
        raise InvalidConfig("--bases is empty. Name at least one, for example --bases fp32.")
    formats: dict[str, WeightFormat] = {}
    for name in request.bases:
        if name in formats:
            raise InvalidConfig(f"--bases names {name!r} twice.")
        formats[name] = WEIGHT_FORMATS.get(name)
        BaseChoice(name=name, dtype=request.compute_dtype or "")
    if request.compute_dtype and all(isinstance(each, Floating) for each in formats.values()):
        raise InvalidConfig(
            f"--compute-dtype {request.compute_dtype} is for quantised bases, and --bases names "
            "none. Leave it out, or add int8, nf4 or fp4."
        )
    return formats


def roles_of(request: Request, methods: Mapping[str, Method]) -> dict[str, str]:
    """The label of each row that has a role. Raises `UnknownName` for a baseline without a row."""
    roles = {m.role.value: label for label, m in methods.items() if m.role is not Role.METHOD}
    if request.baseline is None:
        return roles
    if request.baseline not in methods:
        raise unknown("--baseline", request.baseline, methods, hint="It is the label of a row.")
    return {**roles, "baseline": request.baseline}


def _task(request: Request) -> TaskData:
    names = ColumnNames(
        text=request.text_column,
        pair=request.pair_column,
        label=request.label_column,
        separator=request.label_separator,
        image=request.image_column,
        file=FileForm(
            columns=request.columns or None,
            encoding=request.encoding,
            delimiter=request.delimiter,
        ),
    )
    data = load_task(request.task, names, kind=request.kind)
    data = with_beams(with_positive(data, request.positive), request.beams)
    data = _scored(data, request.metric)
    budget = request.budget
    return subsample(data, max_train=budget.max_train_samples, max_eval=budget.max_eval_samples)


def _scored(data: TaskData, metric: str | None) -> TaskData:
    """The task with the metric that was asked for, which can be computed here."""
    if metric is None:
        METRICS.get(data.metric).check_installed()
        return data
    if metric not in (fitting := fitting_metrics(data.kind)):
        fit = ", ".join(fitting)
        raise InvalidConfig(
            f"--metric {METRICS.get(metric).name} does not fit the task {data.name!r}, which is "
            f"{data.kind.name} ({data.kind.description}). Fitting: {fit}."
        )
    METRICS.get(metric).check_installed()
    return dataclasses.replace(data, metric=metric)


def _needs_sources(methods: Mapping[str, Method]) -> bool:
    """True if a first stage trains the members of one of the methods."""
    return any(isinstance(m, CombiningMethod) and not m.names for m in methods.values())


def _sources(
    request: Request, methods: Mapping[str, Method], target: TaskData
) -> tuple[dict[str, TaskData], dict[str, str]]:
    """First-stage tasks to train on, and deltas that are trained already, by name."""
    tasks: dict[str, TaskData] = {}
    folders: dict[str, str] = {}
    for source in request.source_tasks if _needs_sources(methods) else ():
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
