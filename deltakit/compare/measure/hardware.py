"""The machine, and its own measurements of an action: memory at the peak, and energy.

The latter are None where the machine has no such counter. They hold for one machine and one moment;
the exact bytes of `deltakit.compare.measure.memory` are the same everywhere.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from deltakit.compare.records.run import Machine

if TYPE_CHECKING:
    import torch

_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_POWERCAP = Path("/sys/class/powercap")
_CPUINFO = Path("/proc/cpuinfo")


def this_machine() -> Machine:
    """The machine as ``run.json`` records it."""
    import torch

    return Machine(
        name=name(),
        python=platform.python_version(),
        platform=platform.platform(),
        processor=_processor(),
        cores=os.cpu_count(),
        threads=torch.get_num_threads(),
        accelerator=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    )


def name() -> str:
    """The name that times depend on: the accelerator, or the processor and its cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {os.cpu_count()} cores"


def joined(*names: str | None) -> str:
    """The machines that had a part in something, each once."""
    return " and ".join(dict.fromkeys(filter(None, names)))


def _processor() -> str:
    """The processor's name in the system's words."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    found = next((line for line in lines if line.startswith("model name")), "")
    return found.partition(":")[2].strip() or platform.processor() or platform.machine()


def device_peak(action: Callable[[], None], device: torch.device) -> int | None:
    """Bytes at the peak while `action` runs, with what was there before.

    On an accelerator what its allocator has handed out; on a CPU the process's resident memory,
    which Linux alone lets one reset.
    """
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        action()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device)
    try:
        _RESET.write_text("5")  # 5 resets the peak of resident memory
    except OSError:
        action()
        return None
    action()
    return _resident_peak()


def _resident_peak() -> int | None:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    found = next((line for line in lines if line.startswith("VmHWM:")), None)
    return None if found is None else 1024 * int(found.split()[1])


class EnergyMeter:
    """Joules that the machine's processors took since it was made; None where none is counted.

    It counts all that the machine does, so it means something only where nothing else runs.
    """

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._zones = [
            zone for zone in sorted(root.glob("intel-rapl:?")) if _read(zone) is not None
        ]
        self._start = [_read(zone) for zone in self._zones]

    def joules(self) -> float | None:
        """The energy so far. A counter may have wrapped around once."""
        total = 0.0
        for zone, start in zip(self._zones, self._start, strict=True):
            now = _read(zone)
            if now is None or start is None:
                return None
            limit = _read(zone, "max_energy_range_uj") or 0
            total += (now - start if now >= start else now + limit - start) / 1e6
        return total if self._zones else None


class Meter:
    """Seconds and joules since it was made, without what was spent in its pauses."""

    def __init__(self) -> None:
        self._energy = EnergyMeter()
        self._start = time.perf_counter()
        self._paused, self._spent = 0.0, 0.0

    def seconds(self) -> float:
        """Wall time."""
        return time.perf_counter() - self._start - self._paused

    def joules(self) -> float | None:
        """As `EnergyMeter.joules`."""
        total = self._energy.joules()
        return None if total is None else total - self._spent

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, nothing counts."""
        energy, start = EnergyMeter(), time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start
            self._spent += energy.joules() or 0.0


def _read(zone: Path, name: str = "energy_uj") -> int | None:
    try:
        return int((zone / name).read_text(encoding="ascii"))
    except (OSError, ValueError):  # often readable by the superuser alone
        return None
