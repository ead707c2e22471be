"""The subcommands of ``mir``: each parses, calls one function, prints. Heavy imports happen inside the functions."""
