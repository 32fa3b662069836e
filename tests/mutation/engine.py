"""Runs mutmut over one package, in a folder of its own."""

import contextlib
import difflib
import fnmatch
import gc
import importlib
import os
import signal
import sys
import tempfile
import tomllib
import zlib
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import decorated
import pytest
from accepted import Mutant, Outcome

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "mutants"
LOG = "log.txt"  # in the package's folder, what mutmut prints
# What the tests' conftest imports longest, once for all processes forked later.
PRELOADED = ("torch._dynamo", "transformers", "scipy.stats")
KILLED, LIVED, TIMED_OUT = "killed", "lived", "timed out"


@dataclass(frozen=True)
class Package:
    """A part of the code with the tests that concern it: a table of pyproject.toml."""

    name: str
    mutate: list[str]  # patterns of files, in which * stands for folders too
    tests: list[str]
    deselect: list[str]  # tests that judge time, which says nothing of a mutant

    @property
    def folder(self) -> Path:
        return FOLDER / self.name

    @property
    def accepted(self) -> Path:
        return Path(__file__).parent / "accepted" / f"{self.name}.yaml"

    def has(self, paths: list[str]) -> bool:
        """Whether any of its files is meant by these patterns; all are by none."""
        top = {ROOT / pattern.partition("/")[0] for pattern in self.mutate}
        files = [str(path.relative_to(ROOT)) for one in top for path in one.rglob("*.py")]
        return any(_meant(file, self.mutate) and _meant(file, paths) for file in files)


@dataclass(frozen=True)
class Found:
    """A mutant as mutmut names it, and what became of it (None: not run)."""

    key: str
    mutant: Mutant
    status: str | None


def packages() -> list[Package]:
    """Those that pyproject.toml names."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    table = settings["tool"]["mutation"]["packages"]
    return [Package(name, **{"deselect": [], **one}) for name, one in table.items()]


def _meant(file: str, paths: list[str]) -> bool:
    return not paths or any(fnmatch.fnmatch(file, path) for path in paths)


def _enter(package: Package) -> None:
    """mutmut works on the current folder, in ./mutants: each package has its own."""
    package.folder.mkdir(parents=True, exist_ok=True)
    for name in ("grace", "replication", "tests", "pyproject.toml", "params.yaml"):
        link = package.folder / name
        if not link.is_symlink():
            link.symlink_to(ROOT / name)
    os.chdir(package.folder)
    from mutmut.configuration import config

    settings = config()
    settings.only_mutate = package.mutate
    settings.also_copy = [*settings.also_copy, Path("params.yaml")]
    settings.pytest_add_cli_args_test_selection = package.tests
    settings.pytest_add_cli_args = [
        *settings.pytest_add_cli_args,
        *(f"--deselect={one}" for one in package.deselect),
    ]


def status_of(code: int | None) -> str | None:
    """What the end of the tests' process says of the mutant: None if it was not run.

    A test that fails kills it, and so does a crash of the interpreter or of pytest. Of any other
    end (SIGXCPU, SIGKILL) the time limit is taken to be the cause.
    """
    if code is None:
        return None
    if code in (pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERNAL_ERROR, -signal.SIGSEGV):
        return KILLED
    reached_by_no_test = 33  # mutmut's own
    alive = (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED, reached_by_no_test)
    return LIVED if code in alive else TIMED_OUT


def _difference(old: list[str], new: list[str]) -> list[str]:
    """The lines of a diff of two functions that are alike but for a few lines."""
    start, end = 0, 0
    while start < min(len(old), len(new)) and old[start] == new[start]:
        start += 1
    while end < min(len(old), len(new)) - start and old[-1 - end] == new[-1 - end]:
        end += 1
    return list(difflib.unified_diff(old[start : len(old) - end], new[start : len(new) - end], n=0))


def _read() -> list[Found]:
    from mutmut.mutation.data import MutantLineSpans, SourceFileMutationData
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    found = []
    for path in sorted(walk_mutatable_files()):
        data, spans = SourceFileMutationData(path=path), MutantLineSpans.load(path)
        data.load()
        copies = list(spans.span_by_function_name) if spans else []
        sources = (
            dict(zip(copies, spans.read_function_sources(copies), strict=True)) if copies else {}
        )
        for key, code in data.exit_code_by_key.items():
            function, owner = orig_function_and_class_names_from_key(key)
            name = key.rpartition(".")[2]
            original = f"{name.partition('__mutmut_')[0]}__mutmut_orig"
            old, new = (
                sources[one].replace(one, function).splitlines() for one in (original, name)
            )
            mutant = Mutant.of(
                str(path), f"{owner}.{function}" if owner else function, _difference(old, new)
            )
            found.append(Found(key, mutant, status_of(code)))
    return found


def _run(names: list[str], workers: int) -> None:
    """As `run`, in mutmut's folder."""
    import torch
    from mutmut import __main__ as mutmut
    from mutmut.runners.harness import PytestRunner
    from mutmut.state import state
    from mutmut.workers.isolation import ForkServerRunner

    torch.set_num_threads(1)
    for name in PRELOADED:
        importlib.import_module(name)
    submit, warm_up, run_stats = (
        ForkServerRunner.submit,
        PytestRunner.warm_up,
        PytestRunner.run_stats,
    )

    def warm_up_and_freeze(self: Any) -> None:
        """pytest collects garbage at its end: not through all that each fork inherits."""
        warm_up(self)
        gc.collect()
        gc.freeze()

    def run_stats_aloud(self: Any, *, tests: Any) -> int:
        """Which test has failed, if one does, is seen."""
        with contextlib.redirect_stdout(sys.__stdout__):
            code = run_stats(self, tests=tests)
            sys.stdout.flush()
        return code

    def shortest_first(
        self: Any, mutant_name: str, tests: list[str], cpu_time_limit: int, estimated_time: float
    ) -> None:
        tests = sorted(tests, key=lambda test: (state().duration_by_test[test], test))
        submit(self, mutant_name, tests, cpu_time_limit, estimated_time)

    PytestRunner.warm_up, PytestRunner.run_stats = warm_up_and_freeze, run_stats_aloud
    ForkServerRunner.submit = shortest_first
    # The tests have just passed, without a mutant, to find which of them reach which function.
    ForkServerRunner.run_clean_tests = lambda self, tests: 0
    mutmut._run(names, workers)


