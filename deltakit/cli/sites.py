"""``deltakit sites``: where deltas can go in a model."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from deltakit.cli.options import import_option

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltakit.core.site import Handle


@click.command(
    epilog="""\b
Examples:
  deltakit sites minilm
  deltakit sites ./my-model --infer"""
)
@click.argument("model")
@click.option(
    "--infer",
    is_flag=True,
    help="Read the sites off the modules (of a model with its weights), and show the evidence.",
)
@import_option
def sites(model: str, infer: bool) -> None:
    """Show the sites of MODEL: where each is, its widths, in how many layers.

    The model is of the class that its config names: a classifier, a decoder, a vision model.

    For an architecture that is not known it prints the repeated modules, from which a
    deltakit.Family can be written; with --infer, what can be read off them, and why.
    """
    from deltakit.models.source import find_model

    source = find_model(model)
    if infer:
        click.echo(_inferred(source.load_own()))
    else:
        _show(source.own_skeleton())


def _show(skeleton: "PreTrainedModel") -> None:
    import deltakit as dk
    from deltakit.errors import UnknownArchitecture

    try:
        click.echo(_table(dk.resolve(skeleton)))
    except UnknownArchitecture as error:
        click.echo(_repeated(skeleton))
        raise error from None


def _inferred(model: "PreTrainedModel") -> str:
    import deltakit as dk
    from deltakit.arch.resolve import handles_of

    inference = dk.infer_family(model)
    evidence = "\n".join(inference.evidence)
    return f"{evidence}\n\n{_table(handles_of(model, inference.family))}"


def _table(handles: Iterable["Handle"]) -> str:
    from tabulate import tabulate

    handles = tuple(handles)
    layers = Counter((handle.stack, handle.site) for handle in handles)
    rows = []
    for handle in handles:
        if handle.layer == 0:
            span = "" if handle.columns is None else str(handle.columns)
            rows.append(
                (
                    handle.stack,
                    handle.site.value,
                    f"{handle.path or '(the model)'}{span}",
                    handle.hook_kind.value,
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
