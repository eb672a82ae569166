"""The one exception that means "the input is wrong", shared by every room."""


class InputError(ValueError):
    """Bad input by the user: the message is one line that names what, where and the allowed values.

    Command-line entry points print it as ``error: ...`` and exit with code 2; no compute has been spent.
    """
