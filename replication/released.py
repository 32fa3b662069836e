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
from dataclasses import replace
from pathlib import Path

from grace.errors import InputError
from replication.base import hub
from replication.base.command import command
from replication.base.files import write_json_atomic
from replication.base.scales import FULL_SCALE
from replication.benchmarks import BENCHMARKS, get
from replication.evaluate.parts import count_processes
from replication.evaluate.released import Places, evaluate_checkpoint, prepare_data
from replication.judge.released import judge, to_data, verdicts_text
from replication.paper.released import Checkpoint, choose, find_in, load_checkpoints
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
    """Evaluate, write and print.

    Args:
        models: Names of checkpoints; None for all.
        benchmarks: Names of benchmarks; None for those of each checkpoint's table.
        places: Where things are read from and written to.
        params: The parameters of scale paper.
        processes: Of this machine; "all" for one per accelerator.
        device: "auto", "cpu" or "cuda".

    Returns:
        CONTRADICTED if a cell is, NOT RUN if none was run, and else REPRODUCED or INCONCLUSIVE.

    Raises:
        InputError: For an unknown name or a directory that does not exist.
    """
    chosen = choose(list(models) if models else None)
    for name in benchmarks or ():
        get(name)
    _check_places(places, chosen)
    names_of = {c.name: [b for b in c.benchmarks() if b in (benchmarks or [b])] for c in chosen}
    names = list(dict.fromkeys(name for own in names_of.values() for name in own))
    data, missing = prepare_data(names, params, places)
    attempts = []
    for checkpoint in chosen:
        own = names_of[checkpoint.name]
        attempt = evaluate_checkpoint(
            checkpoint,
            {name: data[name] for name in own if name in data},
            params,
            places,
            processes=count_processes(processes),
            device=device,
        )
        reasons = {name: missing[name] for name in own if name in missing}
        attempts.append(replace(attempt, missing={**reasons, **attempt.missing}))
    results = ResultSet(places.results, FULL_SCALE)
    cells = {attempt.checkpoint.name: judge(attempt, results) for attempt in attempts}
    write_json_atomic(places.results / VERDICTS, to_data(attempts, cells))
    print(verdicts_text(attempts, cells))
    print(f"written: {places.results / VERDICTS}")
    statuses = {cell.status for own in cells.values() for cell in own}
    order = (Status.CONTRADICTED, Status.INCONCLUSIVE, Status.REPRODUCED)
    return next((status for status in order if status in statuses), Status.NOT_RUN)


def _check_places(places: Places, checkpoints: Sequence[Checkpoint]) -> None:
    for option, folder in (("--path", places.path), ("--mirror", places.mirror)):
        if folder is not None and not folder.is_dir():
            raise InputError(f"{option}: {str(folder)!r} is no directory; correct it")
    path, mirror = places.path, places.mirror
    if path is not None and not any(find_in(c.repository, path) for c in checkpoints):
        raise InputError(
            f"--path: {str(path)!r} holds none of {', '.join(c.name for c in checkpoints)}; "
            "a checkpoint is looked for as <owner>/<name>, <name>, or the directory itself"
        )
    if mirror is not None and not hub.is_mirror(mirror):
        raise InputError(
            f"--mirror: {str(mirror)!r} holds no repository; it has to be laid out as the "
            "hub's cache (models--<owner>--<name>, datasets--...) or hold copies as <owner>/<name>"
        )


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
    arguments = parser.parse_args(words)
    processes, path = arguments.processes, arguments.path
    if processes != "all" and not (processes.isdigit() and int(processes)):
        raise InputError(f"--processes is {processes!r}; give a number, or 'all'")
    if path and len(arguments.models or ()) != 1 and (path / "config.json").is_file():
        raise InputError("--path is one checkpoint; name it with --models")
    status = verify(
        arguments.models,
        arguments.benchmarks,
        Places(arguments.results, path, arguments.mirror),
        parse_params(scale_params(FULL_SCALE)),
        processes=processes,
        device=arguments.device,
    )
    if status is Status.NOT_RUN:
        print("error: nothing could be run; the reasons are above", file=sys.stderr)
    return {Status.CONTRADICTED: 1, Status.NOT_RUN: 2}.get(status, 0)


if __name__ == "__main__":
    sys.exit(main())
