"""``deltakit cite``: what to put into the bibliography."""

import click

from deltakit.cli.options import import_option


@click.command(
    epilog="""\b
Example:
  deltakit cite houlsby"""
)
@click.argument("method")
@import_option
def cite(method: str) -> None:
    """Print the BibTeX entry of METHOD's paper, e.g. of lora or houlsby."""
    import deltakit as dk

    click.echo(dk.parse_method(method).paper.bibtex())
