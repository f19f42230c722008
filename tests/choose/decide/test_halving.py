"""Who leaves after a rung: only what is worse, or what the budget has no room for."""

from deltakit.choose.decide.arms import ArmFacts, Reading
from deltakit.choose.decide.halving import (
    Fate,
    arms_at_chance,
    caution_after,
    finalists,
    judge,
    most_kept,
    rank_correlation,
    settled,
)
from deltakit.compare.records.result import Predictions
from deltakit.compare.stats.metrics import METRICS

ACCURACY = METRICS.get("accuracy")


def facts(name: str, cost: float = 1.0, family: str = "", lr: float = 1e-3) -> ArmFacts:
    return ArmFacts(
        name=name,
        candidate=name.partition("@")[0],
        family=family or name,
        lr=lr,
        cost=cost,
        step_seconds=1.0,
    )


def right(share: float, rows: int = 200) -> Reading:
    """The first examples are right, so that differences are as sure as they can be."""
    hits = round(share * rows)
    made = Predictions(labels=(1,) * rows, predicted=(1,) * hits + (0,) * (rows - hits))
    return Reading(steps=1, seconds=1.0, predictions=made)


def fates(verdicts):
    return {verdict.arm: verdict.fate for verdict in verdicts}


def test_only_an_arm_that_is_behind_by_more_than_can_be_detected_is_worse():
    arms = [facts("a"), facts("b"), facts("c")]
    readings = {"a": right(0.8), "b": right(0.79), "c": right(0.5)}
    found = judge(arms, readings, ACCURACY, capacity=3)
    assert fates(found) == {"a": Fate.KEPT, "b": Fate.KEPT, "c": Fate.BEATEN}
    behind = {verdict.arm: verdict for verdict in found}["c"]
    assert behind.behind > behind.detectable > 0


def test_caution_spares_an_arm_that_is_behind():
    arms = [facts("a"), facts("b")]
    readings = {"a": right(0.8), "b": right(0.7)}
    assert fates(judge(arms, readings, ACCURACY, capacity=2))["b"] is Fate.BEATEN
    assert fates(judge(arms, readings, ACCURACY, capacity=2, caution=2.0))["b"] is Fate.KEPT


def test_an_arm_that_gains_as_much_as_it_is_behind_is_not_called_worse():
    arms = [facts("ia3"), facts("lora"), facts("adapter")]
    readings = {"ia3": right(0.75), "lora": right(0.63), "adapter": right(0.62)}
    # As after 49 steps on SST-2, where lora has 74 % after 100.
    before = {"ia3": 0.59, "lora": 0.53, "adapter": 0.62}
    found = fates(judge(arms, readings, ACCURACY, capacity=3, before=before))
    assert found == {"ia3": Fate.KEPT, "lora": Fate.KEPT, "adapter": Fate.BEATEN}
    alone = fates(judge(arms, readings, ACCURACY, capacity=3))
    assert alone["lora"] is Fate.BEATEN
    lost = {**before, "lora": 0.9}
    assert fates(judge(arms, readings, ACCURACY, capacity=3, before=lost))["lora"] is Fate.BEATEN


def test_ties_survive_in_order_of_cost():
    arms = [facts("dear", cost=9), facts("cheap", cost=1), facts("middle", cost=5)]
    readings = {name: right(0.8) for name in ("dear", "cheap", "middle")}
    found = judge(arms, readings, ACCURACY, capacity=2)
    assert fates(found) == {"cheap": Fate.KEPT, "middle": Fate.KEPT, "dear": Fate.NO_BUDGET}


