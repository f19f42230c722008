"""The options that name a plan, shared by ``compare`` and ``plan``, and how they become one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from deltakit.cli.shipped_plans import shipped_plans
from deltakit.errors import InvalidConfig, unknown

if TYPE_CHECKING:
    from deltakit.compare.plan.plan import Plan
    from deltakit.compare.plan.request import Request
    from deltakit.compare.run.engines.base import Engine

F = TypeVar("F", bound=Callable[..., Any])

INTERRUPTED = 130
"""The exit code after Ctrl-C."""
ALL = "all"
CURVE = ("train_sizes", "equal_steps")
"""The options that are no part of a request."""


def amount(value: str) -> int | str:
    """A whole number, or "all"."""
    if value == ALL:
        return value
    try:
        return int(str(value))  # a YAML file's 2.5 or true is none
    except ValueError:
        raise click.BadParameter(f"{value!r} is neither a whole number nor 'all'.") from None


def whole(value: str) -> int:
    """A whole number."""
    try:
        return int(str(value))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not a whole number.") from None


def sizes(value: str) -> tuple[int, ...]:
    """Whole numbers above zero."""
    try:
        found = tuple(int(each) for each in str(value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not whole numbers, as in 100,500,2000.") from None
    if min(found) < 1:
        raise click.BadParameter(
            f"{min(found)} is not above zero. Give numbers of examples, as in 100,500,2000."
        )
    return found


def grid(value: str) -> tuple[float, float]:
    """Two numbers."""
    try:
        low, high = (float(each) for each in str(value).split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r} is not two numbers, as in 3e-5,3e-2.") from None
    return low, high


def config_file(value: Path) -> Path:
    """The file that ``--config`` names: a path, or the name of a plan that deltakit ships.

    Raises:
        UnknownName: neither.
    """
    if value.is_file():
        return value
    shipped = shipped_plans()
    if str(value) not in shipped:
        raise unknown("--config", str(value), shipped, hint="Or give a YAML file that exists.")
    return shipped[str(value)]


def read_config(ctx: click.Context, param: click.Parameter, value: Path | None) -> None:
    """Makes a YAML file's keys the defaults of the options; the command line goes before it."""
    if value is None:
        return
    import yaml

    value = config_file(value)
    try:
        content = yaml.safe_load(value.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        line = str(error).splitlines()[0]
        raise InvalidConfig(f"--config {value} cannot be read: {line}") from None
    if not isinstance(content, dict):
        raise InvalidConfig(f"--config {value} must hold keys such as 'methods: adapter,lora'.")
    known = {
        spelling.lstrip("-").replace("-", "_"): each
        for each in ctx.command.params
        for spelling in each.opts
        if each.name != param.name
    }
    settings = {str(key).replace("-", "_"): item for key, item in content.items()}
    for key in settings:
        if key not in known:
            raise unknown("key", key, known, hint=f"It is in {value}.")
    defaults = {known[key].name or key: _as_typed(known[key], it) for key, it in settings.items()}
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _as_typed(option: click.Parameter, item: Any) -> Any:
    """A YAML file's value as the command line would have it: lists are joined by commas."""
    if option.multiple:
        return item if isinstance(item, list) else [item]
    return ",".join(map(str, item)) if isinstance(item, list) else item


def read_imports(
    ctx: click.Context, param: click.Parameter, value: tuple[str, ...]
) -> tuple[str, ...]:
    """Imports users' files before any name is looked up."""
    del ctx, param
    from deltakit._imports import import_extension

    for name in value:
        import_extension(name)
    return value


_IMPORT = partial(
    click.option,
    "--import",
    "imports",
    multiple=True,
    metavar="FILE|MODULE",
    callback=read_imports,
    help="A Python file or module that registers methods, metrics, tasks, kinds, ... of your own. "
    "May be given several times.",
)


def import_option(function: F) -> F:
    """Gives a command the option ``--import``."""
    return _IMPORT(expose_value=False)(function)


def import_files(function: F) -> F:
    """Gives a command the option ``--import``, with its value as the argument ``imports``."""
    return _IMPORT()(function)


_OPTIONS = (
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=read_config,
        help="YAML file with any of these options, or a shipped plan's name (quick); the command "
        "line goes before it.",
    ),
    click.option(
        "--methods",
        required=True,
        metavar="A,B,...",
        help="Methods to compare, e.g. adapter,lora[rank=16],fusion: `deltakit methods`.",
    ),
    click.option("--model", default=None, help="Shipped name, local folder or Hub name. [minilm]"),
    click.option(
        "--task",
        default=None,
        help="Shipped name, local folder or file, or Hub name. [rotten_tomatoes]",
    ),
    click.option(
        "--kind",
        help="Kind of a task of your own: `deltakit list kinds`. [what it looks like]",
    ),
    click.option(
        "--metric",
        help="The score: `deltakit list metrics`. [accuracy, or the usual one of the kind of task]",
    ),
    click.option(
        "--weights",
        "--bases",
        "bases",
        default=None,
        metavar="A,B,...",
        help="How the model's weights are held: fp32, bf16, int8, nf4, fp4. [fp32]",
    ),
    click.option(
        "--compute-dtype",
        default=None,
        help="What quantised bases compute in. [float32 on a CPU, bfloat16 on an accelerator]",
    ),
    click.option(
        "--source-tasks",
        default=None,
        metavar="A,B,...",
        help="Tasks for fusion's first stage; name=FOLDER takes a saved delta. [imdb,bbc_news]",
    ),
    click.option(
        "--profile", default=None, help="Budget and seeds: quick, standard or paper. [quick]"
    ),
    click.option(
        "--max-train-samples", type=amount, metavar="N|all", help="Training examples of each task."
    ),
    click.option("--max-eval-samples", type=amount, metavar="N|all", help="Test examples."),
    click.option("--epochs", type=float, help="Passes over the training examples."),
    click.option("--batch-size", type=whole, metavar="N", help="Training examples in a step."),
    click.option("--max-length", type=whole, metavar="N", help="Tokens of an example, at most."),
    click.option("--lr", type=float, help="One peak learning rate for all. [each method's own]"),
    click.option(
        "--seeds", type=whole, metavar="N", help="Number of seeds; each row is trained with each."
    ),
    click.option(
        "--trials",
        type=whole,
        metavar="N",
        help="Learning rates tried for every method, on the validation split. 1 means no search.",
    ),
    click.option(
        "--lr-grid",
        type=grid,
        metavar="LOW,HIGH",
        help="Lowest and highest rate of the search. [3e-5,3e-2]",
    ),
    click.option(
        "--match-params",
        type=whole,
        metavar="N",
        help="Solve every method's width (rank, bottleneck) for N trained parameters.",
    ),
    click.option(
        "--latency",
        metavar="NxT,...",
        help="Shapes to time in addition to the usual ones: 8x128 is eight texts of 128 tokens.",
    ),
    click.option("--baseline", help="The row that all others are compared with, e.g. lora."),
    click.option("--positive", metavar="LABEL", help="The class that F1 is of. [the second]"),
    click.option(
        "--beams",
        type=whole,
        metavar="N",
        help="Beams of the search by which texts are generated. [1, greedy]",
    ),
    click.option(
        "--text-column",
        help="Column of the text, where the task is yours; two, as in a,b, are a pair. [text]",
    ),
    click.option("--pair-column", help="Column of the second text, where there is one."),
    click.option(
        "--label-column",
        help="Column of the label, where the task is yours; several, as in a,b,c, hold a 1 where "
        "their label applies. [label]",
    ),
    click.option(
        "--label-separator", help="The separator of several labels in one cell, e.g. ';'."
    ),
    click.option("--image-column", help="Column of the pictures' paths or bytes. [image]"),
    click.option(
        "--columns",
        metavar="A,B,...",
        help="Names of the columns of a local file without a header, in their order.",
    ),
    click.option("--encoding", help="Encoding of local files. [their byte order mark's, or utf-8]"),
    click.option(
        "--general",
        metavar="FILE",
        help="A text file for the column Forgotten, a blank line between passages. [shipped]",
    ),
    click.option(
        "--delimiter", help="What separates the cells of local files, e.g. ';' or tab. [shown]"
    ),
)


