"""A reader-writer lock on a device: trainings share it, measuring has it exclusively.

A time that is taken while another process computes on the same device is worth nothing. A training
takes a slot. Measuring waits until all slots are free, and keeps new trainings out. The lock holds
between all runs of one user on one machine.
"""

import contextlib
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from deltakit._files import cache_folder
from deltakit.compare.store.locks import Lock

SLOTS = 64


class DeviceBusy(Exception):
    """Another process trains on the device."""


class DeviceLock:
    """One device, as one process uses it.

    Args:
        folder: where its locks are.
        workers: among how many the processor's threads are divided while they train.
    """

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self._gate = Lock(folder / "gate.lock")
        self._slots = [Lock(folder / f"seat-{number}.lock") for number in range(SLOTS)]
        self._threads = torch.get_num_threads()
        self._share = max(1, self._threads // workers)
        self._held = contextlib.ExitStack()
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Takes a slot, after waiting for measuring to end."""
        with self._leaving():
            with self._gate.held():
                # With every slot taken a training has none; its measuring is still alone.
                any(self._held.enter_context(slot.offered()) for slot in self._slots)
            torch.set_num_threads(self._share)
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Has the device alone, after waiting for trainings and measuring to end."""
        with self._leaving():
            self._held.enter_context(self._gate.held())
            for slot in self._slots:
                with slot.held():
                    pass
            self._alone = True
            yield

    def upgrade(self) -> None:
        """Gives the slot back and has the device alone until the block ends.

        Raises:
            DeviceBusy: another process has a slot. Measuring elsewhere is waited for.
        """
        if self._alone:
            return
        self._held.close()
        self._held.enter_context(self._gate.held())
        if any(slot.taken() for slot in self._slots if slot.path.exists()):
            raise DeviceBusy
        torch.set_num_threads(self._threads)
        self._alone = True

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        try:
            with self._held:
                yield
        finally:
            self._alone = False
            torch.set_num_threads(self._threads)


class UnwaitingDeviceLock(DeviceLock):
    """A device lock that waits for no other process, for work that has to end in time.

    Other processes see that it trains or measures, and wait for it as for any other.

    Attributes:
        crowded: whether something was measured while another process computed on the device.
    """

    crowded = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Takes a slot, whatever is measured elsewhere."""
        with self._leaving():
            any(self._held.enter_context(slot.offered()) for slot in self._slots)
            yield

    exclusive = shared

    def upgrade(self) -> None:
        """Gives the slot back, and keeps new trainings out if no other process does."""
        self._held.close()
        first = self._held.enter_context(self._gate.offered())
        busy = any(slot.taken() for slot in self._slots if slot.path.exists())
        self.crowded = self.crowded or busy or not first


def device_lock_for(device: torch.device, *, workers: int = 1) -> DeviceLock:
    """The lock of a device of this machine."""
    return DeviceLock(_folder_of(device), workers=workers)


def unwaiting_lock_for(device: torch.device) -> UnwaitingDeviceLock:
    """The lock of a device of this machine that waits for no other process."""
    return UnwaitingDeviceLock(_folder_of(device))


def _folder_of(device: torch.device) -> Path:
    name = device.type
    if device.type == "cuda":
        name = str(torch.cuda.get_device_properties(device).uuid)
    return cache_folder() / "locks" / platform.node() / name
