"""The one error that bad input raises, so that every command can turn it into exit code 2."""


class InputError(ValueError):
    """Something the user gave is wrong. The message names the thing, its value and the mend."""
