"""The answer of a choice in words: what to take, why, at what cost, and how sure it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from deltakit.choose.decide.halving import LOW_CORRELATION
from deltakit.choose.outcome import (
    FinalRow,
    Outcome,
    finalists_of,
    front,
    last_rung,
    shown,
    spelled_out,
)
from deltakit.compare.report.number_format import (
    format_bytes,
    format_count,
    format_p_value,
    format_percent,
)
from deltakit.compare.stats.metrics import Unit
from deltakit.compare.stats.significance import LEVEL, Difference

NOTICED = 0.05
"""The part by which the times of two methods differ before a sentence says so."""

SHOWN = 3
"""Arms of the last rung that are named."""

SURE = 0.9
"""A choice that is less sure names what would make it surer."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the answer.

    Attributes:
        title: the question that it answers; empty for the headline.
        sentences: the answer to it.
    """

    title: str
    sentences: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((*([self.title] if self.title else []), *self.sentences))


def sections(outcome: Outcome) -> tuple[Section, ...]:
    """The parts of the answer that have something to say, the headline first."""
    parts = {
        "": (headline(outcome), *_saved(outcome)),
        "Why": _why(outcome),
        "What it costs": _price(outcome),
        "How sure": _certainty(outcome),
        "What would change it": _changes(outcome),
        "What was spent": _spent(outcome),
    }
    found = (Section(title=title, sentences=tuple(said)) for title, said in parts.items())
    return tuple(each for each in found if each.sentences)


def sentences(outcome: Outcome) -> tuple[str, ...]:
    """The whole answer, the headline first."""
    return tuple(each for section in sections(outcome) for each in section.sentences)


def headline(outcome: Outcome) -> str:
    """The answer in one sentence."""
    row, metric = outcome.choice, outcome.metric
    what = (
        f"{metric.title} {spelled_out(metric, row)} on {outcome.n_test:,} test examples that were "
        "not used to choose it"
    )
    if row.name == outcome.floor:
        return f"Train the task head alone (`{row.name}`{_rate(row)}): {what}."
    return f"Take `{row.name}`{_rate(row)}: {what}."


def _saved(outcome: Outcome) -> Iterator[str]:
    """The sentence on the delta that was saved, where the score of the choice is a mean."""
    unit, seeds = outcome.metric.unit, outcome.choice.seeds
    if seeds > 1:
        yield (
            f"The saved delta is the best of its {seeds} seeds on the validation examples, and has "
            f"{unit.words(unit.shown(outcome.saved_score))[0]}{unit.value} on the test examples."
        )


def _rate(row: FinalRow) -> str:
    return "" if row.lr is None else f" at learning rate {row.lr:g}"


# ------------------------------------------------------------------------------------------- why


def _why(outcome: Outcome) -> Iterator[str]:
    yield from _against_best(outcome)
    if len(finalists_of(outcome)) == 1:
        yield from _in_the_rungs(outcome)
    yield from _against_floor(outcome)
    yield from _front(outcome)
    yield from _broken(outcome)


def _against_best(outcome: Outcome) -> Iterator[str]:
    best, choice = _best(outcome), outcome.choice
    if best.name != choice.name:
        yield from _against(outcome, best, outcome.vs[best.name])
        return
    finalists = finalists_of(outcome)
    if len(finalists) > 1:
        how = "highest" if _up(outcome) else "lowest, which is best,"
        yield f"It scores {how} of {len(finalists)} finalists, which were trained with new seeds."


def _in_the_rungs(outcome: Outcome) -> Iterator[str]:
    """The scores of the last rung, where it alone compared methods."""
    rung, unit = outcome.rungs[-1].rung, outcome.metric.unit
    scores = (
        f"`{each.arm}` {unit.words(unit.shown(each.score or 0.0))[0]}{unit.value}"
        for each in last_rung(outcome)[:SHOWN]
    )
    yield (
        f"There was time for one finalist. After {rung.steps} steps, on {rung.rows} validation "
        f"examples, the best were {', '.join(scores)}."
    )


def _best(outcome: Outcome) -> FinalRow:
    rank = outcome.metric.direction.rank
    return max(outcome.rows, key=lambda row: rank(row.score))


def _up(outcome: Outcome) -> bool:
    return outcome.metric.direction.rank(1.0) > 0


def _against(outcome: Outcome, best: FinalRow, found: Difference) -> Iterator[str]:
    """The sentences on a row that scores better on the test split than the choice."""
    by = f"`{best.name}` is {_distance(outcome, found)} better on the test examples"
    p = f"p {format_p_value(found.p)}"
    if found.p > LEVEL:
        yield f"{by}, which is within the noise ({p}).{_dearer(best, outcome.choice)}"
    else:
        yield (
            f"{by} ({p}). The choice is made on the validation examples, where it was not, and the "
            f"test examples do not change it.{_dearer(best, outcome.choice)}"
        )


def _dearer(other: FinalRow, choice: FinalRow) -> str:
    """The cost of another row next to the choice's: more or fewer parameters, more or less time."""
    parts = [*_parameters(other, choice), *_time(other, choice)]
    return f" It {'; it '.join(parts)}." if parts else ""


