"""The door of a choice, for Python and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from deltakit.choose.arm_facts import arms_of
from deltakit.choose.choice import Choice, stored_choice
from deltakit.choose.clock import Clock, WallClock
from deltakit.choose.decide.bracket import run_bracket
from deltakit.choose.entrants import entered, finals_time
from deltakit.choose.finals import read_test_split, train_finals, with_results
from deltakit.choose.prepare import prepare
from deltakit.choose.request import ChoiceRequest, choice_request
from deltakit.choose.selection import broken_constraints, chosen
from deltakit.choose.summing_up import outcome_of
from deltakit.choose.tellers import Quiet, Teller
from deltakit.compare.run.queue import silence_libraries


def choose(
    task: str | None = None,
    *,
    out: str | Path | None = None,
    teller: Teller | None = None,
    **settings: Any,
) -> Choice:
    """Chooses a method, its size, its learning rate and its base for a task, within a budget.

    It does what ``deltakit choose`` does. The same call goes on where an earlier one stopped.

    Args:
        task: a shipped name, a folder, a file or a Hub name.
        out: the folder; by default one under ``runs``.
        teller: told what happens.
        settings: the options of ``deltakit choose`` with underscores: ``model``, ``methods``,
            ``bases``, ``minutes``, ``seed``, ``max_params``, ``max_latency``, ``must``, ...

    Raises:
        InvalidConfig: a setting that does not exist or does not fit, constraints that no candidate
            keeps, or a budget that is too small.
        DeltakitError: whatever else is wrong; nothing has been trained then.
    """
    request = choice_request({**settings, "task": task})
    return run_choice(request, None if out is None else Path(out), teller or Quiet())


def run_choice(
    request: ChoiceRequest,
    out: Path | None,
    teller: Teller,
    clock: Clock | None = None,
    started: float | None = None,
) -> Choice:
    """The choice of a request. Raises as `choose`.

    Args:
        request: what is asked for.
        out: the folder; by default one under ``runs``.
        teller: told what happens.
        clock: what the budget is counted in; by default the time that passes.
        started: when the budget begins, by this clock; by default now.
    """
    clock = clock or WallClock()
    started = clock.now() if started is None else started
    silence_libraries()
    prepared = prepare(request, out, teller, clock, started)
    bench, journal = prepared.bench, prepared.journal
    bracket = run_bracket(
        arms_of(bench, prepared.field, journal, prepared.ladder),
        prepared.ladder,
        prepared.metric,
        journal,
        margin=request.margin,
        watch=teller,
        chance=bench.majority,
    )
    plan = entered(prepared, bracket, teller)
    plan, trained = train_finals(plan, journal, clock, finals_time(prepared, bracket))
    results, seconds = read_test_split(plan, journal, clock)
    trained = with_results(trained, results, seconds)
    broken = broken_constraints(prepared, results, trained)
    choice = chosen(prepared, trained, broken)
    outcome = outcome_of(prepared, bracket, trained, results, choice, broken, plan)
    return stored_choice(prepared, outcome, plan, choice)
