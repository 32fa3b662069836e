"""What the deployment benchmark measures, and how often."""

from dataclasses import asdict
from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from replication.base.validation import Positive, record, validate
from replication.plan.architectures import TEXT_TOKENS


@record
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
        image: whether the prompt has an image; without one all engines read the same.
        text_tokens: words in the prompt beside the image.
        rounds: how often all variants take their turn; what is measured in each is pooled.
        seed: of weights and prompt.
        layers: build only so many, to try things out: such numbers are of no published model.
        device: "cpu", "cuda", or "auto", which is CUDA where there is one.
        threads: of the CPU; 0: torch's choice.
    """

    batches: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 4, 16)
    repeats: Positive = 3
    decode_repeats: Positive = 5
    tokens: Positive = 16
    repeat_seconds: float = 12.0
    prompt_seconds: float = 120.0
    image: bool = True
    text_tokens: Positive = TEXT_TOKENS
    rounds: Positive = 1
    seed: int = 0
    layers: Positive | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if list(self.batches) != sorted(set(self.batches)):
            raise ValueError(f"batches {self.batches}: give each once, in ascending order")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device cuda: torch sees no CUDA device here; choose cpu")

    def torch_device(self) -> torch.device:
        """The device that is measured."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON has them."""
        return {**asdict(self), "batches": list(self.batches)}


def read_settings(**values: Any) -> Settings:
    """Settings from values of any origin.

    Raises:
        InputError: naming the value that is unknown or out of range.
    """
    return validate(Settings, values, "settings of the benchmark")
