"""Deployment results for the tables.

results/<scale>/deploy/<model>/deploy.json               measured here (`replication.measure.speed`)
<recorded>/<device>/<scale>/deploy/<model>/deploy.json   on another device (`recordings`)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import is_number, read_json
from replication.base.messages import short
from replication.results.deployment import BASELINE, RESULT
from replication.results.elsewhere import RECORDED, slug_of

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
        if fault := _fault(report):
            raise InputError(f"{path} is no deployment result ({fault}): measure it again")
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


def _fault(report: Any) -> str:
    """What a deployment result lacks of what is read of it; "" if nothing."""
    if not isinstance(report, dict) or not set(report) >= _KEYS:
        return f"it is no mapping with {', '.join(sorted(_KEYS))}"
    settings, models = report["settings"], report["models"]
    if not isinstance(report["device"], str):
        return f"its device is {short(report['device'])}"
    if not isinstance(settings, dict) or not isinstance(settings.get("layers", ""), int | None):
        return "its settings say nothing of layers"
    if not isinstance(models, dict):
        return "its models are no mapping"
    for model, found in models.items():
        variants = found.get("variants") if isinstance(found, dict) else None
        if not isinstance(variants, dict):
            return f"{model} has no variants"
        for name, part in variants.items():
            if fault := _part_fault(part):
                return f"{model}, {name}: {fault}"
    return ""


def _part_fault(part: Any) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("label"), str):
        return "it has no label"
    if "not_run" in part:
        return "" if isinstance(part["not_run"], str) else "not_run is no reason"
    peaks, decode = part.get("peak_bytes"), part.get("decode")
    if not isinstance(peaks, dict) or not isinstance(decode, dict):
        return "it has no peak_bytes or no decode"
    bytes_of = [part.get("weight_bytes"), *(peak for peak in peaks.values() if peak is not None)]
    if not all(map(_is_measured, bytes_of)):
        return "a number of bytes is none that can be measured"
    rates = part.get("copy_bandwidth")
    if not isinstance(rates, list) or not rates or not all(map(_is_measured, rates)):
        return "copy_bandwidth is no list of rates"
    spreads = [part.get("time_to_first_token")]
    for batch, one in decode.items():
        if not batch.isdecimal() or len(batch) > 9 or not isinstance(one, dict):
            return f"decode has {short(batch)}"
        if "not_run" in one:
            continue
        if not _is_measured(one.get("bytes_per_step")):
            return "bytes_per_step is none that can be measured"
        spreads += [one.get("tokens_per_second"), one.get("seconds_per_step")]
    return "" if all(map(_is_spread, spreads)) else "a measured value has no repeats and ends"


def _is_measured(value: Any) -> bool:
    """Whether a value is a number of bytes, seconds or rates that a machine can have: the quotient
    of two of them is finite."""
    return is_number(value) and 1e-12 < value < 1e18


def _is_spread(value: Any) -> bool:
    """Whether a value is a median between its ends, and the repeats behind it."""
    if not isinstance(value, Mapping) or not isinstance(value.get("values"), list):
        return False
    ends: list[Any] = [value.get(key) for key in ("low", "median", "high")]
    return all(map(_is_measured, ends)) and ends == sorted(ends)
