"""PerRow where a module has other rows than the batch: beams, choices, towers, encoders."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForMultipleChoice, CLIPModel

import deltakit as dk
from deltakit.errors import IncompatibleDeltas
from deltakit.runtime.row_counts import RowCounts
from deltakit.testing.models import CONFIGS

METHODS = {
    "lora": dk.LoRA(rank=2, targets="all"),
    "prefix": dk.PrefixTuning(length=2, bottleneck=3),
    "adapter": dk.SequentialAdapter(bottleneck=3),
}
ROWS = ["lora", None, "prefix", "adapter"]
BEAMS = {"max_new_tokens": 4, "min_new_tokens": 4, "num_beams": 3, "do_sample": False}


def attached(kit: SimpleNamespace, model: Any) -> Any:
    for name, method in METHODS.items():
        dk.attach(model, method, name)
    kit.randomise_deltas(model)
    return model.eval()


def prompts(rows: int = 4) -> dict[str, Tensor]:
    ids = torch.randint(5, 60, (rows, 5))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def row(batch: dict[str, Tensor], index: int) -> dict[str, Tensor]:
    return {key: value[index : index + 1] for key, value in batch.items()}


@pytest.mark.parametrize("returned", [1, 2])
@pytest.mark.parametrize(
    ("family", "kind"),
    [("t5", "seq2seq"), ("bart", "seq2seq"), ("llama", "causal"), ("gpt2", "causal")],
)
def test_beams_follow_their_row(
    kit: SimpleNamespace, family: str, kind: str, returned: int
) -> None:
    model, batch = attached(kit, kit.make_model(family, kind)), prompts()
    settings = {**BEAMS, "num_return_sequences": returned}
    alone = []
    for index, name in enumerate(ROWS):
        dk.activate(model, name)
        alone.append(model.generate(**row(batch, index), **settings))
    for entries in (ROWS, [name for name in ROWS for _ in range(3)]):
        dk.activate(model, dk.PerRow(entries))
        assert torch.equal(model.generate(**batch, **settings), torch.cat(alone)), entries


def test_sampled_sequences_follow_their_row(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, kit.make_model("t5", "seq2seq")), prompts(2)
    settings = {"max_new_tokens": 3, "do_sample": True, "top_k": 1, "num_return_sequences": 2}
    alone = []
    for index, name in enumerate(["adapter", None]):
        dk.activate(model, name)
        alone.append(model.generate(**row(batch, index), **settings))
    dk.activate(model, dk.PerRow(["adapter", None]))
    assert torch.equal(model.generate(batch["input_ids"], **settings), torch.cat(alone))


def test_generate_refuses_another_batch_and_is_given_back(kit: SimpleNamespace) -> None:
    model = attached(kit, kit.make_model("llama", "causal"))
    dk.activate(model, dk.PerRow(["lora", None]))
    with pytest.raises(IncompatibleDeltas, match="entries for 2 rows, but the batch has 4"):
        model.generate(**prompts(4), max_new_tokens=2)
    assert "generate" in vars(model)
    dk.activate(model, "lora")
    assert "generate" not in vars(model)


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_choices_follow_their_question(kit: SimpleNamespace, family: str) -> None:
    config = AutoConfig.for_model(family, **CONFIGS[family])
    model = attached(kit, AutoModelForMultipleChoice.from_config(config))
    with torch.no_grad():
        for index, entry in enumerate(kit.attachments(model).attached.values()):
            for value in entry.own.values():
                value += 0.1 * (index + 1)
    ids = torch.randint(5, 60, (4, 3, 6))
    alone = []
    for index, name in enumerate(ROWS):
        dk.activate(model, name)
        alone.append(model(ids[index : index + 1]).logits)
    dk.activate(model, dk.PerRow(ROWS))
    torch.testing.assert_close(model(ids).logits, torch.cat(alone), atol=1e-5, rtol=1e-4)


def test_two_towers_with_rows_of_their_own(kit: SimpleNamespace) -> None:
    model = CLIPModel(AutoConfig.for_model("clip", **CONFIGS["clip"])).eval()
    dk.attach(model, dk.LoRA(rank=2), "lora")
    kit.randomise_deltas(model)
    size = model.config.vision_config.image_size
    pixels, ids = torch.randn(2, 3, size, size), torch.randint(5, 60, (2, 6))
    outs = []
    for what in ("lora", None, dk.PerRow(["lora", None])):
        dk.activate(model, what)
        outs.append(model(input_ids=ids, pixel_values=pixels).image_embeds)
    torch.testing.assert_close(outs[2], torch.stack([outs[0][0], outs[1][1]]))
    with pytest.raises(IncompatibleDeltas, match="is given 4"):
        model(input_ids=ids, pixel_values=pixels.repeat(2, 1, 1, 1))


def test_rows_of_shared_projections_are_refused(kit: SimpleNamespace) -> None:
    """DeBERTa's query projection is given one row of relative positions too."""
    model = kit.make_model("deberta-v2")
    dk.attach(model, METHODS["lora"], "lora")
    dk.activate(model, dk.PerRow(["lora", None, None]))
    with pytest.raises(IncompatibleDeltas, match="is given 1"):
        model(**kit.make_batch())


