"""Published architectures, measured on several devices: one verdict for each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from grace.errors import InputError
from replication.base.files import read_json
from replication.judge.quantities import Measured, Sources
from replication.paper import Part
from replication.results.deployment import RESULT, deployment_record
from replication.results.measurements import read_measurement
from replication.stats.verdict import Interval

UNKNOWN = "instruction set not recorded"


def deployments(part: Part, sources: Sources) -> Iterator[tuple[str, Measured]]:
    """A ratio on every device, this machine's first: what its part's id ends with, and the ratio.

    Raises:
        InputError: for results that are wrong.
    """
    model, results = part.quantity["model"], sources.results
    measurement = read_measurement(results.results, results.scale, f"deploy-{model}")
    if measurement is None:
        yield "", Measured(missing=f"{model} was not measured")
    else:
        values, data = measurement.values, measurement.data
        yield "", _ratio(part, values, data, measurement.evidence, measurement.provenance)
    if sources.recorded is None:
        return
    for path in sorted(sources.recorded.glob(f"[!.]*/{results.scale}/deploy/{model}/{RESULT}")):
        report = read_json(path)
        try:
            record = deployment_record(report, model, results.scale)
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no deployment result, measure it again") from error
        ratio = _ratio(
            part, record["values"], record["data"], record["evidence"], record["provenance"]
        )
        yield f"@{path.parts[-5]}", ratio


def _ratio(
    part: Part,
    values: Mapping[str, Interval],
    data: Mapping[str, Any],
    evidence: str,
    provenance: Mapping[str, Any],
) -> Measured:
    """The ratio at batch 1, with what it is of and the ratio at every batch."""
    name = part.quantity["value"]
    device = f"{data['device']}, {provenance.get('instruction_set') or UNKNOWN}"
    if data.get("layers") is not None:
        return Measured(missing=f"only {data['layers']} layers were built")
    if name not in values:
        return Measured(missing=f"no {name} was measured: {data.get('missing', 'not run')}")
    batches = {1: values[name]} | {
        int(key.removeprefix(f"{name}_")): value
        for key, value in values.items()
        if key.startswith(f"{name}_")
    }
    slower = [batch for batch, value in batches.items() if value.high < _without_gain(part)]
    return Measured(
        values[name],
        note=f"{evidence} on {device}: {_by_batch(batches, part.unit)}",
        open=f"nothing is gained at batch {slower[0]}, and the claim names no batch"
        if slower
        else "",
    )


def _without_gain(part: Part) -> float:
    """The value of a quantity that says: INT4 gains nothing."""
    return 1.0 if part.unit == "×" else 0.0


def _by_batch(batches: Mapping[int, Interval], unit: str) -> str:
    places = 2 if unit == "×" else 1
    texts = []
    for batch, value in sorted(batches.items()):
        text = f"batch {batch} {value.point:.{places}f}"
        if value.low < value.high:
            text += f" [{value.low:.{places}f}, {value.high:.{places}f}]"
        texts.append(f"{text} {unit}")
    return ", ".join(texts)
