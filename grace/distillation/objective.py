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
    """Options of the objective L = CE + beta * GDKD + omega * RCKA (Eq. 17, 21).

    Examples:
        >>> from grace.distillation import DistillationConfig
        >>> config = DistillationConfig(adaptive=False, weight=0.5)
        >>> DistillationConfig.from_dict({"kappa": 0.0}).kappa  # no gate
        0.0

    Attributes:
        temperature: Softens both distributions; the term carries the factor temperature².
        alpha: Weight of the target-class term (Eq. 3).
        beta_dkd: Weight of the non-target-class term (Eq. 3).
        kappa: Sharpness of the confidence gate (Eq. 5): 1 published, 0 no gate, negative inverted.
        decoupled: False: the full KL divergence in place of DKD; alpha and beta_dkd are then
            unused.
        weight: Fixed weight of the distillation term where `adaptive` is off.
        adaptive: Weight the distillation term by the `IBController`.
        tau: Controller: the constraint GDKD <= tau, in nats times temperature².
        eta: Controller: step size.
        beta_init: Controller: the multiplier before the first step.
        beta_min: Controller: lower bound of the multiplier.
        beta_max: Controller: upper bound of the multiplier.
        ema_decay: Controller: decay of the moving average of the loss.
        rcka_weight: omega, the weight of the relational term (Eq. 21).
        distill_warmup_steps: Optimizer steps over which the distillation weight rises linearly.
        rcka_warmup_steps: Optimizer steps over which the relational weight rises linearly.

    Raises:
        InputError: An illegal value; the message names the field, the value and the legal range.
    """

    temperature: float = 2.0
    alpha: float = 1.0
    beta_dkd: float = 4.0
    kappa: float = 1.0
    decoupled: bool = True
    weight: float = 1.0
    adaptive: bool = True
    tau: float = 0.35
    eta: float = 0.0015
    beta_init: float = 1.0
    beta_min: float = 0.1
    beta_max: float = 5.0
    ema_decay: float = 0.99
    rcka_weight: float = 1.0
    distill_warmup_steps: int = 0
    rcka_warmup_steps: int = 0

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
            InputError: An unknown key (the message names the nearest valid one) or illegal value.
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

    Examples:
        >>> from grace.distillation import linear_warmup
        >>> [linear_warmup(step, 2) for step in range(4)]
        [0.0, 0.5, 1.0, 1.0]
    """
    assert step >= 0 and warmup_steps >= 0, (step, warmup_steps)
    return 1.0 if step >= warmup_steps else step / warmup_steps


def combine(
    ce: torch.Tensor,
    gdkd: torch.Tensor,
    rcka: torch.Tensor,
    beta: torch.Tensor | float,
    omega: torch.Tensor | float,
) -> torch.Tensor:
    """L = CE + beta * GDKD + omega * RCKA (Eq. 17, 21).

    Examples:
        >>> import torch
        >>> from grace.distillation import combine
        >>> combine(torch.tensor(2.0), torch.tensor(1.0), torch.tensor(0.5), beta=0.1, omega=0.2)
        tensor(2.2000)

    Args:
        ce: Cross-entropy, scalar.
        gdkd: Gated distillation term, scalar.
        rcka: Relational term, scalar.
        beta: Weight of `gdkd`. A tensor, such as the controller's float64 beta, is cast to the
            dtype of its term and carries no gradient: the controller moves the multiplier, never
            the optimizer.
        omega: Weight of `rcka`, likewise.

    Returns:
        Scalar, differentiable in the three terms.
    """
    return ce + _constant(beta, gdkd) * gdkd + _constant(omega, rcka) * rcka


def _constant(weight: torch.Tensor | float, term: torch.Tensor) -> torch.Tensor | float:
    return weight.detach().to(term) if isinstance(weight, torch.Tensor) else weight
