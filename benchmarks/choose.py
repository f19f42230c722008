"""The regret of `deltakit choose` against the full grid, and the cost of both.

    python benchmarks/choose.py --out runs/choose --tasks rotten_tomatoes,imdb,bbc_news
    python benchmarks/choose.py --out runs/decoder --tasks MPQA --model smollm2 --batch-size 8

The grid trains every candidate at every rate in full, and each candidate with two more seeds at its
best rate on the validation split. (Where a candidate is six points behind, these seeds are counted
and not trained: it cannot win.) Its honest winner is the best on the validation split. Regret is
the winner's test score minus the choice's, in points: of the means over seeds, and of the deltas
that a user gets, which are those of the best seed on the validation split. Two others have the
same data: LoRA with its own rank and rate, next to the means, and a random search that costs as
much as the choice. It keeps the best delta on the validation split, so it is next to the deltas.

Cost is work and not time, so the load of the machine does not matter: a row of a forward pass is
one unit, a row of a training step three. Measuring and the test split cost nothing, for the grid
and for the choice. The choice is given its budget in this unit, and its trainings are at most as
long as those of the grid. Every training is stored in ``--out``; the same
command goes on where it stopped.
"""

import argparse
import dataclasses
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from deltakit.choose import arm_facts, finals, prepare
from deltakit.choose.api import run_choice
from deltakit.choose.arm_facts import floor_candidate
from deltakit.choose.bench import Bench
from deltakit.choose.candidates import Candidate, candidates_of, read_field
from deltakit.choose.decide.arms import Reading
from deltakit.choose.finals import epochs_of
from deltakit.choose.journal import Journal
from deltakit.choose.request import choice_request
from deltakit.choose.tellers import Quiet
from deltakit.compare.api import report_folder
from deltakit.compare.plan.lr_search import TUNING_SEED
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.records.protocol import Protocol
from deltakit.compare.records.result import Predictions
from deltakit.compare.run.cell import train_now
from deltakit.compare.run.context import RunContext
from deltakit.compare.run.progress import Silent
from deltakit.compare.run.queue import silence_libraries
from deltakit.compare.run.train import TrainingFailed
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.store.run_folder import RunFolder
from deltakit.errors import InvalidConfig

SEEDS = (0, 1)
"""Seeds of the grid after the one that finds rates."""

BACKWARD = 3
"""Units of a row of a training step."""

ONCE = Protocol(
    step_repeats=1,
    step_warmup=0,
    latency_repeats_b1=1,
    latency_repeats_b8=1,
    latency_warmup=0,
    shape_repeats=1,
    handling_repeats=1,
    inspected_texts=1,
    inspected_repeats=1,
    curve_points=0,
)
"""The measuring of finalists, whose times are not read here."""

APART = 6
"""Points on the validation split: a candidate that is further behind gets no more seeds."""

SECONDS = 0.01
"""The time that a choice is told a unit takes."""


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    candidate: Candidate
    lr: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.candidate.name} at {self.lr:g} seed {self.seed}"


