"""What the deployment benchmark measures, and how often."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from grace.errors import InputError
from replication.plan.architectures import TEXT_TOKENS


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    Attributes:
        batches: decoded at these batch sizes.
        repeats: number of prefills.
        decode_repeats: number of runs of tokens, each from the end of the same prompt.
        tokens: in a run, at most.
        repeat_seconds: a run has fewer tokens where it would take longer, and there are fewer runs
            where they took several times that long.
        prompt_seconds: a peer that would read the prompt for longer is not run.
        text_tokens: words in the prompt beside the image.
        seed: of weights and prompt.
        layers: build only so many, to try things out: such numbers are of no published model.
        device: "cpu", "cuda", or "auto", which is CUDA where there is one.
        threads: of the CPU; 0: torch's choice.
    """

    batches: tuple[int, ...] = (1, 4, 16)
    repeats: int = 3
    decode_repeats: int = 5
    tokens: int = 16
    repeat_seconds: float = 12.0
    prompt_seconds: float = 120.0
    text_tokens: int = TEXT_TOKENS
    seed: int = 0
    layers: int | None = None
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        counts: list[tuple[str, Any]] = [("batches", batch) for batch in self.batches or (None,)]
        counts += [(name, getattr(self, name)) for name in ("repeats", "decode_repeats", "tokens")]
        if self.layers is not None:
            counts.append(("layers", self.layers))
        for name, value in counts:
            if type(value) is not int or value < 1:
                raise InputError(f"{name}: {value!r} is no whole number from 1")
        if list(self.batches) != sorted(set(self.batches)):
            raise InputError(f"batches {self.batches}: give each once, in ascending order")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: torch sees no CUDA device here; choose cpu")

    def torch_device(self) -> torch.device:
        """The device that is measured."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**asdict(self), "batches": list(self.batches)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Settings":
        """Settings from what `to_dict` gives."""
        return cls(**{**values, "batches": tuple(values["batches"])})
