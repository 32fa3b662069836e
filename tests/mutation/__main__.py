"""python tests/mutation: is every change of the code noticed by a test?

    python tests/mutation                          every mutant of every package
    python tests/mutation 'grace/int4/*'           those of some files
    python tests/mutation --survivors grace/int4/pack.py   only those that lived last time
    python tests/mutation --show grace/int4/pack.py        print them, and run nothing
    python tests/mutation --sample 40              every 40th, drawn by a hash, none that is listed

Exits with 1 if a mutant lives that is not listed in `accepted/`, or if a whole package was run and
its score is below what is required.
"""

import argparse
import shutil
import sys
import time
import tomllib

import accepted
import engine


def packages() -> list[engine.Package]:
    settings = tomllib.loads((engine.ROOT / "pyproject.toml").read_text())
    table = settings["tool"]["mutation"]["packages"]
    return [engine.Package(name, **{"deselect": [], **one}) for name, one in table.items()]


def _chosen(arguments: argparse.Namespace, package: engine.Package) -> list[engine.Found]:
    """The package's mutants to run or to show."""
    if not (arguments.paths or arguments.show or arguments.survivors):
        shutil.rmtree(package.folder, ignore_errors=True)
    found = engine.of_paths(engine.mutants(package, arguments.workers), arguments.paths)
    if arguments.show or arguments.survivors:
        found = [one for one in found if one.status not in (None, engine.KILLED)]
    if arguments.sample:
        listed = accepted.read(package.accepted)
        left_out = {one for kind in listed.values() for one in kind}
        found = [one for one in found if engine.in_sample(one.mutant, arguments.sample)]
        found = [one for one in found if one.mutant not in left_out]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python tests/mutation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="patterns of files")
    parser.add_argument("--workers", type=int, default=2, help="mutants run at once (default 2)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--survivors", action="store_true", help="those that lived last time")
    which.add_argument("--show", action="store_true", help="print those that lived last time")
    which.add_argument("--sample", type=int, metavar="N", help="every Nth mutant")
    arguments = parser.parse_args()

    wrong, lines = [], []
    for package in packages():
        if not package.has(arguments.paths):
            continue
        chosen = _chosen(arguments, package)
        if arguments.show:
            for one in chosen:
                print(f"{one.status}: {one.key}\n  {one.mutant}")
            continue
        if not chosen:
            continue
        started = time.monotonic()
        keys = [one.key for one in chosen]
        found = engine.run(package, keys, arguments.workers)
        if arguments.sample:
            ran = [one for one in found if one.key in keys]
        else:
            ran = [one for one in engine.of_paths(found, arguments.paths) if one.status]
        whole = len(ran) == len(found)
        listed = accepted.read(package.accepted)
        outcome = engine.outcome(package, ran)
        wrong += outcome.complaints(listed, whole=whole)
        lines.append(
            f"{package.name}: {outcome.score(listed['loops']):.1f} % of {outcome.total} mutants "
            f"killed, {len(outcome.lived)} live, {len(outcome.timed_out)} ended by the time limit, "
            f"{time.monotonic() - started:.0f} s"
        )
    print("\n".join([*wrong, *lines]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
