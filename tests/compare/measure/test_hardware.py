"""What the machine says: resident memory at its peak, counters of energy."""

import mmap
from pathlib import Path

import pytest
import torch

from deltakit.compare.measure import hardware as machine
from deltakit.compare.measure.hardware import EnergyMeter, Meter, device_peak

CPU = torch.device("cpu")
BYTES = 200 << 20


def allocate() -> None:
    """Touches new pages: the allocator's own may lie in a free part of the heap."""
    with mmap.mmap(-1, BYTES) as pages:
        for start in range(0, BYTES, mmap.PAGESIZE):
            pages[start] = 1


@pytest.mark.skipif(not machine._RESET.exists(), reason="only Linux resets the resident peak")
def test_the_resident_peak_is_reset_and_seen() -> None:
    before = device_peak(lambda: None, CPU)
    with_it = device_peak(allocate, CPU)
    after = device_peak(lambda: None, CPU)
    assert before is not None and with_it is not None and after is not None
    assert with_it - before > 0.8 * BYTES
    assert with_it - after > 0.8 * BYTES


def test_a_system_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_RESET", tmp_path / "none" / "clear_refs")
    ran: list[int] = []
    assert device_peak(lambda: ran.append(1), CPU) is None
    assert ran == [1]


def zone(root: Path, name: str, micro: int, limit: int = 1_000_000) -> Path:
    (root / name).mkdir(exist_ok=True)
    (root / name / "energy_uj").write_text(f"{micro}\n")
    (root / name / "max_energy_range_uj").write_text(f"{limit}\n")
    return root / name


def test_energy_is_summed_over_processors(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 100_000)
    zone(tmp_path, "intel-rapl:1", 900_000)
    zone(tmp_path, "intel-rapl:0:0", 5)  # a part of the first
    meter = EnergyMeter(tmp_path)
    assert meter.joules() == 0.0
    zone(tmp_path, "intel-rapl:0", 350_000)
    zone(tmp_path, "intel-rapl:1", 50_000)  # it has gone round
    assert meter.joules() == pytest.approx(0.25 + 0.15)


def test_no_counter_is_no_energy(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).joules() is None
    (zone(tmp_path, "intel-rapl:0", 1) / "energy_uj").write_text("secret")
    assert EnergyMeter(tmp_path).joules() is None


def test_a_machine_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", file)
    file.write_text("processor\t: 0\nmodel name\t: Some Processor: 9000\nmodel name\t: Another\n")
    assert machine.name().startswith("Some Processor: 9000, ")
    assert machine.this_machine().processor == "Some Processor: 9000"
    file.unlink()
    assert machine.this_machine().processor not in ("", "Some Processor: 9000")


def test_machines_that_had_a_part_are_named_once() -> None:
    assert machine.joined("a", None, "b", "a") == "a and b"
    assert machine.joined(None) == ""


def test_what_a_pause_takes_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    now = 0.0

    def passed(seconds: float) -> None:
        nonlocal now
        now += seconds
        (zone / "energy_uj").write_text(str(int(now * 5e6)))  # five watts

    passed(1.0)
    monkeypatch.setattr(machine, "EnergyMeter", lambda: EnergyMeter(tmp_path))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: now)
    meter = Meter()
    passed(3.0)
    with meter.paused():
        passed(100.0)
    passed(2.0)
    assert meter.seconds() == pytest.approx(5.0)
    assert meter.joules() == pytest.approx(25.0)
