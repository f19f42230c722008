"""From a request to a plan: everything that can be wrong is tried here, before anything is trained.

Methods are tried on a model without weights.
"""

import copy
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit._imports import code_of
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.draft import Draft, draft_of, roles_of
from deltakit.compare.plan.limits import (
    added_positions,
    check_answers,
    check_room,
    check_tokens,
    cut_length,
    longest_input,
    readable_shapes,
)
from deltakit.compare.plan.lr_search import rates
from deltakit.compare.plan.match_params import described, matched, matched_label
from deltakit.compare.plan.plan import (
    CONSTANT,
    Cell,
    Member,
    Plan,
    Training,
    attach_all,
    given_folder,
)
from deltakit.compare.plan.request import PROFILES, Budget, Request
from deltakit.compare.records.latency import shape_of
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.tasks.general import GeneralText, identity_of
from deltakit.core.method import CombiningMethod, Method, Role
from deltakit.errors import DeltakitError, InvalidConfig
from deltakit.models.source import BaseChoice, ModelSource, device, find_model
from deltakit.models.weights import Floating, read_config

if TYPE_CHECKING:
    from deltakit.compare.tasks.task import TaskData
    from deltakit.models.weights import WeightFormat


def build_plan(request: Request) -> Plan:
    """Finds the model and the tasks, reads the methods, and tries them on an empty model.

    Raises:
        DeltakitError: whatever is wrong with the request; nothing has been trained or written.
    """
    return complete_plan(draft_of(request))


def complete_plan(draft: Draft) -> Plan:
    """The plan of a request of which all names are known. Raises as `build_plan`."""
    request, target, sources, folders = draft.request, draft.target, draft.sources, draft.folders
    model = find_model(request.model)
    target, *others = (_for_model(task, model) for task in (target, *sources.values()))
    sources = {task.name: task for task in others}
    bases = _bases(draft, model)
    skeleton = model.skeleton(target.kind.head)
    methods, sizes = _matched(request, draft.methods, skeleton)
    tasks = {target.name: target, **sources}
    model.check_complete(target.kind.head)
    _check_inputs(target, sources)
    extra = _most_added(methods, skeleton)
    request, lengths = _readable(request, model, skeleton, tasks.values(), extra)
    general = _general(draft, model, skeleton, target, extra)
    cells = tuple(
        cell
        for seed in range(request.seeds)
        for cell in _cells(
            request,
            methods,
            draft.epochs,
            model,
            bases,
            target,
            sources,
            folders,
            identity_of(general),
            seed,
        )
    )
    plan = Plan(
        request=request,
        model=model,
        tasks=tasks,
        cells=cells,
        roles=roles_of(request, methods),
        notes=(
            *_notes(methods, bases),
            *_longer(request, draft.epochs),
            *sizes,
            *(f"{target.name}: {each}" for each in lengths),
        ),
        imports=draft.imports,
        general=general,
    )
    try_out(plan)
    return plan


def _for_model(task: "TaskData", model: ModelSource) -> "TaskData":
    """The task as the architecture of the model is asked."""
    config = read_config(model.location, local_files_only=model.local_only)
    return dataclasses.replace(task, kind=task.kind.for_model(config))


def _check_apart(label: str, new: str, sized: Mapping[str, Method], target: int) -> None:
    """Raises `InvalidConfig` where matching makes two rows one."""
    if new in sized:
        raise InvalidConfig(
            f"--match-params {target} makes {label!r} the same as another row, {new!r}. Leave one "
            "of the two out, or compare them without --match-params."
        )


def _most_added(methods: Mapping[str, Method], skeleton: Any) -> int:
    """The most positions that one of the methods puts before the texts.

    Raises:
        DeltakitError: a method has no placements to ask, naming the row.
    """
    handles, most = dk.resolve(skeleton), 0
    for label, method in methods.items():
        if method.role is not Role.METHOD or isinstance(method, CombiningMethod):
            continue
        try:
            most = max(most, added_positions(method, handles))
        except DeltakitError as error:
            raise type(error)(f"{label}: {error}") from None
    return most


