"""What a deployment result says: one variant against another, also as the ledger reads it.

A ratio's interval is the widest that the repeats of both sides allow: the least of one over the
greatest of the other. Memory is counted once a process, so it has no width.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from replication.stats.verdict import LEVEL, Interval

RESULT = "deploy.json"
BASELINE = "bf16"


@dataclass(frozen=True)
class Ratio:
    """A quotient with the ends that its repeats allow, and the number of repeats."""

    point: float
    low: float
    high: float
    repeats: int


def quotient(above: Mapping[str, Any], below: Mapping[str, Any]) -> Ratio:
    """The quotient of two spreads (`measure.clock.spread`)."""
    return Ratio(
        above["median"] / below["median"],
        above["low"] / below["high"],
        above["high"] / below["low"],
        min(len(above["values"]), len(below["values"])),
    )


def peak(part: Mapping[str, Any], batch: int = 1) -> int | None:
    """The most bytes through building, reading the prompt and decoding at a batch size."""
    size = part["peak_bytes"].get(f"batch {batch}")
    return None if size is None else int(size)


def ratios(variants: Mapping[str, Any], name: str = "int4") -> dict[str, Ratio]:
    """A variant against BF16.

    Args:
        variants: a model's variants in a report.
        name: the variant.

    Returns:
        What both sides were measured for: "throughput" (decoded tokens a second at batch 1),
        "throughput_4", "throughput_16"; "prefill" (rate of reading the prompt, image included);
        "memory_reduction" (percent less of the process's peak at batch 1), "memory_reduction_4",
        "memory_reduction_16"; "weight_reduction" (percent less of stored weights).
    """
    before, after = variants.get(BASELINE, {}), variants.get(name, {})
    if any("not_run" in part or not part for part in (before, after)):
        return {}
    result: dict[str, Ratio] = {}
    for batch, decoded in after["decode"].items():
        baseline = before["decode"].get(batch, {"not_run": ""})
        if "not_run" not in decoded and "not_run" not in baseline:
            label = "throughput" if batch == "1" else f"throughput_{batch}"
            result[label] = quotient(decoded["tokens_per_second"], baseline["tokens_per_second"])
    result["prefill"] = quotient(before["time_to_first_token"], after["time_to_first_token"])
    for batch in after["decode"]:
        peaks = peak(before, int(batch)), peak(after, int(batch))
        if None not in peaks:
            label = "memory_reduction" if batch == "1" else f"memory_reduction_{batch}"
            result[label] = _reduction(*peaks)  # type: ignore[arg-type]
    result["weight_reduction"] = _reduction(before["weight_bytes"], after["weight_bytes"])
    return result


def _reduction(before: float, after: float) -> Ratio:
    percent = 100 * (1 - after / before)
    assert math.isfinite(percent)
    return Ratio(percent, percent, percent, 1)


def deployment_record(report: Mapping[str, Any], model: str, scale: str) -> dict[str, Any]:
    """The measurement ``deploy-<model>``: INT4 against BF16.

    Args:
        report: a deployment result.
        model: one of its models.
        scale: the scale that it was measured at.

    Returns:
        A measurement record. Where either side was not run, there are no values, and `undefined`
        says why.
    """
    variants, settings = report["models"][model]["variants"], report["settings"]
    values = ratios(variants)
    missing = [
        f"{name}: {variants.get(name, {'not_run': 'not asked for'})['not_run']}"
        for name in (BASELINE, "int4")
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
        "n": {
            "repeats": min((one.repeats for one in values.values()), default=settings["repeats"])
        },
        "values": {
            name: Interval(ratio.point, ratio.low, ratio.high, LEVEL)
            for name, ratio in values.items()
        },
        **({} if values else {"undefined": data["missing"]}),
        "data": data,
        "evidence": report["evidence"],
        "provenance": report["provenance"],
    }
