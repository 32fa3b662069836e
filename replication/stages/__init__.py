"""One file per DVC stage: read inputs, call, write outputs.

Every stage is run as ``python -m replication.stages.<name> [argument ...]`` in the directory
that holds ``params.yaml``. Bad input ends with one line on standard error and exit code 2.
"""

import argparse
import functools
import inspect
import sys
from collections.abc import Callable

from grace.errors import InputError
from replication.params import PARAMS_FILE, load_params


def stage(function: Callable[..., None]) -> Callable[[], None]:
    """Make a function of the parameters, and of any further words, a command."""

    @functools.wraps(function)
    def main() -> None:
        words = list(inspect.signature(function).parameters)[1:]
        parser = argparse.ArgumentParser(description=inspect.getdoc(inspect.getmodule(function)))
        for word in words:
            parser.add_argument(word)
        parser.add_argument("--params", default=str(PARAMS_FILE), help="parameter file")
        arguments = vars(parser.parse_args())
        try:
            params = load_params(arguments.pop("params"))
            function(params, *(arguments[word] for word in words))
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return main
