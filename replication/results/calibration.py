"""What was measured of the rows that are not GRACE: <results>/<scale>/calibration/<pair>.json.

{"pair": "qwen2_vl", "family": "qwen2_vl", "world": "first",
 "rows": [{"quantity": "difference", "name": "kd_bf16 - baseline",
           "asked": {"value": 2.1, "tolerance": 1.5, "low": null, "high": null},
           "measured": {"point": 1.8, "low": 1.2, "high": 2.4, ...}, "status": "met",
           "source": "Table 3, ...", "reason": "..."}, ...],
 "provenance": {...}}
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from replication.base.files import read_json, write_json_atomic
from replication.base.scales import check_scale
from replication.base.validation import Text, record, validate
from replication.results.measurements import IntervalRecord

MET, NOT_MET, NOT_RUN = "met", "not met", "not run"


@record
class MeasuredRow:
    """One row.

    Attributes:
        quantity: what is measured.
        name: the same in words.
        asked: value and tolerance, or bounds.
        measured: with its interval; None where it was not run.
        status: whether the row is met.
        source: of what is asked.
        reason: for its tolerance.
    """

    quantity: Text
    name: Text
    asked: dict[str, float | None]
    measured: IntervalRecord | None
    status: Literal["met", "not met", "not run"]
    source: Text
    reason: Text


@record
class MeasuredPair:
    """The rows of one pair of teacher and baseline.

    Attributes:
        pair: its name.
        family: its family.
        world: that it sees.
        rows: in the order of calibration.yaml.
        provenance: where the numbers come from.
    """

    pair: Text
    family: Text
    world: Literal["first", "second"]
    rows: list[MeasuredRow]
    provenance: dict[str, Any] = Field(repr=False)


def calibration_path(results: str | Path, scale: str, pair: str) -> Path:
    """Where the rows of a pair lie under the folder `results`."""
    return Path(results) / check_scale(scale) / "calibration" / f"{pair}.json"


def write_calibration(results: str | Path, scale: str, content: Mapping[str, Any]) -> Path:
    """Validate the rows of a pair and write them where they belong."""
    pair = validate(MeasuredPair, dict(content), "calibration").pair
    return write_json_atomic(calibration_path(results, scale, pair), content)


def read_calibrations(results: str | Path, scale: str) -> dict[str, MeasuredPair]:
    """The measured rows of every pair that has a file, by its name.

    Raises:
        InputError: for a file that is wrong.
    """
    folder = calibration_path(results, scale, "").parent
    paths = sorted(folder.glob("*.json"))
    return {path.stem: validate(MeasuredPair, read_json(path), str(path)) for path in paths}
