"""The wheel, built and used in a fresh environment with a file of the user's."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FILE = ROOT / "tests" / "fixtures" / "users_weather.py"


@pytest.mark.slow
def test_a_wheel_runs_a_users_file(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    home = dict(os.environ)
    home.pop("PYTHONPATH", None)

    def run(*command: object) -> str:
        done = subprocess.run(
            list(map(str, command)), cwd=tmp_path, env=home, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    built = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    (wheel,) = tmp_path.glob("*.whl")
    run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    # The libraries are those of the environment that runs the tests.
    (site,) = (tmp_path / "venv").glob("lib/python*/site-packages")
    libraries = Path(pytest.__file__).parents[1]
    (site / "libraries.pth").write_text(f"{libraries}\n")
    shutil.copy(FILE, tmp_path / "mine.py")
    where = run(python, "-c", "import deltakit; print(deltakit.__file__)")
    assert str(site) in where
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from tiny import make_model, make_tokenizer
    finally:
        sys.path.remove(str(ROOT / "examples"))
    make_model().save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    command = tmp_path / "venv" / "bin" / "deltakit"
    run(command, "compare", "--import", "mine.py", "--methods", "narrow", "--model", "model",
        "--task", "weather", "--metric", "worst_recall", "--epochs", 1, "--max-length", 16,
        "--engine", "local", "--out", "run")  # fmt: skip
    assert "narrow,fp32,weather,0," in (tmp_path / "run" / "results.csv").read_text()
