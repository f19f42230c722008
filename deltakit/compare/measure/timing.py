"""The costs of a method: step time, latency, and the time to load, switch and merge.

Times are medians over repetitions after a warm-up, in alternation (A B A B ...) with their
reference in the same process, and a ratio is the median over the pairs, so that it holds while the
machine's speed drifts. There are as many repetitions as the ratio's interval needs (see `Repeats`).
Bytes are those of live tensors, counted as they come and go, and so are the same on every machine.
"""

import contextlib
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deltakit.compare.records.protocol import Repeats
from deltakit.core.provider import AdaptedModel
from deltakit.errors import NotMergeable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Batch = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Repetitions of one action, in milliseconds, in the order in which they ran."""

    times_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The median."""
        return statistics.median(self.times_ms)

    @property
    def iqr_ms(self) -> float:
        """The interquartile range; zero for a single repetition."""
        if len(self.times_ms) == 1:
            return 0.0
        low, _, high = statistics.quantiles(self.times_ms, n=4)
        return high - low

    def over(self, reference: "Timing") -> float:
        """The median ratio to the reference's repetition that ran next to each of these."""
        return statistics.median(_ratios(self.times_ms, reference.times_ms))

    def ratio(self, reference: "Timing") -> "Ratio":
        """As `over`, with its interval."""
        return Ratio.of(_ratios(self.times_ms, reference.times_ms))


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A median ratio, and a 95 % interval that has it inside; one repetition allows none."""

    value: float
    low: float | None
    high: float | None
    repeats: int

    @classmethod
    def of(cls, ratios: Sequence[float]) -> "Ratio":
        """The ratio that pairs of repetitions make."""
        value, number = statistics.median(ratios), len(ratios)
        if number == 1:
            return cls(value=value, low=None, high=None, repeats=number)
        low, high = interval(ratios)
        # Skewed noise moves the mean, which the interval is of, and not the median.
        return cls(value=value, low=min(low, value), high=max(high, value), repeats=number)


def _ratios(own: Sequence[float], reference: Sequence[float]) -> list[float]:
    return [time / other for time, other in zip(own, reference, strict=True)]


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of two or more ratios: Student's t on their logarithms."""
    logs = [math.log(ratio) for ratio in ratios]
    middle, half = statistics.fmean(logs), _half_width(logs)
    return math.exp(middle - half), math.exp(middle + half)


def _half_width(logs: Sequence[float]) -> float:
    from scipy.special import stdtrit

    spread = statistics.stdev(logs) / math.sqrt(len(logs))
    return float(stdtrit(len(logs) - 1, 0.975)) * spread


def enough(times: Sequence[Sequence[float]], repeats: Repeats) -> bool:
    """True if no more repetitions are needed.

    Args:
        times: those of each action so far. The ratios are those to the first action; where it is
            alone, its times are looked at in place of a ratio.
        repeats: the rule.
    """
    first, *others = times
    if len(first) >= repeats.most:
        return True
    if not repeats.percent or len(first) < repeats.least:
        return False
    compared: list[Sequence[float]] = [_ratios(each, first) for each in others] or [first]
    width = math.log1p(repeats.percent / 100)
    return all(_half_width([math.log(each) for each in one]) <= width for one in compared)


def interleave(
    actions: Sequence[Callable[[], None]], *, repeats: int | Repeats, warmup: int
) -> list[Timing]:
    """Times the actions in turn.

    Args:
        actions: what is timed.
        repeats: how often each, after the warm-up: a number, or a rule.
        warmup: rounds that do not count.
    """
    rule = repeats_of(repeats)
    times: list[list[float]] = [[] for _ in actions]
    for turn in range(warmup + rule.most):
        for index, action in enumerate(actions):
            start = time.perf_counter()
            action()
            _synchronise()
            if turn >= warmup:
                times[index].append(1e3 * (time.perf_counter() - start))
        if turn >= warmup and enough(times, rule):
            break
    return [Timing(times_ms=tuple(each)) for each in times]


def repeats_of(repeats: int | Repeats) -> Repeats:
    """A rule; a number is a rule that is met by that many repetitions alone."""
    return Repeats(most=repeats) if isinstance(repeats, int) else repeats


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# --------------------------------------------------------------------------------- training steps


class Step:
    """One training step (forward, backward, AdamW) of a model on a fixed batch."""

    def __init__(self, model: "PreTrainedModel", batch: Batch) -> None:
        self.model = model.train()
        self.batch = batch
        trained = [p for p in model.parameters() if p.requires_grad]
        # A learning rate of zero: the step does all its work and the model stays what it is.
        self.optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)

    def __call__(self) -> None:
        self.forward().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def forward(self) -> Tensor:
        """The loss."""
        loss: Tensor = self.model(**self.batch).loss
        return loss


