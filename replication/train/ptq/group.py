"""A group of post-training quantizations of one pair's baseline."""

import sys
from pathlib import Path

from replication.base.files import write_json_atomic
from replication.base.workers import run_all
from replication.settings.paths import Layout, needed
from replication.settings.ptq_methods import CALIBRATED
from replication.settings.schema import Params
from replication.train.ptq import Calibration, quantize


def quantize_group(params: Params, group: str) -> None:
    """Quantize every model of a group, side by side.

    Raises:
        InputError: When the group is unknown, or the baseline or the calibration data are missing.
    """
    folder = params.ptq.group(group)
    if any(model.method in CALIBRATED for model in folder.models.values()):
        needed(
            _conversations(params, group), "standins" if params.data is None else "conversations"
        )
    run_all(quantize_model, [(params, group, name) for name in folder.models])


def quantize_model(params: Params, group: str, name: str) -> None:
    """Quantize one model of a group; write its directory and the record of what was done."""
    settings, layout = params.ptq, Layout(params)
    folder = settings.group(group)
    model = folder.models[name]
    calibration = None
    if model.method in CALIBRATED:
        draw = settings.calibration
        calibration = Calibration(_conversations(params, group), draw.samples, draw.seed)
    record = quantize(
        layout.model(folder.pair, "baseline"),
        layout.model(group, name),
        model.method,
        model.bits,
        group_size=settings.group_size,
        calibration=calibration,
    )
    write_json_atomic(layout.training_log(group, name, "ptq"), record)
    print(f"{folder.pair}/{name}: {record['seconds']:.1f} s", file=sys.stderr)


def _conversations(params: Params, group: str) -> Path:
    layout = Layout(params, group)
    return layout.conversations if params.data is None else layout.published
