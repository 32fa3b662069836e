"""Numbers that are no scores, each with its interval: files that stages write and the ledger reads.

    <results>/<scale>/measurements/<name>.json

    {"name": "entropy_error-llava", "scale": "small", "method": "...", "n": {"tokens": 5120, ...},
     "values": {"pearson_r": {"point": 0.41, "low": 0.37, "high": 0.45, "level": 0.95,
                              "standard_error": 0.02}, ...},
     "data": {...}, "evidence": "measured", "provenance": {...}}

`n` counts what the values rest on. `data` is optional: the points of a figure. Where there is no
value to give, `values` is empty and `undefined` says why. The functions below
compute what the ledger's measurements hold from plain arrays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grace.errors import InputError
from replication.base.files import is_number, read_json, write_json_atomic
from replication.base.messages import short
from replication.base.scales import check_scale
from replication.results.scores import EVIDENCE
from replication.stats import association
from replication.stats.association import BINS, cluster_interval
from replication.stats.bootstrap import RESAMPLES
from replication.stats.verdict import LEVEL, Interval

_KEYS = {"name", "scale", "method", "n", "values", "provenance"}
_INTERVAL_KEYS = ("point", "low", "high", "level", "standard_error")


@dataclass(frozen=True)
class Measurement:
    """One validated measurement file."""

    name: str
    scale: str
    method: str
    n: Mapping[str, int]
    values: Mapping[str, Interval]
    provenance: Mapping[str, Any] = field(repr=False)
    data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    evidence: str = "measured"


def measurement_path(results: str | Path, scale: str, name: str) -> Path:
    """Where a measurement lies under the folder `results`."""
    return Path(results) / check_scale(scale) / "measurements" / f"{name}.json"


def _interval(value: Any, where: str) -> Interval:
    if not isinstance(value, dict) or set(value) != set(_INTERVAL_KEYS):
        raise InputError(f"{where} must hold {', '.join(_INTERVAL_KEYS)}")
    for key, number in value.items():
        if not is_number(number):
            raise InputError(f"{where}.{key} is {short(number)}: expected a number")
    try:
        found = Interval(**{key: float(number) for key, number in value.items()})
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
    if not found.low <= found.high or not 0 < found.level < 1 or found.standard_error < 0:
        raise InputError(f"{where}: {value} is no interval")
    return found


def validate_measurement(record: Any, where: str = "measurement") -> Measurement:
    """A measurement record as `Measurement`. Raises InputError, naming the place, for a missing,
    unknown or ill-typed entry, no value, or a count that is not positive."""
    if not isinstance(record, dict):
        raise InputError(f"{where} is not a mapping")
    missing, unknown = _KEYS - set(record), set(record) - _KEYS - {"data", "evidence", "undefined"}
    if missing or unknown:
        what = f"lacks {sorted(missing)}" if missing else f"has unknown {sorted(unknown)}"
        raise InputError(f"{where} {what}")
    for key in ("name", "method"):
        if not isinstance(record[key], str) or not record[key]:
            raise InputError(f"{where}.{key} is {short(record[key])}: expected text")
    check_scale(record["scale"])
    for key in ("n", "values", "provenance"):
        if not isinstance(record[key], dict) or not (
            record[key] or (key == "values" and record.get("undefined"))
        ):
            raise InputError(f"{where}.{key} must be a mapping that is not empty")
    for key, count in record["n"].items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"{where}.n.{key} is {short(count)}: expected a positive whole number")
    evidence = record.get("evidence", "measured")
    if evidence not in EVIDENCE:
        raise InputError(
            f"{where}.evidence is {short(evidence)}: choose one of {', '.join(EVIDENCE)}"
        )
    if not isinstance(record.get("data", {}), dict):
        raise InputError(f"{where}.data is {short(record['data'])}: expected a mapping")
    return Measurement(
        name=record["name"],
        scale=record["scale"],
        method=record["method"],
        n=record["n"],
        values={
            key: _interval(value, f"{where}.values.{key}")
            for key, value in record["values"].items()
        },
        provenance=record["provenance"],
        data=record.get("data", {}),
        evidence=evidence,
    )


def interval_data(interval: Interval) -> dict[str, float]:
    """An interval as the content of a file."""
    return {key: getattr(interval, key) for key in _INTERVAL_KEYS}


def write_measurement(results: str | Path, record: Mapping[str, Any]) -> Path:
    """Validate a measurement and write it where it belongs; returns the path.

    The record is the content of the file; its values may be `Interval`s. Errors: see
    `validate_measurement`.
    """
    record = dict(record)
    if isinstance(record.get("values"), Mapping):
        record["values"] = {
            key: interval_data(value) if isinstance(value, Interval) else value
            for key, value in record["values"].items()
        }
    found = validate_measurement(record)
    return write_json_atomic(measurement_path(results, found.scale, found.name), record)


def read_measurement(results: str | Path, scale: str, name: str) -> Measurement | None:
    """A measurement, or None if it has no file. Raises InputError if the file is wrong, or is of
    another measurement or scale than its place says."""
    path = measurement_path(results, scale, name)
    if not path.exists():
        return None
    found = validate_measurement(read_json(path), str(path))
    if (found.name, found.scale) != (name, scale):
        raise InputError(f"{path}: holds {found.name!r} of scale {found.scale!r}")
    return found


# --- what the ledger's measurements hold ----------------------------------------------------------


def entropy_error(
    entropy: np.ndarray,
    wrong: np.ndarray,
    rng: np.random.Generator,
    *,
    clusters: np.ndarray | None = None,
    bins: int = BINS,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Does the teacher's entropy predict its error (Figure 2)? The parts n, values, data of a
    measurement: "pearson_r", "binned_r2" and the bins' means.

    entropy: (items,) the teacher's entropy at each item (a token, or a question), any unit. wrong:
    (items,) 1 where the teacher's most likely answer is wrong, else 0. clusters: the image or
    question of each item.

    Raises InputError for errors other than 0 and 1; otherwise as
    `replication.stats.association.binned_r2`.
    """
    wrong = np.asarray(wrong, dtype=np.float64)
    if not np.isin(wrong, (0.0, 1.0)).all():
        raise InputError("errors must be 1 (wrong) or 0 (right)")
    statistics = {
        "pearson_r": association.pearson(entropy, wrong, clusters),
        "binned_r2": association.binned_r2(entropy, wrong, clusters, bins),
    }
    values = {
        name: cluster_interval(statistic, rng, resamples=resamples, level=level)
        for name, statistic in statistics.items()
    }
    means = association.binned_means(entropy, wrong, bins)
    items = int(wrong.size)
    return {
        "n": {
            "items": items,
            "clusters": items if clusters is None else len(np.unique(clusters)),
            "bins": bins,
        },
        "values": values,
        "data": {"bin_entropy": means[0].tolist(), "bin_error": means[1].tolist()},
    }


def gate_covariance(
    gates: np.ndarray,
    losses: np.ndarray,
    rng: np.random.Generator,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
) -> dict[str, Any]:
    """Does gating lower the loss (Theorem 3.1)? The parts n, values of a measurement:
    "covariance", N · Cov(w, DKD) in nats. Arguments and errors: see
    `replication.stats.association.gate_covariance`."""
    statistic = association.gate_covariance(gates, losses, clusters)
    interval = cluster_interval(statistic, rng, resamples=resamples, level=level)
    tokens = int(np.size(gates))
    count = tokens if clusters is None else len(np.unique(clusters))
    return {"n": {"tokens": tokens, "clusters": count}, "values": {"covariance": interval}}
