"""Tables of our own that hold no scores: component effects, training cost, answers that change,
speed and memory when deployed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from replication.judge.quantities import Sources
from replication.paper import AVERAGE, COMPONENTS, ReportedTable, Summary
from replication.report.tables.deployments import (
    bandwidths,
    deployment_reports,
    floor_seconds,
    ordered,
)
from replication.report.tables.scores import Comparisons, standin_notes
from replication.results.deployment import BASELINE, Ratio, peak, ratios
from replication.results.question_types import answers_by_skill, flips
from replication.results.training_logs import Cost, cost_of, read_logs
from replication.stats import bootstrap as compare
from replication.stats import factorial as designs
from replication.stats.bootstrap import Interval

_NAMES = {"gdkd": "GDKD", "rcka": "RCKA", "ib": "IB"}
_MIB = 2**20
_GIB = 2**30


def cell(
    measured: float | None = None,
    interval: Interval | None = None,
    *,
    reported: float | None = None,
    seed_spread: float | None = None,
) -> dict[str, float | None]:
    """One cell of a summary. An interval brings its point."""
    return {
        "reported": reported,
        "measured": measured if interval is None else interval.point,
        "low": None if interval is None else interval.low,
        "high": None if interval is None else interval.high,
        "seed_spread": seed_spread,
    }


def _column(
    name: str, unit: str = "", *, places: int = 1, signed: bool = False, standin: bool = False
) -> dict[str, Any]:
    return {"name": name, "unit": unit, "places": places, "signed": signed, "standin": standin}


def summary_table(summary: Summary, comparisons: Comparisons) -> dict[str, Any]:
    """The content of a summary with everything measured at the results' scale."""
    sources = comparisons.sources
    data = {
        "kind": "summary",
        "id": summary.id,
        "short": summary.id,
        "title": summary.title,
        "family": summary.family,
        "scale": sources.results.scale,
        "interval_level": sources.ledger.level,
    }
    if summary.id == "deploy":
        return {**data, **_deploy(sources)}
    build = {"effects": _effects, "cost": _cost, "flips": _flips}[summary.id]
    return {**data, **build(summary, sources.reported.table(summary.table), sources)}


def _is_standin(family: str, runs: Sequence[str], sources: Sources) -> tuple[bool, bool]:
    """Whether a run was measured on stand-ins, and whether any was measured at all."""
    found = [scores for run in runs if (scores := sources.results.scores(family, run)) is not None]
    return any(scores.standin for scores in found), bool(found)


# --- effects --------------------------------------------------------------------------------------


def printed_effect(table: ReportedTable, column: str, effect: Sequence[str]) -> float | None:
    """A main effect or interaction of the printed cells of a column; None if one is missing."""
    weights = designs.factorial_weights(COMPONENTS, effect)
    cells = {on: table.row(run).values[column] for on, run in table.design().items()}
    total = 0.0
    for on, weight in weights.items():
        value = cells[on]
        if value is None:
            return None
        total += weight * value
    return total