def test_the_floor_takes_no_room_from_a_method_at_chance():
    arms = [facts("head"), facts("lora"), facts("adapter")]
    readings = {each.name: right(0.5) for each in arms}
    majority = right(0.5).predictions
    stuck = arms_at_chance(readings, majority, ACCURACY)
    assert stuck == {"head", "lora", "adapter"}

    def kept(capacity, **more):
        found = judge(arms, readings, ACCURACY, capacity=capacity, at_chance=stuck, **more)
        return {name for name, fate in fates(found).items() if fate is Fate.KEPT}

    assert kept(2) == {"head", "lora"}
    assert kept(2, floor="head") == {"lora", "adapter"}
    assert kept(1, families=3, floor="head") == {"lora", "adapter"}
    assert kept(1, families=3) == {"head", "lora", "adapter"}
    assert kept(3, floor="head") == {"head", "lora", "adapter"}
    readings["head"] = right(0.8)  # by its score it goes on
    found = judge(arms, readings, ACCURACY, capacity=1, at_chance={"lora", "adapter"}, floor="head")
    assert fates(found)["head"] is Fate.KEPT


def test_an_arm_without_room_is_not_called_worse():
    arms = [facts("a"), facts("b")]
    found = judge(arms, {"a": right(0.8), "b": right(0.78)}, ACCURACY, capacity=1)
    assert fates(found)["b"] is Fate.NO_BUDGET
    # One that was not read at this rung has no score.
    (lost,) = [v for v in judge(arms, {"a": right(0.8)}, ACCURACY, capacity=2) if v.arm == "b"]
    assert lost.fate is Fate.NO_BUDGET and lost.score is None


def test_every_family_keeps_an_arm():
    arms = [facts(f"{family}@{n}", family=family) for family in "abc" for n in range(2)]
    shares = {"a@0": 0.9, "a@1": 0.89, "b@0": 0.5, "b@1": 0.55, "c@0": 0.6, "c@1": 0.4}
    readings = {name: right(share) for name, share in shares.items()}
    kept = {
        verdict.arm
        for verdict in judge(arms, readings, ACCURACY, capacity=1, families=6)
        if verdict.fate is Fate.KEPT
    }
    assert kept == {"a@0", "b@1", "c@0"}


def test_where_families_have_no_room_the_best_go_on():
    arms = [facts(f"{family}@{n}", family=family) for family in "abc" for n in range(2)]
    readings = {arm.name: right(0.9 - 0.001 * at) for at, arm in enumerate(arms)}
    found = judge(arms, readings, ACCURACY, capacity=2, families=2)
    assert {v.arm for v in found if v.fate is Fate.KEPT} == {"a@0", "b@0"}


