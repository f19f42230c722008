"""The commit that deltakit runs from: a checkout's, and none of an installed package."""

import subprocess
from pathlib import Path

import pytest

from deltakit.compare.measure.provenance import code_version


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=n", "-c", "user.email=e@example.org")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package in a repository of its own, committed."""
    folder = tmp_path / "repository" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder.parent, "init", "-q")
    git(folder.parent, "add", ".")
    git(folder.parent, "commit", "-q", "-m", "first")
    return folder


def test_a_checkout_has_a_commit_and_is_clean(package: Path) -> None:
    found = code_version(package)
    assert found is not None
    assert found.commit == git(package, "rev-parse", "HEAD") and found.clean
    assert str(found) == found.commit[:12]


@pytest.mark.parametrize("name", ["__init__.py", "new.py"])
def test_a_changed_or_a_new_file_is_not_clean(name: str, package: Path) -> None:
    (package / name).write_text("changed = True\n")
    found = code_version(package)
    assert found is not None and not found.clean
    assert str(found).endswith(" with changes")


def test_a_file_outside_the_package_does_not_count(package: Path) -> None:
    (package.parent / "results.txt").write_text("")
    found = code_version(package)
    assert found is not None and found.clean


def test_a_package_that_is_installed_below_a_repository_has_none(package: Path) -> None:
    installed = package.parent / ".venv" / "site-packages" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    assert code_version(installed) is None


def test_without_a_repository_or_without_git_there_is_none(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "__init__.py").write_text("")
    assert code_version(tmp_path / "plain") is None
    monkeypatch.setenv("PATH", "")
    assert code_version(package) is None


def test_the_variables_of_a_hook_do_not_mislead(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert code_version(package) is not None