@dataclass
class Grid:
    """Every candidate of a task, at every rate, in full."""

    task: str
    settings: dict[str, Any]
    steps: int
    folder: Path

    @cached_property
    def bench(self) -> Bench:
        plan = build_plan(choice_request({**self.settings, "task": self.task}).compared)
        context = RunContext(plan=plan, folder=RunFolder(self.folder), progress=Silent())
        return Bench(plan=plan, context=context, seed=TUNING_SEED)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        skeleton = self.bench.plan.model.skeleton(self.bench.plan.task.kind.head)
        bases = list(self.bench.bases.values())
        field = read_field(choice_request(self.settings).methods)
        return (*candidates_of(field, bases, skeleton)[0], floor_candidate(self.bench))

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.folder)

    @cached_property
    def metric(self) -> Any:
        return METRICS.get(self.bench.plan.task.metric)

    @property
    def cell_cost(self) -> int:
        """Units of one training with its evaluation on the validation split."""
        rows = self.steps * self.bench.plan.request.budget.batch_size
        return BACKWARD * rows + len(self.bench.plan.task.validation)

    @property
    def cells(self) -> int:
        """Trainings of the grid."""
        return sum(len(each.rates) + len(SEEDS) for each in self.candidates)

    @property
    def cost(self) -> int:
        """Units of the whole grid; the test split is not counted."""
        return self.cells * self.cell_cost

    def run(self) -> None:
        """Trains what is not stored yet."""
        for candidate in self.candidates:
            for lr in candidate.rates:
                self.train(Cell(candidate, lr, TUNING_SEED))
        for candidate in self.contenders():
            for seed in SEEDS:
                self.train(Cell(candidate, self.best_rate(candidate), seed))
        for seed in SEEDS:  # LoRA at its own rate is compared, whatever rate is best
            self.train(Cell(self.candidates[0], self.candidates[0].rates[0], seed))

    def train(self, cell: Cell) -> None:
        """Trains one cell and stores its predictions of both splits, test last."""
        if self.journal.reading(cell.name, 1) is not None:
            return
        bench, training = self.bench, self.bench.training(cell.candidate, (cell.lr,), cell.seed)
        budget = dataclasses.replace(training.budget, epochs=epochs_of(bench, self.steps))
        training = dataclasses.replace(training, budget=budget)
        model = bench.context.base(training.task, training.seed, training.base)
        try:
            adapted, _ = train_now(bench.context, training, model)
        except TrainingFailed as error:
            self._keep(cell, None, None, str(error))
            return
        made = [
            bench.context.predictions(adapted.model, training.task, split)
            for split in ("validation", "test")
        ]
        self._keep(cell, *made)
        print(cell.name, f"{100 * self.metric.value(made[0]):.1f}", flush=True)

    def _keep(
        self, cell: Cell, first: Predictions | None, second: Predictions | None, reason: str = ""
    ) -> None:
        for at, made in enumerate((first, second)):
            reading = Reading(
                steps=self.steps, seconds=self.cell_cost, predictions=made, reason=reason
            )
            self.journal.keep(cell.name, at, reading)

    def made(self, cell: Cell, split: int) -> Predictions | None:
        """The predictions of a cell: 0 is the validation split, 1 is the test split."""
        reading = self.journal.reading(cell.name, split)
        return None if reading is None else reading.predictions

    def rank(self, cells: Sequence[Cell]) -> float:
        """The mean validation score of cells; of a failed training, the worst."""
        made = [self.made(cell, 0) for cell in cells]
        rank = self.metric.direction.rank
        found = [rank(self.metric.value(each)) for each in made if each is not None]
        return statistics.mean(found) if len(found) == len(made) else -float("inf")

    def contenders(self) -> list[Candidate]:
        """The candidates that can be the winner: `APART` points behind at most, at their rates."""
        rank = {
            c: 100 * self.rank([Cell(c, self.best_rate(c), TUNING_SEED)]) for c in self.candidates
        }
        return [each for each in self.candidates if rank[each] >= max(rank.values()) - APART]

    def best_rate(self, candidate: Candidate) -> float:
        return max(candidate.rates, key=lambda lr: self.rank([Cell(candidate, lr, TUNING_SEED)]))

    def seeds_of(self, candidate: Candidate, lr: float) -> list[Cell]:
        return [Cell(candidate, lr, seed) for seed in SEEDS]

    def winner(self) -> list[Cell]:
        """The best candidate on the validation split, at its best rate, with fresh seeds."""
        rows = [self.seeds_of(each, self.best_rate(each)) for each in self.contenders()]
        return max(rows, key=self.rank)

    def test(self, cells: Sequence[Cell]) -> list[Predictions]:
        """The test predictions of cells."""
        return [made for cell in cells if (made := self.made(cell, 1)) is not None]

    def score(self, made: Sequence[Predictions]) -> float:
        """The mean test score in points."""
        return 100 * statistics.mean(map(self.metric.value, made))

    def saved(self, cells: Sequence[Cell]) -> float:
        """The test score of the best of these cells on the validation split."""
        return self.score(self.test([max(cells, key=lambda cell: self.rank([cell]))]))

    def random_search(self, cost: float, draws: int = 2000) -> float:
        """The mean test score of the best of so many random arms on the validation split."""
        arms = [Cell(each, lr, TUNING_SEED) for each in self.candidates for lr in each.rates]
        number = min(len(arms), max(1, int(cost // self.cell_cost)))
        ranks = {arm.name: self.rank([arm]) for arm in arms}
        tested = {arm.name: self.score(made) for arm in arms if (made := self.test([arm]))}
        draw = random.Random(0)
        picked = (
            max((arm.name for arm in draw.sample(arms, number)), key=ranks.__getitem__)
            for _ in range(draws)
        )
        return statistics.mean(tested[name] for name in picked)


@dataclass
class WorkClock:
    """A clock that work moves: a choice's budget in the units of the grid."""

    batch: int
    spent: float = 0.0

    def now(self) -> float:
        return self.spent

    def worked(self, *, steps: int = 0, rows: int = 0) -> None:
        self.spent += SECONDS * (BACKWARD * self.batch * steps + rows)


@dataclass(frozen=True)
class Chosen:
    """A choice on the grid's task."""

    name: str
    sure: float
    cost: float
    saved: float
    made: Sequence[Predictions]


def chosen(grid: Grid, share: float, seed: int) -> Chosen:
    """The choice with a budget that is a share of the grid's cost, run or taken from the store."""
    folder = grid.folder.parent / f"choice-{share:g}-{seed}"
    minutes = share * SECONDS * grid.cost / 60
    request = choice_request(
        {**grid.settings, "task": grid.task, "minutes": minutes, "seed": seed + 2}
    )
    clock = WorkClock(batch=grid.bench.plan.request.budget.batch_size)
    choice = run_choice(request, folder, Quiet(), clock)
    tested = report_folder(folder / "finals").predictions
    key = (choice.method, choice.base)
    made = [tested[each] for each in sorted(tested) if each[:2] == key]
    name = f"{choice.method} at {choice.lr:g}"
    cost = 60 * choice.record["minutes_used"] / SECONDS / grid.cost
    saved = 100 * choice.record["saved_score"]
    return Chosen(name=name, sure=choice.probability, cost=cost, saved=saved, made=made)


def lines(grid: Grid, shares: Sequence[float], seeds: int) -> Iterator[list[object]]:
    """The rows of the table of one task."""
    winner = grid.winner()
    best = grid.test(winner)
    lora = grid.test(grid.seeds_of(grid.candidates[0], grid.candidates[0].rates[0]))
    for share in shares:
        for seed in range(seeds):
            try:
                choice = chosen(grid, share, seed)
            except InvalidConfig as error:
                yield [Path(grid.task).stem, f"{share:.0%}", "–", "–", str(error)]
                continue
            found = grid.metric.difference(best, choice.made)
            yield [
                Path(grid.task).stem,
                f"{share:.0%}",
                f"{choice.cost:.0%}",
                f"{winner[0].candidate.label} at {winner[0].lr:g}: {grid.score(best):.1f}",
                f"{choice.name}: {grid.score(choice.made):.1f}",
                f"{found.points:+.1f} (p {found.p:.2f})",
                f"{grid.score(best) - grid.score(lora):+.1f}",
                f"{grid.saved(winner) - choice.saved:+.1f}",
                f"{grid.saved(winner) - grid.random_search(share * grid.cost):+.1f}",
                f"{choice.sure:.0%}",
            ]


HEADERS = (
    "task",
    "budget",
    "spent",
    "the grid's winner",
    "the choice",
    "regret",
    "of LoRA r 8",
    "of the saved delta",
    "of random search",
    "called sure",
)


def main() -> None:
    """Trains what is missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default="rotten_tomatoes,imdb,bbc_news")
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--methods", default="lora,adapter,ia3,prefix")
    parser.add_argument("--train", type=int, default=200, help="training examples")
    parser.add_argument("--eval", type=int, default=400, help="validation and test examples")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--max-length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100, help="of a training of the grid")
    parser.add_argument("--shares", default="0.25", help="budgets, over the grid's cost")
    parser.add_argument("--seeds", type=int, default=1, help="choices of each budget")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    finals.PROTOCOL = ONCE
    prepare.SHORTEST = asked.steps  # a choice trains no longer than the grid
    for cost in ("CELL_STEPS", "CELL_SECONDS", "ONCE_STEPS", "ONCE_SECONDS"):
        setattr(arm_facts, cost, 0)  # the work clock has no such costs
    silence_libraries()
    settings = {
        "model": asked.model,
        "methods": asked.methods,
        "max_train_samples": asked.train,
        "max_eval_samples": asked.eval,
        "batch_size": asked.batch_size,
        "max_length": asked.max_length,
        "epochs": asked.steps / -(-asked.train // asked.batch_size),
    }
    rows: list[list[object]] = []
    for task in asked.tasks.split(","):
        folder = asked.out / Path(task).stem / "grid"
        grid = Grid(task=task, settings=settings, steps=asked.steps, folder=folder)
        grid.run()
        rows += lines(grid, [float(each) for each in asked.shares.split(",")], asked.seeds)
        print(tabulate(rows, HEADERS, tablefmt="pipe"), flush=True)


if __name__ == "__main__":
    main()
