"""Stage ``ptq``: a group of post-training quantizations of their family's model ``baseline``."""

import sys
from pathlib import Path

from replication.base.files import write_json_atomic
from replication.base.workers import run_all
from replication.settings.paths import Layout, needed
from replication.settings.ptq_methods import CALIBRATED
from replication.settings.schema import Params
from replication.stages import stage
from replication.train.ptq import Calibration, quantize


def quantize_one(params: Params, group: str, name: str) -> None:
    """Quantize one model and write its directory and the record of what was done."""
    settings, layout = params.ptq, Layout(params)
    folder = settings.group(group)
    chosen = folder.models[name]
    calibration = None
    if chosen.method in CALIBRATED:
        given = settings.calibration
        calibration = Calibration(_conversations(params), given.samples, given.seed)
    record = quantize(
        layout.model(folder.family, "baseline"),
        layout.model(group, name),
        chosen.method,
        chosen.bits,
        group_size=settings.group_size,
        calibration=calibration,
    )
    write_json_atomic(layout.training_log(group, name, "ptq"), record)
    print(f"{folder.family}/{name}: {record['seconds']:.1f} s", file=sys.stderr)


def _conversations(params: Params) -> Path:
    layout = Layout(params)
    return layout.conversations if params.data is None else layout.published


@stage
def main(params: Params, group: str) -> None:
    folder = params.ptq.group(group)
    if any(model.method in CALIBRATED for model in folder.models.values()):
        needed(_conversations(params), "standins" if params.data is None else "conversations")
    run_all(quantize_one, [(params, group, name) for name in folder.models])


if __name__ == "__main__":
    main()
