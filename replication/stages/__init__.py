"""One file per DVC stage: read inputs, call, write outputs.

Every stage is run as ``python -m replication.stages.<name> [argument ...]`` in the directory
that holds ``params.yaml``. Bad input ends with one line on standard error and exit code 2.
"""

import argparse
import functools
import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from grace.errors import InputError
from replication.base.command import command
from replication.base.scales import FULL_SCALE
from replication.settings.checks import load_params
from replication.settings.schema import PARAMS_FILE, Params

_LIVE = "its teacher answers while the student is trained, and its outputs are not kept"
NOT_AT_FULL_SCALE = {
    "standins": "published data take the place of the stand-ins",
    "vision": "published checkpoints bring their own vision tower",
    "features": "images are read and encoded while the student is trained",
    "language": "published checkpoints bring their own language model",
    "alignment": "published checkpoints have seen images",
    "teacher_outputs": _LIVE,
    "regimes": "its models are small",
    "tuning": "it asks stand-in questions",
    "gate_covariance": _LIVE,
    "examples": "it shows stand-in questions",
    "export": "it asks stand-in questions",
    "internals": "it asks stand-in questions",
    "calibration": "it measures the small world",
}
"""Stages that scale paper has no use for, and why."""
_GUARDED = ("pairs", "conversations", "train", "evaluate")
"""Stages of hours, which are not begun where they could not end."""


def check_scale(name: str, params: Params) -> None:
    """Refuse a stage that cannot be run at this scale.

    Raises:
        InputError: saying that it is not run, and why.
    """
    if params.scale == FULL_SCALE and name in NOT_AT_FULL_SCALE:
        raise InputError(
            f"stage {name} is not run at scale {FULL_SCALE}: {NOT_AT_FULL_SCALE[name]}"
        )


def stage(function: Callable[..., None]) -> Callable[[], None]:
    """Make a function of the parameters, and of any further words, a command.

    Args:
        function: takes the parameters, and a word of the command line for every further argument.
    """
    name = Path(inspect.getfile(function)).stem

    @command
    def run() -> None:
        words = list(inspect.signature(function).parameters)[1:]
        parser = argparse.ArgumentParser(
            prog=f"python -m replication.stages.{name}",
            description=inspect.getdoc(inspect.getmodule(function)),
        )
        for word in words:
            parser.add_argument(word)
        parser.add_argument("--params", default=str(PARAMS_FILE), help="parameter file")
        arguments = vars(parser.parse_args())
        params = load_params(arguments.pop("params"))
        check_scale(name, params)
        if params.scale == FULL_SCALE and name in _GUARDED:
            from replication.plan.checks import require

            folder = next(iter(arguments.values()), None)
            require(params, name, None if folder is None else params.family_of(folder))
        function(params, *(arguments[word] for word in words))

    @functools.wraps(function)
    def main() -> None:
        if code := run():
            sys.exit(code)

    return main
