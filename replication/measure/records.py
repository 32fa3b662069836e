"""What a stage measured, written as a measurement file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from replication.base import provenance
from replication.results.measurements import write_measurement
from replication.settings.paths import Layout
from replication.settings.schema import Params


def write_record(
    params: Params,
    stage: str,
    family: str,
    parts: Mapping[str, Any],
    *,
    method: str,
    seeds: Sequence[int],
    settings: Sequence[str],
    device: str | None = None,
) -> Path:
    """Write the measurement ``<stage>-<family>``.

    Args:
        params: all parameters.
        stage: the stage that measured.
        family: the family that was measured.
        parts: "n" and "values" of the measurement, and where there are any, "data" and "undefined".
        method: how it was measured, in a sentence.
        seeds: the seeds behind the numbers.
        settings: dotted names of the parameters that the stage reads; their values make the
            provenance's hash.
        device: the device it was measured on; by default the processor.

    Returns:
        The path of the file.

    Raises:
        InputError: for parts that are no measurement.
    """
    record = {
        "name": f"{stage}-{family}",
        "scale": params.scale,
        "method": method,
        **parts,
        "provenance": provenance.collect(
            params.subset(*settings),
            seeds,
            f"python -m replication.stages.{stage} {family}",
            device=device,
        ),
    }
    return write_measurement(Layout(params).results.parent, record)
