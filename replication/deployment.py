"""Deployment results as the ledger and the tables read them.

results/<scale>/deploy/<model>/deploy.json   measured here (`replication.deploy`)
results/<scale>/recorded/deploy-*.json       measured earlier on another device
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.compare import LEVEL, Interval
from replication.deploy.results import RESULT, ratios
from replication.io import read_json

_KEYS = {"name", "evidence", "settings", "device", "models", "provenance"}


def deployment_record(report: Mapping[str, Any], model: str, scale: str) -> dict[str, Any]:
    """The measurement ``deploy-<model>``: INT4 against BF16 (`replication.deploy.results`).

    An interval is the widest that the repeats allow. Where either side was not run, there are no
    values, and `undefined` says why.
    """
    variants = report["models"][model]["variants"]
    found = ratios(variants)
    settings = report["settings"]
    missing = [
        f"{name}: {variants.get(name, {'not_run': 'not asked for'})['not_run']}"
        for name in ("bf16", "int4")
        if "not_run" in variants.get(name, {"not_run": ""})
    ]
    data: dict[str, Any] = {"device": report["device"], "layers": settings["layers"]}
    if missing:
        data["missing"] = "; ".join(missing)
    return {
        "name": f"deploy-{model}",
        "scale": scale,
        "method": "published architecture with random weights, INT4 (groups of 128) against BF16; "
        "medians over repeats, and the widest interval that the repeats allow",
        "n": {"repeats": min((one.repeats for one in found.values()), default=settings["repeats"])},
        "values": {
            name: Interval(one.point, one.low, one.high, LEVEL) for name, one in found.items()
        },
        **({} if found else {"undefined": data["missing"]}),
        "data": data,
        "evidence": report["evidence"],
        "provenance": report["provenance"],
    }


def deployment_reports(results: str | Path, scale: str) -> list[dict[str, Any]]:
    """What was measured at a scale, by model, then what was recorded on other devices, by file
    name.

    Raises InputError, naming the file, for one that is no deployment result.
    """
    folder = Path(results) / scale
    paths = sorted((folder / "deploy").glob(f"*/{RESULT}"))
    paths += sorted((folder / "recorded").glob("deploy-*.json"))
    found = []
    for path in paths:
        report = read_json(path)
        if not isinstance(report, dict) or not set(report) >= _KEYS:
            raise InputError(f"{path} is no deployment result: measure it again")
        wanted = "measured" if path.name == RESULT else "recorded"
        if report["evidence"] != wanted:
            raise InputError(
                f"{path} says {report['evidence']!r}: a file there has to be {wanted!r}"
            )
        found.append(report)
    return found
