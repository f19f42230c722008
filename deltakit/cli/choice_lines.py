"""The lines that a running choice prints, in a terminal and in a log."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import indent, wrap

from rich.console import Console
from tabulate import tabulate

from deltakit.choose.candidates import Candidate
from deltakit.choose.choice import Choice
from deltakit.choose.decide.arms import ArmFacts, Reading, Rung
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.decide.ladder import Ladder, untried
from deltakit.choose.decide.watch import RungResult
from deltakit.compare.report.number_format import format_count, format_percent
from deltakit.compare.stats.metrics import Metric

SHOWN = 5
"""Arms that are named at the end of a rung."""

WIDEST = 100
"""Columns of the answer's text."""


class ChoiceLines:
    """Lines for each part of a choice."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.planned_at = time.monotonic()
        self.budget = 0.0

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """The candidates with their sizes, and the reason of each that is out."""
        names = {each.name for each in candidates}
        width = max(map(len, names | set(ruled_out)), default=0)
        self.say(f"{len(candidates)} candidates: a method at one size, with its learning rates")
        for each in candidates:
            counted = (
                f"{format_count(each.counts.trained_params):>6} "
                f"({format_percent(each.counts.trained_pct)})"
            )
            why = ruled_out.get(each.name)
            rates = " ".join(f"{rate:g}" for rate in sorted(each.rates))
            self.say(f"  {each.name:<{width}}  {counted:<16} {f'out: it {why}' if why else rates}")
        for name, why in ruled_out.items():
            if name not in names:
                self.say(f"  {name:<{width}}  out: {why}")

    def planned(self, ladder: Ladder, arms: Sequence[ArmFacts], folder: Path) -> None:
        """The ladder in two lines, and the methods that it has no room for."""
        self.budget = ladder.bracket_seconds + ladder.finals_seconds
        self.planned_at = time.monotonic()
        first, *later = (rung.steps for rung in ladder.rungs)
        then = "".join(f", the better ones for {steps}" for steps in later)
        self.say(
            f"plan: {len(ladder.arms)} of {len(arms)} arms (a candidate at one rate) train for "
            f"{first} steps{then};\n  then {_finalists(ladder.depth.finalists)} trained again "
            f"with {ladder.depth.seeds} new seeds; about {self.budget / 60:.0f} min"
        )
        if missing := untried(arms, ladder):
            self.say(f"  no time for any arm of: {', '.join(missing)}")
        self.say(f"folder: {folder}")

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """The number of arms, steps and examples; the first rung begins with one arm a method."""
        self.say(
            f"rung {rung.number}: {_arms(len(arms))} to {rung.steps} steps, scored on {rung.rows} "
            f"validation examples{self._left()}"
        )

    def _left(self) -> str:
        left = self.budget - (time.monotonic() - self.planned_at)
        return f"; about {max(0.0, left) / 60:.0f} min left" if left >= 60 else ""

    def others_begin(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """The number of arms that are not the usual one of their method."""
        self.say(f"  to {rung.steps} steps too: {_arms(len(arms), 'other ')}")

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """Nothing: the rung's end names the arms."""

    def rung_ends(self, result: RungResult, metric: Metric) -> None:
        """The arms that go on, those that are out, and the rank correlation."""
        if result.too_short:
            self.say(
                "  too short: most methods have not begun to learn, so the next rung is longer"
            )
        by_fate = {fate: [each for each in result.verdicts if each.fate is fate] for fate in Fate}
        self._named("goes on", by_fate[Fate.KEPT], lambda each: _score(each, metric))
        self._named("out", by_fate[Fate.BEATEN], lambda each: _behind(each, metric))
        if stuck := [each.arm for each in result.verdicts if each.at_chance]:
            self.say(f"  no better than a constant guess yet, so not judged: {', '.join(stuck)}")
        if by_fate[Fate.NO_BUDGET]:
            self.say(
                f"  stopped for lack of time, not worse: {_arms(len(by_fate[Fate.NO_BUDGET]))}"
            )
        for verdict in by_fate[Fate.FAILED]:
            self.say(f"  failed: {verdict.arm}: {verdict.reason}")
        if result.correlation is not None:
            self.say(
                f"  rank correlation with the rung before: {result.correlation:.2f} (1: same order)"
            )

    def _named(
        self, title: str, verdicts: Sequence[Verdict], told: Callable[[Verdict], str]
    ) -> None:
        """A line for each of the first arms, and one for the others."""
        for each in verdicts[:SHOWN]:
            self.say(f"  {title}: {each.arm}, {told(each)}")
        if len(verdicts) > SHOWN:
            self.say(f"  {title}: {len(verdicts) - SHOWN} more")

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """The finalists."""
        how = f"{seeds} new seeds, {steps} steps"
        self.say(f"finals: {', '.join(names)}; {how}{self._left()}")

    def answer(self, choice: Choice) -> None:
        """The answer, the code that loads the delta, and the command that checks it."""
        head, *rest = choice.sections
        self.say("")
        self._wrapped(" ".join(head.sentences))
        for section in rest:
            self.say(f"\n{section.title}")
            for sentence in section.sentences:
                self._wrapped(sentence, margin="  ")
            if section.title == "Why":
                self.say(
                    "\n" + tabulate(choice.finals[1:], choice.finals[0], disable_numparse=True)
                )
        self.say(f"\nLoad it\n{indent(choice.python, '  ')}")
        self.say(f"\nCheck it, with more seeds and a search for each rate\n  {choice.command}")
        self.say(f"\nThe whole choice: {choice.page}")

    def _wrapped(self, text: str, margin: str = "") -> None:
        lines = wrap(
            text,
            min(self.console.width, WIDEST),
            initial_indent=margin,
            subsequent_indent=margin,
            break_long_words=False,
            break_on_hyphens=False,
        )
        self.say("\n".join(lines))


def _arms(number: int, which: str = "") -> str:
    return f"{number} {which}{'arm' if number == 1 else 'arms'}"


def _finalists(number: int) -> str:
    return "1 finalist is" if number == 1 else f"{number} finalists are"


def _score(verdict: Verdict, metric: Metric) -> str:
    unit = metric.unit
    return f"{unit.words(unit.shown(verdict.score or 0.0))[0]}{unit.value}"


def _behind(verdict: Verdict, metric: Metric) -> str:
    behind, least = (
        metric.unit.distance(each or 0.0) for each in (verdict.behind, verdict.detectable)
    )
    return f"{behind} behind the best, where {least} can be told"
