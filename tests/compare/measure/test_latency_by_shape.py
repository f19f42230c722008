"""Latency by shape: what is asked for, what is timed, and that the model stays what it was."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

import deltakit as dk
from deltakit.compare.adapted import DeltakitModel
from deltakit.compare.measure.latency_by_shape import by_shape, filled
from deltakit.compare.records.latency import Shape, shape_of
from deltakit.compare.records.protocol import Protocol
from deltakit.errors import InvalidConfig
from deltakit.models.heads import LanguageHead, SequenceHead

CPU = torch.device("cpu")
ONCE = Protocol(shape_repeats=1)
ROWS = Dataset.from_dict({"input_ids": [[5, 6, 7], [8, 9], [10]]})


@pytest.mark.parametrize("text", ["", "8", "8x", "x8", "0x4", "4x0", "-1x4", "8 x 4", "8x4x2"])
def test_what_is_no_shape(text: str) -> None:
    with pytest.raises(InvalidConfig, match="write texts and tokens as in 8x128"):
        shape_of(text)


def test_a_shape_and_its_name() -> None:
    assert shape_of("8x128") == Shape(texts=8, tokens=128)
    assert str(shape_of("1x16")) == "1x16"


def test_a_batch_is_of_its_shape_and_of_tokens_that_occur() -> None:
    batch = filled(ROWS, Shape(texts=2, tokens=5), CPU)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9], [10, 5, 6, 7, 8]]
    assert batch["attention_mask"].tolist() == [[1] * 5] * 2


def timed(model: Any, method: dk.Method, head: Any, *shapes: str) -> Any:
    dk.attach(model, method, "trained")
    return by_shape(
        DeltakitModel(model, method), head, ROWS, [shape_of(s) for s in shapes], CPU, ONCE
    )


def test_a_classifier_makes_forward_passes(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    rows = timed(model, dk.LoRA(), SequenceHead(outputs=2), "1x4", "2x8")
    assert [(row.shape, row.phase) for row in rows] == [("1x4", "forward"), ("2x8", "forward")]
    for row in rows:
        assert row.ms > 0 and row.iqr_ms >= 0 and row.vs_base > 0
        assert row.merged_vs_base is not None and row.merged_vs_base > 0


@pytest.mark.parametrize(
    ("method", "merges"),
    [(dk.LoRA(), True), (dk.SequentialAdapter(), False), (dk.PrefixTuning(), False)],
)
def test_a_decoder_reads_and_generates(
    method: dk.Method, merges: bool, kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = kit.make_model("llama", "causal")
    seen: list[tuple[int, int]] = []
    generate = model.generate

    def watched(**given: Any) -> Any:
        out = generate(**given)
        seen.append((given["input_ids"].shape[1], out.shape[1]))
        return out

    monkeypatch.setattr(model, "generate", watched)
    rows = timed(model, method, LanguageHead(), "2x4")
    assert [(row.shape, row.phase) for row in rows] == [("2x4", "prefill"), ("2x4", "decode")]
    assert all((row.merged_vs_base is not None) == merges for row in rows)
    assert set(seen) == {(4, 5), (4, 5 + ONCE.generated_tokens)}


def test_timing_leaves_the_model_as_it_was(kit: SimpleNamespace) -> None:
    model = kit.make_model("bert", "classify")
    dk.attach(model, dk.LoRA(), "trained")
    kit.randomise_deltas(model)
    batch, before = kit.make_batch(), kit.snapshot(model)
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    by_shape(
        DeltakitModel(model, dk.LoRA()), SequenceHead(outputs=2), ROWS, [shape_of("2x4")], CPU, ONCE
    )
    kit.assert_same(before, kit.snapshot(model))
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, logits)


def test_nothing_is_timed_unasked(kit: SimpleNamespace) -> None:
    assert timed(kit.make_model("bert", "classify"), dk.LoRA(), SequenceHead(outputs=2)) == ()
