"""Run senn from the terminal: the command `senn` and its subcommands."""
