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

import accepted
import engine


def _chosen(arguments: argparse.Namespace, package: engine.Package) -> list[engine.Found]:
    """The package's mutants to run or to show."""
    if not (arguments.paths or arguments.show or arguments.survivors or arguments.sample):
        shutil.rmtree(package.folder, ignore_errors=True)
    found = engine.mutants(package, arguments.workers, anew=not arguments.show)
    found = engine.of_paths(found, arguments.paths)
    if arguments.show or arguments.survivors:
        found = [one for one in found if one.status not in (None, engine.KILLED)]
    if arguments.sample:
        listed = accepted.read(package.accepted)
        left_out = {one for kind in listed.values() for one in kind}
        found = [one for one in found if one.mutant not in left_out]
        found = [one for one in found if engine.in_sample(one.mutant, arguments.sample)]
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
    for package in engine.packages():
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
        keys = {one.key for one in chosen}
        everything = not (arguments.paths or arguments.survivors or arguments.sample)
        found = engine.run(package, [] if everything else sorted(keys), arguments.workers)
        asked = [one for one in found if one.key in keys]
        wrong += [f"not run: {one.mutant}" for one in asked if not one.status]
        # Of some survivors run again, the outcome is that of all with them.
        ran = engine.of_paths(found, arguments.paths) if arguments.survivors else asked
        ran = [one for one in ran if one.status]
        outcome, listed = engine.outcome(package, ran), accepted.read(package.accepted)
        wrong += outcome.complaints(listed, whole=len(ran) == len(found))
        lines.append(
            f"{package.name}: {outcome.score(listed['loops']):.1f} % of {outcome.total} mutants "
            f"killed, {len(outcome.lived)} live, {len(outcome.timed_out)} ended by the time limit, "
            f"{time.monotonic() - started:.0f} s"
        )
    print("\n".join([*wrong, *lines]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
