"""Independent pieces of one stage, side by side on the machine's cores."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import torch


def run_all(function: Callable[..., Any], jobs: Sequence[tuple]) -> list[Any]:
    """``function(*job)`` for every job, in order; in processes of one thread each where that
    keeps more cores busy: small models gain little from a second thread, and one thread gives the
    same numbers whatever the number of cores.

    On an accelerator the jobs share it one after the other.
    """
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    if len(jobs) < 2 or cores < 2 or torch.cuda.is_available():
        return [function(*job) for job in jobs]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        min(cores, len(jobs)), mp_context=context, initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        return [future.result() for future in futures]
