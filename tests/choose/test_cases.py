"""Whole choices where an answer is hard: noise, a rare class, few examples, nf4, a decoder."""

from pathlib import Path
from typing import Any

import pytest
import tiny_choice as tiny
from tiny_tasks import given_away, noise, rare, save_task

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _light(light: None) -> None:
    """Every choice here is small."""


def test_where_nothing_beats_the_floor_it_says_so(bert: Path) -> None:
    choice = tiny.choose(bert, save_task(Path("noise"), noise), methods="lora[rank=4,alpha=8],ia3")
    said = str(choice)
    assert "Train the task head alone" in said or "No method is surely better" in said
    verdicts = [arm for rung in choice.record["rungs"] for arm in rung["arms"]]
    assert not [arm for arm in verdicts if arm["at_chance"] and arm["fate"] == "worse"]


def test_one_class_is_rare(bert: Path) -> None:
    choice = tiny.choose(bert, save_task(Path("rare"), rare), metric="f1_macro")
    assert choice.record["metric"] == "f1_macro"
    assert "--metric f1_macro" in choice.command


def test_sixty_examples(bert: Path) -> None:
    task = save_task(Path("few"), given_away, train=60, validation=30, test=30)
    choice = tiny.choose(bert, task)
    assert choice.record["score_low"] <= choice.record["score"] <= choice.record["score_high"]


def test_a_base_in_four_bits(wide_bert: Path, reviews: Path) -> None:
    pytest.importorskip("bitsandbytes")
    choice = tiny.choose(wide_bert, reviews, bases="nf4")
    assert choice.base == "nf4" and choice.delta.is_dir()
    loaded: dict[str, Any] = {}
    exec(choice.python, loaded)


def test_a_decoder(llama: Path, reviews: Path) -> None:
    choice = tiny.choose(llama, reviews)
    assert choice.method in ("lora[rank=4,alpha=8]", "head")


def test_texts_alone_on_a_decoder(llama: Path, reviews: Path) -> None:
    """Perplexity: less is better."""
    choice = tiny.choose(llama, reviews, kind="causal")
    assert choice.record["metric"] == "perplexity" and "--kind causal" in choice.command
