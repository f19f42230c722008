"""A draft fitted to its model: each function returns the draft with one thing more settled.

Nothing is trained, and the model has no weights here.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import deltakit as dk
from deltakit.compare.adapted import adapted_model
from deltakit.compare.plan.draft import Draft
from deltakit.compare.plan.limits import (
    added_positions,
    check_answers,
    check_room,
    check_tokens,
    cut_length,
    longest_input,
    readable_shapes,
)
from deltakit.compare.plan.match_params import described, matched, matched_label
from deltakit.compare.plan.request import PROFILES
from deltakit.core.method import CombiningMethod, Method, Role
from deltakit.errors import DeltakitError, InvalidConfig
from deltakit.models.loading import read_config
from deltakit.models.source import ModelSource

if TYPE_CHECKING:
    from deltakit.compare.tasks.task import TaskData


def with_tasks_for(draft: Draft, model: ModelSource) -> Draft:
    """The draft whose tasks ask as the architecture of the model is asked."""
    target, *others = (_for_model(task, model) for task in (draft.target, *draft.sources.values()))
    return dataclasses.replace(draft, target=target, sources={task.name: task for task in others})


def _for_model(task: "TaskData", model: ModelSource) -> "TaskData":
    config = read_config(model.location, local_files_only=model.local_only)
    return dataclasses.replace(task, kind=task.kind.for_model(config))


def with_matched_sizes(draft: Draft, skeleton: Any) -> tuple[Draft, tuple[str, ...]]:
    """The draft whose methods have the size that was asked for, and a sentence on each."""
    target = draft.request.match_params
    if target is None:
        return draft, ()

    def trained(method: Method) -> int:
        adapted = adapted_model(copy.deepcopy(skeleton), method)
        adapted.attach()
        return adapted.counts().trained_params

    sized: dict[str, Method] = {}
    notes: list[str] = []
    for label, method in draft.methods.items():
        if not _is_sized(method):
            sized[label] = method
            continue
        new = matched(method, target, trained)
        _check_apart(label, matched_label(label, new), sized, target)
        sized[matched_label(label, new)] = new
        notes.append(described(label, new, target, trained))
    return dataclasses.replace(draft, methods=sized), tuple(notes)


def _is_sized(method: Method) -> bool:
    """Whether the method has a size of its own; a baseline has none, nor what combines others."""
    return method.role is Role.METHOD and not isinstance(method, CombiningMethod)


def _check_apart(label: str, new: str, sized: Mapping[str, Method], target: int) -> None:
    """Raises `InvalidConfig` where matching makes two rows one."""
    if new in sized:
        raise InvalidConfig(
            f"--match-params {target} makes {label!r} the same as another row, {new!r}. Leave one "
            "of the two out, or compare them without --match-params."
        )


def check_inputs(draft: Draft) -> None:
    """Raises `InvalidConfig` for a source task of texts where the target's are images, or so."""
    reads = draft.target.kind.head.reads
    for name, data in draft.sources.items():
        if data.kind.head.reads != reads:
            raise InvalidConfig(
                f"--source-tasks {name} has {data.kind.head.reads} and the task "
                f"{draft.target.name!r} {reads}; one model reads one of the two. Name source tasks "
                f"of {reads}."
            )


def with_readable_inputs(
    draft: Draft, model: ModelSource, skeleton: Any
) -> tuple[Draft, tuple[str, ...]]:
    """The draft whose texts and shapes the model can read, and a note on each that was cut.

    A prompt takes some of the model's positions.
    """
    extra = _most_added(draft.methods, skeleton)
    draft, notes = _with_lengths(draft, model, skeleton, extra)
    return _with_general(draft, model, skeleton, extra), notes


def _most_added(methods: Mapping[str, Method], skeleton: Any) -> int:
    """The most positions that one of the methods puts before the texts.

    Raises:
        DeltakitError: a method has no placements to ask, naming the row.
    """
    handles, most = dk.resolve(skeleton), 0
    for label, method in methods.items():
        if not _is_sized(method):
            continue
        try:
            most = max(most, added_positions(method, handles))
        except DeltakitError as error:
            raise type(error)(f"{label}: {error}") from None
    return most


def _with_lengths(
    draft: Draft, model: ModelSource, skeleton: Any, extra: int
) -> tuple[Draft, tuple[str, ...]]:
    """The draft with a length that the model reads, `extra` positions left for a prompt."""
    request, tasks = draft.request, (draft.target, *draft.sources.values())
    if any(task.kind.head.reads != "texts" for task in tasks):
        return draft, ()
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
    return dataclasses.replace(draft, request=request), (*notes, *left_out, *cuts)


def _with_general(draft: Draft, model: ModelSource, skeleton: Any, extra: int) -> Draft:
    """The draft with the general text cut to what the model reads; without, if it reads none."""
    asked, reads = draft.request.general, draft.target.kind.head.reads
    if reads != "texts" and asked is not None:
        raise InvalidConfig(
            f"--general {asked} is for models of texts, and the task {draft.target.name!r} has "
            f"{reads}. Leave it out."
        )
    text = draft.general if reads == "texts" else None
    if text is not None:
        text = text.cut(longest_input(skeleton, model.tokenizer(), extra))
    return dataclasses.replace(draft, general=text)