def chance(rows: int = 200) -> Predictions:
    """The majority's prediction: the second half of the examples is right."""
    return Predictions(labels=(1,) * rows, predicted=(0,) * (rows // 2) + (1,) * (rows // 2))


def test_an_arm_at_chance_is_not_called_worse():
    arms = [facts("ia3"), facts("lora"), facts("bad")]
    # As after 14 steps in a run of seven minutes: one arm has left chance.
    readings = {"ia3": right(0.8), "lora": right(0.5), "bad": right(0.6)}
    stuck = arms_at_chance(readings, chance(), ACCURACY)
    assert stuck == {"lora", "bad"}
    found = judge(arms, readings, ACCURACY, capacity=1, at_chance=stuck)
    assert fates(found) == {"ia3": Fate.KEPT, "lora": Fate.AT_CHANCE, "bad": Fate.AT_CHANCE}
    assert fates(judge(arms, readings, ACCURACY, capacity=3))["lora"] is Fate.BEATEN


def test_nothing_is_worse_than_a_leader_at_chance():
    arms = [facts("second", cost=9), facts("first", cost=5), facts("failing", cost=1)]
    readings = {"second": right(0.52), "first": right(0.5), "failing": right(0.2)}
    stuck = arms_at_chance(readings, chance(), ACCURACY)
    assert stuck == set(readings)
    found = judge(arms, readings, ACCURACY, capacity=2, at_chance=stuck)
    # Scores at chance are noise: the order is that of the field.
    assert [v.arm for v in found if v.fate is Fate.KEPT] == ["second", "first"]
    assert fates(found)["failing"] is Fate.AT_CHANCE


def test_a_rare_class_is_at_chance_until_it_is_found():
    """With f1_macro an arm that predicts the frequent class alone has not begun to learn."""
    f1 = METRICS.get("f1_macro")
    labels = (1,) * 8 + (0,) * 192
    always = Predictions(labels=labels, predicted=(0,) * 200)
    some = Predictions(labels=labels, predicted=(1,) * 7 + (0,) * 193)
    readings = {
        name: Reading(steps=1, seconds=1.0, predictions=made)
        for name, made in (("always", always), ("some", some))
    }
    assert arms_at_chance(readings, always, f1) == {"always"}


def test_at_the_last_rung_an_arm_at_chance_is_no_finalist_where_another_learnt():
    arms = [facts("a"), facts("b")]
    readings = {"a": right(0.8), "b": right(0.5)}
    stuck = arms_at_chance(readings, chance(), ACCURACY)
    found = settled(judge(arms, readings, ACCURACY, capacity=2, at_chance=stuck))
    assert fates(found) == {"a": Fate.KEPT, "b": Fate.AT_CHANCE}
    assert [arm.name for arm in finalists(arms, found, 3)] == ["a"]
    nothing = judge(arms, {"b": right(0.5)}, ACCURACY, capacity=2, at_chance={"b"})
    assert fates(settled(nothing))["b"] is Fate.KEPT


def test_a_failed_training_is_a_result():
    arms = [facts("a"), facts("b")]
    lost = Reading(steps=0, seconds=1.0, predictions=None, reason="the loss is nan")
    found = judge(arms, {"a": right(0.8), "b": lost}, ACCURACY, capacity=2)
    assert found[-1].fate is Fate.FAILED and found[-1].reason == "the loss is nan"
    assert {v.fate for v in judge(arms, {"a": lost, "b": lost}, ACCURACY, capacity=2)} == {
        Fate.FAILED
    }


def test_lower_is_better_where_the_metric_says_so():
    arms = [facts("a"), facts("b")]
    error = METRICS.get("mse")

    def off(by: float) -> Reading:
        labels = tuple(float(n % 7) for n in range(60))
        made = Predictions(
            labels=labels, predicted=tuple(y + by * (1 + n % 3) for n, y in enumerate(labels))
        )
        return Reading(steps=1, seconds=1.0, predictions=made)

    found = judge(arms, {"a": off(0.5), "b": off(0.01)}, error, capacity=2)
    assert found[0].arm == "b" and fates(found)["a"] is Fate.BEATEN


def test_rank_correlation_of_rungs():
    early = {"a": 0.5, "b": 0.6, "c": 0.7, "d": 0.8}
    assert rank_correlation(early, {name: score + 0.1 for name, score in early.items()}) == 1.0
    assert rank_correlation(early, {name: 1 - score for name, score in early.items()}) == -1.0
    assert rank_correlation(early, {"a": 0.5, "b": 0.6, "c": 0.7}) is None
    assert rank_correlation(early, dict.fromkeys(early, 0.5)) is None
    assert most_kept(12, 1.0) == 6 < most_kept(12, 0.2) == 9 < most_kept(12, 1.0, 6) == 12
    low, first = caution_after(-1.0, first=False), caution_after(None, first=True)
    assert low > first > caution_after(1.0, first=False) == 1.0


def test_finalists_are_different_candidates_each_at_its_best_rate():
    arms = [
        facts("lora@1", lr=1e-3, family="l"),
        facts("lora@2", lr=2e-3, family="l"),
        facts("ia3@1", cost=0.1),
        facts("bad@1"),
    ]
    readings = {
        "lora@1": right(0.8),
        "lora@2": right(0.81),
        "ia3@1": right(0.8),
        "bad@1": right(0.3),
    }
    verdicts = judge(arms, readings, ACCURACY, capacity=4)
    assert [arm.name for arm in finalists(arms, verdicts, 3)] == ["lora@2", "ia3@1"]
    assert [arm.name for arm in finalists(arms, verdicts, 1)] == ["lora@2"]
