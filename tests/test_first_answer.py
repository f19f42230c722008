"""The modules that a first answer imports: names and settings are judged before torch is there."""

import subprocess
import sys

HEAVY = (
    "accelerate",
    "bitsandbytes",
    "datasets",
    "huggingface_hub",
    "matplotlib",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "scipy",
    "sklearn",
    "torch",
    "transformers",
)
"""Packages that take a tenth of a second or more to import."""


def heavy_after(code: str) -> set[str]:
    """The heavy packages that a new process has imported after it has run `code`."""
    told = f"{code}\nimport sys\nprint(*sorted(set(sys.modules) & set({HEAVY!r})))"
    ran = subprocess.run(
        [sys.executable, "-c", told], capture_output=True, text=True, check=True, timeout=60
    )
    return set(ran.stdout.splitlines()[-1].split())


def test_methods_are_known_without_torch() -> None:
    code = (
        "import deltakit.methods\n"
        "from deltakit.core.spec import parse_method\n"
        "parse_method('mam[length=3]+lora[rank=2]').paper.bibtex()"
    )
    assert heavy_after(code) == set()
