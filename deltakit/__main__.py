"""``python -m deltakit``: the command, for launchers that start a module in several processes."""

from deltakit.cli.main import main

main()
