"""The answer in words: plain ones, and what was not trained is said and not called worse."""

from dataclasses import replace
from typing import Any

import pytest

from deltakit.choose.answer import headline, sections, sentences
from deltakit.choose.decide.arms import Rung
from deltakit.choose.decide.halving import Fate, Verdict
from deltakit.choose.decide.watch import RungResult
from deltakit.choose.finals_table import finals_headers, finals_rows
from deltakit.choose.outcome import FinalRow, Outcome, record
from deltakit.compare.stats.metrics import METRICS
from deltakit.compare.stats.significance import Difference


def row(name: str, score: float, deployed: int = 1000, latency: float = 1.1) -> FinalRow:
    return FinalRow(
        name=name,
        method=name,
        base="fp32",
        lr=0.002,
        score=score,
        low=score - 0.02,
        high=score + 0.02,
        seeds=2,
        trained=deployed,
        deployed=deployed,
        disk_bytes=4 * deployed,
        latency=latency,
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
        saved_seed=21,
        saved_score=0.76,
        rows=(HEAD, LORA, IA3),
        floor="head",
        metric=METRICS.get("accuracy"),
        task="reviews",
        model="minilm",
        base_params=100_000,
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
        not_trained=(),
        failed={},
        collapsed={},
        rungs=(RUNG,),
        minutes=7,
        minutes_used=6.4,
        minutes_for_all=108,
        steps=72,
        full_steps=800,
    )
    return replace(usual, **changes)


def said(result: Outcome, title: str) -> str:
    """The text of one section; empty where it is left out."""
    return " ".join(s for each in sections(result) if each.title == title for s in each.sentences)


def test_the_answer_has_a_section_for_each_question() -> None:
    titles = [each.title for each in sections(outcome())]
    assert titles == [
        "", "Why", "What it costs", "How sure", "What would change it", "What was spent"
    ]  # fmt: skip
    assert sentences(outcome())[0] == headline(outcome())
    assert headline(outcome()) == (
        "Take `lora` at learning rate 0.002: accuracy 75.0 % (95 % interval 73.0 to 77.0) on 500 "
        "test examples that were not used to choose it."
    )


def test_what_the_budget_could_not_train_is_said_and_not_called_worse() -> None:
    change = said(outcome(), "What would change it")
    assert "no better than a constant guess, and are not called worse: prefix on fp32" in change
    assert "no time to begin 2 arms" in change and "nor any of parallel. They are not wor" in change
    assert "--minutes 108 would try everything, with 800 steps a training; here" in change
    content = record(outcome(), answer=("a.", "b."), delta="d", constraints={})
    assert content["untried"] == ["parallel"] and content["worse"] == []
    assert content["at_chance"] == ["prefix on fp32 at 0.003"] and content["answer"] == "a. b."


def test_a_field_of_full_length_names_no_steps() -> None:
    change = said(outcome(full_steps=72), "What would change it")
    assert change.endswith("--minutes 108 would try everything.")


def test_finalists_for_which_there_was_no_time_are_named() -> None:
    late = outcome(not_trained=("adapter",), left_out=(), untried=(), at_chance=())
    assert "No time was left to train as a finalist: adapter." in said(late, "What would change it")
    assert "It says nothing about the rest." in said(late, "How sure")


def test_the_saved_delta_has_a_score_of_its_own_where_there_are_several_seeds() -> None:
    several = outcome()
    assert several.choice.seeds > 1
    assert sentences(several)[1] == (
        f"The saved delta is the best of its {LORA.seeds} seeds on the validation examples, and "
        "has 76.0 % on the test examples."
    )
    once = outcome(choice=replace(LORA, seeds=1))
    assert "saved delta" not in said(once, "")
    content = record(several, answer=(), delta="d", constraints={})
    assert content["saved_seed"] == 21 and content["saved_score"] == 0.76


def test_a_training_that_collapsed_is_named() -> None:
    change = said(outcome(collapsed={"ia3": 1}), "What would change it")
    assert f"1 of the {IA3.seeds} trainings of `ia3` at learning rate 0.002 ended no bet" in change
    assert "A lower rate or a longer training may be steadier." in change
    content = record(outcome(collapsed={"ia3": 1}), answer=(), delta="d", constraints={})
    assert content["collapsed"] == {"ia3": 1}


