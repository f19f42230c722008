"""Finding the data of installed packages without importing the packages."""

from importlib.util import find_spec
from pathlib import Path

from deltakit.errors import MissingExtra


def package_path(task: str, package: str, inside: str) -> Path:
    """The path `inside` the folder of an installed package.

    The package is located, never imported: its own code (which may print, or be slow) does not run.

    Args:
        task: the task's name, for the message.
        package: the name that one would import.
        inside: path of the data in the package's folder.

    Raises:
        MissingExtra: the package is not installed, or does not hold the data.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        path = Path(folder) / inside
        if path.exists():
            return path
    raise MissingExtra(
        f"task {task!r} reads the data of the package {package.replace('_', '-')!r}, which is not "
        'installed. Install it from a checkout of deltakit with: pip install -e ".[demo]"'
    )