def _parameters(other: FinalRow, choice: FinalRow) -> Iterator[str]:
    kept = f"{format_count(other.deployed)} parameters, where `{choice.name}` keeps"
    if other.deployed > choice.deployed > 0:
        yield f"keeps {other.deployed / choice.deployed:.1f} times as many parameters"
    elif other.deployed != choice.deployed:
        yield f"keeps {kept} {format_count(choice.deployed)}"


def _time(other: FinalRow, choice: FinalRow) -> Iterator[str]:
    if not other.latency or not choice.latency:
        return
    more = other.latency / choice.latency - 1
    if abs(more) >= NOTICED:
        how = "more" if more > 0 else "less"
        yield f"takes {abs(more):.0%} {how} time for a text".replace("%", " %")


def _against_floor(outcome: Outcome) -> Iterator[str]:
    if outcome.choice.name == outcome.floor or outcome.floor not in outcome.vs:
        return
    found = outcome.vs[outcome.floor]
    floor = next(row for row in outcome.rows if row.name == outcome.floor)
    scores = f"The task head alone (`{floor.name}`) scores {shown(outcome.metric, floor)}"
    p = f"p {format_p_value(found.p)}"
    worse = outcome.metric.direction.rank(found.points) < 0
    if worse and found.p <= LEVEL:
        yield f"{scores}: {_distance(outcome, found)} worse ({p})."
        return
    yield (
        f"No method is surely better than the task head alone. {scores}, and the difference of "
        f"{_distance(outcome, found)} is within the noise ({p})."
        if worse or found.p > LEVEL
        else f"{scores}, which is {_distance(outcome, found)} better ({p}): no method is worth it."
    )


def _distance(outcome: Outcome, found: Difference) -> str:
    """The size of a difference, in the unit of the scores."""
    return f"{outcome.metric.unit.distance(abs(found.points))}{_unit(outcome)}"


def _unit(outcome: Outcome) -> str:
    """The name of the unit, after a number."""
    metric = outcome.metric
    return " points" if metric.unit is Unit.PERCENT else f" {metric.title}"


def _front(outcome: Outcome) -> Iterator[str]:
    """The rows that are better or cheaper than all others; the floor has a sentence of its own."""
    named = {outcome.choice.name, outcome.floor, _best(outcome).name}
    others = [row for row in front(outcome) if row.name not in named]
    if others:
        listed = (
            f"`{row.name}` ({shown(outcome.metric, row)}, {format_count(row.deployed)} parameters)"
            for row in others
        )
        yield f"Other good trades of score for size: {', '.join(listed)}."


def _broken(outcome: Outcome) -> Iterator[str]:
    if outcome.choice.broken:
        yield (
            f"Measured after training, it {'; '.join(outcome.choice.broken)}. No finalist keeps "
            "all constraints."
        )
    for row in outcome.rows:
        if row.broken and row.name != outcome.choice.name:
            yield f"`{row.name}` is out: measured after training, it {'; '.join(row.broken)}."


# ------------------------------------------------------------------------------------- the price


def _price(outcome: Outcome) -> Iterator[str]:
    row = outcome.choice
    saved = f"the saved file has {format_bytes(row.disk_bytes)}"
    if row.name == outcome.floor:
        yield f"It trains the task head and adds nothing to the base; {saved}."
        return
    number = format_count(row.deployed)
    part = format_percent(100 * row.deployed / outcome.base_params)
    yield (
        f"It trains {format_count(row.trained)} parameters, the task head not counted, and keeps "
        f"{number} ({part} of the base's); {saved}."
    )
    if row.latency:
        yield f"One text takes {row.latency:.2f} times as long as on the base alone."


# ------------------------------------------------------------------------------------- how sure


