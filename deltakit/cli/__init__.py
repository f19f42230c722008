"""One file a command: read the options, call one function, print. Nothing imports this package."""
