"""SIGINT and SIGTERM during a run: the step in progress is finished and a checkpoint written."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

from grace.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopOnSignal(TrainerCallback):
    """Ends training at a signal, with a checkpoint; before and after training, at once.

    ::

        stop = StopOnSignal()
        with stop.watching():
            trainer = GraceTrainer(..., callbacks=[stop])
            trainer.train()
        if stop.signal is not None: ...    # a checkpoint was written

    All processes end at the same step, the first at which one of them knows of a signal. A second
    signal ends the process as it would without this.

    Attributes:
        signal: The number of the signal that came; None without one.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._training = False
        self._left = "nothing was trained"
        self._group: Any = None

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take signals while the block runs.

        Raises:
            Stopped: At a signal outside training.
        """
        owner = os.getpid()
        before: dict[int, Any] = {}

        def receive(number: int, _frame: FrameType | None) -> None:
            signal.signal(number, before[number])
            if os.getpid() != owner:  # a process that prepares batches
                if number == signal.SIGTERM:
                    signal.signal(number, signal.SIG_DFL)
                    os.kill(os.getpid(), number)
                return
            self.signal = number
            if not self._training:
                raise Stopped(f"interrupted: {self._left}", 128 + number)

        for number in map(int, SIGNALS):
            before[number] = signal.signal(number, receive)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def on_train_begin(self, args, state, control, **kwargs):
        """From here on a signal waits for the end of the step."""
        self._training = True
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            self._group = torch.distributed.new_group(backend="gloo")

    def on_train_end(self, args, state, control, **kwargs):
        """Training is over."""
        self._training = False
        self._left = "the model is not written, but its last checkpoint is; go on with --resume"

    def on_step_end(self, args, state, control, **kwargs):
        """Save and stop, if one of the processes was told to."""
        if self._told():
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_prediction_step(self, args, state, control, **kwargs):
        """Stop in the middle of an evaluation.

        Raises:
            EvaluationStopped: To the trainer, which saves.
        """
        if self._training and self._told():
            raise EvaluationStopped

    def _told(self) -> bool:
        if self._group is None:
            return self.signal is not None
        number = torch.tensor(self.signal or 0)
        torch.distributed.all_reduce(number, torch.distributed.ReduceOp.MAX, self._group)
        self.signal = int(number) or None
        return self.signal is not None


class EvaluationStopped(Exception):  # noqa: N818
    """A signal came during an evaluation."""
