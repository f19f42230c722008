"""One worker in a process of its own, started by `runpy` with a dictionary GIVEN as a global.

It runs the request in the folder ``out``, by the request's protocol, and writes a line to the file
``log`` when a training begins, another when it ends.
"""

import itertools
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer

from deltakit.compare.api import run_plan
from deltakit.compare.plan.resolve import build_plan
from deltakit.compare.report import cost_views as views
from deltakit.compare.report.pareto import Plot
from deltakit.compare.run import cell, distributed
from deltakit.compare.run import queue as work

TOUCHES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link")


def main(*, request: Any, out: Path, log: Path, environment: dict[str, str]) -> None:
    """Everything that the worker does."""
    os.environ.update(environment)
    touched = count_touches((out, log), int(environment.get("KILL_AT", 0)))
    torch.set_num_threads(1)
    for module in (cell, work):
        module.train_now = partial(watched, module.train_now, log)
    Trainer.training_step = step(Trainer.training_step, log)
    views.pareto_plot = lambda *_, **__: Plot(svg="<svg></svg>", png=b"png")
    plan = build_plan(request)
    if distributed.is_follower():
        work.follow(plan)
    else:
        run_plan(plan, out)
    say(log, "touched", next(touched))


def count_touches(paths: tuple[Path, ...], last: int) -> Any:
    """Counts what is opened, made, moved or removed under the paths; at the last, kills itself."""
    numbers = itertools.count(1)
    within = tuple(map(str, paths))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in TOUCHES and str(arguments[0]).startswith(within)
        if touches and next(numbers) == last:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return numbers


def say(log: Path, *words: object) -> None:
    """One line, whole whoever else writes: a short append is atomic."""
    line = " ".join(map(str, (os.getpid(), *words))) + "\n"
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, line.encode())
    os.close(descriptor)


def watched(train_here: Any, log: Path, context: Any, training: Any, model: Any) -> Any:
    say(log, "begin", training.id)
    done = train_here(context, training, model)
    say(log, "end", training.id)
    return done


def step(train: Any, log: Path) -> Any:
    def training_step(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        say(log, "batch", len(inputs["labels"]), int(inputs["input_ids"].sum()))
        return train(self, model, inputs, *rest)

    return training_step


if __name__ == "worker":
    main(**globals()["GIVEN"])
