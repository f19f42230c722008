"""Help in sections: the commands and the options under headings."""

from collections.abc import Iterable, Mapping

import click

COMMANDS: Mapping[str, tuple[str, ...]] = {
    "Compare and choose": ("compare", "choose", "plan", "report", "evaluate"),
    "Look things up": ("list", "methods", "show", "copy", "cite"),
    "A model and its deltas": ("sites", "summary", "convert"),
    "Shell": ("completion",),
}

OPTIONS: Mapping[str, tuple[str, ...]] = {
    "What to compare": ("methods", "model", "task", "bases", "source_tasks", "config", "imports"),
    "Constraints": (
        "max_params",
        "max_deployed",
        "max_memory",
        "max_infer_memory",
        "max_latency",
        "max_disk",
        "must",
    ),
    "Budget": (
        "minutes",
        "profile",
        "max_train_samples",
        "max_eval_samples",
        "epochs",
        "batch_size",
        "max_length",
        "seeds",
        "seed",
        "train_sizes",
        "equal_steps",
    ),
    "Learning rates and sizes": ("lr", "trials", "lr_grid", "match_params"),
    "Scores and measuring": (
        "metric",
        "positive",
        "beams",
        "baseline",
        "margin",
        "latency",
        "general",
        "compute_dtype",
    ),
    "Data of your own": (
        "kind",
        "text_column",
        "pair_column",
        "label_column",
        "label_separator",
        "image_column",
        "columns",
        "encoding",
        "delimiter",
    ),
    "Running": ("out", "engine", "workers", "retry_failed"),
}
"""The options of the commands with many, by the names of their parameters."""

OTHERS = "Options"
"""The heading of what is in no section."""


def write_section(
    formatter: click.HelpFormatter, title: str, lines: Iterable[tuple[str, str]]
) -> None:
    """Writes a heading and its lines; nothing where there are none."""
    if lines := list(lines):
        with formatter.section(title):
            formatter.write_dl(lines)


class CommandsInSections(click.Group):
    """A group whose help lists its commands by `COMMANDS`."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in COMMANDS.items():
            found = ((name, self.commands[name]) for name in names if name in self.commands)
            lines = [(name, each.get_short_help_str(limit=200)) for name, each in found]
            write_section(formatter, title, lines)


class OptionsInSections(click.Command):
    """A command whose help lists its options by `OPTIONS`."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        found = {each.name: each.get_help_record(ctx) for each in self.get_params(ctx)}
        left = {name: record for name, record in found.items() if record is not None}
        for title, names in OPTIONS.items():
            write_section(formatter, title, [left.pop(name) for name in names if name in left])
        write_section(formatter, OTHERS, left.values())