def test_a_part_that_is_called_alone(kit: SimpleNamespace) -> None:
    model, batch = attached(kit, kit.make_model("t5", "seq2seq")), prompts(4)
    dk.activate(model, dk.PerRow(["lora", None]))
    with pytest.raises(IncompatibleDeltas, match="entries for 2 rows, but the batch has 4"):
        model.get_encoder()(**batch)
    two = {key: value[:2] for key, value in batch.items()}
    found = model.get_encoder()(**two).last_hidden_state
    dk.activate(model, "lora")
    torch.testing.assert_close(found[0], model.get_encoder()(**two).last_hidden_state[0])


def test_entries_and_rows() -> None:
    plain = RowCounts(entries=2, given=2, each=3)
    assert plain.fitted((0, None), 2) == (0, None)
    assert plain.fitted((0, None), 6) == (0, 0, 0, None, None, None)
    beams = RowCounts(entries=2, given=6, batch=2)
    assert beams.fitted((0, None), 6) == (0, 0, 0, None, None, None)
    encoder = RowCounts(entries=4, given=2, batch=2)
    assert encoder.fitted((0, 0, None, None), 2) == (0, None)
    with pytest.raises(IncompatibleDeltas, match="is given 4"):
        plain.fitted((0, None), 4)
    for wrong in (
        RowCounts(entries=2, given=4),
        RowCounts(entries=3, given=4, batch=2),
        RowCounts(entries=2, given=3, batch=2),
    ):
        with pytest.raises(IncompatibleDeltas, match="PerRow has entries"):
            wrong.check()


def test_different_entries_before_rows_are_repeated(kit: SimpleNamespace) -> None:
    model = attached(kit, kit.make_model("t5", "seq2seq"))
    dk.activate(model, dk.PerRow(["lora", "adapter", None, None]))
    with pytest.raises(IncompatibleDeltas, match="different entries for the repetitions"):
        model.generate(**prompts(2), max_new_tokens=2, num_beams=2)


@pytest.mark.parametrize("what", ["stacked rows", "keys of a prefix"])
def test_what_is_kept_follows_every_write(kit: SimpleNamespace, what: str) -> None:
    model, batch = attached(kit, kit.make_model("llama", "causal")), prompts(4)
    dk.attach(model, METHODS["lora"], "other")
    kit.randomise_deltas(model)
    rows = dk.PerRow(["lora", "other", "lora", "other"])
    dk.activate(model, rows if what == "stacked rows" else "prefix")
    model.eval()

    def outputs() -> tuple[Tensor, Tensor]:
        found = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
        return kit.out(model, batch), found

    outputs()
    for parameter in model.deltakit.parameters():
        parameter.data.mul_(-1.5)  # raises no version
    after = outputs()
    fresh = attached(kit, kit.make_model("llama", "causal"))
    dk.attach(fresh, METHODS["lora"], "other")
    fresh.deltakit.load_state_dict(model.deltakit.state_dict())
    dk.activate(fresh, kit.attachments(model).active)
    model = fresh.eval()
    for found, expected in zip(after, outputs(), strict=True):
        torch.testing.assert_close(found, expected)
