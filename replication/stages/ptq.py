"""Stage ``ptq``: one baseline of post-training quantization, from the model ``baseline``."""

import sys
from pathlib import Path

from replication.io import write_json_atomic
from replication.layout import Layout, needed
from replication.params import Params, section
from replication.ptq import Calibration, quantize
from replication.ptq.methods import CALIBRATED
from replication.stages import stage


def paths(params: Params, name: str) -> tuple[Path, Path, Path]:
    """Where a model is made from, where it goes, and where the record of it goes."""
    layout = Layout(params)
    run = section(params.ptq, "ptq").run(name)
    return layout.model("baseline"), layout.model(run), layout.training_log(run, "ptq")


@stage
def main(params: Params, model: str) -> None:
    settings = section(params.ptq, "ptq")
    chosen = settings.model(model)
    calibration = None
    if chosen.method in CALIBRATED:
        conversations = needed(Layout(params).conversations, "standins")
        calibration = Calibration(
            conversations, settings.calibration.samples, settings.calibration.seed
        )
    source, target, log = paths(params, model)
    record = quantize(
        source,
        target,
        chosen.method,
        chosen.bits,
        group_size=settings.group_size,
        calibration=calibration,
    )
    write_json_atomic(log, record)
    print(f"{model}: {record['seconds']:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
