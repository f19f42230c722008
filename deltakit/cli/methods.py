"""``deltakit methods``: what can be compared."""

import click

from deltakit.cli.options import import_option


@click.command(
    epilog="""\b
Examples:
  deltakit methods
  deltakit methods --import my_method.py"""
)
@import_option
def methods() -> None:
    """List the methods by their short names, with their settings and defaults."""
    import dataclasses

    from tabulate import tabulate

    from deltakit.core.method import METHODS
    from deltakit.core.provider import PROVIDERS

    rows = []
    for name in METHODS:
        entry = METHODS.get(name)
        built = entry.build()
        settings = ", ".join(
            f"{field.name}={_short(getattr(built, field.name))}"
            for field in dataclasses.fields(built)
        )
        rows.append((name, built.paper.key, settings or "–"))
    click.echo(tabulate(rows, ("name", "paper", "settings"), maxcolwidths=[None, None, 70]))
    click.echo("\nWrite settings in brackets, lora[rank=16], and sums with +, lora+houlsby.")
    for provider in PROVIDERS:
        click.echo(PROVIDERS.get(provider).usage)


def _short(value: object) -> str:
    from deltakit.core.method import Method
    from deltakit.core.spec import format_method

    match value:
        case Method():
            return format_method(value)
        case tuple():
            return "/".join(map(str, value)) or "none"
        case None | bool():
            return str(value).lower()
        case _:
            return str(value)
