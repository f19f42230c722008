"""Methods of one size: widths solved for a number of trained parameters."""

from collections.abc import Callable
from typing import Any

import pytest

import deltakit as dk
from deltakit.compare.plan.match_params import matched
from deltakit.compare.plan.resolve import build_plan
from deltakit.core.method import Method
from deltakit.errors import InvalidConfig

SIZABLE = (
    "lora",
    "lora[rslora=true]",
    "adapter",
    "houlsby",
    "parallel",
    "prefix",
    "prefix[bottleneck=none]",
    "prompt",
    "mam",
    "adapterdrop[first=1]",
    "lora+parallel",
)


@pytest.fixture
def trained(kit: Any) -> Callable[[Method], int]:
    model = kit.make_model("bert", "classify")

    def count(method: Method) -> int:
        dk.attach(model, method)
        found = dk.summary(model).trained_params
        dk.detach(model)
        return found

    return count


@pytest.mark.parametrize("spec", SIZABLE)
def test_no_other_width_is_nearer(spec: str, trained: Callable[[Method], int]) -> None:
    target = trained(dk.parse_method(spec).sized(9) or pytest.fail("it has no width")) + 3
    found = matched(dk.parse_method(spec), target, trained)
    off = abs(trained(found) - target)
    widths = (found.sized(width) for width in range(1, 30))
    assert off == min(abs(trained(each) - target) for each in widths if each is not None)


@pytest.mark.parametrize("spec", ["ia3", "bitfit", "norms"])
def test_a_method_without_a_width_stays(spec: str, trained: Callable[[Method], int]) -> None:
    method = dk.parse_method(spec)
    assert matched(method, 10**6, trained) == method


def test_a_rank_keeps_its_scale() -> None:
    wide = dk.LoRA(rank=8, alpha=16).sized(32)
    stable = dk.LoRA(rank=4, alpha=16, rslora=True).sized(64)
    assert (wide.rank, wide.alpha) == (32, 64)
    assert (stable.rank, stable.alpha) == (64, 64)


def test_rows_say_their_size_and_notes_how_near_it_is(asked: Callable[..., Any]) -> None:
    plan = build_plan(asked("lora,adapter,ia3,fusion", match_params=700))
    labels = [cell.label for cell in plan.cells]
    assert labels[:3] == ["majority", "head", "full"]
    assert labels[3].startswith("lora[rank=") and labels[4].startswith("adapter[bottleneck=")
    assert labels[5:] == ["ia3", "fusion"]
    assert [note.partition(" ")[0] for note in plan.notes] == ["lora", "adapter", "ia3"]
    assert "no width to choose" in plan.notes[2]
    with pytest.raises(InvalidConfig, match="match_params"):
        build_plan(asked("lora", match_params=0))


def test_two_rows_that_matching_makes_alike_are_refused(asked: Callable[..., Any]) -> None:
    with pytest.raises(InvalidConfig, match=r"makes 'adapter\[bottleneck=8\]' the same as another"):
        build_plan(asked("adapter[bottleneck=4],adapter[bottleneck=8]", match_params=700))
    plan = build_plan(asked("adapter[bottleneck=4],lora", match_params=700))
    assert sum(cell.label.startswith(("adapter", "lora")) for cell in plan.cells) == 2