def _certainty(outcome: Outcome) -> Iterator[str]:
    alone = len(finalists_of(outcome)) == 1 and outcome.choice.name != outcome.floor
    share = f"{outcome.probability:.0%}".replace("%", " %")
    rival = "the task head alone is not" if alone else "no finalist is"
    yield (
        f"In {share} of resamples over examples and seeds, {rival} more than "
        f"{_margin(outcome)} better."
    )
    yield from _scope(outcome)
    if min(row.seeds for row in outcome.rows) == 1:
        yield "Each was trained with one seed, so how much the seed matters is not in it."
    yield from _trust(outcome)


def _scope(outcome: Outcome) -> Iterator[str]:
    """The rows that the probability is about, where there are others."""
    finalists = finalists_of(outcome)
    if len(finalists) == 1:
        yield (
            f"Other methods were compared with `{finalists[0].name}` in the rungs alone, with one "
            "seed each."
        )
    elif _untrained(outcome):
        yield (
            f"This is about the {len(finalists)} finalists and the task head. It says nothing "
            "about the rest."
        )


def _untrained(outcome: Outcome) -> bool:
    return bool(
        outcome.left_out or outcome.not_finished or outcome.at_chance or outcome.not_trained
    )


def _margin(outcome: Outcome) -> str:
    """The difference that does not matter, which is given in hundredths."""
    return f"{outcome.metric.unit.shown(outcome.margin / 100):g}{_unit(outcome)}"


def _trust(outcome: Outcome) -> Iterator[str]:
    found = [rung.correlation for rung in outcome.rungs if rung.correlation is not None]
    if found and min(found) < LOW_CORRELATION:
        yield (
            f"Short and long trainings order the methods differently (rank correlation "
            f"{min(found):.2f}), so one that learns late may have left too early."
        ).replace("-", "−")


# --------------------------------------------------------------------------- what would change it


def _changes(outcome: Outcome) -> Iterator[str]:
    yield from _left_out(outcome)
    if outcome.at_chance:
        last = outcome.rungs[-1].rung.steps
        yield (
            f"After {last} steps or fewer these were no better than a constant guess, and are not "
            f"called worse: {', '.join(outcome.at_chance)}."
        )
    if outcome.not_finished:
        yield (
            f"{_arms(len(outcome.not_finished)).capitalize()} stopped early for lack of time, and "
            f"{'is' if len(outcome.not_finished) == 1 else 'are'} not called worse."
        )
    yield from _collapsed(outcome)
    if outcome.not_trained:
        yield f"No time was left to train as a finalist: {', '.join(outcome.not_trained)}."
    for name, reason in outcome.failed.items():
        yield f"`{name}` failed: {reason}"
    if outcome.ruled_out:
        reasons = (f"`{name}` {why}" for name, why in outcome.ruled_out.items())
        yield f"Ruled out before training: {'; '.join(reasons)}."
    yield from _more(outcome)


def _collapsed(outcome: Outcome) -> Iterator[str]:
    for row in outcome.rows:
        if number := outcome.collapsed.get(row.name):
            yield (
                f"{number} of the {row.seeds} trainings of `{row.name}`{_rate(row)} ended no "
                "better than a constant guess, though the rungs had seen it learn. A lower rate or "
                "a longer training may be steadier."
            )


def _left_out(outcome: Outcome) -> Iterator[str]:
    """The arms that did not begin: whole families by name, other sizes and rates by number."""
    if not outcome.left_out:
        return
    families = f", nor any of {', '.join(outcome.untried)}" if outcome.untried else ""
    yield (
        f"There was no time to begin {_arms(len(outcome.left_out))} (a method at one size and one "
        f"rate){families}. They are not worse, they are not tried. The order of --methods decides "
        "which have time."
    )


def _arms(number: int) -> str:
    return "1 arm" if number == 1 else f"{number} arms"


def _more(outcome: Outcome) -> Iterator[str]:
    if outcome.left_out or outcome.steps < outcome.full_steps:
        longer = (
            f", with {outcome.full_steps} steps a training; here they have {outcome.steps}"
            if outcome.steps < outcome.full_steps
            else ""
        )
        yield f"--minutes {outcome.minutes_for_all:.0f} would try everything{longer}."
    elif outcome.probability < SURE:
        yield "More seeds would tell the finalists apart: the comparison below has them."


def _spent(outcome: Outcome) -> Iterator[str]:
    yield (
        f"{outcome.minutes_used:.1f} of {outcome.minutes:g} minutes, and "
        f"{100 * outcome.cost_share:.0f} % of the training that a full grid takes: every size at "
        "every rate, and three seeds of each."
    )
