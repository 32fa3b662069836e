"""Callbacks of the trainer: the weights of the loss terms, and what checkpointing must not do."""

from dataclasses import asdict
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from grace.distillation import DistillationConfig, linear_warmup


class Objective(TrainerCallback, ExportableState):
    """The weights of the loss terms, and counts of dropped terms, as part of the trainer's state.

    It holds the information-bottleneck controller, so that a resumed run goes on with the same
    multiplier.

    Examples:
        >>> from grace.distillation import DistillationConfig
        >>> from grace.training import Objective
        >>> Objective(DistillationConfig(adaptive=False)).controller is None
        True

    Attributes:
        config: The distillation settings.
        controller: Adapts β; None under a fixed weight.
        skipped: Optimizer steps whose distillation terms were dropped.
        degenerate: Images that carried no relational term.
    """

    def __init__(self, config: DistillationConfig) -> None:
        self.config = config
        self.controller = config.controller() if config.adaptive else None
        self.skipped = 0
        self.degenerate = 0

    def weights(self, step: int) -> tuple[Any, float]:
        """β and ω at an optimizer step, warm-ups included."""
        beta = self.controller.beta if self.controller is not None else self.config.weight
        return (
            beta * linear_warmup(step, self.config.distill_warmup_steps),
            self.config.rcka_weight * linear_warmup(step, self.config.rcka_warmup_steps),
        )

    def state(self) -> dict[str, Any]:
        """What the trainer writes of this into a checkpoint."""
        controller = self.controller.state_dict() if self.controller is not None else None
        return {
            "args": {"config": asdict(self.config)},
            "attributes": {
                "saved_controller": controller,
                "skipped": self.skipped,
                "degenerate": self.degenerate,
            },
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Objective":
        """Rebuild from a checkpoint's trainer state."""
        objective = cls(DistillationConfig.from_dict(state["args"]["config"]))
        objective.restore(state)
        return objective

    def restore(self, state: dict[str, Any]) -> None:
        """Take over counters and the controller's state of a checkpoint."""
        attributes = state["attributes"]
        self.skipped = attributes["skipped"]
        self.degenerate = attributes["degenerate"]
        if self.controller is not None and attributes["saved_controller"] is not None:
            self.controller.load_state_dict(attributes["saved_controller"])


class NoInputGradients(TrainerCallback):
    """Removes the hooks by which gradient checkpointing makes the output of every embedding require
    a gradient, that of the frozen tower's patches too.

    Without re-entrant checkpoints only adapters on a frozen model need them; here backward would
    go through the whole tower, for gradients that nothing uses.
    """

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """After the library has enabled checkpointing, before the first step."""
        reentrant = (args.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        if args.gradient_checkpointing and not reentrant:
            model.disable_input_require_grads()
