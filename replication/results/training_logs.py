"""What training logs say of cost and of the controller, read leniently: what is absent is None.

<results>/<scale>/training/<folder>/<run>/seed<k>.json
{"family": "qwen2_vl", "pair": "qwen2_vl_pair2",
 "parameters": 905000, "teacher": {"entropy": 0.71, "gate": 0.92},
 "history": [{"step": 50, "epoch": 0.2, "beta": 1.1, "ema": 0.6, ...}, ...],
 "cost": {"seconds": 61.0, "steps": 800, "tokens": 1210000,
          "peak_memory_bytes": 731000000, "trained_parameters": 512000, "threads": 2,
          "device": "cpu"},
 "controller": {"tau": 0.35, "beta_min": 0.1, "beta_max": 5.0}}
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, Strict
from pydantic.dataclasses import dataclass

from grace.errors import InputError
from replication.base.files import is_number, read_json
from replication.base.scales import check_scale
from replication.base.validation import Positive, validate
from replication.stats.verdict import LEVEL, Interval

BUDGET_TOLERANCE = 0.1
"""How far above the budget the moving average may end, as a share of it."""
SETTLED = 0.1
"""How far beta may be from its last value once it has settled, as a share of it."""
SETTLED_BY = 0.8
"""The share of the steps by which it has settled: later is the end of training, not of movement."""
_TAIL = 0.1
"""The share of the logged steps that the end is the mean of."""
_SLACK = 1e-9
_AT_BOUND = 1e-6
"""How near to a bound beta stands at it, as a share of the upper one: logs are rounded."""


_Seconds = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Cost:
    """What training one seed of a run cost.

    Attributes:
        seconds: of the training loop.
        steps: optimizer steps.
        tokens: that were read, not counting padding.
        peak_memory_bytes: of the process.
        trained_parameters: how many.
        threads: of the processor.
        device: its description.
    """

    seconds: _Seconds
    steps: Positive
    tokens: Positive
    peak_memory_bytes: Positive
    trained_parameters: Positive
    threads: Positive
    device: str = "unknown"

    @property
    def seconds_per_step(self) -> float:
        """Mean time of a step."""
        return self.seconds / self.steps

    @property
    def tokens_per_second(self) -> float:
        """Mean rate."""
        return self.tokens / self.seconds


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The controller over one training, at the logged steps.

    Attributes:
        step: (logged,), optimizer steps.
        epoch: (logged,), passes over the data; NaN where it was not logged.
        beta: (logged,), the multiplier.
        ema: (logged,), the moving average of the loss.
        tau: the budget.
        beta_min: the multiplier's lower bound.
        beta_max: its upper bound.
    """

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


def read_logs(results: str | Path, scale: str, pair: str, run: str) -> dict[int, dict[str, Any]]:
    """A run's training logs by seed, whatever folder they lie in; empty if there is none.

    Args:
        results: the folder of all scales.
        scale: which of them.
        pair: the name of the run's pair, as in `replication.results.scores`; a family's name is
            that of its first pair.
        run: its name.

    Raises:
        InputError: for a log that is not JSON or not a mapping.
    """
    logs = {}
    for path in sorted(logs_path(results, scale, "", run).parent.glob(f"*/{run}/seed*.json")):
        name = re.fullmatch(r"seed(\d+)", path.stem)
        if name is None:
            continue
        log = read_json(path)
        if not isinstance(log, dict):
            raise InputError(f"{path}: a training log is a mapping")
        if log.get("pair", log.get("family")) == pair:
            logs[int(name[1])] = log
    return dict(sorted(logs.items()))


def read_parameters(results: str | Path, scale: str, folder: str, name: str) -> int | None:
    """How many parameters the model ``name`` of a folder has; None where no log counts them.

    Raises:
        InputError: for a log that is not JSON.
    """
    for path in sorted(logs_path(results, scale, folder, name).glob("*.json")):
        log = read_json(path)
        count = log.get("parameters") if isinstance(log, dict) else None
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return None


def cost_of(log: Mapping[str, Any]) -> Cost | None:
    """The cost in a training log; None where an entry is absent, or no positive number."""
    try:
        return validate(Cost, log.get("cost"), "cost")
    except InputError:
        return None


