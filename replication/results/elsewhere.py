"""Results recorded on other devices: where they lie, and how they are read.

    <recorded>/<device>/<scale>/scores/...      as `replication.results.scores` describes them,
    <recorded>/<device>/<scale>/outcomes/...    with `evidence` "recorded"

A device's folder is a folder of results like any other. Its name is made of the name of the device
that trained the models, which every score file names (`provenance.trained_on`).
`python -m replication.record --import` writes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from grace.errors import InputError
from replication.base.scales import check_scale
from replication.results.scores import ResultSet

RECORDED = "recorded"
TRAINED_ON = "trained_on"


def slug_of(device: str) -> str:
    """A device's name as the name of a folder: 'NVIDIA H100 PCIe' is nvidia-h100-pcie.

    Raises:
        InputError: for a name without letters or digits.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    if not slug:
        raise InputError(f"the device {device!r} has no name to make a folder of")
    return slug


@dataclass(frozen=True)
class Recording:
    """What was recorded with one device at one scale.

    Attributes:
        device: that trained the models.
        results: scores and outcomes.
    """

    device: str
    results: ResultSet

    @property
    def slug(self) -> str:
        """The name of the device's folder."""
        return slug_of(self.device)


def read_recordings(folder: str | Path, scale: str) -> list[Recording]:
    """All recordings of a scale, in the order of their folders; none if ``folder`` does not exist.

    Raises:
        InputError: for files that are wrong in themselves, that are not recorded, or that were
            trained on another device than their place says.
    """
    check_scale(scale)
    recordings = []
    for place in sorted(Path(folder).glob(f"[!.]*/{scale}/scores")):
        own = place.parent.parent
        results = ResultSet(own, scale)
        scores = results.all()
        if not scores:
            raise InputError(f"{place} holds no scores; import them again, or remove the folder")
        for score in scores:
            where = f"{place}: {score.family}/{score.run}"
            if score.evidence != RECORDED:
                raise InputError(f"{where} is {score.evidence}, not {RECORDED}; import it")
            device = score.provenance.get(TRAINED_ON)
            if not isinstance(device, str) or slug_of(device) != own.name:
                raise InputError(f"{where} was trained on {device!r}, its folder says {own.name}")
        recordings.append(Recording(scores[0].provenance[TRAINED_ON], results))
    return recordings
