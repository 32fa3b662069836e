"""Deployment results for the tables.

results/<scale>/deploy/<model>/deploy.json               measured here (`replication.deploy`)
<recorded>/<device>/<scale>/deploy/<model>/deploy.json   on another device (`recordings`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.deploy.results import BASELINE, RESULT
from replication.io import read_json
from replication.recordings import RECORDED, slug_of

_KEYS = {"name", "evidence", "settings", "device", "models", "provenance"}


def deployment_reports(
    results: str | Path, scale: str, recorded: str | Path | None = None
) -> list[dict[str, Any]]:
    """What was measured at a scale, by model, then what was recorded on other devices, by device.

    recorded: the folder of recorded results, if they are asked for.

    Raises InputError, naming the file, for one that is no deployment result, or is in the wrong
    place.
    """
    measured = sorted((Path(results) / scale / "deploy").glob(f"*/{RESULT}"))
    brought: list[Path] = []
    if recorded is not None:
        brought = sorted(Path(recorded).glob(f"[!.]*/{scale}/deploy/*/{RESULT}"))
    found = []
    for path in (*measured, *brought):
        report = read_json(path)
        if not isinstance(report, dict) or not set(report) >= _KEYS:
            raise InputError(f"{path} is no deployment result: measure it again")
        wanted = RECORDED if path in brought else "measured"
        if report["evidence"] != wanted:
            raise InputError(
                f"{path} says {report['evidence']!r}: a file there has to be {wanted!r}"
            )
        if path in brought and (slug := slug_of(report["device"])) != path.parts[-5]:
            raise InputError(f"{path} is of device {report['device']!r}: its folder is {slug}")
        found.append(report)
    return found


def ordered(variants: Mapping[str, Any]) -> dict[str, Any]:
    """A model's variants: BF16 and this project's own, then peers by name."""
    first = [name for name in (BASELINE, "int8", "int4") if name in variants]
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