def trajectory_of(log: Mapping[str, Any]) -> Trajectory | None:
    """The controller's trajectory in a training log; None where it or its settings are absent."""
    settings, history = log.get("controller"), log.get("history")
    history = history if isinstance(history, list) else []
    entries = [entry for entry in history if _has_numbers(entry, ("step", "beta", "ema"))]
    bounds = ("tau", "beta_min", "beta_max")
    if not entries or not isinstance(settings, dict) or not _has_numbers(settings, bounds):
        return None

    def column(name: str) -> np.ndarray:
        values = (entry.get(name) for entry in entries)
        return np.array([float(value) if is_number(value) else math.nan for value in values])

    return Trajectory(
        step=column("step"),
        epoch=column("epoch"),
        beta=column("beta"),
        ema=column("ema"),
        **{name: float(settings[name]) for name in bounds},
    )


def _has_numbers(entry: Any, names: Sequence[str]) -> bool:
    return isinstance(entry, dict) and all(is_number(entry.get(name)) for name in names)


# --- cost -----------------------------------------------------------------------------------------


def cost_ratio(
    costs: Sequence[Cost], against: Sequence[Cost], name: str, level: float = LEVEL
) -> tuple[Interval | None, str]:
    """How many times the cost `name` of `against` a run has, and a note on what it rests on.

    Times: the ratio of geometric means over seeds, with Welch's t-interval of the logarithms'
    difference; None for fewer than two seeds a run, since a single timing shows no spread. Sizes do
    not vary at random: the interval goes from the smallest to the largest ratio of two seeds.

    Raises:
        InputError: where the runs were trained on different devices or numbers of threads.
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
    return math.sqrt(sum(sample.var(ddof=1) / len(sample) for sample in (first, second)))


def _ends(values: np.ndarray) -> tuple[float, float]:
    return float(values.min()), float(values.max())


# --- the controller -------------------------------------------------------------------------------


def steps_out_of_bounds(trajectories: Sequence[Trajectory]) -> int:
    """Logged steps at which beta lies outside its bounds, over all seeds."""
    outside = 0
    for course in trajectories:
        below = course.beta < course.beta_min - _SLACK
        outside += int(np.count_nonzero(below | (course.beta > course.beta_max + _SLACK)))
    return outside


def _tail(values: np.ndarray, before: int = 0) -> float:
    """Mean of the last tenth of the values, or of the tenth `before` tenths earlier."""
    size = max(1, round(_TAIL * len(values)))
    end = len(values) - before * size
    return float(values[max(0, end - size) : end].mean())


def budget_excess(trajectories: Sequence[Trajectory]) -> tuple[Interval, str]:
    """How far above the budget the loss's moving average ends: (tail of the EMA − tau) / tau.

    The tail is the mean over the last tenth of the logged steps. Two things excuse an excess. With
    beta at its upper bound the constraint cannot be attained: the controller has done what it may.
    With an average that is still falling (by more than 1 % from the tenth before), training was too
    short.

    Returns:
        The mean over seeds, with the interval from the lowest to the highest seed; and why it
        decides nothing ("" if it does).
    """
    excess = np.array([(_tail(course.ema) - course.tau) / course.tau for course in trajectories])
    interval = Interval(float(excess.mean()), *_ends(excess))
    pairs = zip(trajectories, excess, strict=True)
    above = [course for course, value in pairs if value > BUDGET_TOLERANCE]
    if not above:
        return interval, ""
    if all(course.beta[-1] >= course.beta_max * (1 - 1e-6) for course in above):
        return interval, "β is at its upper bound: the budget cannot be attained"
    if all(len(course.ema) >= 20 and _tail(course.ema) < 0.99 * _tail(course.ema, 1)
           for course in above):  # fmt: skip
        return interval, "the moving average was still falling when training ended"
    return interval, ""


def sits_on_bound(trajectory: Trajectory) -> bool:
    """Whether beta stands at one of its bounds from the middle of the training to its end."""
    later = trajectory.step >= trajectory.step[-1] / 2
    beta, reach = trajectory.beta[later], _AT_BOUND * trajectory.beta_max
    bounds = (trajectory.beta_min, trajectory.beta_max)
    return any(bool((np.abs(beta - bound) <= reach).all()) for bound in bounds)


def settled_epoch(trajectory: Trajectory) -> float | None:
    """The epoch from which beta stays within a tenth of its last value.

    Returns:
        None if that is in the last fifth of the training: then it has not settled.
    """
    last = trajectory.beta[-1]
    away = np.flatnonzero(np.abs(trajectory.beta - last) > SETTLED * abs(last))
    first = int(away[-1]) + 1 if away.size else 0
    if trajectory.step[first] > SETTLED_BY * trajectory.step[-1]:
        return None
    return float(trajectory.epoch[first])
