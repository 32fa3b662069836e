"""What a deployment result says of INT4 against BF16, as the ledger reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from replication.results.deployment import ratios
from replication.stats.verdict import LEVEL, Interval


def deployment_record(report: Mapping[str, Any], model: str, scale: str) -> dict[str, Any]:
    """The measurement ``deploy-<model>``: INT4 against BF16 (`replication.results.deployment`).

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
