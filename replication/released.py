"""Evaluate the authors' released checkpoints and compare every cell with what they report.

    python -m replication.released [--path DIR | --mirror DIR] [--models NAME ...]
                                   [--benchmarks NAME ...] [--processes N]

Checkpoints and data come from the hub; from --path, a directory of checkpoints; or from --mirror, a
directory laid out as the hub's cache, and then the network is never asked. Finished benchmarks are
kept, so an interrupted run goes on. Scores, answers and verdicts are written to results/released.
Exit code 0; 1 if a cell is CONTRADICTED; 2 on bad input, or if nothing could be run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from grace.errors import InputError
from replication.base import hub
from replication.base.command import command
from replication.base.files import write_json_atomic
from replication.base.scales import FULL_SCALE
from replication.benchmarks import BENCHMARKS, get
from replication.evaluate.parts import count_processes
from replication.evaluate.released import Attempt, Places, evaluate_checkpoint, prepare_data
from replication.judge.released import as_text, judge, to_data
from replication.paper.released import choose, find_in, load_checkpoints
from replication.results.scores import ResultSet
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Params
from replication.stats.verdict import Status

VERDICTS = "verdicts.json"


def verify(
    models: Sequence[str] | None,
    benchmarks: Sequence[str] | None,
    places: Places,
    params: Params,
    *,
    processes: int | str = "all",
    device: str = "auto",
) -> Status:
    """Evaluate, write and print; returns CONTRADICTED if a cell is, NOT RUN if none was run, and
    else REPRODUCED or INCONCLUSIVE.

    Raises InputError for an unknown name or a directory that does not exist.
    """
    chosen = choose(list(models) if models else None)
    for name in benchmarks or ():
        get(name)
    for option, folder in (("--path", places.path), ("--mirror", places.mirror)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{option}: {str(folder)!r} is no directory; correct it")
    if places.path is not None and not any(find_in(one.repository, places.path) for one in chosen):
        raise InputError(
            f"--path: {str(places.path)!r} holds none of {', '.join(one.name for one in chosen)}; "
            "a checkpoint is looked for as <owner>/<name>, <name>, or the directory itself"
        )
    if places.mirror is not None and not hub.is_mirror(places.mirror):
        raise InputError(
            f"--mirror: {str(places.mirror)!r} holds no repository; it has to be laid out as the "
            "hub's cache (models--<owner>--<name>, datasets--...) or hold copies as <owner>/<name>"
        )
    wanted = {c.name: [b for b in c.benchmarks() if b in (benchmarks or [b])] for c in chosen}
    names = list(dict.fromkeys(name for own in wanted.values() for name in own))
    data, missing = prepare_data(names, params, places)
    attempts = []
    for checkpoint in chosen:
        own = {name: data[name] for name in wanted[checkpoint.name] if name in data}
        tried = evaluate_checkpoint(
            checkpoint,
            own,
            params,
            places,
            processes=count_processes(processes),
            device=device,
        )
        reasons = {name: missing[name] for name in wanted[checkpoint.name] if name in missing}
        attempts.append(Attempt(checkpoint, tried.directory, {**reasons, **tried.missing}))
    found = ResultSet(places.results, FULL_SCALE)
    cells = {attempt.checkpoint.name: judge(attempt, found) for attempt in attempts}
    write_json_atomic(places.results / VERDICTS, to_data(attempts, cells))
    print(as_text(attempts, cells))
    print(f"written: {places.results / VERDICTS}")
    statuses = {cell.status for own in cells.values() for cell in own} - {Status.NOT_RUN}
    for status in (Status.CONTRADICTED, Status.INCONCLUSIVE, Status.REPRODUCED):
        if status in statuses:
            return status
    return Status.NOT_RUN


@command
def main(words: Sequence[str] | None = None) -> int:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m replication.released", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("--path", type=Path, help="a directory of checkpoints, or one checkpoint")
    parser.add_argument("--mirror", type=Path, help="a directory laid out as the hub's cache")
    known = ", ".join(load_checkpoints())
    parser.add_argument("--models", nargs="+", metavar="NAME", help=f"default: all of {known}")
    parser.add_argument(
        "--benchmarks",
        nargs="+",
        metavar="NAME",
        help=f"of {', '.join(BENCHMARKS)}; default: the table's",
    )
    parser.add_argument("--processes", default="all", help="default: one per GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--results", type=Path, default=Path("results") / "released")
    given = parser.parse_args(words)
    if given.processes != "all" and not (given.processes.isdigit() and int(given.processes)):
        raise InputError(f"--processes is {given.processes!r}; give a number, or 'all'")
    if given.path and len(given.models or ()) != 1 and (given.path / "config.json").is_file():
        raise InputError("--path is one checkpoint; name it with --models")
    status = verify(
        given.models,
        given.benchmarks,
        Places(given.results, given.path, given.mirror),
        parse_params(scale_params(FULL_SCALE)),
        processes=given.processes,
        device=given.device,
    )
    if status is Status.NOT_RUN:
        print("error: nothing could be run; the reasons are above", file=sys.stderr)
    return {Status.CONTRADICTED: 1, Status.NOT_RUN: 2}.get(status, 0)


if __name__ == "__main__":
    sys.exit(main())
