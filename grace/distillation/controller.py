"""The multiplier of the information-bottleneck constraint, raised and lowered by dual ascent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from grace.distillation._common import check_count, check_number
from grace.errors import InputError


class IBController:
    """Adaptive weight of the distillation term (Eq. 15-20): min CE subject to GDKD <= tau.

    Examples:
        >>> from grace.distillation import IBController
        >>> controller = IBController(
        ...     tau=0.35, eta=0.0015, beta_init=1.0, beta_min=0.1, beta_max=5.0
        ... )
        >>> controller.update(1.35)  # above the constraint: the multiplier rises
        tensor(1.0015, dtype=torch.float64)

    Once per optimizer step::

        EMA  <- ema_decay * EMA + (1 - ema_decay) * GDKD
        beta <- clip(beta + eta * (EMA - tau), beta_min, beta_max)

    The first finite loss initialises the EMA: started at zero it would report the constraint as met
    for hundreds of steps. A non-finite loss changes neither beta nor the EMA and is counted in
    `skipped`.

    The state is float64 tensors and `update` branches on the device, so that a CUDA loss needs no
    host synchronisation; the state follows the device of the loss. Under data parallelism every
    rank must pass the same, globally reduced loss.

    Args:
        tau: The constraint, in the units of GDKD (temperature² included); >= 0.
        eta: Step size of the dual ascent; >= 0.
        beta_init: The multiplier before the first step, from beta_min to beta_max.
        beta_min: Lower bound of the multiplier; >= 0.
        beta_max: Upper bound of the multiplier; >= beta_min.
        ema_decay: Decay of the moving average of the loss, in [0, 1).

    Raises:
        InputError: An illegal value; the message names the field, the value and the legal range.
    """

    def __init__(  # noqa: PLR0917
        self,
        tau: float,
        eta: float,
        beta_init: float,
        beta_min: float,
        beta_max: float,
        ema_decay: float = 0.99,
    ) -> None:
        self.tau = check_number("tau", tau, low=0.0)
        self.eta = check_number("eta", eta, low=0.0)
        self.beta_min = check_number("beta_min", beta_min, low=0.0)
        self.beta_max = check_number("beta_max", beta_max, low=self.beta_min)
        self.ema_decay = check_number("ema_decay", ema_decay, low=0.0, high=1.0, high_open=True)
        first = check_number("beta_init", beta_init, low=self.beta_min, high=self.beta_max)
        self._beta = torch.tensor(first, dtype=torch.float64)
        self._ema = torch.zeros((), dtype=torch.float64)
        self._observations = torch.zeros((), dtype=torch.long)
        self._skipped = torch.zeros((), dtype=torch.long)

    @property
    def beta(self) -> torch.Tensor:
        """The multiplier, float64 scalar."""
        return self._beta.clone()

    @property
    def ema(self) -> torch.Tensor:
        """Moving average of the loss, float64 scalar; 0 before the first observation."""
        return self._ema.clone()

    @property
    def observations(self) -> torch.Tensor:
        """Number of finite losses so far, integer scalar."""
        return self._observations.clone()

    @property
    def skipped(self) -> torch.Tensor:
        """Number of non-finite losses so far, integer scalar."""
        return self._skipped.clone()

    def to(self, device: torch.device | str) -> IBController:
        """Move the state; returns self."""
        self._beta, self._ema = self._beta.to(device), self._ema.to(device)
        self._observations = self._observations.to(device)
        self._skipped = self._skipped.to(device)
        return self

    def update(self, loss: torch.Tensor | float) -> torch.Tensor:
        """One step of the dual ascent.

        Args:
            loss: GDKD of one optimizer step, a number or a tensor of one element.

        Returns:
            beta, float64 scalar without gradient.
        """
        if isinstance(loss, torch.Tensor):
            assert loss.numel() == 1, tuple(loss.shape)
            loss = loss.detach()
            self.to(loss.device)
        observed = torch.as_tensor(loss, dtype=torch.float64, device=self._beta.device).reshape(())

        finite = observed.isfinite()
        average = self.ema_decay * self._ema + (1.0 - self.ema_decay) * observed
        average = torch.where(self._observations == 0, observed, average)
        # nan_to_num: the difference of two finite numbers can overflow, and 0 * inf is undefined.
        step = self.eta * torch.nan_to_num(average - self.tau)
        beta = (self._beta + step).clamp(self.beta_min, self.beta_max)

        self._beta = torch.where(finite, beta, self._beta)
        self._ema = torch.where(finite, average, self._ema)
        self._observations = self._observations + finite
        self._skipped = self._skipped + ~finite
        return self.beta

    def state_dict(self) -> dict[str, Any]:
        """The state as plain floats and ints, which JSON keeps exactly. Waits for the device."""
        return {
            "beta": self._beta.item(),
            "ema": self._ema.item(),
            "observations": self._observations.item(),
            "skipped": self._skipped.item(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            InputError: Missing or unknown entries, or values this controller cannot hold (such as
                a beta outside its bounds); the state is then unchanged.
        """
        names = {"beta", "ema", "observations", "skipped"}
        if set(state) != names:
            raise InputError(
                f"the controller's state has entries {sorted(state)}; give {sorted(names)}"
            )
        beta = check_number("beta", state["beta"], low=self.beta_min, high=self.beta_max)
        ema = check_number("ema", state["ema"])
        observations = check_count("observations", state["observations"])
        skipped = check_count("skipped", state["skipped"])
        device = self._beta.device
        self._beta = torch.tensor(beta, dtype=torch.float64, device=device)
        self._ema = torch.tensor(ema, dtype=torch.float64, device=device)
        self._observations = torch.tensor(observations, device=device)
        self._skipped = torch.tensor(skipped, device=device)
