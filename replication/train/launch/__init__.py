"""Training of one seed of a run at full scale, in the processes that ``accelerate launch`` starts.

    command(params, "qwen2_vl_runs", "grace_int4", 0)   # what starts them
    train_launched(params, "qwen2_vl_runs", "grace_int4", 0)   # what each of them does

The configuration files beside this one are accelerate's own. They leave the precision to the
parameters (``train.bf16``): weights and scales are float32 under every one of them, and the
arithmetic runs under bfloat16 autocast.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grace.errors import InputError
from replication.base.files import read_json
from replication.settings.paths import Layout, needed
from replication.settings.schema import TEACHER_METHODS, Launch, Params, read_yaml, section, unknown

if TYPE_CHECKING:
    from grace.training import GraceTrainer

TYPES = ("NO", "MULTI_GPU", "FSDP", "DEEPSPEED")
"""What ``distributed_type`` may be in a configuration file."""


def load_conversations(path: Path, processor: Any, config: Any, *, max_length: int | None) -> Any:
    """The published training data."""
    from grace.shards import ShardedConversations

    return ShardedConversations(path, processor, config, max_length=max_length)


def check(params: Params, group: str, name: str, seed: int) -> None:
    """Check everything that can be checked without loading a model.

    Raises:
        InputError: naming what is missing or does not go together.
    """
    from replication.train.runs import check_baseline, method_config

    layout, folder = Layout(params), params.group(group)
    if name not in folder.models:
        raise InputError(unknown(f"run {name!r} of group {group!r}", name, folder.models))
    run = folder.models[name]
    if seed not in run.seeds:
        raise InputError(f"run {name} of group {group} has the seeds {run.seeds}, not {seed}")
    if run.shuffled_teacher:
        raise InputError(
            f"run {name} of group {group}: a shuffled teacher needs cached teacher outputs, and "
            "this scale has none; remove the run"
        )
    method = method_config(params.train, run)
    launch = section(params.train.launch, "train.launch")
    config = read_launch_config(launch)
    if config["distributed_type"] == "DEEPSPEED":
        from grace.training import check_deepspeed

        check_deepspeed(_deepspeed(config, launch.config), method)
    check_baseline(layout, folder.family)
    needed(layout.published, "conversations")
    if run.method in TEACHER_METHODS:
        needed(layout.model(folder.family, "teacher"), "teacher")
        if launch.teacher_sharded and config["distributed_type"] != "FSDP":
            raise InputError(
                "train.launch.teacher_sharded shards as FSDP2 does, and "
                f"{launch.config} is for {config['distributed_type']}; use fsdp2.yaml, or fewer "
                "train.launch.teacher_bits"
            )
    eight_bit = launch.optimizer.endswith("8bit") or launch.teacher_bits != 16
    if eight_bit and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "train.launch asks for 8 or 4 bits, which need bitsandbytes: pip install bitsandbytes"
        )


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
            "train.bf16 decides it"
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
    fsdp2, zero2 or zero3. Raises InputError as :func:`read_launch_config`."""
    config = read_launch_config(launch)
    kind = config["distributed_type"]
    if kind == "DEEPSPEED":
        return f"zero{_deepspeed(config, launch.config)['zero_optimization']['stage']}"
    return {"NO": "single", "MULTI_GPU": "ddp", "FSDP": "fsdp2"}[kind]


def _deepspeed(config: dict[str, Any], source: str) -> dict[str, Any]:
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


def run_launched(params: Params, group: str, name: str, seed: int) -> None:
    """Start training and wait for it.

    Raises:
        InputError: when it fails; started again, it goes on from its last checkpoint.
    """
    code = subprocess.call(command(params, group, name, seed))
    if code != 0:
        raise InputError(
            f"training of {group}/{name}, seed {seed}, ended with exit code {code} (its messages "
            "are above); started again, it goes on from its last checkpoint"
        )


def train_launched(params: Params, group: str, name: str, seed: int) -> None:
    """Train one seed of a run as one of the launched processes; the first writes the model.

    A model that is there already, of the same origin, is kept.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    from grace.models import load_model, load_processor
    from grace.training import prepare_student
    from replication.train.fit import fit, origin_of, read_origin, save_trained, whole_model
    from replication.train.runs import CODE, method_config, run_settings

    check(params, group, name, seed)
    layout, folder = Layout(params), params.group(group)
    run, launch = folder.models[name], section(params.train.launch, "train.launch")
    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.num_processes != launch.processes:
        raise InputError(
            f"train.launch.processes is {launch.processes} and {processes.num_processes} were "
            "started; make them one number"
        )
    method = method_config(params.train, run)
    path = layout.model(folder.family, "baseline")
    processor = load_processor(path)

    def student() -> Any:
        torch.manual_seed(seed)
        made = load_model(path)
        prepare_student(made, method)
        return made

    model = student()
    data = load_conversations(
        layout.published, processor, model.config, max_length=params.train.max_length
    )
    teacher: Any = None
    if method.needs_teacher:
        teacher = live_teacher(layout, folder.family, launch, processes.device, method.relational)
    settings = run_settings(params.train, run, seed)
    target, log = layout.trained(group, name, seed), layout.training_log(group, name, f"seed{seed}")
    origin: dict[str, str] = {}
    if processes.is_main_process:
        origin = origin_of(model, data, method, settings, teacher, code=(*CODE, *LAUNCH_CODE))
    done = [bool(origin) and log.is_file() and read_origin(target) == origin]
    if broadcast_object_list(done)[0]:  # the first process looks, the others do as it does
        return

    def finish(trainer: "GraceTrainer") -> None:
        whole = whole_model(trainer, student)
        if whole is not None:
            save_trained(whole, processor, target, method, origin)

    fit(
        model,
        data,
        method,
        settings,
        teacher=teacher,
        origin=origin,
        scratch=layout.checkpoints(group, f"{name}-seed{seed}"),
        log=log,
        finish=finish,
    )


LAUNCH_CODE = ("replication/train/launch/__init__.py",)


def live_teacher(layout: Layout, family: str, launch: Launch, device: Any, relational: bool) -> Any:
    """A family's teacher, frozen, on this process's device or sharded over all of them."""
    from grace.models import family_of, load_processor
    from grace.teacher import LiveTeacher, load_frozen, shard_frozen

    path = layout.model(family, "teacher")
    tokenizer = load_processor(path).tokenizer
    model = load_frozen(
        path, bits=launch.teacher_bits, device="cpu" if launch.teacher_sharded else device
    )
    teacher = LiveTeacher(model, family_of(family), relational=relational, tokenizer=tokenizer)
    if launch.teacher_sharded:
        shard_frozen(model)  # after the hooks, which its own have to run before
    return teacher
