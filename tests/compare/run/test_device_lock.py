"""The desk: trainings share a device, and whoever measures has it alone."""

import threading
from pathlib import Path

import pytest
import torch

from deltakit.compare.run.device_lock import (
    DeviceBusy,
    DeviceLock,
    UnwaitingDeviceLock,
    device_lock_for,
    unwaiting_lock_for,
)


@pytest.fixture
def desks(tmp_path: Path) -> tuple[DeviceLock, DeviceLock]:
    """Two processes' views of one device; locks tell them apart though they are in one."""
    return DeviceLock(tmp_path), DeviceLock(tmp_path)


def test_a_lone_training_is_measured_at_once(desks: tuple[DeviceLock, DeviceLock]) -> None:
    mine, other = desks
    for _ in range(2):
        with mine.shared():
            mine.upgrade()
            mine.upgrade()
            assert other._gate.taken(), "nobody may sit down"
    with other.shared():
        pass


def test_nobody_measures_while_somebody_trains(desks: tuple[DeviceLock, DeviceLock]) -> None:
    mine, other = desks
    with other.shared():
        with pytest.raises(DeviceBusy), mine.shared():
            mine.upgrade()
        assert not mine._gate.taken(), "a measurement that was given up blocks nobody"
        with mine.shared(), pytest.raises(DeviceBusy):
            other.upgrade()
    with mine.shared():
        mine.upgrade()


def test_who_has_only_to_measure_waits_for_the_trainings_and_keeps_others_from_starting(
    desks: tuple[DeviceLock, DeviceLock], tmp_path: Path
) -> None:
    mine, other = desks
    order: list[str] = []

    def measure() -> None:
        with mine.exclusive():
            mine.upgrade()
            order.append("measured")

    thread = threading.Thread(target=measure)
    with other.shared():
        thread.start()
        while not DeviceLock(tmp_path)._gate.taken():
            pass
        order.append("trained")
    with other.shared():
        order.append("next")
    thread.join()
    assert order == ["trained", "measured", "next"]


def test_a_lock_that_waits_for_no_one_goes_on_while_others_train_or_measure(tmp_path: Path) -> None:
    hurried, other = UnwaitingDeviceLock(tmp_path), DeviceLock(tmp_path)
    with hurried.shared():
        hurried.upgrade()
        assert not hurried.crowded
        assert other._gate.taken(), "others wait for what it measures"
    with other.shared(), hurried.shared():
        hurried.upgrade()
        assert hurried.crowded
    hurried.crowded = False
    with other.exclusive(), hurried.shared():
        hurried.upgrade()
        assert hurried.crowded


def test_others_wait_for_a_training_that_waits_for_no_one(tmp_path: Path) -> None:
    hurried, other = UnwaitingDeviceLock(tmp_path), DeviceLock(tmp_path)
    with hurried.shared(), pytest.raises(DeviceBusy), other.shared():
        other.upgrade()


def test_threads_are_divided_among_the_workers_but_not_while_one_measures(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        device_lock = DeviceLock(tmp_path, workers=3)
        with device_lock.shared():
            assert torch.get_num_threads() == 1
            device_lock.upgrade()
            assert torch.get_num_threads() == 4
        with device_lock.shared():
            pass
        assert torch.get_num_threads() == 4
        with device_lock.exclusive():
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(threads)


def test_each_device_of_a_machine_has_its_own_desk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DELTAKIT_CACHE", str(tmp_path))

    class Properties:
        uuid = "b1946ac9"

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    assert (
        unwaiting_lock_for(torch.device("cpu"))._gate == device_lock_for(torch.device("cpu"))._gate
    )
    with device_lock_for(torch.device("cpu")).shared():
        device_lock = device_lock_for(torch.device("cuda"))
        with device_lock.shared():
            device_lock.upgrade()
    names = {path.parent.name for path in tmp_path.rglob("gate.lock")}
    assert names == {"cpu", "b1946ac9"}
