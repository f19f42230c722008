"""The lines that a running choice prints, in a terminal and in a log."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console

from deltakit.choose.candidates import Candidate
from deltakit.choose.choice import Choice
from deltakit.choose.decide.arms import ArmFacts, Reading, Rung
from deltakit.choose.decide.bracket import RungResult
from deltakit.choose.decide.halving import Fate
from deltakit.choose.decide.ladder import Ladder, untried
from deltakit.compare.report.number_format import format_count, format_percent

SHOWN = 5
"""Arms that are named at the end of a rung."""


class ChoiceLines:
    """Lines for each part of a choice."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.started = time.monotonic()
        self.budget = 0.0

    def say(self, text: str) -> None:
        """A line."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def field(self, candidates: Sequence[Candidate], ruled_out: Mapping[str, str]) -> None:
        """The candidates with their sizes, and the reason of each that is out."""
        names = {each.name for each in candidates}
        width = max(map(len, names | set(ruled_out)), default=0)
        self.say(f"{len(candidates)} candidates, {len(candidates[0].rates)} rates each:")
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
        steps = ", ".join(str(rung.steps) for rung in ladder.rungs)
        left = f", {len(ladder.left_out)} have no room" if ladder.left_out else ""
        depth = ladder.depth
        self.say(
            f"{len(ladder.arms)} arms begin{left}; rungs of {steps} steps; then {depth.finalists} "
            f"finalists with {depth.seeds} seeds; {self.budget / 60:.1f} min planned"
        )
        if missing := untried(arms, ladder):
            self.say(f"no room for any arm of: {', '.join(missing)}")
        self.say(f"folder: {folder}")

    def rung_begins(self, rung: Rung, arms: Sequence[ArmFacts]) -> None:
        """The number of arms, steps and examples."""
        self.say(
            f"rung {rung.number}: {len(arms)} arms to {rung.steps} steps, judged on {rung.rows} "
            f"validation examples{self._left()}"
        )

    def _left(self) -> str:
        left = self.budget - (time.monotonic() - self.started)
        return f"; about {max(0.0, left) / 60:.0f} min left" if left >= 60 else ""

    def arm_read(self, rung: Rung, arm: ArmFacts, reading: Reading) -> None:
        """Nothing: the rung's end names the arms."""

    def rung_ends(self, result: RungResult) -> None:
        """The arms that go on, those that are out, and the rank correlation."""
        by_fate = {fate: [each for each in result.verdicts if each.fate is fate] for fate in Fate}
        kept = by_fate[Fate.KEPT]
        named = ", ".join(f"{each.arm} {100 * (each.score or 0):.1f}" for each in kept[:SHOWN])
        more = f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
        self.say(f"  in: {named}{more}")
        for verdict in by_fate[Fate.BEATEN][:SHOWN]:
            self.say(
                f"  worse: {verdict.arm}, {verdict.behind:.1f} points behind "
                f"(detectable {verdict.detectable or 0:.1f})"
            )
        if len(by_fate[Fate.BEATEN]) > SHOWN:
            self.say(f"  worse: {len(by_fate[Fate.BEATEN]) - SHOWN} more")
        if stuck := [each.arm for each in result.verdicts if each.at_chance]:
            self.say(f"  at chance still, so not judged: {', '.join(stuck)}")
        if by_fate[Fate.NO_BUDGET]:
            self.say(f"  no room to go on: {len(by_fate[Fate.NO_BUDGET])} arms")
        for verdict in by_fate[Fate.FAILED]:
            self.say(f"  failed: {verdict.arm}: {verdict.reason}")
        if result.correlation is not None:
            self.say(f"  rank correlation with the rung before: {result.correlation:.2f}")

    def finals(self, names: Sequence[str], seeds: int, steps: int) -> None:
        """The finalists."""
        how = f"{seeds} fresh seeds, {steps} steps"
        self.say(f"finals: {', '.join(names)}; {how}{self._left()}")

    def answer(self, choice: Choice) -> None:
        """The answer, the code that loads the delta, and the command that defends it."""
        self.say("")
        for sentence in choice.answer:
            self.say(sentence)
        self.say(f"\n{choice.python}\n\n{choice.command}\n")
        self.say(f"{choice.page} has the whole choice")
