"""``deltakit summary``: what a method costs on a model, without its weights."""

import click

from deltakit.cli.options import import_option


@click.command(
    epilog="""\b
Example:
  deltakit summary minilm --method lora[rank=16]"""
)
@click.argument("model")
@click.option("--method", required=True, help="A method, e.g. lora[rank=16].")
@import_option
def summary(model: str, method: str) -> None:
    """Count METHOD's parameters on MODEL, site by site. No weights are read."""
    import deltakit as dk
    from deltakit.models.source import find_model

    chosen = dk.parse_method(method)  # first: it takes no torch
    skeleton = find_model(model).own_skeleton()
    dk.attach(skeleton, chosen)
    click.echo(dk.summary(skeleton))
