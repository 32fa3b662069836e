"""What training logs say of cost and of the controller, read leniently: what is absent is None.

<results>/<scale>/training/<folder>/<run>/seed<k>.json
{"family": "qwen2_vl",
 "history": [{"step": 50, "epoch": 0.2, "beta": 1.1, "ema": 0.6, ...}, ...],
 "cost": {"seconds": 61.0, "steps": 800, "tokens": 1210000,
          "peak_memory_bytes": 731000000, "trained_parameters": 512000, "threads": 2,
          "device": "cpu"},
 "controller": {"tau": 0.35, "beta_min": 0.1, "beta_max": 5.0}}
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from grace.errors import InputError
from replication.base.files import is_number, read_json
from replication.base.scales import check_scale
from replication.stats.verdict import LEVEL, Interval

BUDGET_TOLERANCE = 0.1  # of tau: how far above it the average may end
SETTLED = 0.1  # of the last value: how far beta may be from it once it has settled
SETTLED_BY = 0.8  # of the steps: settling later is the end of training, not of movement
_TAIL = 0.1  # of the logged steps
_SLACK = 1e-9


@dataclass(frozen=True)
class Cost:
    """What training one seed of a run cost. tokens: not counting padding; memory in bytes."""

    seconds: float
    steps: int
    tokens: int
    peak_memory_bytes: int
    trained_parameters: int
    threads: int
    device: str

    @property
    def seconds_per_step(self) -> float:
        return self.seconds / self.steps

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Trajectory:
    """The controller over one training, at the logged steps: arrays (logged,), and its settings."""

    step: np.ndarray
    epoch: np.ndarray
    beta: np.ndarray
    ema: np.ndarray
    tau: float
    beta_min: float
    beta_max: float


def logs_path(results: str | Path, scale: str, folder: str, run: str) -> Path:
    """Directory of the training logs of a folder's run under the folder `results`."""
    return Path(results) / check_scale(scale) / "training" / folder / run


def read_logs(results: str | Path, scale: str, family: str, run: str) -> dict[int, dict[str, Any]]:
    """A run's training logs by seed, whatever folder they lie in; empty if there is none.

    Raises InputError for a log that is not JSON or not a mapping."""
    found = {}
    for path in sorted(logs_path(results, scale, "", run).parent.glob(f"*/{run}/seed*.json")):
        name = re.fullmatch(r"seed(\d+)", path.stem)
        if name is None:
            continue
        log = read_json(path)
        if not isinstance(log, dict):
            raise InputError(f"{path}: a training log is a mapping")
        if log.get("family") == family:
            found[int(name[1])] = log
    return dict(sorted(found.items()))


def _positive(value: Any) -> bool:
    return is_number(value) and value > 0


def cost_of(log: Mapping[str, Any]) -> Cost | None:
    """The cost in a training log; None where an entry is absent, or no positive number."""
    given = log.get("cost")
    if not isinstance(given, dict):
        return None
    names = [name for name in Cost.__dataclass_fields__ if name != "device"]
    if not all(_positive(given.get(name)) for name in names):
        return None
    return Cost(device=str(given.get("device", "unknown")), **{n: given[n] for n in names})


def trajectory_of(log: Mapping[str, Any]) -> Trajectory | None:
    """The controller's trajectory in a training log; None where it or its settings are absent."""
    settings, history = log.get("controller"), log.get("history")
    logged = ("step", "beta", "ema")
    entries = [
        entry
        for entry in (history if isinstance(history, list) else [])
        if isinstance(entry, dict) and all(is_number(entry.get(name)) for name in logged)
    ]
    if not isinstance(settings, dict) or not entries:
        return None
    if not all(is_number(settings.get(name)) for name in ("tau", "beta_min", "beta_max")):
        return None

    def column(name: str) -> np.ndarray:
        found = (entry.get(name) for entry in entries)
        return np.array([float(value) if is_number(value) else math.nan for value in found])

    return Trajectory(
        step=column("step"),
        epoch=column("epoch"),
        beta=column("beta"),
        ema=column("ema"),
        tau=float(settings["tau"]),
        beta_min=float(settings["beta_min"]),
        beta_max=float(settings["beta_max"]),
    )


# --- cost -----------------------------------------------------------------------------------------


