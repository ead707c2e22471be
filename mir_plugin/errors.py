"""The one exception type for mistakes a user can mend."""


class MirError(Exception):
    """Something the user can mend: says what happened, what was expected and what to do next.

    Command lines print its message alone; only our own bugs print a traceback.
    """
