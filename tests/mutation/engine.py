"""Runs mutmut over one package, in a folder of its own."""

import fnmatch
import os
import shutil
import sys
import zlib
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import decorated
from accepted import Mutant, Outcome

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "mutants"
KILLED, LIVED, TIMED_OUT = "killed", "lived", "timed out"


@dataclass(frozen=True)
class Package:
    """A part of the code with the tests that concern it: a table of pyproject.toml."""

    name: str
    mutate: list[str]  # patterns of files
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
        files = [path for pattern in self.mutate for path in ROOT.glob(pattern)]
        return any(_meant(str(path.relative_to(ROOT)), paths) for path in files)


@dataclass(frozen=True)
class Found:
    """A mutant as mutmut names it, and what became of it (None: not run)."""

    key: str
    mutant: Mutant
    status: str | None


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


def _read() -> list[Found]:
    from mutmut.mutation.data import SourceFileMutationData
    from mutmut.mutation.diff_apply import get_diff_for_mutant
    from mutmut.stats import status_by_exit_code
    from mutmut.utils.file_utils import walk_mutatable_files
    from mutmut.utils.format_utils import orig_function_and_class_names_from_key

    found = []
    for path in sorted(walk_mutatable_files()):
        data = SourceFileMutationData(path=path)
        data.load()
        for key, code in data.exit_code_by_key.items():
            function, owner = orig_function_and_class_names_from_key(key)
            name = f"{owner}.{function}" if owner else function
            diff = get_diff_for_mutant(key, path=path).splitlines()
            status = None
            if code is not None:
                # One that crashes the tests' process, or pytest itself, is noticed.
                named = status_by_exit_code[code]
                alive = {"survived": LIVED, "no tests": LIVED, "timeout": TIMED_OUT}
                status = alive.get(named, KILLED)
            found.append(Found(key, Mutant.of(str(path), name, diff), status))
    return found


def _run(names: list[str], workers: int) -> None:
    """Runs the mutants of these names, all if there are none; from the second call on, again."""
    import torch
    import transformers  # noqa: F401 (imported here, it is there in every process forked below)
    from mutmut import __main__ as mutmut
    from mutmut.state import state
    from mutmut.workers.isolation import ForkServerRunner

    torch.set_num_threads(1)
    submit = ForkServerRunner.submit

    def shortest_first(
        self: Any, mutant_name: str, tests: list[str], cpu_time_limit: int, estimated_time: float
    ) -> None:
        tests = sorted(tests, key=lambda test: (state().duration_by_test[test], test))
        submit(self, mutant_name, tests, cpu_time_limit, estimated_time)

    ForkServerRunner.submit = shortest_first
    mutmut._run(names, workers)


def _child(package: Package, task: str, names: list[str], workers: int, answer: Any) -> None:
    decorated.install()
    # The tests' folders of temporary files, away from those of other runs.
    temporary = package.folder / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    os.environ["TMPDIR"] = str(temporary)
    _enter(package)
    if task == "run":
        _run(names, workers)
    elif task == "generate":
        from mutmut import __main__ as mutmut

        Path("mutants").mkdir(exist_ok=True)
        with mutmut.CatchOutput():
            mutmut.copy_src_dir()
            mutmut.create_mutants(workers)
    answer.send(_read())
    shutil.rmtree(temporary, ignore_errors=True)


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
        sys.exit(f"error: {package.name}: mutmut ended with {child.exitcode}")
    finally:
        child.join()


def in_sample(mutant: Mutant, every: int) -> bool:
    """By a hash of what the mutant is: the same sample wherever it is drawn."""
    return zlib.crc32(str(mutant).encode()) % every == 0


def mutants(package: Package, workers: int = 1) -> list[Found]:
    """The package's mutants, with the status of the last run."""
    return _ask(package, "generate", [], workers)


def run(package: Package, keys: list[str], workers: int) -> list[Found]:
    """Runs the mutants of these keys; returns all of the package."""
    # Which test reaches which function, and how fast, is found anew: tests change.
    (package.folder / "mutants" / "mutmut-stats.json").unlink(missing_ok=True)
    return _ask(package, "run", keys, workers)


def of_paths(found: list[Found], paths: list[str]) -> list[Found]:
    return [one for one in found if _meant(one.mutant.file, paths)]


def outcome(package: Package, found: list[Found]) -> Outcome:
    lived = tuple(one.mutant for one in found if one.status == LIVED)
    timed_out = tuple(one.mutant for one in found if one.status == TIMED_OUT)
    return Outcome(package.name, len(found), lived, timed_out)
