"""Verdicts of other libraries: what answers the same question, and back from disk."""

from dataclasses import replace

from deltakit.compare.records.verdict import Verdict

ONE = Verdict(judge="lm-eval", version="0.4.13", task="arc", metric="acc", value=0.25, higher=True)


def test_the_title_says_what_was_asked() -> None:
    assert ONE.title == "lm-eval: arc acc"
    assert replace(ONE, version="0.5", value=1, stderr=0.1).title == ONE.title
    whole = replace(ONE, examples=30, of=30)
    assert whole.title == ONE.title
    part = replace(whole, examples=5, shots=2, merged=True, metric="ppl", higher=False)
    assert part.title == "lm-eval: arc ppl, 2 shots, first 5, merged ↓"


def test_back_from_disk() -> None:
    assert Verdict.from_dict(ONE.to_dict()) == ONE