def _child(package: Package, task: str, names: list[str], workers: int, answer: Any) -> None:
    decorated.install()
    _enter(package)
    if task == "run":
        if not sys.stdout.isatty():  # mutmut redraws a line of progress all the time
            log = os.open(LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
        # The tests' temporary files, away from those of other runs.
        with tempfile.TemporaryDirectory(dir=package.folder) as folder:
            os.environ["TMPDIR"] = tempfile.tempdir = folder
            _run(names, workers)
    elif task == "generate":
        from mutmut import __main__ as mutmut

        Path("mutants").mkdir(exist_ok=True)
        with mutmut.CatchOutput():
            mutmut.copy_src_dir()
            mutmut.create_mutants(workers)
    answer.send(_read())


def _ask(package: Package, task: str, names: list[str], workers: int) -> list[Found]:
    """In a process of its own, for mutmut's state and settings are the process's."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(package, task, names, workers, sender))
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        child.join()
        log = package.folder / LOG
        print(log.read_text()[-20_000:] if log.exists() else "", file=sys.stderr)
        sys.exit(f"error: {package.name}: mutmut ended with {child.exitcode}")
    finally:
        child.join()


def in_sample(mutant: Mutant, every: int) -> bool:
    """By a hash of what the mutant is: the same sample wherever it is drawn."""
    return zlib.crc32(str(mutant).encode()) % every == 0


def mutants(package: Package, workers: int, *, anew: bool) -> list[Found]:
    """The package's mutants, with the status of the last run.

    anew: of the code as it is now; else those of the last run, which may be under way.
    """
    return _ask(package, "generate" if anew else "read", [], workers)


def run(package: Package, keys: list[str], workers: int) -> list[Found]:
    """Runs the mutants of these keys, all that were not run if there are none; returns all."""
    # Which test reaches which function, and how fast, is found anew: tests change.
    (package.folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    return _ask(package, "run", keys, workers)


def of_paths(found: list[Found], paths: list[str]) -> list[Found]:
    return [one for one in found if _meant(one.mutant.file, paths)]


def outcome(package: Package, found: list[Found]) -> Outcome:
    lived = tuple(one.mutant for one in found if one.status == LIVED)
    timed_out = tuple(one.mutant for one in found if one.status == TIMED_OUT)
    return Outcome(package.name, len(found), lived, timed_out)
