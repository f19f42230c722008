"""Every test of this folder runs in a folder of its own."""

import pytest


@pytest.fixture(autouse=True)
def _apart(own_place: None) -> None:
    """The fixtures are those of tests/fixtures/comparison.py."""
