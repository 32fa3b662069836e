"""A map of regimes made up from an explicit seed, for tests alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from synthetic_results import BENCHMARKS, correct_answers, write_run

from replication.base.files import write_json_atomic
from replication.report.tables.regimes import DATA, LABELS, RUNS, SHARES, Regime
from replication.results.training_logs import logs_path

# accuracies of teacher, baseline and the runs in their order
BEATS_KD = (0.80, 0.40, 0.40, 0.37, 0.46, 0.48, 0.56, 0.57, 0.52, 0.54)
COSTS = (0.80, 0.60, 0.60, 0.59, 0.60, 0.60, 0.52, 0.53, 0.59, 0.51)
KD_ENOUGH = (0.80, 0.50, 0.50, 0.47, 0.58, 0.59, 0.58, 0.58, 0.58, 0.56)
NO_GAIN = (0.80, 0.60, 0.60, 0.59, 0.60, 0.60, 0.60, 0.60, 0.60, 0.59)


def cells_of(names: Mapping[tuple[str, str, str], tuple[float, ...]]) -> list[Regime]:
    """Cells that have a teacher and a baseline each."""
    return [
        Regime(f"regime_{'_'.join(place)}", f"{'_'.join(place)}/teacher", f"{'_'.join(place)}/base")
        for place in names
    ]


def everywhere() -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Accuracies of a whole map in which every outcome is there."""
    kinds = {"all": COSTS, "quarter": NO_GAIN, "little": BEATS_KD, "both_little": KD_ENOUGH}
    return {
        (share, labels, data): kinds[share]
        for share in SHARES
        for labels in LABELS
        for data in DATA
    }


def write_regimes(
    root: str | Path,
    accuracies: Mapping[tuple[str, str, str], tuple[float, ...]],
    *,
    seed: int,
    n: int = 600,
    scale: str = "small",
) -> list[Regime]:
    """Score, outcome and log files of cells with these accuracies; returns the cells."""
    world = np.random.default_rng([seed, 0])
    difficulty = {name: world.uniform(size=n) for name in BENCHMARKS}
    cells = cells_of(accuracies)
    for index, (cell, values) in enumerate(zip(cells, accuracies.values(), strict=True)):
        names = [cell.teacher, cell.baseline, *(f"{cell.group}/{run}" for run in RUNS)]
        for number, (name, accuracy) in enumerate(zip(names, values, strict=True)):
            rng = np.random.default_rng([seed, index, number])
            credits = {one: correct_answers(rng, accuracy, difficulty[one]) for one in BENCHMARKS}
            pair, run = name.split("/")
            write_run(root, run, {0: credits}, scale=scale, family="qwen2_vl", standin=True,
                      pair=pair)  # fmt: skip
        log = {
            "family": "qwen2_vl",
            "pair": cell.group,
            "teacher": {"entropy": 0.25 + 0.01 * index, "gate": 0.96 - 0.002 * index},
            "controller": {"tau": 0.35, "beta_min": 0.1, "beta_max": 5.0},
            "history": [{"step": 50, "gdkd": 4.0 + index}, {"step": 300, "gdkd": 2.0}],
        }
        path = logs_path(root, scale, cell.group, "grace") / "seed0.json"
        write_json_atomic(path, log)
    return cells
