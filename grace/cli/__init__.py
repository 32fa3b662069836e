"""The `grace` command: train a vision-language model in INT4, pack, export, measure and ask it.

    grace train | eval | pack | export | bench | generate | env

Every command is a module here with its help (`DESCRIPTION`, `EXAMPLES`), its arguments
(`add_arguments`) and its action (`run`). Bad input ends with one line on standard error and exit
code 2, an interruption with one line and 130. Packages that are slow to import are imported when a
command runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from types import ModuleType

from grace import __version__
from grace.cli import bench, env, eval, export, generate, pack, train
from grace.errors import InputError

COMMANDS: dict[str, ModuleType] = {
    "train": train,
    "eval": eval,
    "pack": pack,
    "export": export,
    "bench": bench,
    "generate": generate,
    "env": env,
}
_EPILOG = """\
from a published checkpoint to INT4 answers:
  grace train MODEL --teacher LARGER --data train.parquet --out student
  grace pack student --out student-int4
  grace eval student-int4 --tasks mmbench_en_dev,pope
  grace bench student student-int4
  grace generate student-int4 --image photo.jpg --prompt "What is this?"
and for other libraries:
  grace export student --format compressed-tensors --out student-ct

`grace COMMAND --help` says more.
"""


def parser() -> argparse.ArgumentParser:
    """The command's parser, with one of its own for every subcommand."""
    layout = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser(
        prog="grace",
        description="INT4 quantization-aware training of vision-language models under gated, "
        "relational distillation (arXiv 2601.22709), and what comes after it.",
        epilog=_EPILOG,
        formatter_class=layout,
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=(module.__doc__ or "").splitlines()[0].rstrip(".").partition(": ")[2],
            description=module.DESCRIPTION,
            epilog=f"examples:\n{module.EXAMPLES}",
            formatter_class=layout,
        )
        module.add_arguments(command)
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        words: The command line without the program's name; by default this process's own.

    Returns:
        The exit code: 0; 2 for bad input and without a command; 130 or 143 when interrupted; 141
        when nobody reads the output any more.
    """
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()
    except InputError as error:
        message = str(error).removesuffix("\n  ".join(["", *error.details]))
        print("error:", " ".join(message.split()), file=sys.stderr)
        for line in error.details:
            print(" ", " ".join(line.split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print("error:", str(stop) or "interrupted", file=sys.stderr)
        return getattr(stop, "code", 130)
    except BrokenPipeError:
        # what is left is written nowhere, so that Python's own flush at the end is quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


def _run(words: Sequence[str] | None) -> int:
    top = parser()
    arguments = top.parse_args(words)
    if arguments.command is None:
        top.print_help(sys.stderr)
        return 2
    COMMANDS[arguments.command].run(arguments)
    return 0
