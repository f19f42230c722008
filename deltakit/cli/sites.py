"""``deltakit sites``: where deltas can go in a model."""

import re
from collections import Counter
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@click.command()
@click.argument("model")
def sites(model: str) -> None:
    """Show the sites of MODEL: where each is, its widths, in how many layers.

    For an architecture that is not known it prints the repeated modules, from which a
    deltakit.Family can be written.
    """
    from deltakit.compare.model import find_model
    from deltakit.errors import UnknownArchitecture

    skeleton = find_model(model).skeleton(labels=2)
    try:
        click.echo(_known(skeleton))
    except UnknownArchitecture as error:
        click.echo(_repeated(skeleton))
        raise error from None


def _known(model: "PreTrainedModel") -> str:
    from tabulate import tabulate

    import deltakit as dk

    handles = dk.resolve(model)
    layers = Counter((handle.stack, handle.site) for handle in handles)
    rows = []
    for handle in handles:
        if handle.layer == 0:
            span = "" if handle.columns is None else str(handle.columns)
            rows.append(
                (
                    handle.stack,
                    handle.site.value,
                    f"{handle.path}{span}",
                    handle.tap.value,
                    handle.d_in,
                    handle.d_out,
                    layers[handle.stack, handle.site],
                )
            )
    headers = ("stack", "site", "module in layer 0", "tap", "reads", "writes", "layers")
    return tabulate(rows, headers)


def _repeated(model: "PreTrainedModel") -> str:
    from tabulate import tabulate

    kinds: Counter[tuple[str, str]] = Counter()
    for name, module in model.named_modules():
        if name and re.search(r"\.\d+\b", name):
            pattern = re.sub(r"\.\d+\b", ".*", name)
            kinds[pattern, f"{type(module).__name__}({module.extra_repr()})"] += 1
    rows = [(pattern, kind, count) for (pattern, kind), count in kinds.items() if count > 1]
    return tabulate(rows, ("module", "kind", "times"))
