"""Independent pieces of one stage, side by side on the machine's cores."""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import (
    FIRST_EXCEPTION,
    Executor,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from typing import Any

from replication.base import warm


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
    warm.tell(jobs=len(jobs))
    if workers < 2 or torch.cuda.is_available():
        return [_told(function, job) for job in jobs]
    processes = _Forks(workers) if warm.is_fork() else _Spawned(workers)
    with processes.pool as pool:
        futures = [processes.submit(_with_one_thread, function, *job) for job in jobs]
        for future in futures:
            future.add_done_callback(lambda _: warm.tell(done=1))
        try:
            done, pending = wait(futures, return_when=FIRST_EXCEPTION)
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.interrupt()
            raise
        failed = [future for future in futures if future in done and future.exception()]
        if pending:
            pool.shutdown(wait=False, cancel_futures=True)
            processes.terminate()
        for future in failed:
            future.result()
        return [future.result() for future in futures]


def _told(function: Callable[..., Any], job: tuple) -> Any:
    value = function(*job)
    warm.tell(done=1)
    return value


def _with_one_thread(function: Callable[..., Any], *job: Any) -> Any:
    import torch

    torch.set_num_threads(1)
    return function(*job)


class _Spawned:
    """Processes that import all that they need."""

    def __init__(self, workers: int) -> None:
        self._others = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")
        self.pool: Executor = ProcessPoolExecutor(workers, mp_context=context)
        self.submit = self.pool.submit

    def interrupt(self) -> None:
        """Nothing: a terminal interrupts every process."""

    def terminate(self) -> None:
        for child in set(multiprocessing.active_children()) - self._others:
            child.terminate()


class _Forks:
    """A fork of the server for every job, and a thread that waits for it."""

    def __init__(self, workers: int) -> None:
        self.pool: Executor = ThreadPoolExecutor(workers)
        self._calls: set[warm.Call] = set()

    def submit(self, *call: Any) -> Any:
        return self.pool.submit(self._wait_for, *call)

    def _wait_for(self, function: Callable[..., Any], *arguments: Any) -> Any:
        call = warm.Call(f"{function.__module__}:{function.__qualname__}", arguments)
        self._calls.add(call)
        try:
            return call.value()
        finally:
            self._calls.discard(call)

    def _signal(self, number: int) -> None:
        for call in list(self._calls):
            call.signal(number)

    def interrupt(self) -> None:
        self._signal(signal.SIGINT)

    def terminate(self) -> None:
        self._signal(signal.SIGTERM)