def cost_ratio(
    costs: Sequence[Cost], against: Sequence[Cost], name: str, level: float = LEVEL
) -> tuple[Interval | None, str]:
    """How many times the cost `name` of `against` a run has, and a note on what it rests on.

    Times: the ratio of geometric means over seeds, with Welch's t-interval of the logarithms'
    difference; None for fewer than two seeds a run, since a single timing shows no spread. Sizes do
    not vary at random: the interval goes from the smallest to the largest ratio of two seeds.

    Raises InputError where the runs were trained on different devices or numbers of threads.
    """
    places = {(cost.device, cost.threads) for cost in (*costs, *against)}
    if len(places) != 1:
        raise InputError(
            "costs of different machines cannot be compared: "
            + "; ".join(f"{device}, {threads} threads" for device, threads in sorted(places))
        )
    first = np.array([getattr(cost, name) for cost in costs], dtype=np.float64)
    second = np.array([getattr(cost, name) for cost in against], dtype=np.float64)
    note = f"{len(first)} and {len(second)} seed(s) on {costs[0].device}"
    if name != "seconds_per_step":
        ratios = (first[:, None] / second[None, :]).ravel()
        return Interval(float(first.mean() / second.mean()), *_ends(ratios), level), note
    if min(len(first), len(second)) < 2:
        return None, f"{first.mean() / second.mean():.2f} ×, without an interval: {note}"
    from scipy.stats import ttest_ind  # slow to import

    difference = float(np.log(first).mean() - np.log(second).mean())
    if np.ptp(first) == 0 and np.ptp(second) == 0:
        return Interval.exact(math.exp(difference)), note
    test = ttest_ind(np.log(first), np.log(second), equal_var=False)
    ends = test.confidence_interval(confidence_level=level)
    error = math.exp(difference) * difference_error(np.log(first), np.log(second))
    return (
        Interval(
            math.exp(difference),
            math.exp(float(ends.low)),
            math.exp(float(ends.high)),
            level,
            error,
        ),
        note,
    )


def difference_error(first: np.ndarray, second: np.ndarray) -> float:
    """Standard error of the difference of two means of independent samples."""
    return math.sqrt(sum(one.var(ddof=1) / len(one) for one in (first, second)))


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


# --- the controller -------------------------------------------------------------------------------


def steps_out_of_bounds(trajectories: Sequence[Trajectory]) -> int:
    """Logged steps at which beta lies outside its bounds, over all seeds."""
    return int(
        sum(
            np.count_nonzero(
                (one.beta < one.beta_min - _SLACK) | (one.beta > one.beta_max + _SLACK)
            )
            for one in trajectories
        )
    )


def _tail(values: np.ndarray, before: int = 0) -> float:
    """Mean of the last tenth of the values, or of the tenth `before` tenths earlier."""
    size = max(1, round(_TAIL * len(values)))
    end = len(values) - before * size
    return float(values[max(0, end - size) : end].mean())


def budget_excess(trajectories: Sequence[Trajectory]) -> tuple[Interval, str]:
    """How far above the budget the loss's moving average ends, and why that decides nothing ("" if
    it does): (tail of the EMA − tau) / tau.

    The tail is the mean over the last tenth of the logged steps; the point is the mean over seeds,
    the interval goes from the lowest to the highest seed. Two things excuse an excess. With beta at
    its upper bound the constraint cannot be attained: the controller has done what it may. With an
    average that is still falling (by more than 1 % from the tenth before), training was too short.
    """
    excess = np.array([(_tail(one.ema) - one.tau) / one.tau for one in trajectories])
    interval = Interval(float(excess.mean()), *_ends(excess))
    above = [
        one for one, value in zip(trajectories, excess, strict=True) if value > BUDGET_TOLERANCE
    ]
    if not above:
        return interval, ""
    if all(one.beta[-1] >= one.beta_max * (1 - 1e-6) for one in above):
        return interval, "β is at its upper bound: the budget cannot be attained"
    if all(len(one.ema) >= 20 and _tail(one.ema) < 0.99 * _tail(one.ema, 1) for one in above):
        return interval, "the moving average was still falling when training ended"
    return interval, ""


def settled_epoch(trajectory: Trajectory) -> float | None:
    """The epoch from which beta stays within a tenth of its last value, or None if that is in the
    last fifth of the training: then it has not settled."""
    last = trajectory.beta[-1]
    away = np.flatnonzero(np.abs(trajectory.beta - last) > SETTLED * abs(last))
    first = int(away[-1]) + 1 if away.size else 0
    if trajectory.step[first] > SETTLED_BY * trajectory.step[-1]:
        return None
    return float(trajectory.epoch[first])
