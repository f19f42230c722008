"""The page's smaller charts: where a trial stands, and how dark a layer is."""

import pytest

from deltakit.compare.records.trial import Choice, Trial
from deltakit.compare.report import charts
from deltakit.compare.report.charts import HEIGHT, WIDTH, Curves, Layers
from deltakit.compare.stats.metrics import METRICS

ROW, OTHER = ("lora", "fp32"), ("adapter", "fp32")
NAMES = {ROW: "lora", OTHER: "adapter"}


def choice(*scores: float | None, best: int, lowest: float = 1e-4) -> Choice:
    trials = [
        Trial(lr=lowest * 10**n, score=score, reason=None if score else "the loss became NaN")
        for n, score in enumerate(scores)
    ]
    return Choice(lr=trials[best].lr, trials=tuple(trials))


def drawn(*choices: Choice, metric: str = "accuracy") -> Curves:
    rows = dict(zip((ROW, OTHER), choices, strict=False))
    found = charts.curves(rows, NAMES, METRICS.get(metric))
    assert found is not None
    return found


def test_without_a_search_there_are_no_curves() -> None:
    assert charts.curves({}, {}, METRICS.get("accuracy")) is None


def test_the_better_scores_are_on_top() -> None:
    low, high = drawn(choice(9.0, 21.5, best=0), metric="perplexity").panels[0].marks
    assert low.y < high.y
    assert high.tip == "0.001: 21.5 perplexity"


def test_rates_are_even_in_log_space_and_scores_rise_upwards() -> None:
    (panel,) = drawn(choice(0.5, 0.7, 0.6, best=1)).panels
    first, second, third = panel.marks
    assert second.x - first.x == pytest.approx(third.x - second.x, abs=0.2)
    assert first.y > third.y > second.y
    assert all(0 < mark.x < WIDTH and 0 < mark.y < HEIGHT for mark in panel.marks)
    assert [mark.kind for mark in panel.marks] == ["tried", "chosen", "tried"]
    assert second.tip == "0.001: 70.0 %"
    assert panel.line == f"{first.x},{first.y} {second.x},{second.y} {third.x},{third.y}"


def test_a_trial_that_failed_is_marked_on_the_axis_and_not_joined() -> None:
    (panel,) = drawn(choice(0.5, 0.7, None, best=1)).panels
    failed = panel.marks[-1]
    assert (failed.kind, failed.tip) == ("failed", "0.01: failed, the loss became NaN")
    assert failed.y > max(mark.y for mark in panel.marks[:-1]) - 1
    assert len(panel.line.split()) == 2


@pytest.mark.parametrize(("best", "word"), [(0, "lowest"), (1, ""), (2, "highest")])
def test_a_choice_at_an_edge_is_said(best: int, word: str) -> None:
    (panel,) = drawn(choice(0.5, 0.5, 0.5, best=best)).panels
    assert bool(panel.edge) == bool(word)
    assert word in panel.edge


def test_all_panels_have_the_same_axes() -> None:
    both = drawn(choice(0.5, 0.7, best=1), choice(0.7, 0.9, best=1))
    first, second = both.panels
    assert (first.title, second.title) == ("lora", "adapter")
    assert first.marks[1].y == second.marks[0].y
    assert [tick.text for tick in both.across] == ["0.0001", "0.001"]
    assert [tick.text for tick in both.scores] == ["50", "60", "70", "80", "90"]


def test_rates_within_one_decade_have_both_ends_as_ticks() -> None:
    trials = (Trial(lr=2e-3, score=0.5), Trial(lr=5e-3, score=0.6))
    found = drawn(Choice(lr=5e-3, trials=trials))
    assert [tick.text for tick in found.across] == ["0.002", "0.005"]


def test_where_every_score_is_the_same_the_line_is_in_the_middle() -> None:
    (panel,) = drawn(choice(0.5, 0.5, best=0)).panels
    assert len({mark.y for mark in panel.marks}) == 1


# ------------------------------------------------------------------------------- maps of layers


def lines(layers: Layers | None) -> dict[str, list[tuple[str, float] | None]]:
    assert layers is not None
    return {
        name: [None if shade is None else (shade.text, shade.heat) for shade in line]
        for name, line in layers.lines
    }


def test_the_mean_over_seeds_takes_what_is_there() -> None:
    seeds = [
        {"texts": 8, "moved": {"encoder.0": 0.1}, "attention": {"s": {"a": 0.2}}},
        {"texts": 8, "moved": {"encoder.0": 0.3, "encoder.1": 0.5}},
    ]
    assert charts.mean_of(seeds) == {
        "texts": 8,
        "moved": {"encoder.0": pytest.approx(0.2), "encoder.1": 0.5},
        "attention": {"s": {"a": 0.2}},
    }


def test_changes_are_shaded_within_a_line() -> None:
    found = {
        ROW: {"changes": {"encoder.0.attn.q": 0.01, "encoder.2.attn.q": 0.04}},
        OTHER: {"changes": {"encoder.1.block.out": 0.5}},
    }
    layers = charts.changes(found, NAMES, "changes")
    assert layers is not None and layers.layers == (0, 1, 2)
    assert lines(layers) == {
        "lora · attn.q": [("1.00 %", 0.25), None, ("4.00 %", 1.0)],
        "adapter · block.out": [None, ("50.0 %", 1.0), None],
    }


def test_blocks_of_several_stacks_have_a_line_each() -> None:
    found = {ROW: {"moved": {"encoder.0": 0.5, "decoder.0": 1.25}}}
    assert lines(charts.changes(found, NAMES, "moved")) == {
        "lora · encoder": [("50.0 %", 1.0)],
        "lora · decoder": [("125 %", 1.0)],
    }


def test_attention_is_as_dark_as_it_is_large() -> None:
    found = {ROW: {"attention": {"encoder.0.block.out": {"imdb": 0.25, "own": 0.75}}}}
    assert lines(charts.attention(found, NAMES)) == {
        "lora · block.out · imdb": [("0.25", 0.25)],
        "lora · block.out · own": [("0.75", 0.75)],
    }


def test_the_load_of_experts_and_those_without_any() -> None:
    found = {ROW: {"load": {"encoder.0.attn.q": {"0": 1.0, "1": 0.0}}}}
    assert lines(charts.load(found, NAMES)) == {
        "lora · attn.q · 0": [("1.00", 1.0)],
        "lora · attn.q · 1": [("0.00", 0.0)],
    }
    assert charts.dead(found, NAMES) == ["lora: encoder.0.attn.q · 1"]
    assert charts.load({}, NAMES) is None and charts.dead({}, NAMES) == []


def test_where_nothing_was_recorded_there_is_no_map() -> None:
    assert charts.changes({ROW: {"texts": 8}}, NAMES, "moved") is None
    assert charts.attention({}, NAMES) is None
    assert charts.changes({ROW: {"changes": {"encoder.0.x": 0.0}}}, NAMES, "changes") is not None
