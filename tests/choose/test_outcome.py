"""The answer in words: what was not trained is said, and not called worse."""

from dataclasses import replace
from typing import Any

from deltakit.choose.decide.arms import Rung
from deltakit.choose.decide.bracket import RungResult
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.outcome import FinalRow, Outcome, headline, record, sentences
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import Difference


def row(name: str, score: float, deployed: int = 1000) -> FinalRow:
    return FinalRow(
        name=name,
        method=name,
        base="fp32",
        lr=0.002,
        score=score,
        low=score - 0.02,
        high=score + 0.02,
        seeds=2,
        deployed=deployed,
        latency=1.1,
    )


def difference(points: float, p: float) -> Difference:
    return Difference(
        points=points, low=points - 1, high=points + 1, p=p, detectable=2.0, about="methods"
    )


LORA, IA3, HEAD = row("lora", 0.75), row("ia3", 0.70, 100), row("head", 0.60, 0)
RUNG = RungResult(
    rung=Rung(number=1, steps=72, rows=500),
    verdicts=(Verdict(arm="prefix on fp32 at 0.003", fate=Fate.AT_CHANCE, at_chance=True),),
    correlation=0.4,
    seconds=1.0,
)


def outcome(**changes: Any) -> Outcome:
    usual = Outcome(
        choice=LORA,
        rows=(HEAD, LORA, IA3),
        floor="head",
        metric=METRICS.get("accuracy"),
        task="reviews",
        model="minilm",
        n_test=500,
        vs={"head": difference(-15.0, 0.001), "ia3": difference(-5.0, 0.01)},
        probability=0.97,
        margin=0.5,
        cost_share=0.13,
        ruled_out={},
        left_out=("parallel on fp32 at 0.0003", "lora on fp32 at 0.006"),
        untried=("parallel",),
        not_finished=(),
        at_chance=("prefix on fp32 at 0.003",),
        beaten=(),
        failed={},
        rungs=(RUNG,),
        minutes=7,
        minutes_used=6.4,
        minutes_for_all=108,
        steps=72,
        full_steps=800,
    )
    return replace(usual, **changes)


def test_what_the_budget_could_not_train_is_said_and_not_called_worse() -> None:
    said = sentences(outcome())
    assert said[0].startswith("Take `lora` at 0.002: 75.0 % [73.0, 77.0]")
    (stuck,) = [each for each in said if each.startswith("At chance still")]
    assert "prefix on fp32 at 0.003" in stuck and "not called worse" in stuck
    (left,) = [each for each in said if "no room to begin 2 arms" in each]
    assert "Nothing was tried of: parallel." in left and "order of --methods" in left
    content = record(outcome(), delta="d", constraints={})
    assert content["untried"] == ["parallel"] and content["worse"] == []
    assert content["at_chance"] == ["prefix on fp32 at 0.003"]


def test_nothing_beats_the_floor() -> None:
    tied = outcome(vs={"head": difference(-0.4, 0.6), "ia3": difference(-5.0, 0.01)})
    (floor,) = [each for each in sentences(tied) if "floor" in each]
    assert floor.startswith("Nothing beats the floor for sure: the head alone (`head`)")
    assert not [each for each in sentences(outcome()) if each.startswith("Nothing beats")]
    head = outcome(choice=HEAD)
    assert headline(head).startswith("Train the head alone (`head`, at 0.002)")


def test_the_probability_is_about_finalists_alone_where_others_were_not_trained() -> None:
    (sure,) = [each for each in sentences(outcome()) if "resamples" in each]
    assert sure.endswith("It says nothing of what was not trained.")
    whole = outcome(left_out=(), untried=(), at_chance=())
    assert not [each for each in sentences(whole) if "says nothing of" in each]


def test_differences_are_in_the_unit_of_the_scores() -> None:
    best = outcome(rows=(HEAD, LORA, row("mam", 0.78)), vs={"mam": difference(3.0, 0.2)})
    assert any("cannot be told from it (+3.0, p 0.20)" in each for each in sentences(best))
    assert any("within 0.5 points of the best" in each for each in sentences(best))
    plain = replace(best, metric=METRICS.get("spearman"))
    said = [each for each in sentences(plain) if "(+0.030, p" in each or "within 0.005 " in each]
    assert len(said) == 2, sentences(plain)
