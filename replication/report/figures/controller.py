"""The adaptive weight over training: β, the average that drives it, and its budget (C13, R04)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from replication.base.files import read_json
from replication.paper import load_tables
from replication.report.figures import style
from replication.report.figures.figure import Figure, NotRun
from replication.report.figures.reading import Inputs, counted
from replication.results.training_logs import Trajectory, read_logs, trajectory_of

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


class Course(NamedTuple):
    """The controller's course in a run, by seed."""

    label: str
    family: str
    run: str
    seeds: Mapping[int, Trajectory]

    def record(self) -> dict[str, Any]:
        return {
            str(seed): {key: getattr(course, key).tolist() for key in ("step", "beta", "ema")}
            for seed, course in self.seeds.items()
        }

    def end(self, key: str) -> float:
        """The mean over seeds at the last logged step."""
        return float(np.mean([getattr(course, key)[-1] for course in self.seeds.values()]))


def draw(inputs: Inputs) -> Figure:
    """Above β and EMA[GDKD] of INT4 GRACE in every family; below, where it was run, the same of
    the sweep of the family over step sizes and starts.

    Raises:
        NotRun: where no training log holds the controller's course.
    """
    own = list(_courses(inputs, ((inputs.named(name), name, RUN) for name in inputs.families)))
    if not own:
        raise NotRun("no training log of INT4 GRACE holds the controller's course at this scale")
    table = load_tables().table(SWEEP)
    others = [row for row in table.controls if row.run not in ("teacher", "baseline", RUN)]
    runs = [(row.method, inputs.family, row.run) for row in others if table.family == inputs.family]
    sweep = list(_courses(inputs, runs))
    budget = next(iter(own[0].seeds.values()))
    seeds = counted((len(course.seeds) for course in own), "seed")
    return inputs.figure(
        families=dict.fromkeys(course.family for course in (*own, *sweep)),
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
            + inputs.reservations()
        ),
        alt="Line charts of β and of the averaged loss over training. At the last step: "
        + "; ".join(
            f"{course.label}: β {course.end('beta'):.2f}, EMA {course.end('ema'):.2f}"
            for course in (*own, *sweep)
        )
        + f"; the budget is {budget.tau:g}.",
        n=f"{seeds} a family; {len(budget.step)} logged steps of {int(budget.step[-1]):,}",
        units="β without unit; EMA of GDKD in nats (times T²); optimizer steps",
        sources=tuple(file for course in (*own, *sweep) for file in _sources(inputs, course)),
        claims=("C13", "R04"),
        data={
            **{key: getattr(budget, key) for key in ("tau", "beta_min", "beta_max")},
            "families": {course.family: course.record() for course in own},
            "sweep": {course.run: course.record() for course in sweep},
        },
        canvas=_canvas(own, sweep, inputs.named(table.family)),
    )


def _courses(inputs: Inputs, runs: Iterable[tuple[str, str, str]]) -> Iterator[Course]:
    """Of runs, by label, family and name, those whose logs hold the controller's course."""
    for label, family, run in runs:
        logs = read_logs(inputs.results, inputs.scale, family, run)
        seeds = {seed: trajectory_of(log) for seed, log in logs.items()}
        if known := {seed: course for seed, course in seeds.items() if course is not None}:
            yield Course(label, family, run, known)


def _sources(inputs: Inputs, course: Course) -> list[str]:
    """A run's training logs, in whatever folder they lie."""
    root = inputs.results / inputs.scale
    paths = sorted(root.glob(f"training/*/{course.run}/seed*.json"))
    own = [path for path in paths if read_json(path).get("family") == course.family]
    return [inputs.source(path.relative_to(root)) for path in own]


def _canvas(own: list[Course], sweep: list[Course], swept_models: str) -> Canvas:
    canvas = style.canvas(style.WIDTH, 6.4 if sweep else 3.4)
    panels = canvas.subplots(4 if sweep else 2, 1, sharex=True)
    looks = [{"color": style.COLORS["grace"], "linestyle": dash} for dash in _DASHES]
    _draw(panels[0], panels[1], list(zip(own, looks, strict=False)))
    style.heading(panels[0], "INT4 GRACE, as in the tables")
    if sweep:
        swept = [(course, _SWEPT[index % len(_SWEPT)]) for index, course in enumerate(sweep)]
        _draw(panels[2], panels[3], swept)
        style.heading(panels[2], f"Sensitivity, {swept_models}")
    panels[-1].set_xlabel("optimizer step")
    return canvas


def _draw(above: Axes, below: Axes, lines: list[tuple[Course, dict[str, Any]]]) -> None:
    for course, look in lines:
        for number, logged in enumerate(course.seeds.values()):
            above.plot(logged.step, logged.beta, label="_" if number else course.label, **look)
            below.plot(logged.step, logged.ema, **look)
    everything = [logged for course, _ in lines for logged in course.seeds.values()]
    first = everything[0]
    for bound in (first.beta_min, first.beta_max):
        above.axhline(bound, color=style.GREY, linestyle=":", linewidth=1, zorder=1)
    below.axhline(first.tau, color=style.GREY, linestyle="--", linewidth=1.2, zorder=1)
    low = min(min(logged.ema.min(), logged.tau) for logged in everything) / 1.5
    high = max(logged.ema.max() for logged in everything) * 1.5
    below.set_yscale("log")
    below.set_ylim(low, high)
    ticks = [value for value in (0.03, 0.1, 0.3, 1, 3, 10, 30) if low < value < high]
    below.set_yticks(ticks, [f"{value:g}" for value in ticks])
    below.minorticks_off()
    below.annotate(
        f"τ = {first.tau:g}", (1.02, first.tau), xycoords=("axes fraction", "data"),
        va="center", annotation_clip=False,
    )  # fmt: skip
    above.set_ylabel("β")
    below.set_ylabel("EMA[GDKD]")
    above.legend(loc="upper left", bbox_to_anchor=(1.0, 1.05), borderaxespad=0.2)
