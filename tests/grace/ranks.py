"""Processes of a test that train together on CPUs (gloo), as `accelerate launch` starts them."""

import gc
import multiprocessing
import os
import socket
from collections.abc import Callable
from typing import Any

# a server that has imported the libraries once; the processes of every test are its forks
CONTEXT = multiprocessing.get_context("forkserver")
_QWEN = "transformers.models.qwen2_vl"
CONTEXT.set_forkserver_preload(
    [
        *("grace.training.trainer", "replication.train.fit"),
        *("replication.train.launch.run", "replication.train.runs"),
        *(f"{_QWEN}.modeling_qwen2_vl", f"{_QWEN}.processing_qwen2_vl"),
        *(f"{_QWEN}.image_processing_qwen2_vl", f"{_QWEN}.video_processing_qwen2_vl"),
        "torch.distributed.checkpoint",
    ]
)


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def start(
    function: Callable[..., None], *arguments: Any, ranks: int = 2, wrapper: str = "ddp"
) -> list[Any]:
    """`function(*arguments)` in every one of some processes; ranks 1 is a plain process."""
    port = free_port()
    processes = [
        CONTEXT.Process(target=_enter, args=(function, arguments, rank, ranks, port, wrapper))
        for rank in range(ranks)
    ]
    for process in processes:
        process.start()
    return processes


def run(function: Callable[..., None], *arguments: Any, **options: Any) -> None:
    """As `start`, and every process has to end well."""
    processes = start(function, *arguments, **options)
    try:
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * len(processes)
    finally:
        for process in processes:
            process.kill()
            process.join()


def _enter(function, arguments, rank, ranks, port, wrapper) -> None:
    import torch

    gc.freeze()  # collections need not look at what the server holds
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    if ranks > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    if wrapper == "fsdp2":
        os.environ |= FSDP2
        shard_on_cpus()
    function(*arguments)
    if ranks > 1:
        torch.distributed.destroy_process_group()


FSDP2 = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT",
}
"""What of the environment the launcher makes of fsdp2.yaml."""


def shard_on_cpus() -> None:
    """accelerate turns FSDP on for accelerators only: a group of CPUs is called one of
    accelerators, and the rest is the library's own."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    original = PartialState.__init__

    def initialise(self, *arguments, **options):
        original(self, *arguments, **options)
        if self.distributed_type == DistributedType.MULTI_CPU:
            self.distributed_type = DistributedType.MULTI_XPU

    PartialState.__init__ = initialise
