"""Real processes on one run folder: killed at any moment, two at once, one for each cell."""

import json
import os
import random
import runpy
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import active_children, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import load_file

from deltakit.compare.api import run_plan
from deltakit.compare.plan.request import Request
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.results import Results
from deltakit.compare.run.engines import Processes
from deltakit.compare.run.progress import Lane, Silent

SCRIPT = Path(__file__).with_name("worker.py")
TIMED = (
    "_ms",
    "_seconds",
    "_vs_full",
    "_vs_base",
    "_b1",
    "_b8",
    "joules",
    "device_peak",
    "_repeats",
)


@dataclass
class Crowd:
    """Starts workers, and knows what they trained.

    Attributes:
        log: where they write it.
        processes: those that were started.
    """

    log: Path
    processes: list[BaseProcess] = field(default_factory=list)

    def start(self, request: Request, out: Path, **environment: str) -> BaseProcess:
        """A worker of a run. A fork server makes it in no time."""
        context = get_context("forkserver")
        context.set_forkserver_preload(["deltakit.compare.run.engines.warm"])
        given = {
            "request": request,
            "out": out,
            "log": self.log,
            "environment": {"DELTAKIT_CACHE": os.environ["DELTAKIT_CACHE"], **environment},
        }
        arguments = (str(SCRIPT), {"GIVEN": given}, "worker")
        process = context.Process(target=runpy.run_path, args=arguments)
        process.start()
        self.processes.append(process)
        return process

    def lines(self, kind: str) -> list[list[str]]:
        """Process and rest of each line of a kind."""
        text = self.log.read_text() if self.log.is_file() else ""
        words = [line.split() for line in text.splitlines()]
        return [[process, *rest] for process, what, *rest in words if what == kind]

    def trained(self) -> Counter[str]:
        """How often each training was finished."""
        return Counter(training for _, training in self.lines("end"))


@pytest.fixture
def crowd(tmp_path: Path) -> Iterator[Crowd]:
    """Workers; those that are still there in the end are killed."""
    workers = Crowd(tmp_path / "log")
    yield workers
    for process in workers.processes:
        process.kill()
        process.join()


def table(out: Path) -> dict[str, dict[str, Any]]:
    """What the cells say, but for what depends on the moment."""
    rows = {}
    for path in sorted((out / "cells").glob("????????????????.json")):
        result = json.loads(path.read_text())["result"]
        rows[path.name] = {
            column: value
            for column, value in result.items()
            if not any(part in column for part in TIMED)
        }
    return rows


def whole(out: Path) -> None:
    """Nothing in a run folder is torn."""
    for path in out.rglob("*"):
        if path.name.startswith("."):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.name.endswith(".predictions.csv"):
            assert len(path.read_text().splitlines()) == 1 + 36
        elif path.suffix == ".safetensors":
            load_file(path)


# ------------------------------------------------------------------------------------ kill -9


