"""What the rows that are not GRACE must show, by family (calibration.yaml): the world's acceptance.

load_calibration().families["qwen2_vl"].rows[0].name      # "teacher"
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.files import write_text_atomic
from replication.base.validation import Number, Text, record, validate

PATH = Path(__file__).with_name("calibration.yaml")

Quantity = Literal[
    "level",
    "difference",
    "above_chance",
    "entropy_error",
    "calibration_error",
    "token_entropy",
    "passes",
]

_NAMES = {
    "entropy_error": "entropy against error on ScienceQA, r",
    "calibration_error": "teacher's expected calibration error",
    "token_entropy": "teacher's entropy at supervised tokens, nats",
    "passes": "passes over the methods' data",
}


@record
class Asked:
    """What a row asks: a value with a tolerance, or bounds, of which one may be missing.

    Attributes:
        value: that is reported.
        tolerance: either way.
        low: the least that is allowed.
        high: the most.
    """

    value: Number | None = None
    tolerance: Annotated[Number, Field(gt=0)] | None = None
    low: Number | None = None
    high: Number | None = None

    def __post_init__(self) -> None:
        bounded = self.low is not None or self.high is not None
        if (self.value is None) != (self.tolerance is None) or (self.value is None) != bounded:
            raise InputError("give a value and its tolerance, or low, high or both")

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the most that is allowed; infinite where there is no bound."""
        if self.value is not None and self.tolerance is not None:
            return self.value - self.tolerance, self.value + self.tolerance
        low = float("-inf") if self.low is None else self.low
        return low, float("inf") if self.high is None else self.high


@record
class CalibrationRow:
    """One row that is not GRACE.

    Attributes:
        quantity: what is measured.
        asked: of it.
        source: where the number stands.
        reason: for the tolerance.
        run: of a level, a difference or above_chance.
        against: of a difference.
    """

    quantity: Quantity
    asked: Asked
    source: Text
    reason: Text
    run: Text | None = None
    against: Text | None = None

    def __post_init__(self) -> None:
        needed = {
            "run": self.quantity in ("level", "difference", "above_chance"),
            "against": self.quantity == "difference",
        }
        for key, wanted in needed.items():
            if (getattr(self, key) is not None) != wanted:
                what = "needs" if wanted else "takes no"
                raise InputError(f"{self.quantity} {what} key {key!r}")

    @property
    def name(self) -> str:
        """What is measured, in words."""
        if self.quantity == "level":
            return str(self.run)
        if self.quantity == "difference":
            return f"{self.run} - {self.against}"
        if self.quantity == "above_chance":
            return f"{self.run} above chance, on its worst benchmark"
        return _NAMES[self.quantity]


@record
class FamilyCalibration:
    """The rows of one family.

    Attributes:
        benchmarks: whose average the scores are of, as printed.
        rows: in the order in which they are shown.
    """

    benchmarks: Annotated[list[Text], Field(min_length=1)]
    rows: Annotated[list[CalibrationRow], Field(min_length=1)]


@record
class Calibration:
    """All of calibration.yaml.

    Attributes:
        families: by name.
        world_commit: the commit that fixed the world that met the rows; None before.
        world_params: hash of the parameters that make this world.
    """

    families: dict[Text, FamilyCalibration]
    world_commit: Text | None = None
    world_params: Text | None = None


@cache
def load_calibration(path: Path = PATH) -> Calibration:
    """Read and check calibration.yaml.

    Raises:
        InputError: in one line that names the place, the value and the mend.
    """
    return validate(Calibration, read_yaml(path), path.name)


def record_world(commit: str, params: str, path: Path = PATH) -> None:
    """Write the commit that fixed the world, and the hash of its parameters, into the file."""
    text = path.read_text(encoding="utf-8")
    for key, value in (("world_commit", commit), ("world_params", params)):
        text = re.sub(rf"(?m)^{key}: .*$", f'{key}: "{value}"', text)
    write_text_atomic(path, text)
    load_calibration.cache_clear()
