"""A choice on a tiny model, in this process or in one of its own.

As a script it takes the model, the task and the folder.
"""

import sys
from pathlib import Path
from typing import Any

import deltakit as dk
from deltakit.choose import finals, prepare
from deltakit.choose.decide import finals_size, ladder, rungs
from deltakit.compare.records.protocol import Protocol

ONCE = Protocol(
    step_repeats=1,
    step_warmup=0,
    latency_repeats_b1=1,
    latency_repeats_b8=1,
    latency_warmup=0,
    shape_repeats=1,
    handling_repeats=1,
    inspected_texts=1,
    inspected_repeats=1,
    curve_points=0,
    general_passages=0,
)

LIGHT: tuple[tuple[Any, str, Any], ...] = (
    (finals, "PROTOCOL", ONCE),
    (prepare, "SHORTEST", 27),
    (rungs, "FIRST_STEPS", 3),
    (ladder, "FEWEST_STEPS", 27),
    (ladder, "DEPTHS", 4 * (finals_size.DEPTHS[-1],)),
    (finals_size, "DEPTHS", 4 * (finals_size.DEPTHS[-1],)),
    (finals_size, "DEEPER", ()),
)
"""What makes a choice small: everything is measured once, and trainings are short."""


def choose(model: Path | str, task: Path | str, **settings: Any) -> "dk.Choice":
    """A choice of few arms in the folder ``choice``."""
    usual = {"minutes": 60, "methods": "lora[rank=4,alpha=8]", "epochs": 1, "out": "choice"}
    return dk.choose(
        str(task), model=str(model), batch_size=32, max_length=16, **{**usual, **settings}
    )


if __name__ == "__main__":
    for module, name, value in LIGHT:
        setattr(module, name, value)
    choose(sys.argv[1], sys.argv[2], out=sys.argv[3])
