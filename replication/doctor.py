"""What this machine lacks for a scale, before anything is downloaded or trained.

    python -m replication.doctor paper [--devices 16 --rate A100]

Checks packages, devices, memory, disk, checkpoints, licences and data, each with how to mend it,
and prints what every table downloads, trains and asks, and how long that takes. Exit code 1 if
something that is needed is missing; 2 on bad input.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from grace.errors import InputError
from replication.base.command import command
from replication.base.files import ROOT
from replication.base.scales import FULL_SCALE
from replication.base.terminal import write
from replication.paper import load_tables
from replication.plan.checks import (
    FAILED,
    OK,
    WARNING,
    Finding,
    check_all,
    finding_table,
    wrapper_of,
)
from replication.plan.machine import Machine, pins, probe
from replication.plan.needs import Plan, make_plan
from replication.plan.resources import Resources, load_resources
from replication.plan.text import cost_table, formula, model_table
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

EXAMPLE = "A100"
"""The device whose rate the times are for where no other is known."""


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m replication.doctor", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("scale", help="smoke, small or paper")
    parser.add_argument("--devices", type=int, help="times for so many devices, present or not")
    parser.add_argument("--rate", help="whose rate: a device of replication/plan/resources.yaml")
    options = parser.parse_args(arguments)
    findings = report(options.scale, options.devices, options.rate)
    return int(any(finding.status == FAILED for finding in findings))


def report(
    scale: str,
    devices: int | None = None,
    rate: str | None = None,
    *,
    machine: Machine | None = None,
) -> list[Finding]:
    """Print the plan and every check of a scale.

    Args:
        scale: the scale's name.
        devices: number of devices that the times are for; by default those of the machine.
        rate: the device whose rate the times are for; by default the machine's, and at scale
            paper on a machine without a known one `EXAMPLE`.
        machine: by default this one.

    Returns:
        The checks.

    Raises:
        InputError: for an unknown scale or rate, or a number of devices below 1.
    """
    if devices is not None and devices < 1:
        raise InputError(f"--devices is {devices}; give at least 1")
    params = parse_params(scale_params(scale), f"parameters of scale {scale}")
    resources, machine = load_resources(), machine or probe()
    name = _device_name(resources, rate, machine)
    if name is None and params.scale == FULL_SCALE:
        name = EXAMPLE
        write(f"no device here has a known rate; the times are for {EXAMPLE}")
    count = devices or len(machine.gpus) or params.train.devices
    plan = make_plan(
        params,
        load_tables(),
        resources,
        resources.devices[name] if name else None,
        logs=ROOT / "results" / scale / "training",
        ranks=max(1, count),
        wrapper=wrapper_of(params),
    )
    full = params.scale == FULL_SCALE
    write(f"scale {scale}", cost_table(plan, count, full), "models", model_table(plan))
    write(*_about_times(plan, resources, name, scale, count))
    findings = check_all(params, machine, plan, resources, pins())
    counts = {
        status: sum(finding.status == status for finding in findings)
        for status in (OK, WARNING, FAILED)
    }
    verdict = f"scale {scale} can be run here: make repro SCALE={scale}"
    if counts[FAILED]:
        verdict = f"scale {scale} cannot be run here as a whole: mend what failed"
    summary = ", ".join(f"{number} {status}" for status, number in counts.items())
    write("checks", finding_table(findings), summary, verdict)
    return findings


def _device_name(resources: Resources, rate: str | None, machine: Machine) -> str | None:
    if rate:
        return resources.device_name(rate)
    try:
        return resources.device_name(machine.gpus[0].name) if machine.gpus else None
    except InputError as error:
        write(str(error))
        return None


def _about_times(
    plan: Plan, resources: Resources, name: str | None, scale: str, count: int
) -> list[Any]:
    """Lines on where the times are from."""
    if scale != FULL_SCALE:
        logged = plan.total.train_seconds is not None
        text = (
            f"training: steps at the rates of the committed logs (results/{scale}/training); "
            "nothing else is timed"
        )
        return [text] if logged else []
    assert name is not None
    lines = formula(name, resources.devices[name])
    other = "; for others: make doctor DOCTOR='--devices 8 --rate H100'"
    return [f"durations on {count} x {name}{other}", *(f"  {line}" for line in lines)]


if __name__ == "__main__":
    sys.exit(main())