def test_nothing_beats_the_floor() -> None:
    tied = outcome(vs={"head": difference(-0.4, 0.6), "ia3": difference(-5.0, 0.01)})
    why = said(tied, "Why")
    assert "No method is surely better than the task head alone." in why
    assert "the difference of 0.4 points is within the noise (p 0.60)" in why
    clear = said(outcome(), "Why")
    assert "The task head alone (`head`) scores 60.0 % [58.0, 62.0]: 15.0 points worse" in clear
    head = outcome(choice=HEAD, vs={"lora": difference(0.6, 0.5), "ia3": difference(0.2, 0.7)})
    assert headline(head).startswith("Train the task head alone (`head` at learning rate 0.002): ")
    assert said(head, "What it costs").startswith("It trains the task head and adds nothing to")
    alone = outcome(choice=HEAD, rows=(HEAD, LORA), vs={"lora": difference(0.6, 0.5)})
    assert (
        "no finalist is more than 0.5 points better. Other methods were compared with `lora`"
        in (said(alone, "How sure"))
    )


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (row("mam", 0.78, 5_300), "keeps 5.3 times as many parameters"),
        (row("mam", 0.78, 190), "keeps 190 parameters, where `lora` keeps 1.00 k"),
        (row("mam", 0.78, 5_300, 1.54), "as many parameters; it takes 40 % more time for a text."),
        (row("mam", 0.78, 1_000, 1.54), "It takes 40 % more time for a text."),
        (row("mam", 0.78, 1_000, 0.88), "It takes 20 % less time for a text."),
    ],
)
def test_the_cost_of_a_better_row_is_in_plain_words(other: FinalRow, words: str) -> None:
    best = outcome(rows=(HEAD, LORA, other), vs={"mam": difference(3.0, 0.2)})
    assert words in said(best, "Why") and "×" not in said(best, "Why")
    assert "3.0 points better on the test examples, which is within the noise (p 0.20)" in said(
        best, "Why"
    )


def test_a_row_that_is_surely_better_on_test_does_not_change_the_choice() -> None:
    best = outcome(rows=(HEAD, LORA, row("mam", 0.80)), vs={"mam": difference(5.0, 0.01)})
    assert "The choice is made on the validation examples, where it was not" in said(best, "Why")


def test_the_price_is_in_numbers_and_bytes() -> None:
    assert said(outcome(), "What it costs") == (
        "It trains 1.00 k parameters, the task head not counted, and keeps 1.00 k (1.00 % of the "
        "base's); the saved file has 3.91 KiB. One text takes 1.10 times as long as on the base "
        "alone."
    )


def test_the_probability_is_about_finalists_alone_where_others_were_not_trained() -> None:
    sure = said(outcome(), "How sure")
    assert sure.startswith("In 97 % of resamples over examples and seeds, no finalist is ")
    assert "more than 0.5 points better. This is about the 2 finalists and the task head." in sure
    whole = outcome(left_out=(), untried=(), at_chance=())
    assert "says nothing about" not in said(whole, "How sure")


def test_one_finalist_is_sure_of_nothing_but_the_task_head() -> None:
    sure = said(outcome(rows=(HEAD, LORA)), "How sure")
    assert "the task head alone is not more than 0.5 points better. Other methods were" in sure
    assert "compared with `lora` in the rungs alone" in sure and "2 finalists" not in sure
    verdicts = [
        Verdict(arm=f"{name} on fp32 at 0.01", fate=Fate.KEPT, score=at, behind=80 - at)
        for name, at in (("head", 0.8), ("ia3", 0.7), ("lora", 0.75))
    ]
    ended = outcome(rows=(HEAD, LORA), rungs=(replace(RUNG, verdicts=tuple(verdicts)),))
    assert (
        "After 72 steps, on 500 validation examples, the best were `lora on fp32 at 0.01` 75.0 %, "
        "`ia3 on fp32 at 0.01` 70.0 %."
    ) in said(ended, "Why")


def test_rungs_that_disagree_and_single_seeds_are_told() -> None:
    assert "rank correlation 0.40" in said(outcome(), "How sure")
    agreeing = outcome(rungs=(replace(RUNG, correlation=0.9),))
    assert "rank correlation" not in said(agreeing, "How sure")
    alone = outcome(rows=tuple(replace(each, seeds=1) for each in (HEAD, LORA, IA3)))
    assert "Each was trained with one seed" in said(alone, "How sure")


def test_differences_are_in_the_unit_of_the_scores() -> None:
    best = outcome(
        rows=(HEAD, LORA, row("mam", 0.78)),
        vs={"mam": difference(3.0, 0.2)},
        metric=METRICS.get("spearman"),
    )
    assert "0.030 Spearman" in said(best, "Why"), said(best, "Why")
    assert "more than 0.005 Spearman" in said(best, "How sure"), said(best, "How sure")


def test_the_table_of_the_finals_has_the_best_first() -> None:
    rows = finals_rows(outcome())
    assert [cells[0] for cells in rows] == ["lora", "ia3", "head"]
    assert rows[0] == ("lora", "0.002", "75.0 % [73.0, 77.0]", "2", "1.00 k", "1.10× base")
    assert len(finals_headers(outcome())) == len(rows[0])
