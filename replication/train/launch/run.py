"""Start a launched run, and train it in each of the processes."""

import importlib.util
import itertools
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

from grace.errors import InputError
from grace.training import TEACHER_METHODS
from replication.base.code import code_hash
from replication.base.messages import unknown
from replication.settings.paths import Layout, needed
from replication.settings.schema import Launch, Params, section
from replication.train.launch import command, deepspeed_config, read_launch_config
from replication.train.runs import (
    check_baseline,
    load_student,
    method_config,
    remove_others,
    run_settings,
    start_of,
)

if TYPE_CHECKING:
    from accelerate import PartialState

    from grace.training import GraceTrainer


# The trainer takes seconds to import: only the processes that train need it.


def launch_group(params: Params, group: str) -> None:
    """Train every run of a group through ``accelerate launch``, one seed after the other.

    Raises:
        InputError: Before anything is started, as :func:`check`; later as :func:`run_launched`.
    """
    folder = params.group(group)
    names = itertools.chain.from_iterable(folder.rounds())
    jobs = [(name, seed) for name in names for seed in folder.models[name].seeds]
    for name, seed in jobs:
        check(params, group, name, seed)
    for name, seed in jobs:
        run_launched(params, group, name, seed)
    remove_others(params, group)


def check(params: Params, group: str, name: str, seed: int) -> None:
    """Check everything that can be checked without loading a model.

    Raises:
        InputError: naming what is missing or does not go together.
    """
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
    method = method_config(params, run)
    launch = section(params.train.launch, "train.launch")
    config = read_launch_config(launch)
    if config["distributed_type"] == "DEEPSPEED":
        from grace.training import check_deepspeed

        check_deepspeed(deepspeed_config(config, launch.config), method)
    check_baseline(params, group)
    needed(layout.published, "conversations")
    if run.method in TEACHER_METHODS:
        needed(layout.model(folder.pair, "teacher"), "pairs")
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

    Raises:
        InputError: As :func:`check`, and when another number of processes was started than the
            parameters say.
    """
    from accelerate.utils import broadcast_object_list

    from grace.models import load_processor
    from grace.training import load_teacher
    from grace.training.distributed import whole_model
    from replication.data.conversations.load import load_conversations
    from replication.train.fit import fit, origin_of, read_origin, save_trained

    check(params, group, name, seed)
    layout, folder = Layout(params), params.group(group)
    run, launch = folder.models[name], section(params.train.launch, "train.launch")
    processes = _processes(launch)
    method = method_config(params, run)
    start = start_of(params, group, name, seed)
    processor = load_processor(start)
    student = partial(load_student, start, method, seed)
    model = student()
    data = load_conversations(
        layout.published, processor, model.config, max_length=params.train.max_length
    )
    teacher: Any = None
    if method.needs_teacher:
        path = start if run.method == "qad" else layout.model(folder.pair, "teacher")
        teacher = load_teacher(
            path,
            load_processor(path),
            relational=method.relational,
            bits=launch.teacher_bits,
            sharded=launch.teacher_sharded,
            device=processes.device,
        )
    settings = run_settings(params, run, seed)
    target, log = layout.trained(group, name, seed), layout.training_log(group, name, f"seed{seed}")
    origin: dict[str, str] = {}
    if processes.is_main_process:
        code = code_hash("replication.train.launch.run")
        origin = origin_of(model, data, method, settings, teacher, code=code)
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
        about={"pair": params.owner_of(group)},
        finish=finish,
    )


def _processes(launch: Launch) -> "PartialState":
    """accelerate's state of this process, among as many as the parameters say."""
    import torch
    from accelerate import PartialState

    processes = PartialState(cpu=not torch.cuda.is_available())
    if processes.num_processes != launch.processes:
        raise InputError(
            f"train.launch.processes is {launch.processes} and {processes.num_processes} were "
            "started; make them one number"
        )
    return processes
