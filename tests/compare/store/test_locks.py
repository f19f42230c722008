"""Locks: one holder, gone with its process, and what is free goes first."""

import runpy
import time
from multiprocessing import get_context
from pathlib import Path

import pytest

from deltakit.compare.store.locks import Lock, free_first


@pytest.fixture
def lock(tmp_path: Path) -> Lock:
    return Lock(tmp_path / "deep" / "cell.lock")


def test_a_lock_has_one_holder(lock: Lock) -> None:
    assert not lock.taken()
    with lock.held():
        assert lock.taken()
        with lock.offered() as mine:
            assert not mine
    with lock.offered() as mine:
        assert mine and lock.taken()
    assert not lock.taken()
    assert lock.path.is_file(), "the file stays, or two could have the lock"


def test_an_error_gives_the_lock_back(lock: Lock) -> None:
    for way in (lock.held, lock.offered):
        with pytest.raises(KeyboardInterrupt), way():
            raise KeyboardInterrupt
        assert not lock.taken()


HOLD = """
import threading
with LOCK.held():
    threading.Event().wait()
"""


def test_a_lock_ends_with_its_process_and_whoever_waits_gets_it(lock: Lock, tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    arguments = (str(tmp_path / "hold.py"), {"LOCK": lock})
    holder = get_context("forkserver").Process(target=runpy.run_path, args=arguments)
    holder.start()
    try:
        while not lock.taken():
            assert holder.is_alive()
            time.sleep(0.01)
        waited: list[bool] = []

        def kill() -> None:
            waited.append(True)
            holder.kill()

        with lock.held(kill):
            assert waited == [True]
    finally:
        holder.kill()
        holder.join()


def test_what_somebody_has_comes_last(tmp_path: Path) -> None:
    locks = {name: Lock(tmp_path / name) for name in "abcd"}
    with locks["a"].held(), locks["c"].held():
        assert list(free_first("abcd", locks.__getitem__)) == ["b", "d", "a", "c"]
    order = free_first("abcd", locks.__getitem__)
    with locks["a"].held():
        assert next(order) == "b"
    assert [next(order), next(order), next(order)] == ["a", "c", "d"]
