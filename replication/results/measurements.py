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
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from grace.errors import InputError
from replication.base.files import read_json, write_json_atomic
from replication.base.scales import Scale, check_scale
from replication.base.validation import Number, Positive, Text, record, validate
from replication.results.scores import Evidence
from replication.stats import association
from replication.stats.association import BINS, cluster_interval
from replication.stats.bootstrap import RESAMPLES
from replication.stats.verdict import Interval


@record
class IntervalRecord:
    """An interval as a file holds it."""

    point: Number
    low: Number
    high: Number
    level: Annotated[Number, Field(gt=0, lt=1)]
    standard_error: Annotated[Number, Field(ge=0)]

    def __post_init__(self) -> None:
        self.interval()

    def interval(self) -> Interval:
        """The interval."""
        return Interval(self.point, self.low, self.high, self.level, self.standard_error)


@record
class Measurement:
    """One measurement file.

    Attributes:
        name: its own.
        scale: at which it was made.
        method: how.
        n: what the values rest on.
        intervals: the values as they are written.
        provenance: where the numbers come from.
        data: the points of a figure, say.
        undefined: why there is no value.
        evidence: measured here, or recorded on another device.
    """

    name: Text
    scale: Scale
    method: Text
    n: Annotated[dict[Text, Positive], Field(min_length=1)]
    intervals: Annotated[dict[Text, IntervalRecord], Field(alias="values")]
    provenance: Annotated[dict[str, Any], Field(min_length=1, repr=False)]
    data: dict[str, Any] = Field(default_factory=dict, repr=False)
    undefined: Text | None = None
    evidence: Evidence = "measured"

    def __post_init__(self) -> None:
        if not self.intervals and self.undefined is None:
            raise InputError("values are empty, and 'undefined' does not say why")

    @property
    def values(self) -> dict[str, Interval]:
        """The values by name."""
        return {name: value.interval() for name, value in self.intervals.items()}


def measurement_path(results: str | Path, scale: str, name: str) -> Path:
    """Where a measurement lies under the folder `results`."""
    return Path(results) / check_scale(scale) / "measurements" / f"{name}.json"


def validate_measurement(content: Any, source: str = "measurement") -> Measurement:
    """The content of a measurement file.

    Raises:
        InputError: naming the place, for a missing, unknown or ill-typed entry, no value, or a
            count that is not positive.
    """
    return validate(Measurement, content, source)


def write_measurement(results: str | Path, record: Mapping[str, Any]) -> Path:
    """Validate a measurement and write it where it belongs.

    Args:
        results: the folder of all scales.
        record: the content of the file, with `Interval`s as values.

    Returns:
        The file's path.
    """
    values = {
        key: asdict(value) if isinstance(value, Interval) else value
        for key, value in record["values"].items()
    }
    content = {**record, "values": values}
    measurement = validate_measurement(content)
    path = measurement_path(results, measurement.scale, measurement.name)
    return write_json_atomic(path, content)


def read_measurement(results: str | Path, scale: str, name: str) -> Measurement | None:
    """A measurement, or None if it has no file.

    Raises:
        InputError: if the file is wrong, or is of another measurement or scale than its place says.
    """
    path = measurement_path(results, scale, name)
    if not path.exists():
        return None
    measurement = validate_measurement(read_json(path), str(path))
    if (measurement.name, measurement.scale) != (name, scale):
        raise InputError(f"{path}: holds {measurement.name!r} of scale {measurement.scale!r}")
    return measurement


# --- what the ledger's measurements hold ----------------------------------------------------------


def entropy_error(
    entropy: np.ndarray,
    wrong: np.ndarray,
    rng: np.random.Generator,
    *,
    confidence: np.ndarray | None = None,
    clusters: np.ndarray | None = None,
    bins: int = BINS,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Does the teacher's entropy predict its error (Figure 2)?

    Args:
        entropy: (items,), the teacher's entropy at each item (a token, or a question), any unit.
        wrong: (items,), 1 where the teacher's most likely answer is wrong, else 0.
        rng: where the draws of the bootstrap come from.
        confidence: (items,), the probability of that answer, for its calibration error.
        clusters: (items,), the image or question of each item.
        bins: of equal count.
        resamples: of the bootstrap.

    Returns:
        The parts n, values ("pearson_r", "binned_r2", "rank_correlation"; where errors are in other
        bins than the last, "binned_r2_without_last"; with confidences "calibration_error") and data
        (the bins' means) of a measurement.

    Raises:
        InputError: for quantities that do not vary, or too few of them.
    """
    wrong = np.asarray(wrong, dtype=np.float64)
    assert np.isin(wrong, (0.0, 1.0)).all()
    statistics = {
        "pearson_r": association.pearson(entropy, wrong, clusters),
        "binned_r2": association.binned_r2(entropy, wrong, clusters, bins),
        "rank_correlation": association.rank_correlation(entropy, wrong, clusters),
    }
    if confidence is not None:
        error = association.calibration_error(confidence, 1 - wrong, clusters, bins)
        statistics["calibration_error"] = error
    means = association.binned_means(entropy, wrong, bins)
    # what is left without the one bin in which most of the errors are; no value without any error
    if np.ptp(means[1][:-1]) > 0:
        fit = association.binned_r2(entropy, wrong, clusters, bins, last=False)
        statistics["binned_r2_without_last"] = fit
    return {
        "n": {"items": wrong.size, "clusters": _count(wrong, clusters), "bins": bins},
        "values": {
            name: cluster_interval(statistic, rng, resamples=resamples)
            for name, statistic in statistics.items()
        },
        "data": {"bin_entropy": means[0].tolist(), "bin_error": means[1].tolist()},
    }


def gate_covariance(
    gates: np.ndarray,
    losses: np.ndarray,
    rng: np.random.Generator,
    *,
    clusters: np.ndarray | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Does gating lower the loss (Theorem 3.1)?

    Args:
        gates: (tokens,), the gate of each supervised token.
        losses: (tokens,), its ungated DKD.
        rng: where the draws of the bootstrap come from.
        clusters: (tokens,), the conversation of each token.
        resamples: of the bootstrap.

    Returns:
        The parts n and values ("covariance", N · Cov(w, DKD) in nats) of a measurement.

    Raises:
        InputError: for fewer than two clusters.
    """
    statistic = association.gate_covariance(gates, losses, clusters)
    return {
        "n": {"tokens": gates.size, "clusters": _count(gates, clusters)},
        "values": {"covariance": cluster_interval(statistic, rng, resamples=resamples)},
    }


def _count(items: np.ndarray, clusters: np.ndarray | None) -> int:
    return items.size if clusters is None else len(np.unique(clusters))
