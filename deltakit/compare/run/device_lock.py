"""A device that trainings share, and that whoever measures has to himself.

A time that is taken while somebody else computes on the same device is worth nothing. So whoever
trains takes a seat, and whoever measures waits until the seats are empty and lets nobody sit down.
It holds between all runs of one user on one machine.
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
    """Somebody trains on the device."""


class DeviceLock:
    """One device, as one process uses it.

    Args:
        folder: where its locks are.
        workers: among how many the processor's threads are divided while they train.
    """

    def __init__(self, folder: Path, *, workers: int = 1) -> None:
        self._gate = Lock(folder / "gate.lock")
        self._seats = [Lock(folder / f"seat-{number}.lock") for number in range(SLOTS)]
        self._threads = torch.get_num_threads()
        self._share = max(1, self._threads // workers)
        self._held = contextlib.ExitStack()
        self._alone = False

    @contextlib.contextmanager
    def shared(self) -> Iterator[None]:
        """Takes a seat, once nobody measures."""
        with self._leaving():
            with self._gate.held():
                # With every seat taken somebody goes without; his own measuring is still alone.
                any(self._held.enter_context(seat.offered()) for seat in self._seats)
            torch.set_num_threads(self._share)
            yield

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Has the device alone, once nobody trains and nobody measures."""
        with self._leaving():
            self._held.enter_context(self._gate.held())
            for seat in self._seats:
                with seat.held():
                    pass
            self._alone = True
            yield

    def upgrade(self) -> None:
        """Gives the seat back and has the device alone until the block ends.

        Raises:
            DeviceBusy: somebody else has a seat. Whoever measures is waited for.
        """
        if self._alone:
            return
        self._held.close()
        self._held.enter_context(self._gate.held())
        if any(seat.taken() for seat in self._seats if seat.path.exists()):
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


def device_lock_for(device: torch.device, *, workers: int = 1) -> DeviceLock:
    """The desk of a device of this machine."""
    name = device.type
    if device.type == "cuda":
        name = str(torch.cuda.get_device_properties(device).uuid)
    return DeviceLock(cache_folder() / "locks" / platform.node() / name, workers=workers)
