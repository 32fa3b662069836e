"""What the deployment benchmark measures, and how often."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from grace.errors import InputError
from replication.base.messages import unknown
from replication.plan.architectures import TEXT_TOKENS

DEVICES = ("auto", "cpu", "cuda")


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
        image: whether the prompt has an image; without one all engines read the same.
        text_tokens: words in the prompt beside the image.
        rounds: how often all variants take their turn; what is measured in each is pooled.
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
    image: bool = True
    text_tokens: int = TEXT_TOKENS
    rounds: int = 1
    seed: int = 0
    layers: int | None = None
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        least = {"repeats": 1, "decode_repeats": 1, "tokens": 1, "text_tokens": 1, "rounds": 1}
        if self.layers is not None:
            least["layers"] = 1
        for name, low in {**least, "seed": 0, "threads": 0}.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise ValueError(
                    f"{name} is {value!r}; it must be a whole number of at least {low}"
                )
        for name in ("repeat_seconds", "prompt_seconds"):
            value = getattr(self, name)
            if type(value) not in (int, float) or not 0 < value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a number of seconds above 0")
        if type(self.image) is not bool:
            raise ValueError(f"image is {self.image!r}; it must be true or false")
        batches = self.batches
        if not batches or any(type(one) is not int or one < 1 for one in batches):
            raise ValueError(f"batches {batches}: give whole numbers of at least 1")
        if list(batches) != sorted(set(batches)):
            raise ValueError(f"batches {batches}: give each once, in ascending order")
        if self.device not in DEVICES:
            raise ValueError(unknown(f"device {self.device!r}", self.device, DEVICES))
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
    known = [field.name for field in fields(Settings)]
    for name in values:
        if name not in known:
            raise InputError(unknown(f"setting {name!r} of the benchmark", name, known))
    if "batches" in values:
        values["batches"] = tuple(values["batches"])  # JSON has lists
    try:
        return Settings(**values)
    except ValueError as error:
        raise InputError(f"settings of the benchmark: {error}") from None
