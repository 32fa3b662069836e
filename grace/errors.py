"""What ends a command early: bad input (exit code 2), and a signal (130 or 143)."""

from collections.abc import Sequence


class InputError(ValueError):
    """Something the user gave is wrong. The message names the thing, its value and the mend.

    Attributes:
        details: Further lines, such as one for every bad record.
    """

    def __init__(self, message: str, details: Sequence[str] = ()) -> None:
        super().__init__("\n  ".join([message, *details]))
        self.details = tuple(details)


class Stopped(KeyboardInterrupt):  # no error: somebody asked for it
    """SIGINT or SIGTERM ended the work. The message says what is left of it.

    Attributes:
        code: The exit code: 128 and the signal's number.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def one_line(error: BaseException | str, limit: int | None = None) -> str:
    """The text of an error on one line, cut after ``limit`` characters; without a text its type.

    Example::

        one_line(ValueError("two\nlines"))    # "two lines"
    """
    text = " ".join(str(error).split())[:limit]
    return text or ("" if isinstance(error, str) else type(error).__name__)
