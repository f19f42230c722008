"""Words that messages share."""

import pytest

from deltakit.errors import nearest


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("LoRA", " Did you mean 'lora'?"),
        ("lroa", " Did you mean 'lora'?"),
        ("PREFIX", " Did you mean 'Prefix'?"),
        ("Prefix", " Did you mean 'Prefix'?"),
        ("xyz", ""),
    ],
)
def test_the_nearest_name_is_found_in_any_case(value: str, said: str) -> None:
    assert nearest(value, ("lora", "Prefix", "bitfit")) == said