def _check_inputs(target: "TaskData", sources: Mapping[str, "TaskData"]) -> None:
    """Raises `InvalidConfig` for a source task of texts where the target's are images, or so."""
    reads = target.kind.head.reads
    for name, data in sources.items():
        if data.kind.head.reads != reads:
            raise InvalidConfig(
                f"--source-tasks {name} has {data.kind.head.reads} and the task {target.name!r} "
                f"{reads}; one model reads one of the two. Name source tasks of {reads}."
            )


def _readable(
    request: Request, model: ModelSource, skeleton: Any, tasks: Iterable["TaskData"], extra: int
) -> tuple[Request, tuple[str, ...]]:
    """The request with a length that the model reads, and a note where that is another one.

    `extra` positions of it are those of a prompt.
    """
    tasks = tuple(tasks)
    if any(task.kind.head.reads != "texts" for task in tasks):
        return request, ()
    tokenizer = model.tokenizer()
    check_tokens(model.name, skeleton, tokenizer, tasks)
    limit = longest_input(skeleton, tokenizer, extra)
    if limit < 1:
        raise InvalidConfig(
            f"model {model.name!r} reads {limit + extra} positions, and a prompt takes {extra} of "
            "them. Shorten the prompt."
        )
    usual = request.latency in {each.latency for _, each in PROFILES.items()}
    latency, left_out = readable_shapes(request.latency, limit, model.name, usual)
    length, notes = cut_length(request.budget.max_length, limit, model.name)
    check_room(tasks, tokenizer, request.budget.max_length, limit, extra)
    cuts = check_answers(tasks, tokenizer, length)
    budget = dataclasses.replace(request.budget, max_length=length)
    request = dataclasses.replace(request, budget=budget, latency=latency)
    return request, (*notes, *left_out, *cuts)


def _general(
    draft: Draft, model: ModelSource, skeleton: Any, target: "TaskData", extra: int
) -> GeneralText | None:
    """The general text, cut to what the model reads; None for a model that reads no texts."""
    text, asked, reads = draft.general, draft.request.general, target.kind.head.reads
    if reads != "texts" and asked is not None:
        raise InvalidConfig(
            f"--general {asked} is for models of texts, and the task {target.name!r} has {reads}. "
            "Leave it out."
        )
    if text is None or reads != "texts":
        return None
    return text.cut(longest_input(skeleton, model.tokenizer(), extra))


def _matched(
    request: Request, methods: Mapping[str, Method], skeleton: Any
) -> tuple[Mapping[str, Method], tuple[str, ...]]:
    """The methods at the size that was asked for, and a sentence on each."""
    target = request.match_params
    if target is None:
        return methods, ()

    def trained(method: Method) -> int:
        adapted = adapted_model(copy.deepcopy(skeleton), method)
        adapted.attach()
        return adapted.counts().trained_params

    sized: dict[str, Method] = {}
    notes: list[str] = []
    for label, method in methods.items():
        if method.role is not Role.METHOD or isinstance(method, CombiningMethod):
            sized[label] = method
            continue
        new = matched(method, target, trained)
        _check_apart(label, matched_label(label, new), sized, target)
        sized[matched_label(label, new)] = new
        notes.append(described(label, new, target, trained))
    return sized, tuple(notes)


def _rates(request: Request, method: Method) -> tuple[float, ...]:
    if request.trials > 1:
        return rates(request.trials, request.lr_grid)
    return (request.budget.lr or method.learning_rate,)


def _bases(draft: Draft, model: ModelSource) -> dict[BaseChoice, "WeightFormat"]:
    """The asked bases, each checked to be had here."""
    bases: dict[BaseChoice, WeightFormat] = {}
    for name, format in draft.formats.items():
        choice = BaseChoice(name=name)
        if not isinstance(format, Floating):
            choice = BaseChoice(name=name, dtype=draft.request.compute_dtype or _default_dtype())
        bases[choice] = model.check_base(choice)
    return bases


