"""Amounts of memory as people write them."""

import pytest

from deltakit.core.memory_size import format_size, parse_size
from deltakit.errors import InvalidConfig


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (1, 1),
        (4096, 4096),
        ("4096", 4096),
        ("512 MB", 512_000_000),
        ("1.5GB", 1_500_000_000),
        ("800 MiB", 800 * 1024**2),
        ("2k", 2000),
        (" 3 KiB ", 3072),
    ],
)
def test_sizes(value: str | int, size: int) -> None:
    assert parse_size("limit", value) == size


@pytest.mark.parametrize("value", [0, -1, "", "MB", "lots", "1 TB", "0 MB", True, "1,5 GB"])
def test_what_is_no_size_is_told(value: str | int) -> None:
    with pytest.raises(
        InvalidConfig, match="limit=.*an amount of memory above zero, as in '512 MB'"
    ):
        parse_size("limit", value)


def test_sizes_in_words() -> None:
    assert format_size(366_100_000) == "366.1 MB"
    assert format_size(1_234_567_890) == "1,234.6 MB"