def _effects(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    design = table.design()
    standin, _ = _is_standin(table.family, list(design.values()), sources)
    columns = [
        _column(name, "points", places=2, signed=True, standin=standin) for name in table.columns
    ]
    measured: dict[str, Mapping[tuple[str, ...], Interval]] = {}
    for column in table.columns:
        average = column == AVERAGE
        names = table.averaged_benchmarks if average else [table.benchmark(column)]
        answers = sources.results.answers(table.family, list(design.values()), names)
        if answers is None:
            continue
        name = f"effects:{table.short}" + ("" if average else f":{column}")
        measured[column] = designs.factorial_effects(
            dict(zip(design, answers, strict=True)),
            COMPONENTS,
            names,
            compare.generator(sources.ledger.seed, name),
            **sources.settings,
        )
    rows = []
    for effect in _all_effects():
        cells = {}
        for column in table.columns:
            interval = measured.get(column, {}).get(effect)
            cells[column] = cell(interval=interval, reported=printed_effect(table, column, effect))
        rows.append({"labels": [" × ".join(_NAMES[one] for one in effect)], "cells": cells})
    notes = standin_notes(standin, bool(measured), sources.results.scale)
    notes += [
        "Full two-level design of eight runs. A main effect is the mean of the four runs with the "
        "component minus the mean of the four without it; an interaction of two is half the "
        "difference between the effect of the one with and without the other; of three, half the "
        "difference between two such interactions.",
        "95 % intervals: paired bootstrap over questions, and over seeds where there are several.",
        f"Reported effects are computed from the printed cells of {table.source}.",
    ]
    if AVERAGE in measured:
        error = np.mean([one.standard_error for one in measured[AVERAGE].values()])
        smallest = compare.minimum_detectable_difference(float(error))
        notes.append(
            "Smallest effect on the average that these questions and seeds would have resolved "
            f"(95 % interval, power 0.8): {smallest:.2f} points."
        )
    return {
        "labels": ["Effect"],
        "columns": columns,
        "has_reported": True,
        "rows": rows,
        "footnotes": notes,
    }


def _all_effects() -> list[tuple[str, ...]]:
    from itertools import combinations

    sizes = range(1, len(COMPONENTS) + 1)
    return [effect for size in sizes for effect in combinations(COMPONENTS, size)]


# --- cost -----------------------------------------------------------------------------------------


def _costs(summary: Summary, run: str, sources: Sources) -> list[Cost]:
    logs = read_logs(sources.results.results, sources.results.scale, summary.family, run)
    return [cost for log in logs.values() if (cost := cost_of(log)) is not None]


def _mean(values: Sequence[float], scale: float = 1.0) -> dict[str, float | None]:
    numbers = np.asarray(values, dtype=np.float64) * scale
    spread = float(numbers.std(ddof=1)) if len(numbers) > 1 else None
    return cell(float(numbers.mean()), seed_spread=spread)


def _cost(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    names = {
        "seconds": _column("Wall time", "s"),
        "step": _column("Time a step", "ms"),
        "ratio": _column(f"Time a step, {summary.against} = 1", "×", places=2),
        "tokens": _column("Tokens", "1/s", places=0),
        "memory": _column("Peak memory", "MiB", places=0),
        "parameters": _column("Trained parameters", places=0),
    }
    reference = _costs(summary, summary.against, sources)
    machines: set[str] = set()
    rows = []
    for run in summary.runs:
        costs = _costs(summary, run, sources)
        machines |= {f"{cost.device}, {cost.threads} thread(s)" for cost in costs}
        cells = {column["name"]: cell() for column in names.values()}
        if costs:
            found = {
                "seconds": _mean([cost.seconds for cost in costs]),
                "step": _mean([cost.seconds_per_step for cost in costs], 1000.0),
                "tokens": _mean([cost.tokens_per_second for cost in costs]),
                "memory": _mean([cost.peak_memory_bytes for cost in costs], 1 / _MIB),
                "parameters": _mean([cost.trained_parameters for cost in costs]),
            }
            if reference:
                base = float(np.mean([cost.seconds_per_step for cost in reference]))
                found["ratio"] = _mean([cost.seconds_per_step for cost in costs], 1 / base)
            cells |= {names[key]["name"]: one for key, one in found.items()}
        rows.append({"labels": [run, len(costs)], "cells": cells})
    notes = [
        "Means over seeds; ± is the standard deviation over seeds. Padding counts as no token.",
        "Post-training quantization trains nothing and is not listed.",
    ]
    if machines:
        notes.append("Device: " + "; ".join(sorted(machines)) + ".")
        notes.append(
            "At reduced scale the teacher's outputs are computed once, before training: its "
            "forward pass is not in these figures."
        )
    return {
        "labels": ["Run", "Seeds"],
        "columns": list(names.values()),
        "has_reported": False,
        "rows": rows,
        "footnotes": notes,
    }


# --- flips ----------------------------------------------------------------------------------------


def _flips(summary: Summary, table: ReportedTable, sources: Sources) -> dict[str, Any]:
    named = sorted(summary.named)
    standin, measured = _is_standin(summary.family, named, sources)
    columns = [
        _column("Questions", places=0),
        _column("Right → wrong", places=1),
        _column("Wrong → right", places=1),
        _column("Change", "points", signed=True, standin=standin),
    ]
    rows = []
    for first, second in summary.pairs:
        answers = answers_by_skill(
            sources.results, summary.family, [first, second], table.averaged_benchmarks
        )
        if answers is None:
            cells = {column["name"]: cell() for column in columns}
            rows.append({"labels": [f"{first} → {second}", "all"], "cells": cells})
            continue
        for skill in answers[0].values:
            counted = flips(answers[0], answers[1], skill)
            name = f"flips:{first}:{second}:{skill}"
            change = compare.difference_interval(
                answers[1],
                answers[0],
                [skill],
                compare.generator(sources.ledger.seed, name),
                **sources.settings,
            )
            cells = {
                "Questions": cell(float(counted.questions)),
                "Right → wrong": cell(counted.lost),
                "Wrong → right": cell(counted.gained),
                "Change": cell(interval=change),
            }
            rows.append({"labels": [f"{first} → {second}", skill], "cells": cells})
    notes = standin_notes(standin, measured, sources.results.scale)
    notes += [
        f"Questions of {', '.join(table.averaged_benchmarks)}, those of one type together. A "
        "credit of one half or more counts as right. Counts are of one seed, averaged over seeds.",
        "Change: the second run's score minus the first's, with its 95 % interval (paired "
        "bootstrap over questions, and over seeds where there are several).",
    ]
    return {
        "labels": ["Runs", "Question type"],
        "columns": columns,
        "has_reported": False,
        "rows": rows,
        "footnotes": notes,
    }


# --- deploy ---------------------------------------------------------------------------------------


def _repeated(values: Mapping[str, Any]) -> dict[str, float | None]:
    """A median with the ends of its repeats."""
    return {**cell(values["median"]), "low": values["low"], "high": values["high"]}


def _deploy(sources: Sources) -> dict[str, Any]:
    results = sources.results
    reports = deployment_reports(results.results, results.scale, sources.recorded)
    batches = sorted(
        {
            int(batch)
            for report in reports
            for model in report["models"].values()
            for part in model["variants"].values()
            for batch in part.get("decode", {})
        }
    )
    columns = [
        _column("Weights", "GiB", places=2),
        _column("Peak memory", "GiB", places=2),
        _column("First token", "s", places=2),
    ]
    for batch in batches:
        columns += [
            _column(f"Decoding, batch {batch}", "tokens/s", places=2),
            _column(f"Of the floor, batch {batch}", "%", places=0),
        ]
    rows, notes = [], []
    best = bandwidths(reports)
    for report in reports:
        whole = report["settings"]["layers"] is None
        for model, found in report["models"].items():
            name = model if whole else f"{model}, {report['settings']['layers']} layers"
            variants = ordered(found["variants"])
            for part in variants.values():
                label = part["label"]
                cells = {column["name"]: cell() for column in columns}
                if "not_run" in part:
                    notes.append(f"Not run: {name}, {label}: {part['not_run']}.")
                else:
                    cells |= _deployed(part, best[report["device"]])
                rows.append({"labels": [name, label, report["evidence"]], "cells": cells})
            for key in variants:
                against = ratios(variants, key) if key != BASELINE else {}
                if against:
                    notes.append(_against(name, variants, key, against))
        place = f"{report['evidence'].capitalize()} on {report['device']}."
        if place not in notes:
            notes.append(place)
    printed = sources.reported.deployment
    weights = printed["llava_7b_lm_weight_footprint_gb"]
    notes += [
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
    return {
        "labels": ["Model", "Weights of the decoder", "Evidence"],
        "columns": columns,
        "has_reported": False,
        "rows": rows,
        "footnotes": notes,
    }


def _deployed(part: Mapping[str, Any], bandwidth: float) -> dict[str, Any]:
    most = peak(part)
    cells = {
        "Weights": cell(part["weight_bytes"] / _GIB),
        "Peak memory": cell(None if most is None else most / _GIB),
        "First token": _repeated(part["time_to_first_token"]),
    }
    for batch, found in part["decode"].items():
        if "not_run" not in found:
            cells[f"Decoding, batch {batch}"] = _repeated(found["tokens_per_second"])
            share = floor_seconds(found, bandwidth) / found["seconds_per_step"]["median"]
            cells[f"Of the floor, batch {batch}"] = cell(100 * share)
    return cells


def _rates_first(entry: tuple[str, Ratio]) -> tuple[bool, int]:
    """Throughput by batch size, then the rest as it comes."""
    kind, _, batch = entry[0].partition("_")
    return kind != "throughput", int(batch or 1) if kind == "throughput" else 0


def _against(model: str, variants: Mapping[str, Any], key: str, found: Mapping[str, Ratio]) -> str:
    shown = []
    for name, one in sorted(found.items(), key=_rates_first):
        if name.endswith("reduction"):
            shown.append(f"{name.replace('_', ' ')} {one.point:.1f} %")
        else:
            kind, _, batch = name.partition("_")
            kind = f"{kind} at batch {batch or 1}" if kind == "throughput" else kind
            shown.append(f"{kind} {one.point:.2f}× [{one.low:.2f}, {one.high:.2f}]")
    pair = f"{variants[key]['label']} against {variants[BASELINE]['label']}"
    return f"{model}, {pair}: {', '.join(shown)}."
