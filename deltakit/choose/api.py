"""The choice: candidates, rungs, finals, the answer. The door for Python and the command line."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Protocol

from deltakit._files import write_text
from deltakit.choose.arm_facts import FLOOR, Field, arms_of, measure_field
from deltakit.choose.bench import Bench, facts_of, measured_facts
from deltakit.choose.candidates import Candidate, candidates_of, read_field
from deltakit.choose.constraints import Facts, check_feasible, violations
from deltakit.choose.decide.arms import ArmFacts
from deltakit.choose.decide.bracket import BracketResult, Unwatched, Watch, run_bracket
from deltakit.choose.decide.certainty import (
    choose_finalist,
    pooled,
    probability,
    score_interval,
)
from deltakit.choose.decide.halving import Fate, best_of_the_worse, finalists
from deltakit.choose.decide.ladder import (
    DEPTHS,
    RESERVE,
    Ladder,
    TooSmall,
    finals_that_fit,
    plan_ladder,
    total_seconds,
    untried,
)
from deltakit.choose.finals import (
    Finalist,
    Trained,
    finals_plan,
    measured,
    read_test_split,
    save_choice,
    steps_of,
    train_finals,
)
from deltakit.choose.journal import Journal
from deltakit.choose.outcome import (
    FinalRow,
    Outcome,
    arms_by_fate,
    compare_command,
    python_lines,
    record,
    sentences,
)
from deltakit.choose.page import write_page
from deltakit.choose.request import ChoiceRequest, choice_request
from deltakit.compare.api import Results
from deltakit.compare.plan.lr_search import TUNING_SEED
from deltakit.compare.plan.plan import Plan, content_id
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.queue import silence_libraries
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder
from deltakit.core.method import method_to_dict
from deltakit.errors import InvalidConfig

SHORTEST = 100
"""Steps of a full training, where three passes over the data are fewer."""

DEFENCE = {"seeds": 5, "trials": 4}
"""Seeds and rates of the comparison that defends a choice."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A choice that was made.

    Attributes:
        folder: what is stored of it.
        method: the spec that was chosen.
        lr: its learning rate.
        base: the base's name.
        answer: the answer in words, one sentence each.
        record: the content of ``choice.json``.
        delta: the folder of the trained delta.
        python: five lines that load it.
        command: the comparison that defends it.
    """

    folder: Path
    method: str
    lr: float | None
    base: str
    answer: tuple[str, ...]
    record: Mapping[str, Any]
    delta: Path
    python: str
    command: str

    @property
    def page(self) -> Path:
        """The report, one page that needs no other file."""
        return self.folder / "report.html"

    @property
    def probability(self) -> float:
        """The share of resamples in which the choice is within the margin of the best."""
        return float(self.record["probability"])

    def __str__(self) -> str:
        return "\n".join(self.answer)

    def _repr_html_(self) -> str:
        return "\n".join(f"<p>{escape(each)}</p>" for each in self.answer)


class Teller(Watch, Protocol):
    """Receives what happens in a choice, for a display."""

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """The candidates are known, and which of them a constraint rules out."""

    def planned(self, ladder: Ladder, arms: Sequence[ArmFacts], folder: Path) -> None:
        """The ladder is known."""

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """The finals begin."""


class Quiet(Unwatched):
    """A teller that shows nothing."""

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """Nothing."""

    def planned(self, ladder: Ladder, arms: Sequence[ArmFacts], folder: Path) -> None:
        """Nothing."""

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """Nothing."""


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


def run_choice(request: ChoiceRequest, out: Path | None, teller: Teller) -> Choice:
    """The choice of a request. Raises as `choose`."""
    started = time.perf_counter()
    methods = read_field(request.methods)
    silence_libraries()
    plan = build_plan(request.compared)
    skeleton = plan.model.skeleton(plan.task.kind.head)
    bases = {cell.base: cell.training.base for cell in plan.cells if cell.training is not None}
    candidates, misfits = candidates_of(methods, list(bases.values()), skeleton)
    identity = _identity(request, plan, candidates)
    journal = Journal(out or Path("runs") / f"choice-{content_id(identity)}")
    journal.open(content_id(identity), identity)
    bench = Bench(
        plan=plan,
        context=RunContext(plan=plan, folder=RunFolder(journal.path / "finals"), progress=Silent()),
        seed=TUNING_SEED + request.seed,
    )
    facts, ruled_out = _ruled_out(bench, journal, request, candidates, misfits)
    teller.field(candidates, ruled_out)
    kept = tuple(each for each in candidates if each.name not in ruled_out)
    field = measure_field(bench, kept, journal, started)
    ladder = _ladder(field, request, plan)
    teller.planned(ladder, field.facts, journal.path)
    return _Run(request, journal, bench, field, facts, ruled_out, ladder, teller).choose()


def _identity(
    request: ChoiceRequest, plan: Plan, candidates: Sequence[Candidate]
) -> dict[str, Any]:
    """Everything that decides a choice, but the speed of the machine."""
    return {
        "task": plan.task.fingerprint,
        "model": plan.model.fingerprint,
        "candidates": [[method_to_dict(each.method), each.base.name] for each in candidates],
        "constraints": request.constraints.to_dict(),
        "minutes": request.minutes,
        "seed": request.seed,
        "margin": request.margin,
        "budget": dataclasses.asdict(request.compared.budget),
    }


def _ruled_out(
    bench: Bench,
    journal: Journal,
    request: ChoiceRequest,
    candidates: Sequence[Candidate],
    misfits: Mapping[str, str],
) -> tuple[dict[str, Facts], dict[str, str]]:
    """The facts of each candidate, and why some are out.

    What counting rules out is not measured.

    Raises:
        InvalidConfig: nothing is left.
    """
    constraints = request.constraints
    facts = {each.name: facts_of(each, bench.base_params) for each in candidates}
    stored = journal.read("measured.json") or {}
    for each in candidates:
        if violations(facts[each.name], constraints) or not constraints.need_measuring:
            continue
        if each.name not in stored:
            found = measured_facts(bench, each, facts[each.name], constraints)
            stored[each.name] = dataclasses.asdict(found)
            journal.write("measured.json", stored)
        known = stored[each.name]
        facts[each.name] = Facts(**{**known, "abilities": tuple(known["abilities"])})
    check_feasible(facts, constraints, misfits)
    out = {name: "; ".join(violations(each, constraints).values()) for name, each in facts.items()}
    return facts, {**{name: why for name, why in out.items() if why}, **misfits}


def _ladder(field: Field, request: ChoiceRequest, plan: Plan) -> Ladder:
    seconds = 60 * request.minutes - field.setup_seconds
    try:
        return plan_ladder(
            field.facts,
            seconds=seconds,
            full_steps=full_steps(plan),
            costs=field.costs,
            floor=field.floor,
        )
    except TooSmall as error:
        least = (error.seconds + field.setup_seconds) / 60
        raise InvalidConfig(
            f"--minutes {request.minutes:g} is too small for one ladder of this field on this "
            f"machine: --minutes {least * 1.05:.2g} would do. Or name fewer --methods."
        ) from None


def full_steps(plan: Plan) -> int:
    """Steps of a full training: the budget's passes over the data, or a hundred."""
    budget = plan.request.budget
    batches = -(-len(plan.task.train) // budget.batch_size)
    return max(SHORTEST, round(batches * budget.epochs))


@dataclass
class _Run:
    """One choice after its ladder is known."""

    request: ChoiceRequest
    journal: Journal
    bench: Bench
    field: Field
    facts: Mapping[str, Facts]
    ruled_out: Mapping[str, str]
    ladder: Ladder
    teller: Teller

    @property
    def metric(self) -> Any:
        return METRICS.get(self.bench.plan.task.metric)

    def choose(self) -> Choice:
        arms = arms_of(self.bench, self.field, self.journal, self.ladder)
        bracket = run_bracket(
            arms,
            self.ladder,
            self.metric,
            self.journal,
            margin=self.request.margin,
            watch=self.teller,
            chance=self.bench.majority,
        )
        plan = self._finals(bracket)
        trained = train_finals(plan, self.journal)
        results = read_test_split(plan, self.journal.path / "finals")
        broken = self._broken(results, trained)
        choice = self._chosen(trained, broken)
        outcome = self._outcome(bracket, trained, results, choice, broken, plan)
        return self._stored(outcome, plan, choice)

    def _finals(self, bracket: BracketResult) -> Plan:
        """The finals of a bracket; who is in them is stored, with the time that decided it."""
        methods = [arm for arm in self.field.facts if arm.family != FLOOR]
        last = bracket.rungs[-1].verdicts
        judged = [verdict for verdict in last if verdict.arm in _names(methods)]
        ranked = finalists(methods, judged, 3) or best_of_the_worse(methods, judged)
        if not ranked:
            reasons = "; ".join(f"{v.arm}: {v.reason or v.fate.value}" for v in judged)
            raise InvalidConfig(f"every arm failed ({reasons}). Name other --methods.")
        fitting = finals_that_fit(
            ranked,
            seconds=RESERVE_FINALS * 60 * self.request.minutes
            - self.field.setup_seconds
            - bracket.seconds,
            steps=bracket.rungs[-1].rung.steps,
            most_steps=full_steps(self.bench.plan),
            costs=self.field.costs,
            floor=self.field.floor,
            slowdown=bracket.slowdown,
        )
        self.teller.finals([arm.name for arm in fitting.arms], fitting.depth.seeds, fitting.steps)
        return finals_plan(
            self.bench,
            [
                Finalist(candidate=self.field.candidates[arm.name], lr=arm.lr)
                for arm in fitting.arms
            ],
            self._floor(bracket),
            fitting.depth,
            fitting.steps,
            first_seed=10 * self.request.seed,
        )

    def _floor(self, bracket: BracketResult) -> Finalist:
        """The floor at the rate that did best in the rung where most of its rates were."""
        floors = {arm.name: arm for arm in self.field.facts if arm.family == FLOOR}
        scored = [
            verdict
            for rung in bracket.rungs
            for verdict in rung.verdicts
            if verdict.arm in floors and verdict.behind is not None
        ]
        last = {verdict.arm: verdict for verdict in scored}
        arm = (
            min(last.values(), key=lambda v: v.behind or 0.0).arm if last else self.field.floor.name
        )
        return Finalist(candidate=self.field.candidates[arm], lr=floors[arm].lr)

    def _chosen(self, trained: Trained, broken: Mapping[tuple[str, str], Any]) -> tuple[str, str]:
        """The choice on the validation split, of those that keep the constraints as measured."""
        left = {key: seeds for key, seeds in trained.validation.items() if not broken.get(key)}
        left = left or dict(trained.validation)
        if not left:
            reasons = "; ".join(f"{label}: {why}" for (label, _), why in trained.failed.items())
            raise InvalidConfig(f"every finalist failed ({reasons}). Name other --methods.")
        keys = {" on ".join(key): key for key in left}
        costs = {name: float(self._facts(key).deployed_params) for name, key in keys.items()}
        chosen = choose_finalist(
            {name: left[key] for name, key in keys.items()},
            costs,
            self.metric,
            margin=self.request.margin,
        )
        return keys[chosen]

    def _facts(self, key: tuple[str, str]) -> Facts:
        name = " on ".join(key)
        return self.facts.get(name) or self.field.floor_facts

    def _broken(self, results: Results, trained: Trained) -> dict[tuple[str, str], tuple[str, ...]]:
        """The constraints that each finalist breaks as measured."""
        return {
            key: tuple(
                violations(
                    measured(results, key, self._facts(key)), self.request.constraints
                ).values()
            )
            for key in trained.validation
        }

    def _outcome(
        self,
        bracket: BracketResult,
        trained: Trained,
        results: Results,
        choice: tuple[str, str],
        broken: Mapping[tuple[str, str], tuple[str, ...]],
        plan: Plan,
    ) -> Outcome:
        tested = _tested(results, trained)
        names = {key: self._name(key) for key in tested}
        tests = {names[key]: seeds for key, seeds in tested.items()}
        rows = tuple(self._row(key, tests, trained, results, broken.get(key, ())) for key in tested)
        both = {
            names[key]: list(map(pooled, trained.validation[key], tested[key])) for key in tested
        }
        chosen = names[choice]
        metric, floor = self.metric, self._name(_floor_key(plan))
        end = self.field.setup_seconds + bracket.seconds + trained.seconds
        return Outcome(
            choice=next(row for row in rows if row.name == chosen),
            rows=rows,
            floor=floor,
            metric=metric,
            task=plan.task.name,
            model=plan.model.name,
            n_test=len(plan.task.test),
            vs={
                name: metric.difference(seeds, tests[chosen])
                for name, seeds in tests.items()
                if name != chosen
            },
            probability=probability(both, chosen, metric, margin=self.request.margin),
            margin=self.request.margin,
            cost_share=self._cost_share(bracket, plan),
            ruled_out=self.ruled_out,
            left_out=self.ladder.left_out,
            untried=untried(self.field.facts, self.ladder),
            not_finished=arms_by_fate(bracket.rungs, Fate.NO_BUDGET),
            at_chance=arms_by_fate(bracket.rungs, Fate.AT_CHANCE),
            beaten=arms_by_fate(bracket.rungs, Fate.BEATEN),
            failed=self._failed(bracket, trained),
            rungs=bracket.rungs,
            minutes=self.request.minutes,
            minutes_used=(end + self.field.costs.once_seconds) / 60,
            minutes_for_all=self._minutes_for_all(),
            steps=steps_of(plan),
            full_steps=full_steps(plan),
        )

    def _name(self, key: tuple[str, str]) -> str:
        return key[0] if len(self.bench.bases) == 1 else " on ".join(key)

    def _row(
        self,
        key: tuple[str, str],
        tests: Mapping[str, Sequence[Predictions]],
        trained: Trained,
        results: Results,
        broken: tuple[str, ...],
    ) -> FinalRow:
        name = self._name(key)
        score, low, high = score_interval(tests, name, self.metric)
        facts = measured(results, key, self._facts(key))
        return FinalRow(
            name=name,
            method=key[0],
            base=key[1],
            lr=trained.rates.get(key),
            score=score,
            low=low,
            high=high,
            seeds=len(tests[name]),
            deployed=facts.deployed_params,
            latency=facts.latency,
            broken=broken,
        )

    def _failed(self, bracket: BracketResult, trained: Trained) -> dict[str, str]:
        arms = {
            verdict.arm: verdict.reason or ""
            for rung in bracket.rungs
            for verdict in rung.verdicts
            if verdict.fate is Fate.FAILED
        }
        return {**arms, **{" on ".join(key): why for key, why in trained.failed.items()}}

    def _cost_share(self, bracket: BracketResult, plan: Plan) -> float:
        """Predicted time of the steps that were trained, over that of the grid's.

        The grid trains every arm in full, and every candidate with three seeds at its best rate.
        """
        steps = steps_of(plan)
        of = {arm.name: arm.step_seconds for arm in self.field.facts}
        whole = [arm for arm in self.field.facts if arm.family != FLOOR]
        first = {arm.candidate: arm.step_seconds for arm in whole}
        grid = sum(arm.step_seconds for arm in whole) + DEPTHS[0].seeds * sum(first.values())
        before, spent = 0, 0.0
        for result in bracket.rungs:
            read = [verdict.arm for verdict in result.verdicts if verdict.score is not None]
            spent += (result.rung.steps - before) * sum(of[name] for name in read)
            before = result.rung.steps
        for row in {(cell.label, cell.base) for cell in plan.cells if cell.training}:
            trainings = [c.training for c in plan.cells if (c.label, c.base) == row and c.training]
            trials = len(trainings[0].rates) if len(trainings[0].rates) > 1 else 0
            each = first.get(" on ".join(row), self.field.floor.step_seconds)
            spent += (len(trainings) + trials) * steps * each
        return spent / (steps * grid)

    def _minutes_for_all(self) -> float:
        seconds = total_seconds(
            self.field.facts,
            full_steps(self.bench.plan),
            DEPTHS[0],
            self.field.costs,
            self.field.floor,
        )
        return (seconds / RESERVE + self.field.setup_seconds) / 60

    def _stored(self, outcome: Outcome, plan: Plan, choice: tuple[str, str]) -> Choice:
        """Saves the delta, then the answer; ``choice.json`` comes last."""
        path = self.journal.path
        delta = path / "delta"
        cell = next(each for each in plan.cells if (each.label, each.base) == choice)
        if not (path / "choice.json").is_file():
            shutil.rmtree(delta, ignore_errors=True)
            save_choice(self.bench, plan, cell, delta)
        content = record(
            outcome, delta=str(delta.resolve()), constraints=self.request.constraints.to_dict()
        )
        head = plan.task.kind.head
        python = python_lines(plan.model.location, choice[1], head.task, head.outputs, str(delta))
        command = compare_command(_defence(self.request, plan, outcome))
        answer = tuple(sentences(outcome))
        write_page(path / "report.html", outcome, answer, python=python, command=command)
        write_text(path / "choice.json", json.dumps(content, indent=2) + "\n")
        return Choice(
            folder=path,
            method=outcome.choice.method,
            lr=outcome.choice.lr,
            base=outcome.choice.base,
            answer=answer,
            record=content,
            delta=delta,
            python=python,
            command=command,
        )


RESERVE_FINALS = 0.95
"""The part of the whole budget that the finals may end at."""


def _names(arms: Sequence[ArmFacts]) -> set[str]:
    return {arm.name for arm in arms}


def _floor_key(plan: Plan) -> tuple[str, str]:
    label = plan.roles["floor"]
    return next((cell.label, cell.base) for cell in plan.cells if cell.label == label)


def _tested(results: Results, trained: Trained) -> dict[tuple[str, str], tuple[Predictions, ...]]:
    """The predictions of each finalist's seeds on the test split, in the order of the seeds."""
    found: dict[tuple[str, str], list[tuple[int, Predictions]]] = {}
    for (label, base, seed), made in results.predictions.items():
        if (label, base) in trained.validation:
            found.setdefault((label, base), []).append((seed, made))
    return {
        key: tuple(made for _, made in sorted(each, key=lambda e: e[0]))
        for key, each in found.items()
    }


def _defence(request: ChoiceRequest, plan: Plan, outcome: Outcome) -> dict[str, object]:
    """The options of a comparison of the finalists with more seeds and a search for each rate."""
    budget = plan.request.budget
    methods = [row.method for row in outcome.rows if row.name != outcome.floor]
    return {
        "methods": ",".join(dict.fromkeys(methods)),
        "model": plan.request.model,
        "task": plan.request.task,
        "bases": ",".join(plan.request.bases),
        "max_train_samples": budget.max_train_samples or "all",
        "max_eval_samples": budget.max_eval_samples or "all",
        "epochs": f"{budget.epochs:g}",
        "batch_size": budget.batch_size,
        "max_length": budget.max_length,
        **DEFENCE,
    }
