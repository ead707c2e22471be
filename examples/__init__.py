"""Studies that can be run again, each with `python -m examples.NAME` from the project's root."""
