"""Engines: the places where cells run. They change no result, only the time to get it."""

from deltakit.compare.run import distributed
from deltakit.compare.run.engines.base import ENGINES, Engine, register_engine
from deltakit.compare.run.engines.local import Local
from deltakit.compare.run.engines.processes import Processes
from deltakit.compare.run.engines.ray import Ray
from deltakit.errors import InvalidConfig

DEFAULT = Processes.name
"""The command line's default, except for processes that train together."""

__all__ = [
    "DEFAULT",
    "ENGINES",
    "Engine",
    "Local",
    "Processes",
    "Ray",
    "engine_for",
    "register_engine",
]


def engine_for(name: str | None, workers: int | None) -> Engine:
    """The engine of that name with a number of workers; None takes the default.

    Raises:
        UnknownName: there is none.
        InvalidConfig: it does not take that number of workers, or cannot run here.
    """
    together = distributed.world_size() > 1
    name = name or (Local.name if together else DEFAULT)
    if together and name != Local.name:
        raise InvalidConfig(
            f"--engine {name} and {distributed.world_size()} processes that train "
            "together exclude each other: "
            "take --engine local, or start the command without accelerate launch or torchrun."
        )
    return ENGINES.get(name).of(workers)
