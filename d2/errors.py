"""The one exception that is meant for whoever runs d2, and not for whoever writes it."""


class InputError(ValueError):
    """What the user can mend: one line that names the key or the file, the value and the way out.

    The command prints it and exits with 2; any other exception is a bug of ours, and keeps its traceback.
    """
