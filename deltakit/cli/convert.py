"""``deltakit convert``: a saved delta in another library's format."""

import click

from deltakit.cli.options import import_option


@click.command(
    epilog="""\b
Examples:
  deltakit convert my-delta for-vllm --to peft --base bert-base-uncased
  deltakit convert owner/name mine --to deltakit

Exit code 0: written. 2: it cannot be carried over exactly, and nothing was written."""
)
@click.argument("src")
@click.argument("dst")
@click.option("--to", required=True, metavar="FORMAT", help="deltakit, peft or adapterhub.")
@click.option(
    "--base",
    metavar="MODEL",
    help="What SRC was made on: shipped name, local folder or Hub name. [what SRC names]",
)
@import_option
def convert(src: str, dst: str, to: str, base: str | None) -> None:
    """Write the deltas of SRC, a folder or a Hub name, to the folder DST in another format.

    Every tensor and every setting is carried over exactly, or nothing is written. Of the base only
    the config is read, not the weights.
    """
    import deltakit as dk
    from deltakit.interop.formats import FORMATS

    FORMATS.check_known(to)
    click.echo(dk.convert(src, dst, to=to, base=base))
