"""Train and judge the rows that are not GRACE: is the small world fit to judge the method in?

    python -m replication.calibrate small              # every family
    python -m replication.calibrate small qwen2_vl     # one, with what it starts from

Teacher, baseline, further training, quantization-aware training and plain distillation are trained
and evaluated, and no run of GRACE is. Where every family was asked, the commit that fixed this
world is written into ``replication/paper/calibration.yaml``.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from replication.base import provenance
from replication.base.command import command
from replication.base.scales import COMMITTED
from replication.base.terminal import table, write
from replication.paper.calibration import PATH, Asked, load_calibration, record_world
from replication.plan.progress import run
from replication.results.calibration import MeasuredPair, MeasuredRow, read_calibrations
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.settings.schema import Params
from replication.settings.workspace import alone, publish, workspace

WORLD = (
    *("standins", "pairs", "vision", "language", "alignment"),
    *("teacher", "baseline", "methods"),
    *("train.steps", "train.batch_size", "train.learning_rate"),
)
"""Dotted names of the parameters that make the world."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns dvc's exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m replication.calibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scale")
    parser.add_argument("family", nargs="*", help="default: all")
    options = parser.parse_args(arguments)
    scale = options.scale
    params = parse_params(scale_params(scale), f"parameters of scale {scale}")
    families = [params.known_family(name) for name in options.family] or params.families
    pairs = [name for name, pair in params.pairs.items() if pair.family in families]
    with alone(scale) as lock:
        folder = workspace(scale)
        code = run(params, folder, ["repro", *(f"calibration@{pair}" for pair in pairs)], lock)
        if code:
            return code
        measured = read_calibrations(folder / "results", scale)
        publish(folder, scale)
    for family in families:
        write(f"\n{family}", family_table(own for own in measured.values() if own.family == family))
    if scale == COMMITTED and families == params.families:
        write(note_world(params))
    return 0


def family_table(pairs: Iterable[MeasuredPair]) -> Any:
    """What was asked of a family, and of each of its pairs what was measured and whether it is
    met."""
    pairs = list(pairs)
    header = ["", "asked", *(cell for own in pairs for cell in (own.pair, ""))]
    rows = []
    for same in zip(*(own.rows for own in pairs), strict=True):
        cells = [cell for row in same for cell in (measured_text(row), row.status)]
        rows.append([same[0].name, asked_text(same[0].asked), *cells])
    return table(header, rows, right=range(1, len(header)))


def asked_text(asked: dict[str, float | None]) -> str:
    """A value and its tolerance, or bounds."""
    if asked["value"] is not None:
        return f"{asked['value']:g} ± {asked['tolerance']:g}"
    low, high = Asked(**asked).bounds
    if asked["high"] is None:
        return f"at least {low:g}"
    return f"at most {high:g}" if asked["low"] is None else f"{low:g} to {high:g}"


def measured_text(row: MeasuredRow) -> str:
    """A number and its interval."""
    if row.measured is None:
        return ""
    point, low, high = row.measured.point, row.measured.low, row.measured.high
    return f"{point:.2f}" if low == high else f"{point:.2f} [{low:.2f}, {high:.2f}]"


def note_world(params: Params, path: Path = PATH) -> str:
    """Record the commit that fixed the world where the world is a new one; says what was done."""
    digest, known = provenance.params_hash(params.subset(*WORLD)), load_calibration(path)
    if known.world_params == digest:
        return f"\nThe world is that of commit {known.world_commit}."
    state = provenance.git_state()
    if state["commit"] is None or state["dirty"]:
        return (
            "\nNo commit is recorded: the working tree has changes that are not committed. Commit "
            "them and run this again; nothing is trained twice."
        )
    record_world(state["commit"], digest, path)
    return (
        f"\nThe world is recorded as that of commit {state['commit']}, in {path.name}; commit it."
    )


if __name__ == "__main__":
    sys.exit(main())
