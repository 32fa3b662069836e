"""Training of one seed of a run at full scale, in the processes that ``accelerate launch`` starts.

    command(params, "qwen2_vl_runs", "grace_int4", 0)   # the command line that starts them
    run.train_launched(params, "qwen2_vl_runs", "grace_int4", 0)   # what each process does

The configuration files beside this one are accelerate's own. They leave the precision to the
parameters (``arithmetic``): weights and scales are float32 under every one of them, and the
arithmetic runs under bfloat16 autocast.
"""

import importlib.util
import sys
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.files import read_json
from replication.base.messages import unknown
from replication.settings.schema import Launch, Params, section

TYPES = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
"""The values of ``distributed_type`` in a configuration file that are supported."""


def read_launch_config(launch: Launch) -> dict[str, Any]:
    """accelerate's configuration file.

    Raises:
        InputError: for a file that is missing, of another kind than TYPES, of another number of
            processes than can be, that sets a precision of its own, or that the optimizer does
            not go with.
    """
    if not Path(launch.config).is_file():
        raise InputError(
            f"train.launch.config is {launch.config!r}, which does not exist here; name a file by "
            "its path from the directory of params.yaml"
        )
    config = read_yaml(launch.config)
    kind = config.get("distributed_type")
    if kind not in TYPES:
        raise InputError(unknown(f"{launch.config}: distributed_type {kind!r}", str(kind), TYPES))
    if (kind == "NO") != (launch.processes == 1):
        raise InputError(
            f"{launch.config} has distributed_type {kind} and train.launch.processes is "
            f"{launch.processes}; one process goes with NO (single.yaml), several with another"
        )
    if str(config.get("mixed_precision", "no")) not in ("no", "False"):
        raise InputError(
            f"{launch.config} has mixed_precision {config['mixed_precision']!r}; write 'no', "
            "the parameter arithmetic decides it"
        )
    if kind == "FSDP" and (config.get("fsdp_config") or {}).get("fsdp_version") != 2:
        raise InputError(f"{launch.config}: fsdp_config.fsdp_version must be 2")
    if kind == "FSDP" and launch.optimizer == "adamw_bnb_8bit":
        raise InputError(
            f"train.launch.optimizer is 'adamw_bnb_8bit', and {launch.config} is for FSDP2, whose "
            "shards bitsandbytes cannot update; use adamw_torch_fused, or ddp.yaml or zero3.yaml"
        )
    if kind == "DEEPSPEED" and "mixed_precision" in config:
        raise InputError(
            f"{launch.config}: remove mixed_precision; accelerate takes none with a DeepSpeed file"
        )
    if kind == "DEEPSPEED" and importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"{launch.config} is for DeepSpeed, which is not installed: pip install deepspeed, or "
            "use replication/train/launch/fsdp2.yaml"
        )
    return config


def wrapper_of(launch: Launch) -> str:
    """What holds the model in each process, as `replication.plan.costs` names it: single, ddp,
    fsdp2, zero2 or zero3.

    Raises:
        InputError: As :func:`read_launch_config`.
    """
    config = read_launch_config(launch)
    kind = config["distributed_type"]
    if kind == "DEEPSPEED":
        return f"zero{deepspeed_config(config, launch.config)['zero_optimization']['stage']}"
    return {"NO": "single", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[kind]


def deepspeed_config(config: dict[str, Any], source: str) -> dict[str, Any]:
    settings = config.get("deepspeed_config") or {}
    path = settings.get("deepspeed_config_file")
    if path is None:
        raise InputError(f"{source}: deepspeed_config names no deepspeed_config_file")
    return read_json(path)


def command(
    params: Params, group: str, name: str, seed: int, *, machine: tuple[str, ...] = ()
) -> list[str]:
    """The words that start training.

    Args:
        machine: further words for ``accelerate launch``, such as which of several machines this is.
    """
    launch = section(params.train.launch, "train.launch")
    return [
        *(sys.executable, "-m", "accelerate.commands.launch"),
        *("--config_file", launch.config, "--num_processes", str(launch.processes), *machine),
        *("--module", "replication.train.launch", group, name, str(seed)),
    ]
