"""From a request to a plan: everything that can be wrong is tried here, before anything is trained.

Methods are tried on a model without weights.
"""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from deltakit.compare.plan.cells import Grid, has_row
from deltakit.compare.plan.draft import Draft, draft_of, roles_of
from deltakit.compare.plan.fitting import (
    check_inputs,
    with_matched_sizes,
    with_readable_inputs,
    with_tasks_for,
)
from deltakit.compare.plan.plan import Plan, attach_all, given_folder
from deltakit.compare.plan.request import Request
from deltakit.errors import DeltakitError, InvalidConfig
from deltakit.models.source import BaseChoice, ModelSource, device, find_model
from deltakit.models.weights import Floating

if TYPE_CHECKING:
    from deltakit.models.weights import WeightFormat


def build_plan(request: Request) -> Plan:
    """Finds the model and the tasks, reads the methods, and tries them on an empty model.

    Raises:
        DeltakitError: whatever is wrong with the request; nothing has been trained or written.
    """
    return complete_plan(draft_of(request))


def complete_plan(draft: Draft) -> Plan:
    """The plan of a request of which all names are known. Raises as `build_plan`."""
    model = find_model(draft.request.model)
    draft = with_tasks_for(draft, model)
    bases = _bases(draft, model)
    head = draft.target.kind.head
    skeleton = model.skeleton(head)
    draft, sizes = with_matched_sizes(draft, skeleton)
    model.check_complete(head)
    check_inputs(draft)
    draft, lengths = with_readable_inputs(draft, model, skeleton)
    plan = Plan(
        request=draft.request,
        model=model,
        tasks={task.name: task for task in (draft.target, *draft.sources.values())},
        cells=tuple(Grid(draft=draft, model=model, bases=bases).cells()),
        roles=roles_of(draft.request, draft.methods),
        notes=(
            *_without_row(draft, bases),
            *_own_epochs(draft),
            *sizes,
            *(f"{draft.target.name}: {each}" for each in lengths),
        ),
        imports=draft.imports,
        general=draft.general,
    )
    try_out(plan)
    return plan


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


def _without_row(draft: Draft, bases: Mapping[BaseChoice, "WeightFormat"]) -> tuple[str, ...]:
    """A sentence on each method that cannot train on some of the bases."""
    missing = {
        label: [choice.name for choice, base in bases.items() if not has_row(method, base)]
        for label, method in draft.methods.items()
    }
    return tuple(
        f"{label} has no row on {', '.join(names)}: quantised weights cannot be trained."
        for label, names in missing.items()
        if names
    )


def _own_epochs(draft: Draft) -> tuple[str, ...]:
    """A sentence on each row that is trained for another number of epochs than the rest."""
    return tuple(
        f"{label} was trained for {own:g} epochs, rows without a number for "
        f"{draft.request.budget.epochs:g}."
        for label, own in draft.epochs.items()
    )


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


def _check_one_task(model: Any) -> None:
    """Raises `InvalidConfig` for a delta of several tasks: a comparison trains on one."""
    from deltakit.core.delta import TaskConditioned

    for form in model.modules():
        if isinstance(form, TaskConditioned):
            raise InvalidConfig(
                f"it has the tasks {', '.join(form.tasks)}, and a comparison trains on one. Leave "
                "tasks out, or train in a loop with deltakit.using_tasks (docs/mixtures.md)."
            )
