"""``deltakit show`` and ``deltakit copy``: the plans that deltakit ships, as YAML to edit."""

from itertools import takewhile
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from deltakit._files import write_text
from deltakit.errors import DeltakitError, InvalidConfig, unknown


def shipped_plans() -> dict[str, Path]:
    """The YAML files of the shipped plans, by name."""
    package = Path(__file__).parents[1]
    # A wheel carries the plans in the package; a checkout has them in a folder next to it.
    homes = [home for home in (package / "_configs", package.parent / "configs") if home.is_dir()]
    return {file.stem: file for home in reversed(homes) for file in home.glob("*.yaml")}


def shipped_plan(name: str) -> Path:
    """The YAML file of a shipped plan. Raises `UnknownName`."""
    plans = shipped_plans()
    if name not in plans:
        raise unknown("plan", name, plans, hint="`deltakit list plans` describes them.")
    return plans[name]


def described(plan: Path) -> str:
    """The plan in one line: the first sentence of its file's comment, after the command."""
    _, _, *lines = plan.read_text(encoding="utf-8").splitlines()
    comment = takewhile(lambda line: line.startswith("# "), lines)
    return " ".join(line[2:] for line in comment).partition(". ")[0].removesuffix(".")


class PlanName(click.ParamType):  # type: ignore[type-arg]  # not generic in click 8.1
    """The name of a shipped plan, with completion in the shell."""

    name = "plan"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """The names that begin as typed."""
        names = sorted(name for name in shipped_plans() if name.startswith(incomplete))
        return [CompletionItem(name) for name in names]


@click.command()
@click.argument("plan", type=PlanName())
def show(plan: str) -> None:
    """Print the YAML file of PLAN, a plan that deltakit ships (`deltakit list plans`)."""
    click.echo(shipped_plan(plan).read_text(encoding="utf-8"), nl=False)


@click.command(
    epilog="""\b
Example:
  deltakit copy quick mine.yaml
  deltakit compare --config mine.yaml"""
)
@click.argument("plan", type=PlanName())
@click.argument("file", type=click.Path(path_type=Path))
def copy(plan: str, file: Path) -> None:
    """Copy PLAN, a plan that deltakit ships, to FILE, to be edited and given to --config.

    A file that exists is not overwritten.
    """
    content = shipped_plan(plan).read_text(encoding="utf-8")
    if file.exists():
        raise InvalidConfig(f"{file} exists. Choose another name, or remove it first.")
    if not file.parent.is_dir():
        raise InvalidConfig(
            f"{file} cannot be written: there is no folder {file.parent}. Make it first, or choose "
            "another place."
        )
    try:
        write_text(file, content)
    except OSError as error:
        raise DeltakitError(f"{file} cannot be written: {error.strerror}.") from None
    click.echo(f"{file} holds the plan {plan}. Run it with: deltakit compare --config {file}")
