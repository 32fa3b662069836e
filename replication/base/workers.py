"""Independent pieces of one stage, side by side on the machine's cores."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any


def cores() -> int:
    """The number of cores that this process may use."""
    usable = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    return len(usable(0)) if usable else os.cpu_count() or 1


def run_all(function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Any]:
    """Call a function for every job, on as many cores as there are.

    The processes have one thread each: small models gain little from a second one, and one thread
    gives the same numbers whatever the number of cores. Jobs that share an accelerator run one
    after the other. The first exception stops all jobs, and is raised.

    Args:
        function: a module's own, so that a new process can import it.
        jobs: its arguments.

    Returns:
        The values, in the order of the jobs.
    """
    import torch

    torch.set_num_threads(1)
    workers = min(cores(), len(jobs))
    if workers < 2 or torch.cuda.is_available():
        return [function(*job) for job in jobs]
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    with ProcessPoolExecutor(
        workers, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        failed = [future for future in futures if future in done and future.exception()]
        if pending:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in set(multiprocessing.active_children()) - others:
                child.terminate()
        for future in failed:
            future.result()
        return [future.result() for future in futures]