_SIZES = (
    click.option(
        "--train-sizes",
        type=sizes,
        metavar="N,N,...",
        help="Compare at several numbers of training examples, and draw scores over them.",
    ),
    click.option(
        "--equal-steps/--no-equal-steps",
        default=None,
        help="With --train-sizes: train each size for as many steps as the largest one. [no]",
    ),
)


def plan_options(function: F) -> F:
    """Gives a command the options that name a plan."""
    function = _IMPORT()(function)
    for option in reversed((*_OPTIONS, *_SIZES)):
        function = option(function)
    return function


def request(options: dict[str, Any]) -> "Request":
    """The options as a request, for any of the sizes if there are several.

    Raises:
        DeltakitError: an unknown profile, or a value out of range.
    """
    from deltakit.compare.plan.request import request_of

    settings = {key: value for key, value in options.items() if key not in CURVE}
    return request_of(settings.pop("methods"), settings)


def sized_plans(options: dict[str, Any], place: "Engine | None" = None) -> "dict[int, Plan] | None":
    """A plan for each of ``--train-sizes``, the smallest first; None without that option.

    Raises:
        DeltakitError: whatever is wrong with one of them.
    """
    train_sizes, equal_steps = map(options.get, CURVE)
    if equal_steps is None and train_sizes is None:
        return None
    from deltakit.compare.sizes import check_curve, plans_by_size

    check_curve(train_sizes, equal_steps)
    if train_sizes is None:
        return None
    return plans_by_size(request(options), train_sizes, options, bool(equal_steps), place)
