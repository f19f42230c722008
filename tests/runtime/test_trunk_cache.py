"""Rows are kept within the limit, and those of trunks that are no longer used make room."""

import pytest
import torch

from deltakit.errors import InvalidConfig
from deltakit.runtime.trunk_cache import TrunkCache

ROW = torch.arange(10.0)
"""Forty bytes."""


def test_rows_are_found_together_or_not_at_all() -> None:
    cache = TrunkCache()
    cache.keep(b"trunk", [(b"a", ROW), (b"b", ROW + 1)])
    found = cache.find(b"trunk", [b"b", b"a", b"b"])
    assert found is not None
    torch.testing.assert_close(torch.stack(found), torch.stack([ROW + 1, ROW, ROW + 1]))
    assert cache.find(b"trunk", [b"a", b"c"]) is None
    assert cache.find(b"other", [b"a"]) is None
    assert (cache.rows, cache.size) == (2, 80)


def test_each_missing_row_has_one_place() -> None:
    cache = TrunkCache()
    cache.keep(b"trunk", [(b"a", ROW)])
    assert cache.missing(b"trunk", [b"c", b"a", b"b", b"c"]) == [0, 2]


def test_rows_are_copies_that_can_be_trained_behind() -> None:
    cache = TrunkCache()
    with torch.inference_mode():
        row = ROW + 0
        cache.keep(b"trunk", [(b"a", row)])
        row.zero_()
    kept = cache.find(b"trunk", [b"a"])
    assert kept is not None
    assert torch.equal(kept[0], ROW)
    assert not kept[0].is_inference()


def test_a_row_without_room_is_counted() -> None:
    cache = TrunkCache(limit=100)
    cache.keep(b"trunk", [(b"a", ROW), (b"b", ROW), (b"c", ROW)])
    assert (cache.rows, cache.size, cache.left_out) == (2, 80, 1)
    assert "1 times a row had no room" in str(cache)


def test_a_trunk_that_is_used_is_not_given_up_for_another() -> None:
    cache = TrunkCache(limit=100)
    cache.keep(b"one", [(b"a", ROW), (b"b", ROW)])
    cache.keep(b"two", [(b"a", ROW)])
    assert cache.find(b"one", [b"a", b"b"]) is not None
    assert cache.find(b"two", [b"a"]) is None


def test_a_trunk_of_an_earlier_use_makes_room() -> None:
    cache = TrunkCache(limit=100)
    cache.keep(b"one", [(b"a", ROW), (b"b", ROW)])
    cache.begin()
    cache.keep(b"two", [(b"a", ROW)])
    assert cache.find(b"one", [b"a"]) is None
    assert cache.find(b"two", [b"a"]) is not None
    assert cache.size == 40


def test_clearing_lets_rows_go() -> None:
    cache = TrunkCache()
    cache.keep(b"trunk", [(b"a", ROW)])
    cache.clear()
    assert (cache.rows, cache.size) == (0, 0)
    assert cache.find(b"trunk", [b"a"]) is None


def test_it_says_what_it_holds() -> None:
    cache = TrunkCache(limit="1 MB")
    cache.keep(b"trunk", [(b"a", torch.zeros(50_000))])
    cache.begun, cache.computed = 3, 1
    cache.refused["use_cache=True"] += 2
    assert str(cache) == (
        "1 rows, 0.2 MB of 1.0 MB; 3 of 4 passes began at kept states; "
        "2 passes computed as without it (use_cache=True)."
    )


def test_a_limit_that_is_none_is_told() -> None:
    with pytest.raises(InvalidConfig, match="limit='much'"):
        TrunkCache(limit="much")
