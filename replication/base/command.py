"""The one way in which every command and stage ends: an exit code, and one line for an error."""

from __future__ import annotations

import functools
import shlex
import subprocess
import sys
from collections.abc import Callable
from typing import ParamSpec

from grace.errors import InputError, one_line
from replication.base.messages import no_space

P = ParamSpec("P")

BAD_INPUT = 2
INTERRUPTED = 130


def command(function: Callable[P, int | None]) -> Callable[P, int]:
    """Make a function the body of a command: its errors become exit codes.

    Example::

        @command
        def main(arguments: Sequence[str] | None = None) -> None:
            ...

        if __name__ == "__main__":
            sys.exit(main())

    Args:
        function: returns its exit code, or None for success.

    Returns:
        The function with the same arguments. It returns the exit code: 2 for an InputError or a
        full disk, 130 when it is interrupted, that of a process which it started and which failed;
        each with one line on standard error. Other exceptions are faults of the code and pass.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return function(*args, **kwargs) or 0
        except InputError as error:
            return _fail(str(error), BAD_INPUT)
        except KeyboardInterrupt:
            return _fail("interrupted; run the same command again to go on", INTERRUPTED)
        except subprocess.CalledProcessError as error:
            words = error.cmd if isinstance(error.cmd, str) else shlex.join(map(str, error.cmd))
            # a negative code is the signal that ended the process
            return _fail(f"{words} failed", error.returncode if error.returncode > 0 else 1)
        except OSError as error:
            if (message := no_space(error)) is None:
                raise
            return _fail(message, BAD_INPUT)

    return run


def _fail(message: str, code: int) -> int:
    print(f"error: {one_line(message)}", file=sys.stderr)
    return code
