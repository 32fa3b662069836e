"""The adaptive weight over training: β, the average that drives it, and its budget (C13, R04)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from replication.base.files import read_json
from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.reading import counted, source, standins
from replication.report.names import FAMILIES
from replication.results.training_logs import Trajectory, logs_path, read_logs, trajectory_of

RUN = "grace_int4"
SWEEP = "controller"  # the table that lists the sweep's runs
_DASHES = ("-", "--", ":")
# Runs of a sweep may coincide: those drawn first are wider and lighter.
_SWEPT: tuple[dict[str, Any], ...] = (
    {"color": "#C07F4E", "linewidth": 5.0},
    {"color": style.COLORS["grace"], "linewidth": 3.0},
    {"color": "#6E3000", "linewidth": 1.2},
    {"color": style.GREY, "linewidth": 1.6, "linestyle": "--"},
    {"color": style.GREY, "linewidth": 1.6, "linestyle": "-."},
)


def draw(results: Path, scale: str, family: str) -> Figure:
    """Above β and EMA[GDKD] of INT4 GRACE in every family; below, where it was run, the same of
    the sweep of `family` over step sizes and starts.

    Raises NotRun where no training log holds the controller's course."""
    families = {
        name: courses
        for name in (family, *(one for one in FAMILIES if one != family))
        if (courses := _courses(results, scale, name, RUN))
    }
    if not families:
        raise NotRun("no training log of INT4 GRACE holds the controller's course at this scale")
    table = load_tables().table(SWEEP)
    sweep = {
        row.method: (row.run, courses)
        for row in table.controls
        if table.family == family
        and row.run not in ("teacher", "baseline", RUN)
        and (courses := _courses(results, scale, family, row.run))
    }

    canvas = style.canvas(style.WIDTH, 6.4 if sweep else 3.4)
    panels = canvas.subplots(4 if sweep else 2, 1, sharex=True)
    lines: list[tuple[str, dict[int, Trajectory], dict[str, Any]]] = [
        (FAMILIES[name], courses, {"color": style.COLORS["grace"], "linestyle": dash})
        for (name, courses), dash in zip(families.items(), _DASHES, strict=False)
    ]
    _draw(panels[0], panels[1], lines)
    style.heading(panels[0], "INT4 GRACE, as in the tables")
    if sweep:
        swept = [
            (label, courses, dict(_SWEPT[index % len(_SWEPT)]))
            for index, (label, (_, courses)) in enumerate(sweep.items())
        ]
        _draw(panels[2], panels[3], swept)
        style.heading(panels[2], f"Sensitivity, {FAMILIES[family]}")
    panels[-1].set_xlabel("optimizer step")

    own = families.get(family) or next(iter(families.values()))
    last = {
        name: _ends(courses)
        for name, courses in {
            **{FAMILIES[name]: courses for name, courses in families.items()},
            **{label: courses for label, (_, courses) in sweep.items()},
        }.items()
    }
    budget = next(iter(own.values()))
    seeds = [len(courses) for courses in families.values()]
    return Figure(
        name="controller",
        title="The controller over training",
        caption=(
            "The multiplier β and the moving average of the distillation loss, EMA[GDKD], at the "
            "logged steps of INT4 GRACE, one line a seed. Dashed grey: the budget "
            f"τ = {budget.tau:g}, to which the average should come. Dotted grey: β's bounds, "
            f"{budget.beta_min:g} and {budget.beta_max:g}. "
            + (
                "Below: other step sizes η and other starts of β; lines that coincide are drawn "
                "over each other, wider ones below. "
                if sweep
                else ""
            )
            + standins(scale, standin=False)
        ),
        alt="Line charts of β and of the averaged loss over training. At the last step: "
        + "; ".join(
            f"{name}: β {ends['beta']:.2f}, EMA {ends['ema']:.2f}" for name, ends in last.items()
        )
        + f"; the budget is {budget.tau:g}.",
        n=(
            f"{counted(seeds, 'seed')} a family; "
            f"{len(budget.step)} logged steps of {int(budget.step[-1]):,}"
        ),
        units="β without unit; EMA of GDKD in nats (times T²); optimizer steps",
        sources=tuple(
            _sources(
                results,
                scale,
                [
                    *((name, RUN) for name in families),
                    *((family, run) for run, _ in sweep.values()),
                ],
            )
        ),
        command=command_of(scale),
        paper=None,
        claims=("C13", "R04"),
        data={
            "tau": budget.tau,
            "beta_min": budget.beta_min,
            "beta_max": budget.beta_max,
            "families": {name: _record(courses) for name, courses in families.items()},
            "sweep": {run: _record(courses) for run, courses in sweep.values()},
        },
        canvas=canvas,
    )


def _courses(results: Path, scale: str, family: str, run: str) -> dict[int, Trajectory]:
    return {
        seed: one
        for seed, log in read_logs(results, scale, family, run).items()
        if (one := trajectory_of(log)) is not None
    }


def _draw(
    above: Axes, below: Axes, lines: list[tuple[str, dict[int, Trajectory], dict[str, Any]]]
) -> None:
    for label, courses, look in lines:
        for number, one in enumerate(courses.values()):
            name = "_" if number else label
            above.plot(one.step, one.beta, label=name, **look)
            below.plot(one.step, one.ema, **look)
    first = next(iter(lines[0][1].values()))
    for bound in (first.beta_min, first.beta_max):
        above.axhline(bound, color=style.GREY, linestyle=":", linewidth=1, zorder=1)
    below.axhline(first.tau, color=style.GREY, linestyle="--", linewidth=1.2, zorder=1)
    lowest = min(min(one.ema.min(), one.tau) for _, c, _ in lines for one in c.values())
    highest = max(one.ema.max() for _, c, _ in lines for one in c.values())
    below.set_yscale("log")
    below.set_ylim(lowest / 1.5, highest * 1.5)
    ticks = [value for value in (0.03, 0.1, 0.3, 1, 3, 10, 30) if lowest / 1.5 < value]
    below.set_yticks(
        [value for value in ticks if value < highest * 1.5],
        [f"{value:g}" for value in ticks if value < highest * 1.5],
    )
    below.minorticks_off()
    below.annotate(
        f"τ = {first.tau:g}", (1.02, first.tau), xycoords=("axes fraction", "data"),
        va="center", annotation_clip=False,
    )  # fmt: skip
    above.set_ylabel("β")
    below.set_ylabel("EMA[GDKD]")
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), borderaxespad=0.2)


def _ends(courses: Mapping[int, Trajectory]) -> dict[str, float]:
    """Means over seeds at the last logged step."""
    return {
        name: float(np.mean([getattr(one, name)[-1] for one in courses.values()]))
        for name in ("beta", "ema")
    }


def _record(courses: Mapping[int, Trajectory]) -> dict[str, Any]:
    return {
        str(seed): {
            "step": one.step.tolist(),
            "beta": one.beta.tolist(),
            "ema": one.ema.tolist(),
        }
        for seed, one in courses.items()
    }


def _sources(results: Path, scale: str, runs: Sequence[tuple[str, str]]) -> list[str]:
    """The training logs of runs, by family and name, in whatever folder they lie."""
    found = []
    for family, run in runs:
        for path in sorted(logs_path(results, scale, "", run).parent.glob(f"*/{run}/seed*.json")):
            if read_json(path).get("family") == family:
                found.append(source(results, path))
    return found
