"""Names that a reader knows things by.

A small model is never named after the published one that it stands for: it has the published
model's classes, and says its size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from replication.base.scales import FULL_SCALE
from replication.results.training_logs import read_parameters

FAMILIES = {"llava": "LLaVA-1.5", "qwen2_vl": "Qwen2-VL", "qwen3_vl": "Qwen3-VL"}
"""A published family's printed name."""
_OTHERS = {"pair2": "second pair", "world2": "second world"}
"""What stands behind a family's name in that of a pair beside the headline one."""
ROLES = ("teacher", "baseline")


def parameters_text(count: int | None) -> str:
    """A count of parameters in words: 812544 is '0.8 M parameters'."""
    if count is None:
        return "size not logged"
    if count >= 1e9:
        return f"{count / 1e9:.1f} B parameters"
    if count >= 1e5:
        return f"{count / 1e6:.1f} M parameters"
    return f"{count / 1e3:.0f} k parameters"


def classes_text(pair: str) -> str:
    """The classes of a pair's models: 'Qwen2-VL classes', 'Qwen2-VL classes, second pair'."""
    family = next((name for name in FAMILIES if pair == name or pair.startswith(f"{name}_")), "")
    other = pair.removeprefix(family).strip("_")
    words = [f"{FAMILIES[family]} classes"] if family else []
    return ", ".join([*words, *([_OTHERS.get(other, other.replace("_", " "))] if other else [])])


def standin_name(role: str, parameters: int | None, pair: str) -> str:
    """A small model's name: 'teacher, 0.8 M parameters, Qwen2-VL classes'."""
    return f"{role}, {parameters_text(parameters)}, {classes_text(pair)}"


@dataclass(frozen=True)
class Models:
    """The two models of a pair, as they are called at a scale.

    Attributes:
        pair: Teacher and baseline of one family.
        standins: Whether they are small models, not the published ones.
        parameters: Counted, by role.
    """

    pair: str
    standins: bool
    parameters: Mapping[str, int | None]

    def name(self, role: str) -> str:
        """One of them; at full scale 'Qwen2-VL teacher'."""
        if not self.standins:
            return f"{FAMILIES.get(self.pair, self.pair)} {role}"
        return standin_name(role, self.parameters[role], self.pair)

    @property
    def group(self) -> str:
        """What the two have in common: 'Qwen2-VL classes'; at full scale 'Qwen2-VL'."""
        return classes_text(self.pair) if self.standins else FAMILIES.get(self.pair, self.pair)

    @property
    def size(self) -> str:
        """Of the baseline, and so of every student."""
        return parameters_text(self.parameters["baseline"])

    @property
    def both(self) -> str:
        """'Stand-ins: teacher 0.8 M, baseline 0.4 M parameters, Qwen2-VL classes'."""
        if not self.standins:
            return self.group
        unit = " parameters"
        sizes = (f"{role} {parameters_text(self.parameters[role])}" for role in ROLES)
        words = ", ".join(size.removesuffix(unit) for size in sizes)
        unit = "" if None in self.parameters.values() else unit
        return f"Stand-ins: {words}{unit}, {self.group}"

    def record(self) -> dict[str, dict[str, str | int | None]]:
        """What a table's JSON says of them; nothing of published models."""
        if not self.standins:
            return {}
        return {
            role: {
                "name": self.name(role),
                "parameters": self.parameters[role],
                "size": parameters_text(self.parameters[role]),
            }
            for role in ROLES
        }


def read_models(results: Path, scale: str, pair: str) -> Models:
    """The models of a pair, with the sizes that their training logs have."""
    sizes = {role: read_parameters(results, scale, pair, role) for role in ROLES}
    return Models(pair, scale != FULL_SCALE, sizes)