def _default_dtype() -> str:
    # In bf16 a CPU is slower, and what quantising costs would be mixed with what rounding does.
    return "float32" if device().type == "cpu" else "bfloat16"


def _has_row(method: Method, base: "WeightFormat") -> bool:
    """Whether the method can train on the base: what trains all weights needs them as numbers."""
    return method.role is not Role.CEILING or isinstance(base, Floating)


def _notes(
    methods: Mapping[str, Method], bases: Mapping[BaseChoice, "WeightFormat"]
) -> tuple[str, ...]:
    missing = {
        label: [choice.name for choice, base in bases.items() if not _has_row(method, base)]
        for label, method in methods.items()
    }
    return tuple(
        f"{label} has no row on {', '.join(names)}: quantised weights cannot be trained."
        for label, names in missing.items()
        if names
    )


def _longer(request: Request, epochs: Mapping[str, float]) -> tuple[str, ...]:
    """A sentence on each row that is trained for another number of epochs than the rest."""
    return tuple(
        f"{label} was trained for {own:g} epochs, rows without a number for "
        f"{request.budget.epochs:g}."
        for label, own in epochs.items()
    )


def _cells(
    request: Request,
    methods: Mapping[str, Method],
    epochs: Mapping[str, float],
    model: ModelSource,
    bases: Mapping[BaseChoice, "WeightFormat"],
    target: "TaskData",
    sources: Mapping[str, "TaskData"],
    folders: Mapping[str, str],
    general: str,
    seed: int,
) -> Iterator[Cell]:
    def training(
        method: Method,
        base: BaseChoice,
        data: "TaskData",
        members: tuple[Member, ...] = (),
        budget: Budget = request.budget,
    ) -> Training:
        return Training(
            method=method,
            task=data.name,
            task_fingerprint=data.fingerprint,
            model_fingerprint=model.fingerprint,
            base=base,
            budget=budget,
            rates=_rates(request, method),
            seed=seed,
            members=members,
            code=code_of(method, data.kind),
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
            code=code_of(target.kind, METRICS.get(target.metric)),
            general=general,
        )

    def combined(method: CombiningMethod, base: BaseChoice, budget: Budget) -> Training:
        trained = (*sources.values(), target)
        members = (
            *(Member(name=delta_name(name), folder=path) for name, path in folders.items()),
            *(
                Member(name=delta_name(data.name), training=training(method.member, base, data))
                for data in trained
            ),
        )
        over = dataclasses.replace(method, names=tuple(m.name for m in members))
        return training(over, base, target, members, budget)

    yield cell(CONSTANT, next(iter(bases)), None)
    for label, method in methods.items():
        own = epochs.get(label, request.budget.epochs)
        budget = dataclasses.replace(request.budget, epochs=own)
        for choice in (each for each, base in bases.items() if _has_row(method, base)):
            if isinstance(method, CombiningMethod):
                yield cell(label, choice, combined(method, choice, budget))
            else:
                yield cell(label, choice, training(method, choice, target, (), budget))


def _check_one_task(model: Any) -> None:
    """Raises `InvalidConfig` for a delta of several tasks: a comparison trains on one."""
    from deltakit.core.delta import TaskConditioned

    for form in model.modules():
        if isinstance(form, TaskConditioned):
            raise InvalidConfig(
                f"it has the tasks {', '.join(form.tasks)}, and a comparison trains on one. Leave "
                "tasks out, or train in a loop with deltakit.using_tasks (docs/mixtures.md)."
            )


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
            adapted = attach_all(copy.deepcopy(model), cell.training, given_folder)
            _check_one_task(adapted.model)
        except DeltakitError as error:
            raise type(error)(f"{cell.label}: {error}") from None
