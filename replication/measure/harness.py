"""Parts of a benchmark, each measured in a process of its own and kept when it is done.

    part = Part("relational", "replication.measure.method.relational", {"seed": 41, ...})
    results = Benchmark("CPU, 2 cores").run([part], folder)

A module that measures has a function ``measure_part(**arguments)``, which returns what JSON can
hold. Its process is fresh, because peak memory belongs to a process. It ends in a result, or in the
reason why there is none:

    <folder>/<part>.json    {"key": ..., **result}

A part is measured again when anything that decides it has changed (its arguments, the code that it
runs, libraries, device, instruction set), when its file is damaged, and when it was not run.
"""

import functools
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.machine import CACHE_ENVIRONMENT, instruction_set
from replication.base import provenance
from replication.base.code import code_hash
from replication.base.files import ROOT, read_json, write_json_atomic

LIBRARIES = ("torch", "transformers", "bitsandbytes", "torchao")
_KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**35),
    "MALLOC_TOP_PAD_": str(2**28),
}


@dataclass(frozen=True)
class Part:
    """One thing to measure.

    Attributes:
        name: names the part's file and what is printed.
        module: dotted name of the module whose `measure_part` measures it.
        arguments: of `measure_part`; anything that JSON can hold.
        optional: where it fails, it is not run, with the error as the reason; otherwise its failure
            is the benchmark's.
        python: the interpreter that runs it; by default this process's own.
    """

    name: str
    module: str
    arguments: Mapping[str, Any]
    optional: bool = False
    python: str = sys.executable


@dataclass(frozen=True)
class Benchmark:
    """How parts are measured.

    Attributes:
        device: what the parts are measured on, in words.
        keep_memory: freed memory is kept, as in training under make. Else every large tensor is
            paid for in page faults; but then kept memory would count as the peak.
    """

    device: str
    keep_memory: bool = False

    def run(self, parts: Sequence[Part], folder: str | Path) -> dict[str, dict[str, Any]]:
        """Measure the parts that are not there, one after the other.

        Args:
            parts: what to measure.
            folder: keeps the parts.

        Returns:
            The result of every part by its name; {"not_run": reason} where there is none.

        Raises:
            InputError: where a part fails that is not optional.
        """
        results = {}
        for part in parts:
            path = Path(folder) / f"{part.name}.json"
            key = provenance.params_hash({"arguments": part.arguments, **self.origin([part])})
            result = _read_part(path, key)
            state = "measuring" if result is None else "kept"
            print(f"{part.name}: {state}", file=sys.stderr, flush=True)
            if result is None:
                result = self._measure(part)
                write_json_atomic(path, {"key": key, **result})
            results[part.name] = result
        return results

    def origin(self, parts: Sequence[Part]) -> dict[str, Any]:
        """What decides parts beside their arguments."""
        return {
            "code": code_of(part.module for part in parts),
            "libraries": provenance.library_versions(LIBRARIES),
            "device": self.device,
            "instruction_set": instruction_set(),
        }

    def provenance(
        self, parts: Sequence[Part], params: Any, seed: int, command: str
    ) -> dict[str, Any]:
        """The provenance of a report on parts; for the other arguments see `provenance.collect`."""
        origin = self.origin(parts)
        device = origin.pop("device")
        return provenance.collect(params, [seed], command, device=device, extra=origin)

    def _measure(self, part: Part) -> dict[str, Any]:
        try:
            return measure_in_process(
                part.module, part.arguments, keep_memory=self.keep_memory, python=part.python
            )
        except InputError as error:
            if part.optional:
                return {"not_run": str(error)}
            raise InputError(f"{part.name}: {error}") from error


def measure_in_process(
    module: str,
    arguments: Mapping[str, Any],
    *,
    keep_memory: bool = False,
    python: str = sys.executable,
) -> dict[str, Any]:
    """What ``<module>.measure_part(**arguments)`` returns in a process of its own.

    Raises:
        InputError: with the last line of its errors, or the signal that ended it.
    """
    if not Path(python).is_file():
        raise InputError(f"the interpreter {python} is missing: make bench-engines installs it")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")
    }
    if keep_memory:
        environment |= _KEEP_MEMORY
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        # what was found beside other work, the faster product above all, is not this part's
        environment[CACHE_ENVIRONMENT] = folder
        out = Path(folder) / "part.json"
        ended = subprocess.run(
            [
                python,
                "-m",
                "replication.measure.harness",
                module,
                json.dumps(arguments),
                str(out),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if ended.returncode == 0:
            result: dict[str, Any] = read_json(out)
            return result
    if ended.returncode < 0:
        raise InputError(f"its process was ended by signal {-ended.returncode} (out of memory?)")
    lines = ended.stderr.strip().splitlines() or [f"its process ended with {ended.returncode}"]
    raise InputError(lines[-1][:300])


def code_of(modules: Iterable[str]) -> str:
    """The hash of the code that measures parts of these modules."""
    return _code_hash(frozenset(modules))


@functools.cache
def _code_hash(modules: frozenset[str]) -> str:
    return code_hash("replication.measure.harness", *modules)


def _read_part(path: Path, key: str) -> dict[str, Any] | None:
    """A kept part without its key; None where there is none that is still valid."""
    if not path.exists():
        return None
    try:
        part = read_json(path)
    except InputError:
        return None  # damaged
    if not isinstance(part, dict) or part.pop("key", None) != key or "not_run" in part:
        return None
    return part


def main() -> None:
    """The process of one part; arguments: module, its arguments as JSON, path of the result."""
    module, arguments, out = sys.argv[1:]
    measure_part = importlib.import_module(module).measure_part
    write_json_atomic(out, measure_part(**json.loads(arguments)))


if __name__ == "__main__":
    main()