# ---------------------------------------------------------------------------------------- latency


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One forward pass, and its ratio to the plain base's, measured in alternation."""

    timing: Timing
    vs_base: Ratio


def latency(adapted: AdaptedModel, batch: Batch, *, repeats: int | Repeats, warmup: int) -> Latency:
    """Forward passes of a model with its method against those of the base without it."""
    adapted.model.eval()
    states = (unmerged(adapted), adapted.disabled)
    own, base = in_states(states, forward(batch), repeats=repeats, warmup=warmup)
    return Latency(timing=own, vs_base=own.ratio(base))


def baseline_latency(
    adapted: AdaptedModel, batch: Batch, *, repeats: int | Repeats, warmup: int
) -> Latency:
    """Forward passes of a model with a baseline, which adds nothing to a pass.

    A pass is the base's own, so its ratio is 1 and is not measured.
    """
    adapted.model.eval()
    states = (unmerged(adapted),)
    (own,) = in_states(states, forward(batch), repeats=repeats, warmup=warmup)
    same = Ratio(value=1.0, low=None, high=None, repeats=len(own.times_ms))
    return Latency(timing=own, vs_base=same)


def merged_latency_vs_base(
    adapted: AdaptedModel, batch: Batch, *, repeats: int | Repeats, warmup: int
) -> Ratio | None:
    """The same ratio with the method merged into the weights; None where it does not merge."""
    if merge_ms(adapted) is None:
        return None
    states = (adapted.merged, adapted.disabled)
    own, base = in_states(states, forward(batch), repeats=repeats, warmup=warmup)
    return own.ratio(base)


ModelState = Callable[[], AbstractContextManager[nn.Module]]
"""Puts a model into a state, gives what to call, and puts it back."""
Call = Callable[[Any], None]
"""What is timed, given the model."""


def unmerged(adapted: AdaptedModel) -> ModelState:
    """The adapted model as it is."""
    return lambda: nullcontext(adapted.model)


def forward(batch: Batch) -> Call:
    """A forward pass of a batch."""

    def run(model: Any) -> None:
        model(**batch)

    return run


def in_states(
    states: Sequence[ModelState], run: Call, *, repeats: int | Repeats, warmup: int
) -> list[Timing]:
    """As `interleave`, with the model in one state after the other.

    Changing the state is not part of a time. One untimed run before each timed one warms the
    state's caches up.
    """
    rule = repeats_of(repeats)
    times: list[list[float]] = [[] for _ in states]
    for turn in range(warmup + rule.most):
        for index, state in enumerate(states):
            with state() as model:
                took = _warm_ms(model, run)
            if turn >= warmup:
                times[index].append(took)
        if turn >= warmup and enough(times, rule):
            break
    return [Timing(times_ms=tuple(each)) for each in times]


def _warm_ms(model: nn.Module, run: Call) -> float:
    with torch.inference_mode():
        run(model)
        _synchronise()
        start = time.perf_counter()
        run(model)
        _synchronise()
    return 1e3 * (time.perf_counter() - start)


# --------------------------------------------------------------------------------------- handling


@dataclass(frozen=True, kw_only=True)
class LoadAndSwap:
    """The time to load a stored delta next to the active one, and to switch between the two."""

    load_ms: float
    swap_ms: float


def load_and_swap(adapted: AdaptedModel, folder: Path, *, repeats: int) -> LoadAndSwap:
    """Loads the method a second time from `folder`, so often, and switches there and back.

    The files are in the system's cache, as those of a delta are that is used every day.
    """
    loads, swaps = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        with adapted.second_copy(folder) as swap:
            _synchronise()
            loads.append(1e3 * (time.perf_counter() - start))
            swaps += [_took_ms(swap), _took_ms(swap)]
    return LoadAndSwap(load_ms=statistics.median(loads), swap_ms=statistics.median(swaps))


def merge_ms(adapted: AdaptedModel, *, repeats: int = 1) -> float | None:
    """The time to fold the method into the weights; None where it does not fold."""
    adapted.model.eval()
    try:
        return statistics.median(_merge_once_ms(adapted) for _ in range(repeats))
    except NotMergeable:
        return None


def _merge_once_ms(adapted: AdaptedModel) -> float:
    with contextlib.ExitStack() as stack:
        return _took_ms(lambda: stack.enter_context(adapted.merged()))


def _took_ms(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    _synchronise()
    return 1e3 * (time.perf_counter() - start)
