"""Tables of our own that hold no scores: component effects, training cost, answers that change,
speed and memory when deployed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from replication.judge.quantities import Sources
from replication.paper import AVERAGE, COMPONENTS, ReportedTable, Summary
from replication.report.names import read_models
from replication.report.tables.contrasts import contrasts
from replication.report.tables.deployments import (
    bandwidths,
    deployment_reports,
    floor_seconds,
    ordered,
)
from replication.report.tables.grids import cell, column, row
from replication.report.tables.regimes import Regime, regimes
from replication.report.tables.scores import Comparisons, standin_notes
from replication.report.tables.tuned import tuned
from replication.results.deployment import BASELINE, Ratio, peak, ratios
from replication.results.question_types import answers_by_skill, flips
from replication.results.training_logs import Cost, cost_of, read_logs
from replication.stats import bootstrap as compare
from replication.stats import factorial as designs
from replication.stats.verdict import Interval

_NAMES = {"gdkd": "GDKD", "rcka": "RCKA", "ib": "IB"}
_MIB, _GIB = 2**20, 2**30


def summary_table(
    summary: Summary, comparisons: Comparisons, cells: Sequence[Regime] = ()
) -> dict[str, Any]:
    """The content of a summary with everything measured at the results' scale.

    Args:
        summary: Which one.
        comparisons: Of the results.
        cells: Of the map of regimes.
    """
    sources = comparisons.sources
    data = {
        "kind": "summary",
        "id": summary.id,
        "short": summary.id,
        "title": summary.title,
        "family": summary.family,
        "scale": sources.results.scale,
        "models": {},
        "interval_level": sources.ledger.level,
        "has_reported": summary.id == "effects",
    }
    if summary.id == "deploy":
        return {**data, **_deploy(sources)}
    if summary.id == "tuned":
        return {**data, **tuned(sources)}
    results = sources.results
    data["models"] = read_models(results.results, results.scale, summary.family).record()
    if summary.id == "regimes":
        return {**data, **regimes(sources, cells)}
    build = {"effects": _effects, "cost": _cost, "flips": _flips, "contrasts": contrasts}[
        summary.id
    ]
    return {**data, **build(summary, sources.reported.table(summary.table), sources)}


def _is_standin(family: str, runs: Iterable[str], sources: Sources) -> tuple[bool, bool]:
    """Whether a run was measured on stand-ins, and whether any was measured at all."""
    scores = [one for run in runs if (one := sources.results.scores(family, run)) is not None]
    return any(one.standin for one in scores), bool(scores)


# --- effects --------------------------------------------------------------------------------------


def printed_effect(table: ReportedTable, column: str, effect: Sequence[str]) -> float | None:
    """A main effect or interaction of the printed cells of a column; None if one is missing."""
    cells = {on: table.row(run).values[column] for on, run in table.design().items()}
    total = 0.0
    for on, weight in designs.factorial_weights(COMPONENTS, effect).items():
        value = cells[on]
        if value is None:
            return None
        total += weight * value
    return total


def _measured_effects(
    table: ReportedTable, column: str, sources: Sources
) -> Mapping[tuple[str, ...], Interval]:
    """The effects on a column; none where a run of the design is missing."""
    design, average = table.design(), column == AVERAGE
    names = table.averaged_benchmarks if average else [table.benchmark(column)]
    answers = sources.results.answers(table.family, list(design.values()), names)
    if answers is None:
        return {}
    name = f"effects:{table.short}" + ("" if average else f":{column}")
    return designs.factorial_effects(
        dict(zip(design, answers, strict=True)),
        COMPONENTS,
        names,
        sources.generator(name),
        resamples=sources.ledger.resamples,
        level=sources.ledger.level,
    )


def _effects(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    standin, _ = _is_standin(table.family, table.design().values(), sources)
    columns = [
        column(name, "points", places=2, signed=True, standin=standin) for name in table.columns
    ]
    measured = {column: _measured_effects(table, column, sources) for column in table.columns}
    rows = []
    for effect in designs.all_effects(COMPONENTS):
        cells = {
            name: cell(
                interval=measured[name].get(effect),
                reported=printed_effect(table, name, effect),
            )
            for name in table.columns
        }
        rows.append(row(columns, [" × ".join(_NAMES[one] for one in effect)], cells))
    notes = standin_notes(standin, any(measured.values()), sources.results.scale)
    notes += [
        "Full two-level design of eight runs. A main effect is the mean of the four runs with the "
        "component minus the mean of the four without it; an interaction of two is half the "
        "difference between the effect of the one with and without the other; of three, half the "
        "difference between two such interactions.",
        "95 % intervals: paired bootstrap over questions, and over seeds where there are several.",
        f"Reported effects are computed from the printed cells of {table.source}.",
    ]
    if average := measured.get(AVERAGE):
        error = np.mean([one.standard_error for one in average.values()])
        smallest = compare.minimum_detectable_difference(float(error))
        notes.append(
            "Minimum detectable effect on the average with these questions and seeds, at 80 % "
            f"power and a 95 % interval: {smallest:.2f} points."
        )
    return {"labels": ["Effect"], "columns": columns, "rows": rows, "footnotes": notes}


# --- cost -----------------------------------------------------------------------------------------


def _costs(summary: Summary, run: str, sources: Sources) -> list[Cost]:
    logs = read_logs(sources.results.results, sources.results.scale, summary.family, run)
    return [cost for log in logs.values() if (cost := cost_of(log)) is not None]


def _mean(values: Sequence[float], scale: float = 1.0) -> dict[str, float | None]:
    numbers = np.asarray(values, dtype=np.float64) * scale
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return cell(float(numbers.mean()), seed_spread=spread)


def _cost(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    ratio = f"Time a step, {summary.against} = 1"
    quantities = {
        "Wall time": ("seconds", 1.0),
        "Time a step": ("seconds_per_step", 1000.0),
        "Tokens": ("tokens_per_second", 1.0),
        "Peak memory": ("peak_memory_bytes", 1 / _MIB),
        "Trained parameters": ("trained_parameters", 1.0),
    }
    columns = [
        column("Wall time", "s"),
        column("Time a step", "ms"),
        column(ratio, "×", places=2),
        column("Tokens", "1/s", places=0),
        column("Peak memory", "MiB", places=0),
        column("Trained parameters", places=0),
    ]
    if reference := _costs(summary, summary.against, sources):
        base = float(np.mean([cost.seconds_per_step for cost in reference]))
        quantities[ratio] = ("seconds_per_step", 1 / base)
    machines: set[str] = set()
    rows = []
    for run in summary.runs:
        costs = _costs(summary, run, sources)
        machines |= {f"{cost.device}, {cost.threads} thread(s)" for cost in costs}
        cells = {
            name: _mean([getattr(cost, key) for cost in costs], scale)
            for name, (key, scale) in quantities.items()
            if costs
        }
        rows.append(row(columns, [run, len(costs)], cells))
    notes = [
        "Means over seeds; ± is the standard deviation over seeds. Padding counts as no token.",
        "Post-training quantization trains nothing and is not listed.",
    ]
    if machines:
        notes += [
            "Device: " + "; ".join(sorted(machines)) + ".",
            "At reduced scale the teacher's outputs are computed once, before training: its "
            "forward pass is not in these figures.",
        ]
    return {"labels": ["Run", "Seeds"], "columns": columns, "rows": rows, "footnotes": notes}


# --- flips ----------------------------------------------------------------------------------------


def _flips(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    standin, measured = _is_standin(summary.family, sorted(summary.named), sources)
    columns = [
        column("Questions", places=0),
        column("Right → wrong"),
        column("Wrong → right"),
        column("Change", "points", signed=True, standin=standin),
    ]
    rows = []
    for first, second in summary.pairs:
        pair, names = f"{first} → {second}", table.averaged_benchmarks
        answers = answers_by_skill(sources.results, summary.family, [first, second], names)
        if answers is None:
            rows.append(row(columns, [pair, "all"], {}))
            continue
        before, after = answers
        for skill in before.values:
            counts = flips(before, after, skill)
            scores = sources.resample([after, before], [skill], f"flips:{first}:{second}:{skill}")
            change = compare.interval(scores, compare.difference, sources.ledger.level)
            cells = {
                "Questions": cell(float(counts.questions)),
                "Right → wrong": cell(counts.lost),
                "Wrong → right": cell(counts.gained),
                "Change": cell(interval=change),
            }
            rows.append(row(columns, [pair, skill], cells))
    notes = standin_notes(standin, measured, sources.results.scale)
    notes += [
        f"Questions of {', '.join(table.averaged_benchmarks)}, those of one type together. A "
        "credit of one half or more counts as right. Counts are of one seed, averaged over seeds.",
        "Change: the second run's score minus the first's, with its 95 % interval (paired "
        "bootstrap over questions, and over seeds where there are several).",
    ]
    labels = ["Runs", "Question type"]
    return {"labels": labels, "columns": columns, "rows": rows, "footnotes": notes}


# --- deploy ---------------------------------------------------------------------------------------


def _repeated(values: Mapping[str, Any]) -> dict[str, float | None]:
    """A median with the ends of its repeats."""
    return {**cell(values["median"]), "low": values["low"], "high": values["high"]}


def _deploy(sources: Sources) -> dict[str, Any]:
    results = sources.results
    reports = deployment_reports(results.results, results.scale, sources.recorded)
    parts = [p for r in reports for m in r["models"].values() for p in m["variants"].values()]
    columns = [
        column("Weights", "GiB", places=2),
        column("Peak memory", "GiB", places=2),
        column("First token", "s", places=2),
    ]
    for batch in sorted({int(batch) for part in parts for batch in part.get("decode", {})}):
        columns += [
            column(f"Decoding, batch {batch}", "tokens/s", places=2),
            column(f"Of the floor, batch {batch}", "%", places=0),
        ]
    best = bandwidths(reports)
    rows, notes = [], []
    for report in reports:
        layers = report["settings"]["layers"]
        for model, content in report["models"].items():
            name = model if layers is None else f"{model}, {layers} layers"
            variants = ordered(content["variants"])
            for part in variants.values():
                cells = {} if "not_run" in part else _deployed(part, best[report["device"]])
                rows.append(row(columns, [name, part["label"], report["evidence"]], cells))
            notes += _model_notes(name, variants)
        place = f"{report['evidence'].capitalize()} on {report['device']}."
        if place not in notes:
            notes.append(place)
    return {
        "labels": ["Model", "Weights of the decoder", "Evidence"],
        "columns": columns,
        "rows": rows,
        "footnotes": [*notes, *_deployment_notes(best, sources.reported.deployment)],
    }


def _deployment_notes(best: Mapping[str, float], printed: Mapping[str, Any]) -> list[str]:
    weights = printed["llava_7b_lm_weight_footprint_gb"]
    return [
        "Medians over repeats with their least and greatest. First token: from a prompt of one "
        "image and 64 words, the vision tower included. Peak memory: of the process (on a GPU, of "
        "its allocator) through building the model, reading the prompt and decoding at batch 1.",
        "The floor is the time in which this machine copies as many bytes as a step has to read: "
        "the decoder, the vocabulary projection and the cache.",
        *(
            f"Bandwidth of {device}: {rate / 1e9:.0f} GB/s, the best copy of any process there."
            for device, rate in best.items()
        ),
        "Random weights: speed and memory do not depend on their values. The vision tower, the "
        "projector, the embeddings and the vocabulary projection are BF16 in every variant.",
        f"Reported ({printed['source']}): {printed['throughput_ratio_int4_over_bf16']:g} times the "
        f"throughput, {printed['memory_reduction_percent']} % less memory; LLaVA-1.5-7B's weights "
        f"{weights['bf16']} and {weights['int4']} GB, INT4 peak "
        f"{printed['llava_7b_int4_peak_gpu_gb']} GB.",
    ]


def _deployed(part: Mapping[str, Any], bandwidth: float) -> dict[str, Any]:
    """The cells of a variant that was run, beside a bandwidth in bytes/s."""
    most = peak(part)
    cells = {
        "Weights": cell(part["weight_bytes"] / _GIB),
        "Peak memory": cell(None if most is None else most / _GIB),
        "First token": _repeated(part["time_to_first_token"]),
    }
    for batch, step in part["decode"].items():
        if "not_run" not in step:
            cells[f"Decoding, batch {batch}"] = _repeated(step["tokens_per_second"])
            share = floor_seconds(step, bandwidth) / step["seconds_per_step"]["median"]
            cells[f"Of the floor, batch {batch}"] = cell(100 * share)
    return cells


def _model_notes(name: str, variants: Mapping[str, Any]) -> list[str]:
    """Which variants were not run, and how the others compare with BF16."""
    notes = [
        f"Not run: {name}, {part['label']}: {part['not_run']}."
        for part in variants.values()
        if "not_run" in part
    ]
    for key in variants:
        if key != BASELINE and (against := ratios(variants, key)):
            notes.append(_against(name, variants, key, against))
    return notes


def _rates_first(entry: tuple[str, Ratio]) -> tuple[bool, int]:
    """Throughput by batch size, then the rest as it comes."""
    kind, _, batch = entry[0].partition("_")
    return kind != "throughput", int(batch or 1) if kind == "throughput" else 0


def _against(
    model: str, variants: Mapping[str, Any], key: str, against: Mapping[str, Ratio]
) -> str:
    parts = []
    for name, ratio in sorted(against.items(), key=_rates_first):
        kind, _, batch = name.partition("_reduction")
        if kind != name:
            place = f" at batch {batch[1:]}" if batch else ""
            parts.append(f"{kind} reduction{place} {ratio.point:.1f} %")
        else:
            kind, _, batch = name.partition("_")
            kind = f"{kind} at batch {batch or 1}" if kind == "throughput" else kind
            parts.append(f"{kind} {ratio.point:.2f}× [{ratio.low:.2f}, {ratio.high:.2f}]")
    pair = f"{variants[key]['label']} against {variants[BASELINE]['label']}"
    return f"{model}, {pair}: {', '.join(parts)}."
