"""The combined training objective (Eq. 17, 21) and its options."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

import torch

from grace.distillation._common import check_count, check_number
from grace.distillation.controller import IBController
from grace.errors import InputError


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
    """Options of L = CE + beta * GDKD + omega * RCKA.

    Raises:
        InputError: an illegal value; the message names the field, the value and the legal range.
    """

    temperature: float = 2.0
    """Softens both distributions; the distillation term carries the factor temperature²."""
    alpha: float = 1.0
    """Weight of the target-class term (Eq. 3)."""
    beta_dkd: float = 4.0
    """Weight of the non-target-class term (Eq. 3)."""
    kappa: float = 1.0
    """Sharpness of the confidence gate: 1 published, 0 no gate, negative inverted."""
    decoupled: bool = True
    """False: the full KL divergence in place of DKD; alpha and beta_dkd are then unused."""
    weight: float = 1.0
    """The fixed weight of the distillation term when `adaptive` is off."""
    adaptive: bool = True
    """Weight the distillation term by the `IBController`."""
    tau: float = 0.35
    """Controller: the constraint GDKD <= tau, in nats times temperature²."""
    eta: float = 0.0015
    """Controller: step size."""
    beta_init: float = 1.0
    """Controller: the multiplier before the first step."""
    beta_min: float = 0.1
    """Controller: lower bound of the multiplier."""
    beta_max: float = 5.0
    """Controller: upper bound of the multiplier."""
    ema_decay: float = 0.99
    """Controller: decay of the loss average."""
    rcka_weight: float = 1.0
    """omega, the weight of the relational term (Eq. 21)."""
    distill_warmup_steps: int = 0
    """Optimizer steps over which the distillation weight rises linearly to its value."""
    rcka_warmup_steps: int = 0
    """Optimizer steps over which the relational weight rises linearly to its value."""

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, low=0.0, low_open=True)
        for field in ("alpha", "beta_dkd", "weight", "rcka_weight"):
            check_number(field, getattr(self, field), low=0.0)
        check_number("kappa", self.kappa, low=-50.0, high=50.0)
        for field in ("decoupled", "adaptive"):
            if not isinstance(getattr(self, field), bool):
                raise InputError(f"{field} is {getattr(self, field)!r}; give true or false")
        for field in ("distill_warmup_steps", "rcka_warmup_steps"):
            check_count(field, getattr(self, field))
        self.controller()  # checks the controller's fields, which bear the same names

    def controller(self) -> IBController:
        """A controller in its initial state."""
        return IBController(
            tau=self.tau,
            eta=self.eta,
            beta_init=self.beta_init,
            beta_min=self.beta_min,
            beta_max=self.beta_max,
            ema_decay=self.ema_decay,
        )

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> DistillationConfig:
        """Build from a mapping, such as a section of a YAML file.

        Raises:
            InputError: an unknown key (the message names the nearest valid one) or illegal value.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for key in options:
            if key not in names:
                near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.0)[0]
                raise InputError(
                    f"unknown distillation option {key!r} (value {options[key]!r}); "
                    f"did you mean {near!r}?"
                )
        return cls(**options)


def linear_warmup(step: int, warmup_steps: int) -> float:
    """Factor of a weight at an optimizer step counted from 0: step / warmup_steps, then 1.

    Without warm-up steps it is 1 throughout.

    Raises:
        InputError: a negative count.
    """
    check_count("step", step)
    check_count("warmup_steps", warmup_steps)
    return 1.0 if step >= warmup_steps else step / warmup_steps


def combine(
    ce: torch.Tensor,
    gdkd: torch.Tensor,
    rcka: torch.Tensor,
    beta: torch.Tensor | float,
    omega: torch.Tensor | float,
) -> torch.Tensor:
    """L = CE + beta * GDKD + omega * RCKA (Eq. 17, 21), scalar.

    Weights given as tensors, such as the controller's float64 beta, are cast to the dtype of their
    term and carry no gradient: the multiplier is moved by the controller, never by the optimizer.
    """
    return ce + _constant(beta, gdkd) * gdkd + _constant(omega, rcka) * rcka


def _constant(weight: torch.Tensor | float, term: torch.Tensor) -> torch.Tensor | float:
    return weight.detach().to(term) if isinstance(weight, torch.Tensor) else weight