@pytest.mark.parametrize("times", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_kill_at_random_moments(
    asked: Callable[..., Request],
    crowd: Crowd,
    tmp_path: Path,
    read: SimpleNamespace,
    seed: int,
    times: int,
) -> None:
    request = asked("lora", trials=2, lr=None)
    undisturbed = crowd.start(request, tmp_path / "undisturbed")
    undisturbed.join()
    [(_, touches)] = crowd.lines("touched")

    draw = random.Random(seed)
    kills, runs, out = 0, 0, tmp_path / "run-0"
    finished: dict[Path, bytes] = {}
    while True:
        moment = draw.randint(1, int(touches) // 3) if kills < times else 0
        print(f"run {runs}, to be killed when it touches a file for the {moment}th time")
        process = crowd.start(request, out, KILL_AT=str(moment))
        process.join()
        if process.exitcode == -signal.SIGKILL:
            kills += 1
            whole(out)
            assert all(path.read_bytes() == content for path, content in finished.items())
            # A dot in front: a write that the kill cut short. The next worker removes it.
            kept = (out / "cells").glob("[!.]*.json")
            finished = {path: path.read_bytes() for path in kept}
            continue
        assert process.exitcode == 0
        assert all(path.read_bytes() == content for path, content in finished.items())
        assert table(out) == table(tmp_path / "undisturbed")
        assert read.predictions(out) == read.predictions(tmp_path / "undisturbed")
        assert read.leftovers(tmp_path) == []
        if kills == times:
            break
        runs, finished, out = runs + 1, {}, tmp_path / f"run-{runs + 1}"


# ------------------------------------------------------------------------------- several at once


def test_two_at_once_share_the_work(
    finished: Any, asked: Callable[..., Request], crowd: Crowd, tmp_path: Path, read: Any
) -> None:
    request, out = asked("adapter,lora,fusion"), tmp_path / "run"
    workers = [crowd.start(request, out) for _ in range(2)]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    trained = crowd.trained()
    assert set(trained.values()) == {1} and len(trained) == finished.trainings
    assert len({process for process, _ in crowd.lines("end")}) == 2, "one of them did nothing"
    assert table(out) == table(finished.folder)
    assert read.predictions(out) == read.predictions(finished.folder)
    assert (out / "report.html").is_file() and read.leftovers(tmp_path) == []


def test_a_worker_that_is_killed_is_replaced(
    finished: Any, asked: Callable[..., Request], crowd: Crowd, tmp_path: Path, read: Any
) -> None:
    request, out = asked("adapter,lora,fusion"), tmp_path / "run"
    workers = [crowd.start(request, out) for _ in range(3)]
    while not (begun := list(crowd.lines("begin"))):
        assert all(worker.is_alive() for worker in workers)
        time.sleep(0.002)
    (first, _), *_ = begun
    os.kill(int(first), signal.SIGKILL)
    for worker in workers:
        worker.join()
    assert sorted(worker.exitcode or 0 for worker in workers) == [-signal.SIGKILL, 0, 0]
    begun = Counter(training for _, training in crowd.lines("begin"))
    assert set(crowd.trained().values()) == {1}
    assert len(begun) == finished.trainings
    assert sorted(begun.values()) in ([1] * 6 + [2], [1] * 7)  # killed before it ended, or after
    assert table(out) == table(finished.folder)
    assert read.leftovers(tmp_path) == []


# -------------------------------------------------------------------- a process for each cell


class Watching(Silent):
    """Remembers what is told, and does something at each cell's training."""

    def __init__(self, at: Callable[[str], None] = lambda title: None) -> None:
        self.at, self.outcomes = at, list[str]()

    def lane(self, number: int) -> Lane:
        del number
        return WatchedLane(self)


class WatchedLane(Silent):
    def __init__(self, watching: Watching) -> None:
        self.watching, self.title = watching, ""

    def start(self, title: str, units: int) -> None:
        self.title = title

    def note(self, text: str) -> None:
        if text == "training":
            self.watching.at(self.title)

    def finish(self, outcome: str, left: int = 0) -> None:
        self.watching.outcomes.append(f"{self.title}: {outcome}")


def in_processes(request: Request, out: Path, watching: Watching, workers: int = 1) -> Results:
    return run_plan(build_plan(request), out, watching, engine=Processes(workers=workers))


def test_processes_give_the_same_results(
    finished: Any, asked: Callable[..., Request], tmp_path: Path, read: Any
) -> None:
    watching = Watching()
    ended = in_processes(asked("adapter,lora,fusion"), tmp_path / "run", watching, workers=2)
    assert not ended.failures and active_children() == []
    assert table(tmp_path / "run") == table(finished.folder)
    assert read.predictions(tmp_path / "run") == read.predictions(finished.folder)
    assert sum(" % in " in outcome for outcome in watching.outcomes) == 6
    crowded = any("trained, to be measured" in outcome for outcome in watching.outcomes)
    assert crowded == any("same time on one device" in note for note in ended.run.notes)


def test_a_process_that_is_killed_is_replaced_once(
    asked: Callable[..., Request], tmp_path: Path
) -> None:
    killed: list[str] = []

    def kill(title: str) -> None:
        if title == "lora" or (title == "full" and "full" not in killed):
            killed.append(title)
            active_children()[0].kill()

    watching = Watching(kill)
    ended = in_processes(asked("lora"), tmp_path / "run", watching)
    assert killed == ["full", "lora", "lora"]
    assert watching.outcomes.count("full: its process died with signal 9") == 1
    assert [(row.method, row.reason) for row in ended.failures] == [
        ("lora", "its process ended twice without a result, with signal 9")
    ]


def test_an_interrupt_leaves_no_process_behind(
    asked: Callable[..., Request], tmp_path: Path
) -> None:
    def interrupt(title: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_processes(asked("head"), tmp_path / "run", Watching(interrupt), workers=2)
    assert active_children() == []
    ended = in_processes(asked("head"), tmp_path / "run", Watching())
    assert not ended.failures


# ------------------------------------------------------------------------- training together


def test_two_processes_train_one_cell_together(
    asked: Callable[..., Request], crowd: Crowd, tmp_path: Path
) -> None:
    request, out = asked("fusion"), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    meeting["GLOO_SOCKET_IFNAME"] = "lo"  # no other network is needed, and there may be none
    workers = [
        crowd.start(request, out, RANK=rank, LOCAL_RANK=rank, **meeting) for rank in ("0", "1")
    ]
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    for kind in ("begin", "end"):
        lines = {str(worker.pid): [] for worker in workers}
        for process, training in crowd.lines(kind):
            lines[process].append(training)
        first, second = lines.values()
        assert first == second and len(first) == 6
    batches = {str(worker.pid): [] for worker in workers}
    for process, size, total in crowd.lines("batch"):
        assert size == "8"
        batches[process].append(total)
    first, second = batches.values()
    assert len(first) == len(second) and first != second, "both saw the same examples"
    run = json.loads((out / "run.json").read_text())
    assert sum("2 processes together" in note for note in run["notes"]) == 1
    assert all(row["status"] == "done" for row in table(out).values())
