"""The exception for errors that a user can fix."""


class MirError(Exception):
    """An error the user can fix: says what happened, what was expected and what to do next.

    Commands print its message alone; a traceback means a bug in this package.
    """
