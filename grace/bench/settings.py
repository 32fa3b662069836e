"""What is measured, and how often."""

import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What every format is asked.

    Attributes:
        device: "cpu" or "cuda".
        threads: Of the CPU.
        image: Path of the picture; None is noise.
        prompt: The question about it.
        batch_size: Rows decoded together.
        tokens: Decoded in a run.
        repeats: Of the prompt and of a run of tokens.
    """

    device: str
    threads: int
    image: str | None
    prompt: str
    batch_size: int
    tokens: int
    repeats: int

    def picture(self) -> Any:
        """The picture that is asked about."""
        from grace.data.images import read_image

        return noise() if self.image is None else read_image(self.image, self.image)


def noise() -> Any:
    """A picture of 336 by 336 random pixels, always the same."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (336, 336, 3), dtype=np.uint8))


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and greatest."""
    return {"median": statistics.median(values), "low": min(values), "high": max(values)}


@contextmanager
def progress(label: str, steps: int) -> Iterator[Callable[[], Any]]:
    """A bar on standard error; what it gives is called after every step."""
    from tqdm import tqdm

    with tqdm(total=steps, desc=label, file=sys.stderr, leave=False) as bar:
        yield bar.update
