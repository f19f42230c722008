"""A saved delta gives the same outputs in a new process."""

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

import deltakit as dk
from deltakit.core.method import CombiningMethod, Method
from deltakit.testing.case import Case, NotApplicable, equal, run


def check_loads_elsewhere(cases: Sequence[Case], modules: Iterable[str] = ()) -> None:
    """Deltas that are saved here and loaded in a fresh process give bit-equal outputs.

    One process serves all cases, because starting it takes seconds.

    Args:
        cases: methods on models; those that are refused are left out.
        modules: what the process must import before it reads the deltas, apart from the
            modules in which the methods are: where a family is registered, for example.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        expected = {}
        for index, case in enumerate(cases):
            try:
                model = case.random()
            except NotApplicable:
                continue
            expected[index] = run(model, case.inputs)
            dk.save(model, folder / str(index))
            torch.save((case.make(), dict(case.inputs)), folder / str(index) / "base.pt")
        homes = {*modules, *(type(method).__module__ for c in cases for method in _all(c.method))}
        _start(folder, {name: sys.modules[name].__file__ or "" for name in homes})
        found = torch.load(folder / "outputs.pt")
        for index, output in expected.items():
            equal(found[index], output, f"{cases[index].method} in a fresh process")


def _all(method: Method) -> Iterable[Method]:
    yield method
    if isinstance(method, CombiningMethod):
        yield from _all(method.member)


def _start(folder: Path, modules: dict[str, str]) -> None:
    plan = {"modules": modules, "threads": torch.get_num_threads()}
    (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-m", __name__, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"loading in a fresh process failed: {done.stderr[-2000:]}"


def main(folder: Path) -> None:
    """The fresh process: loads each delta on its base, and writes the outputs to one file."""
    plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
    torch.set_num_threads(plan["threads"])
    for name, file in plan["modules"].items():
        _import(name, file)
    outputs = {}
    for each in folder.iterdir():
        if each.is_dir():
            # Written by the process that started this one, into a folder of its own.
            model, inputs = torch.load(each / "base.pt", weights_only=False)
            dk.load(model, each)
            outputs[int(each.name)] = run(model, inputs)
    torch.save(outputs, folder / "outputs.pt")


def _import(name: str, file: str) -> None:
    """Imports a module, by its file where its name is not enough (a test module)."""
    try:
        importlib.import_module(name)
    except ImportError:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None, f"cannot import {name} from {file}"
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
