"""``deltakit completion``: names and options completed by the shell, by click's own scripts."""

import click


@click.command(
    epilog="""\b
Examples:
  deltakit completion bash >> ~/.bashrc
  deltakit completion zsh >> ~/.zshrc
  deltakit completion fish > ~/.config/fish/completions/deltakit.fish"""
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes deltakit's commands and options."""
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    root = ctx.find_root().command
    click.echo(cls(root, {}, "deltakit", "_DELTAKIT_COMPLETE").source())
