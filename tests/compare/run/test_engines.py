"""Engines by name, what they refuse, and the loop of the one that needs a cluster."""

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from deltakit import _imports
from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.run import engines
from deltakit.compare.run.engines import ENGINES, Local, Processes, Ray, engine_for
from deltakit.compare.run.engines.processes import _devices
from deltakit.compare.run.engines.ray import _room
from deltakit.core.method import CLASSES, METHODS
from deltakit.errors import InvalidConfig, MissingExtra, NameInUse, UnknownName


def test_engines_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(ENGINES) == ["local", "processes", "ray"]
    assert isinstance(engine_for("local", None), Local)
    assert engine_for("processes", 3) == Processes(workers=3)
    assert isinstance(engine_for(None, None), ENGINES.get(engines.DEFAULT))
    monkeypatch.undo()
    assert engine_for(None, None) == Processes(workers=1), "what the command line takes"
    with pytest.raises(UnknownName, match="engine 'procesess'.*processes"):
        engine_for("procesess", None)
    with pytest.raises(NameInUse):
        engines.register_engine("local")(type("Other", (Local,), {}))


@pytest.mark.parametrize(
    ("name", "workers", "message"),
    [
        ("local", 2, "--engine local has one worker, not 2.*--engine processes"),
        ("processes", 0, "whole number above zero"),
        ("ray", 0, "whole number above zero|needs the package"),
    ],
)
def test_workers_that_do_not_do(name: str, workers: int, message: str) -> None:
    with pytest.raises((InvalidConfig, MissingExtra), match=message):
        engine_for(name, workers)


def test_processes_that_train_together_are_one_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert isinstance(engine_for(None, None), Local)
    with pytest.raises(InvalidConfig, match="2 processes that train together"):
        engine_for("processes", None)


@pytest.mark.parametrize(
    ("count", "visible", "shown"),
    [(0, None, [None]), (1, "3", [None]), (2, None, ["0", "1"]), (2, "3,GPU-5", ["3", "GPU-5"])],
)
def test_each_process_sees_one_accelerator(
    count: int, visible: str | None, shown: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert [each.get("CUDA_VISIBLE_DEVICES") for each in _devices()] == shown


# ------------------------------------------------------------------------------------------ ray


def node(alive: bool = True, **resources: float) -> dict[str, Any]:
    return {"Alive": alive, "Resources": resources}


@pytest.mark.parametrize(
    ("nodes", "room"),
    [
        ([node(CPU=4)], (1, {"num_cpus": 4})),
        ([node(CPU=4), node(CPU=8), node(alive=False, CPU=64)], (3, {"num_cpus": 4})),
        ([node(CPU=4), node(CPU=16, GPU=2)], (2, {"num_gpus": 1})),
    ],
)
def test_a_cluster_has_one_cell_a_device(
    nodes: list[dict[str, Any]], room: tuple[int, dict[str, float]]
) -> None:
    assert _room(nodes) == room


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"--engine ray needs the package 'ray'.*\.\[ray\]"):
        engine_for("ray", None)


class Cluster(ModuleType):
    """As much of Ray as the engine uses, in this process; the first task's process dies."""

    def __init__(self) -> None:
        super().__init__("ray")
        self.exceptions = SimpleNamespace(
            RayError=type("RayError", (Exception,), {}),
            RayTaskError=type("RayTaskError", (Exception,), {}),
        )
        self.started = 0

    def is_initialized(self) -> bool:
        return True

    def nodes(self) -> list[dict[str, Any]]:
        return [node(CPU=1), node(CPU=1)]

    def put(self, thing: Any) -> Any:
        return thing

    def remote(self, **options: Any) -> Any:
        assert options == {"max_calls": 1, "max_retries": 0, "num_cpus": 1}
        return lambda work: SimpleNamespace(remote=lambda *given: self.start(work, *given))

    def start(self, work: Callable[..., Any], *given: Any) -> Any:
        self.started += 1
        if self.started == 1:
            return self.exceptions.RayError
        done = work(*given)
        return lambda: done

    def wait(self, running: list[Any], **_: Any) -> tuple[list[Any], list[Any]]:
        return running[:1], running[1:]

    def get(self, reference: Any) -> Any:
        if reference is self.exceptions.RayError:
            raise reference
        return reference()


def test_cells_on_a_cluster(
    asked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster()
    monkeypatch.setitem(sys.modules, "ray", cluster)
    plan = build_plan(asked("lora"))
    ended = run_plan(plan, tmp_path / "there", engine=Ray())
    here = run_plan(plan, tmp_path / "here")
    assert not ended.failures and cluster.started == 1 + len(plan.cells)
    assert [row.score for row in ended.results] == [row.score for row in here.results]
    assert ended.predictions == here.predictions


MINE = """
from dataclasses import dataclass

import deltakit as dk


@dk.register_method("narrow", rank=1)
@dataclass(frozen=True, kw_only=True)
class Narrow(dk.LoRA):
    pass
"""


class FreshProcesses(Cluster):
    """A cluster whose tasks know nothing that this process has imported."""

    def start(self, work: Callable[..., Any], *given: Any) -> Any:
        known = dict(_imports._LOADED)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_imports, "_LOADED", {})
            for registry, name in ((METHODS, "narrow"), (CLASSES, "Narrow")):
                others = {key: value for key, value in registry._things.items() if key != name}
                patch.setattr(registry, "_things", others)
            for module in known:
                patch.delitem(sys.modules, module)
            started = super().start(work, *given)
            for module in known:
                sys.modules.pop(module, None)
        return started


@pytest.mark.slow  # three trainings
@pytest.mark.usefixtures("forgets_imports")
def test_a_cluster_knows_what_users_files_register(
    asked: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    monkeypatch.setitem(sys.modules, "ray", FreshProcesses())
    plan = build_plan(asked("narrow", imports=(str(file),), epochs=1.0))
    file.unlink()  # a machine of the cluster need not have it
    ended = run_plan(plan, tmp_path / "there", engine=Ray())
    assert not ended.failures
    assert {row.method for row in ended.results} >= {"narrow", "head"}


@pytest.mark.slow
def test_cells_on_a_real_cluster(asked: Callable[..., Any], tmp_path: Path) -> None:
    ray = pytest.importorskip("ray")
    plan = build_plan(asked("lora,fusion"))
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": dict(os.environ)})
    try:
        ended = run_plan(plan, tmp_path / "there", engine=Ray())
    finally:
        ray.shutdown()
    here = run_plan(plan, tmp_path / "here")
    assert not ended.failures
    assert [row.score for row in ended.results] == [row.score for row in here.results]
    assert ended.predictions == here.predictions
