"""The request of a choice: its defaults, and what is wrong with one."""

from pathlib import Path

import pytest
import yaml

import deltakit as dk
from deltakit.choose.request import DEFAULT_FIELD, choice_request
from deltakit.errors import InvalidConfig

CONFIG = Path(__file__).parents[2] / "configs" / "choose.yaml"


def test_defaults() -> None:
    asked = choice_request({"task": "rotten_tomatoes", "minutes": None})
    assert asked.minutes == 20 and asked.methods == DEFAULT_FIELD
    assert asked.compared.budget.max_train_samples is None
    assert asked.compared.budget.max_eval_samples == 1000


def test_the_default_field_is_that_of_the_shipped_file() -> None:
    assert tuple(yaml.safe_load(CONFIG.read_text())["methods"]) == DEFAULT_FIELD


def test_a_field_of_specs_and_methods() -> None:
    assert choice_request({"methods": "lora[rank=4,alpha=8], ia3"}).methods == (
        "lora[rank=4,alpha=8]",
        "ia3",
    )
    own = dk.LoRA(rank=2)
    assert choice_request({"methods": own}).methods == (own,)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"minuets": 5}, "minutes"),
        ({"minutes": 0}, "--minutes 0"),
        ({"minutes": "soon"}, "--minutes soon"),
        ({"methods": 3}, "methods=3"),
        ({"max_params": "much"}, "--max-params much"),
    ],
)
def test_what_is_wrong_is_named(settings: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        choice_request(settings)


@pytest.mark.parametrize(
    ("methods", "said"),
    [
        ("head", "baseline"),
        ("lora,lora", "twice"),
        ("", "--methods is empty"),
    ],
)
def test_fields_that_no_choice_is_made_of(methods: str, said: str) -> None:
    with pytest.raises(InvalidConfig, match=said):
        dk.choose("anything", methods=methods)
