"""Deployment results for the tables.

results/<scale>/deploy/<model>/deploy.json               measured here (`replication.measure.speed`)
results/engines/deploy.json                              likewise, in other engines
<recorded>/<device>/<scale>/deploy/<model>/deploy.json   on another device (`recordings`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from grace.errors import InputError
from replication.base.files import read_json
from replication.base.validation import Number, Positive, validate
from replication.results.deployment import BASELINE, RESULT
from replication.results.elsewhere import RECORDED, slug_of

_Size = Annotated[Number, Field(gt=1e-12, lt=1e18)]
"""Bytes, seconds or rates that a machine can have: the quotient of two of them is finite."""
_Batch = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Ran = Discriminator(lambda part: "not" if isinstance(part, dict) and "not_run" in part else "ran")


@dataclass
class _Spread:
    """A median between its ends, and the repeats behind it."""

    values: list[Any]
    low: _Size
    median: _Size
    high: _Size

    def __post_init__(self) -> None:
        if not self.low <= self.median <= self.high:
            raise ValueError("the median lies outside its ends")


@dataclass
class _NotRun:
    not_run: str


@dataclass
class _Decoding:
    bytes_per_step: _Size
    tokens_per_second: _Spread
    seconds_per_step: _Spread


@dataclass
class _Labelled(_NotRun):
    label: str


@dataclass
class _Variant:
    label: str
    weight_bytes: _Size
    peak_bytes: dict[str, _Size | None]
    time_to_first_token: _Spread
    decode: dict[
        _Batch, Annotated[Annotated[_NotRun, Tag("not")] | Annotated[_Decoding, Tag("ran")], _Ran]
    ]
    copy_bandwidth: Annotated[list[_Size], Field(min_length=1)]


@dataclass
class _Model:
    variants: dict[
        str, Annotated[Annotated[_Labelled, Tag("not")] | Annotated[_Variant, Tag("ran")], _Ran]
    ]


@dataclass
class _Settings:
    layers: Positive | None


@dataclass
class _Report:
    """What tables and figures read of a deployment result."""

    name: Any
    evidence: Any
    settings: _Settings
    device: str
    models: dict[str, _Model]
    provenance: Any


def _read(path: Path, evidence: str) -> dict[str, Any]:
    """A deployment result, which has to be of this evidence."""
    report: dict[str, Any] = read_json(path)
    validate(_Report, report, f"{path} is no deployment result, measure it again")
    if report["evidence"] != evidence:
        raise InputError(f"{path} says {report['evidence']!r}: a file there has to be {evidence!r}")
    return report


def deployment_reports(
    results: str | Path, scale: str, recorded: str | Path | None = None
) -> list[dict[str, Any]]:
    """What was measured at a scale, by model, then what was recorded on other devices, by device.

    Args:
        results: The folder of results.
        scale: The scale's name.
        recorded: The folder of recorded results, if they are asked for.

    Raises:
        InputError: naming the file, for one that is no deployment result, or is in the wrong place.
    """
    own = sorted((Path(results) / scale / "deploy").glob(f"*/{RESULT}"))
    reports = [_read(path, "measured") for path in own]
    others = sorted(Path(recorded).glob(f"[!.]*/{scale}/deploy/*/{RESULT}")) if recorded else []
    for path in others:
        report = _read(path, RECORDED)
        if (slug := slug_of(report["device"])) != path.parts[-5]:
            raise InputError(f"{path} is of device {report['device']!r}: its folder is {slug}")
        reports.append(report)
    return reports


ENGINES = f"engines/{RESULT}"
OWN = ("int8", "int4", "int4_float32")
"""This project's own variants, in their order."""


def engines_report(results: str | Path) -> dict[str, Any] | None:
    """What `make bench-engines` measured; None where it was not run.

    Raises:
        InputError: for a file that is no deployment result.
    """
    path = Path(results) / ENGINES
    return _read(path, "measured") if path.is_file() else None


def ordered(variants: Mapping[str, Any]) -> dict[str, Any]:
    """A model's variants: 16 and 32 bits and this project's own, then peers by name."""
    first = [name for name in (BASELINE, "float32", *OWN) if name in variants]
    return {name: variants[name] for name in (*first, *sorted(set(variants) - set(first)))}


def bandwidths(reports: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """By device, the best copy of any process on it, bytes/s: one floor for all that ran there."""
    best: dict[str, float] = {}
    for report in reports:
        for model in report["models"].values():
            for part in model["variants"].values():
                rates = [best.get(report["device"], 0.0), *part.get("copy_bandwidth", ())]
                if max(rates):
                    best[report["device"]] = max(rates)
    return best


def floor_seconds(step: Mapping[str, Any], bandwidth: float) -> float:
    """How long copying the bytes takes that a decode step has to read, at bytes/s."""
    return float(step["bytes_per_step"]) / bandwidth
