"""What is released: one version everywhere, and all files of the project in the distribution."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, metadata
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

import deltakit

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
TOOLS = PROJECT["tool"]


def test_the_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert PROJECT["project"]["version"] == deltakit.__version__
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [deltakit.__version__]


def test_the_source_distribution_has_every_part_of_the_project() -> None:
    included = TOOLS["hatch"]["build"]["targets"]["sdist"]["include"]
    assert all((ROOT / name.lstrip("/")).exists() for name in included)
    apart = {"runs", "dist", "build", "site", "shared"}  # made, or laid beside
    present = {f"/{path.name}" for path in ROOT.iterdir() if path.name[0] != "."}
    assert present - set(included) <= {f"/{name}" for name in apart} | {"/pyproject.toml"}


@pytest.mark.parametrize("extra", ["dev", "peft", "quant"])
def test_an_extra_asks_for_the_same_versions_as_dev(extra: str) -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    asked = dict(re.split("(?=>=)", each, maxsplit=1) for each in extras["dev"])
    for each in extras[extra]:
        name, bound = re.split("(?=>=)", each, maxsplit=1)
        assert asked[name] == bound


def test_constraints_hold_what_is_asked_for() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    held = dict(line.lower().split("==") for line in lines if "==" in line and line[0] != "#")
    project = PROJECT["project"]
    for each in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name, bound = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", each).groups()
        version = tuple(map(int, re.findall(r"\d+", held[name.lower()])))
        assert version >= tuple(map(int, bound.split("."))), each


def test_constraints_install_on_the_oldest_python() -> None:
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=") + ".0"
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    for name in (line.split("==")[0] for line in lines if "==" in line and line[0] != "#"):
        try:
            asked = metadata(name).get("Requires-Python")
        except PackageNotFoundError:
            continue  # of another platform, or of an extra that is not installed
        assert SpecifierSet(asked or "").contains(oldest), f"{name} asks for Python {asked}"


def test_the_hosted_workflow_runs_what_the_project_says() -> None:
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    pythons = {
        found[1]
        for line in PROJECT["project"]["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line))
    }
    assert pythons == set(re.search(r"python: \[(.*)\]", workflow)[1].replace('"', "").split(", "))
    for path in re.findall(r"\b(?:tests|tools)/[\w./]+", workflow):
        assert (ROOT / path).exists(), path


def test_the_page_on_the_house_has_every_contract() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("## The contracts")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)
    assert rows[2:] == [contract["name"] for contract in TOOLS["importlinter"]["contracts"]]
