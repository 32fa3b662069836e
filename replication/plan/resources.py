"""What the cost of a run depends on beside parameters and shapes: resources.yaml."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, Strict

from grace.errors import InputError
from grace.files import read_yaml
from replication.base.validation import Flag, Positive, Text, record, validate

PATH = Path(__file__).with_name("resources.yaml")

Amount = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False)]


@record
class Device:
    """An accelerator by its data sheet.

    Attributes:
        flops: dense bfloat16 operations a second.
        bandwidth: of its memory, bytes a second.
        memory: bytes.
        utilisation: the share of `flops` that training reaches.
        source: where the numbers are from.
    """

    flops: Amount
    bandwidth: Amount
    memory: Amount
    utilisation: Amount
    source: Text

    def seconds(self, flops: float, traffic: float = 0.0) -> float:
        """flops / (rate × utilisation) + traffic / bandwidth."""
        return flops / (self.flops * self.utilisation) + traffic / self.bandwidth


@record
class Archive:
    """An archive of images.

    Attributes:
        bytes: its size.
        source: where the size is from.
        estimated: no source states it.
    """

    bytes: Amount
    source: Text
    estimated: Flag = False


@record
class Corpus:
    """Training conversations; `bytes`, `source` and `estimated` as of an `Archive`.

    Attributes:
        samples: number of conversations.
        text_tokens: words of a conversation.
        supervised: words of a conversation that are targets.
        visual_pixels: of a mean image.
        licence: as the repository's page states it.
        gated: whether the licence has to be accepted first.
        images: archives that the conversations refer to.
    """

    samples: Positive
    text_tokens: Amount
    supervised: Amount
    visual_pixels: Amount
    bytes: Amount
    source: Text
    licence: Text
    gated: Flag
    images: Mapping[str, Archive]
    estimated: Flag = False


@record
class Checkpoint:
    """A published model's repository on the hub.

    Attributes:
        licence: as its page states it.
        gated: whether the licence has to be accepted first.
        bytes_per_weight: of its files.
    """

    licence: Text
    gated: Flag
    bytes_per_weight: Amount


@record
class Questions:
    """A benchmark's questions; `bytes`, `source` and `estimated` as of an `Archive`.

    Attributes:
        answer_tokens: of a mean answer, assumed.
        questions: rows that are asked, where they are more than those that are scored.
    """

    answer_tokens: Amount
    bytes: Amount
    source: Text
    questions: Positive | None = None
    estimated: Flag = False


@record
class Resources:
    """All of resources.yaml.

    Attributes:
        devices: accelerators by name.
        corpus: training data by repository.
        checkpoints: published models by repository.
        benchmarks: questions by benchmark.
        question_tokens: words of a question beside its image.
        question_pixels: of a question's image.
        environment_bytes: of the installed packages.
        checkpoint_copies: copies of a run's training state on disk while it is saved.
    """

    devices: Mapping[str, Device]
    corpus: Mapping[str, Corpus]
    checkpoints: Mapping[str, Checkpoint]
    benchmarks: Mapping[str, Questions]
    question_tokens: Amount
    question_pixels: Amount
    environment_bytes: Amount
    checkpoint_copies: Positive

    def device_name(self, name: str) -> str:
        """The device that a name contains, as 'NVIDIA A100-SXM4-80GB' does A100.

        Raises:
            InputError: naming the known devices, for another.
        """
        if name in self.devices:
            return name
        matches = [known for known in self.devices if known.split("-", maxsplit=1)[0] in name]
        if not matches:
            raise InputError(
                f"no rate is known of device {name!r}; choose of {', '.join(self.devices)}, or "
                f"add it to {PATH.name}"
            )
        return matches[-1] if "40GB" in name else matches[0]

    def device(self, name: str) -> Device:
        """A device by a name that contains its own; errors: see `device_name`."""
        return self.devices[self.device_name(name)]


@functools.cache
def load_resources(path: Path = PATH) -> Resources:
    """The content of resources.yaml.

    Raises:
        InputError: naming the entry that is missing, unknown or out of range.
    """
    return validate(Resources, read_yaml(path), path.name)
