"""What is kept of a training, beside what it has trained."""

from dataclasses import dataclass

from deltakit.compare.pace import Pace


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """How a training went.

    `seconds` is the wall time of its steps and their data loading, `joules` what the machine's
    processors took meanwhile, where they say; `machine` is what it ran on, where that is known;
    `pace` is how good it was on the way, where it was judged, which is not part of the time.
    """

    seconds: float
    steps: int
    examples: int
    losses: tuple[float, ...]
    joules: float | None = None
    machine: str | None = None
    pace: Pace = ()
