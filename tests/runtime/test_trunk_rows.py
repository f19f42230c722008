"""A row has one key in every batch, and another where anything that enters the trunk differs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from deltakit.runtime.trunk_rows import Refused, trunk_rows

IDS = torch.tensor([[5, 6, 7, 0, 0], [8, 9, 5, 6, 7]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])


def keys(**given: Any) -> tuple[bytes, ...]:
    return trunk_rows(given).keys


def test_order_and_padding_behind_change_no_key() -> None:
    one, other = keys(input_ids=IDS, attention_mask=MASK)
    assert one != other
    turned = IDS.flip(0), MASK.flip(0)
    assert keys(input_ids=turned[0], attention_mask=turned[1]) == (other, one)
    assert keys(input_ids=IDS[:1, :3], attention_mask=MASK[:1, :3]) == (one,)
    assert keys(input_ids=IDS[:1, :3]) == (one,)


@pytest.mark.parametrize(
    "changed",
    [
        {"input_ids": torch.tensor([[5, 6, 8]])},
        {"attention_mask": torch.tensor([[1, 0, 1]])},
        {"token_type_ids": torch.tensor([[0, 0, 1]])},
        {"position_ids": torch.tensor([[0, 1, 3]])},
        {"input_ids": torch.tensor([[0, 5, 6, 7]]), "attention_mask": torch.tensor([[0, 1, 1, 1]])},
    ],
)
def test_what_enters_the_trunk_changes_the_key(changed: dict[str, Tensor]) -> None:
    given = {
        "input_ids": torch.tensor([[5, 6, 7]]),
        "attention_mask": torch.ones(1, 3, dtype=torch.int64),
        "token_type_ids": torch.tensor([[0, 0, 0]]),
        "position_ids": torch.tensor([[0, 1, 2]]),
    }
    if changed.get("input_ids", given["input_ids"]).shape[1] == 4:
        given = {name: given[name] for name in ("input_ids", "attention_mask")}
    assert keys(**given) != keys(**{**given, **changed})


def test_positions_that_all_rows_share() -> None:
    shared = keys(input_ids=IDS, attention_mask=MASK, position_ids=torch.arange(5)[None])
    each = torch.arange(5).expand(2, -1)
    assert shared == keys(input_ids=IDS, attention_mask=MASK, position_ids=each)


def test_what_changes_no_hidden_state_changes_no_key() -> None:
    more = {"num_items_in_batch": torch.tensor(7), "return_dict": True, "use_cache": False}
    assert keys(input_ids=IDS, attention_mask=MASK) == keys(
        input_ids=IDS, attention_mask=MASK, encoder_hidden_states=None, **more
    )


def test_states_are_put_back_without_padding() -> None:
    rows = trunk_rows({"input_ids": IDS, "attention_mask": MASK})
    states = torch.randn(2, 5, 4)
    parts = dict(rows.parts(states, [0, 1]))
    assert [parts[key].shape[0] for key in rows.keys] == [3, 5]
    whole = rows.whole([parts[key] for key in rows.keys])
    assert torch.equal(whole, states * MASK[..., None])


def test_pictures_are_kept_whole() -> None:
    pixels = torch.randn(2, 3, 4, 4)
    rows = trunk_rows({"pixel_values": pixels, "interpolate_pos_encoding": False})
    states = torch.randn(2, 5, 4)
    parts = dict(rows.parts(states, [0, 1]))
    assert torch.equal(rows.whole([parts[key] for key in rows.keys]), states)
    assert rows.keys[0] != keys(pixel_values=pixels + 1)[0]
    assert keys(pixel_values=pixels.bfloat16()) != rows.keys


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"input_ids": IDS, "past_key_values": object()}, "the argument past_key_values"),
        ({"input_ids": IDS, "use_cache": True}, "use_cache=True"),
        ({"inputs_embeds": torch.zeros(2, 5, 4)}, "the argument inputs_embeds"),
        ({"input_features": torch.zeros(2, 5, 4)}, "the argument input_features"),
        ({}, "neither input_ids nor pixel_values"),
        ({"input_ids": IDS, "attention_mask": MASK[:, None, None]}, "an attention_mask that is"),
        ({"input_ids": IDS, "attention_mask": MASK * 0}, "a row without tokens"),
        ({"input_ids": IDS, "position_ids": torch.zeros(3, 5)}, "position_ids without a row"),
    ],
)
def test_what_is_not_known_is_refused(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(Refused, match=reason):
        trunk_rows(given)
