"""Every cell in a process of its own: what one leaves behind does not reach another.

The processes share nothing but the run folder, and die without harm: the cell of one that is killed
runs again in another.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection, forkserver, get_context, resource_tracker
from typing import TYPE_CHECKING, Any

from deltakit._imports import Parcel
from deltakit.compare.run.engines.base import POLL, Engine, register_engine
from deltakit.core.checks import check_whole

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.context import ForkServerContext, SpawnContext
    from multiprocessing.process import BaseProcess

    from deltakit.compare.run.progress import Lane, Progress
    from deltakit.compare.run.queue import Job, WorkItem, WorkQueue

PATIENCE = 10.0
"""Seconds that a process has to end in."""


@register_engine("processes")
@dataclass(frozen=True, kw_only=True)
class Processes(Engine):
    """A fresh process for each cell, `workers` at a time; on several accelerators in turn."""

    workers: int = 1

    def __post_init__(self) -> None:
        check_whole(self, workers=self.workers)

    @classmethod
    def of(cls, workers: int | None) -> "Processes":
        return cls(workers=1 if workers is None else workers)

    def prepare(self) -> None:
        if _context().get_start_method() == "forkserver":
            _start_server()

    def run(self, job: "Job", progress: "Progress") -> None:
        from deltakit.compare.run.queue import WorkQueue

        items, devices = WorkQueue(job, progress.lane(self.workers)), _devices()
        with contextlib.ExitStack() as stack:
            slots = [
                Slot(job, progress.lane(n), devices[n % len(devices)], self.workers)
                for n in range(self.workers)
            ]
            for slot in slots:
                stack.callback(slot.end)
            while not items.over or _busy(slots):
                for slot in slots:
                    if slot.item is None and (item := items.next(busy=_busy(slots))) is not None:
                        slot.begin(item)
                _wait(slots)
                for slot in slots:
                    slot.listen(items)


def _busy(slots: Sequence["Slot"]) -> int:
    return sum(slot.item is not None for slot in slots)


def _wait(slots: Sequence["Slot"]) -> None:
    """Waits for a message of a process, or until cells of other runs are due for a check."""
    wires = [slot.wire for slot in slots if slot.item is not None]
    if wires:
        connection.wait(wires, timeout=POLL)
    else:
        time.sleep(POLL)


class Slot:
    """A place for one process after another.

    Args:
        job: what they work on.
        lane: told what they do.
        environment: variables that they have in addition to those of this process.
        workers: how many slots there are.
    """

    wire: "Connection"

    def __init__(self, job: "Job", lane: "Lane", environment: dict[str, str], workers: int) -> None:
        self.item: WorkItem | None = None
        self._parcel = Parcel.pack(job, job.plan.imports)
        self._lane, self._workers = lane, workers
        self._environment = environment
        self._process: BaseProcess | None = None

    def begin(self, item: "WorkItem") -> None:
        """Starts a process for a cell."""
        import torch

        context = _context()
        self.wire, theirs = context.Pipe(duplex=False)
        environment = ChildEnvironment(
            environment={**os.environ, **self._environment},
            threads=torch.get_num_threads(),
            workers=self._workers,
        )
        parcel = Parcel.pack(item, ())
        self._process = context.Process(
            target=_work, args=(self._parcel, parcel, environment, theirs)
        )
        _started(self._process)
        theirs.close()  # so that the end of the process is the end of what can be read
        self.item = item

    def listen(self, items: "WorkQueue") -> None:
        """Passes on the messages of the process; at its end the slot is free again."""
        while self.item is not None and self.wire.poll():
            try:
                self._pass_on(self.wire.recv(), items)
            except EOFError:
                self._died(self.item, items)

    def end(self) -> None:
        """Ends the process, by force where it does not listen. The system gives its locks back."""
        if self._process is not None:
            if self.item is not None:
                self._process.terminate()
            self._process.join(PATIENCE)
            self._process.kill()
            self._process.join()

    def _pass_on(self, message: Any, items: "WorkQueue") -> None:
        match message:
            case ("start", title, units):
                self._lane.start(title, units)
            case ("note", text):
                self._lane.note(text)
            case ("advance", units):
                self._lane.advance(units)
            case ("finish", outcome, left):
                self._lane.finish(outcome, left)
            case OSError() as error:
                raise error
            case outcome:
                assert self.item is not None
                item, self.item = self.item, None
                self.end()
                items.record_outcome(item, outcome)

    def _died(self, item: "WorkItem", items: "WorkQueue") -> None:
        assert self._process is not None
        self._process.join()
        code = self._process.exitcode or 0
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._lane.finish(f"its process died with {how}", item.units)
        self.item = None
        items.died(item, how)


# ---------------------------------------------------------------------------- in the new process


@dataclass(frozen=True, kw_only=True)
class ChildEnvironment:
    """The settings that a child process takes over; a fork server may have older ones."""

    environment: dict[str, str]
    threads: int
    workers: int


class Wire:
    """The progress of this process, sent to the process that started it."""

    def __init__(self, connection: "Connection") -> None:
        self._connection = connection

    def send(self, message: Any) -> None:
        """Sends a message. This process ends where the other end is closed."""
        try:
            self._connection.send(message)
        except OSError:
            raise SystemExit(1) from None

    def start(self, title: str, units: int) -> None:
        self.send(("start", title, units))

    def note(self, text: str) -> None:
        self.send(("note", text))

    def advance(self, units: int = 1) -> None:
        self.send(("advance", units))

    def finish(self, outcome: str, left: int = 0) -> None:
        self.send(("finish", outcome, left))


def _work(
    its_job: Parcel, its_item: Parcel, environment: ChildEnvironment, connection: "Connection"
) -> None:
    """One cell, from beginning to end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.environ.update(environment.environment)
    import torch

    from deltakit.compare.run.context import RunContext
    from deltakit.compare.run.device_lock import device_lock_for
    from deltakit.compare.run.queue import process, silence_libraries
    from deltakit.models.source import device

    torch.set_num_threads(environment.threads)
    silence_libraries()
    job, item = its_job.unpack(), its_item.unpack()
    wire, device_lock = Wire(connection), device_lock_for(device(), workers=environment.workers)
    context = RunContext(plan=job.plan, folder=job.folder, progress=wire, device_lock=device_lock)
    try:
        wire.send(process(context, job, item))
    except OSError as error:
        wire.send(error)  # the run folder cannot be written


# ------------------------------------------------------------------------------ how they start


def _start_server() -> None:
    """Starts the fork server where there is none; its processes have its mask of signals."""
    with _no_interrupts():
        forkserver.ensure_running()


def _started(process: "BaseProcess") -> None:
    """Starts a process."""
    if _context().get_start_method() == "forkserver":
        _start_server()
        process.start()
        return
    with _no_interrupts():
        process.start()


@contextlib.contextmanager
def _no_interrupts() -> Iterator[None]:
    """Inside, Ctrl-C waits, and processes that are started never get it.

    A terminal sends it to all of them, also to those that are still importing. The one that has
    started them ends them.
    """
    if sys.platform == "win32":
        yield
        return
    resource_tracker.ensure_running()  # inside, this would let Ctrl-C through
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _devices() -> list[dict[str, str]]:
    """The variables that show a process one accelerator each; none where there are not several."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return [{}]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
    return [{"CUDA_VISIBLE_DEVICES": name} for name in visible.split(",")]


def _context() -> "SpawnContext | ForkServerContext":
    """A fork server has imported what is heavy. An accelerator would not survive the fork."""
    import torch

    if sys.platform != "linux" or torch.cuda.is_available():
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["deltakit.compare.run.engines.warm"])
    return context
