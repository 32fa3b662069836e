"""Result files, read for figures: what is missing is `NotRun`, what is wrong an `InputError`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import read_json
from replication.base.scales import FULL_SCALE, check_scale
from replication.paper import AVERAGE
from replication.report.figures.figure import NotRun
from replication.report.tables.deployments import deployment_reports, ordered
from replication.results.deployment import RESULT

STUDENTS = {"llava": "llava-1.5-7b", "qwen2_vl": "qwen2-vl-2b", "qwen3_vl": "qwen3-vl-2b"}
"""The published architecture that a family's student stands for."""
MODELS = {"llava-1.5-7b": "LLaVA-1.5-7B", "qwen2-vl-2b": "Qwen2-VL-2B",
          "qwen3-vl-2b": "Qwen3-VL-2B", "llava-1.5-13b": "LLaVA-1.5-13B",
          "qwen2-vl-7b": "Qwen2-VL-7B", "qwen3-vl-8b": "Qwen3-VL-8B"}  # fmt: skip


def source(results: Path, path: Path) -> str:
    """A result file's path relative to the repository."""
    return (Path("results") / path.relative_to(results)).as_posix()


def read_table(results: Path, scale: str, name: str) -> Mapping[str, Any]:
    """A finished table (`replication.report.tables.files`) of the scale.

    Raises NotRun where it was not written, InputError for a file that is no table.
    """
    path = table_path(results, scale, name)
    if not path.is_file():
        raise NotRun(f"there is no table {name}: run the stage tables")
    data = read_json(path)
    if not isinstance(data, dict) or not {"columns", "rows", "footnotes"} <= set(data):
        raise InputError(f"{path} is no table; run the stage tables again")
    return data


def table_path(results: Path, scale: str, name: str) -> Path:
    return Path(results) / check_scale(scale) / "tables" / f"{name}.json"


@dataclass(frozen=True)
class Accuracy:
    """A run's average accuracy in percent.

    low, high: the 95 % interval of its difference from the baseline, added to the baseline's
    accuracy; None for the baseline.
    """

    run: str
    bits: int
    point: float
    low: float | None
    high: float | None
    n: int
    seeds: int

    def record(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "bits": self.bits,
            "accuracy": self.point,
            "low": self.low,
            "high": self.high,
            "n": self.n,
            "seeds": self.seeds,
        }

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the point: the interval is that of a
        difference, which includes its own point."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return max(0.0, self.point - self.low), max(0.0, self.high - self.point)


def accuracies(table: Mapping[str, Any]) -> dict[str, Accuracy]:
    """The averages of a table's rows that were measured, by run; empty without a baseline."""
    rows = {row["run"]: row for row in table["rows"] if row["run"] is not None}
    base = rows.get("baseline", {"cells": {AVERAGE: {"measured": None}}})["cells"][AVERAGE]
    if base["measured"] is None:
        return {}
    found = {}
    for run, row in rows.items():
        cell = row["cells"][AVERAGE]
        if cell["measured"] is None:
            continue
        low, high = cell["delta_low"], cell["delta_high"]
        found[run] = Accuracy(
            run=run,
            bits=row["bits"],
            point=cell["measured"],
            low=None if low is None else base["measured"] + low,
            high=None if high is None else base["measured"] + high,
            n=cell["n"],
            seeds=len(cell["seeds"]),
        )
    return found


def averaged(table: Mapping[str, Any]) -> list[str]:
    """The benchmarks that a table's average is of."""
    column = next(one for one in table["columns"] if one["name"] == AVERAGE)
    return list(column["benchmarks"])


def is_standin(table: Mapping[str, Any]) -> bool:
    return any(column["standin"] for column in table["columns"])


def deployments(
    results: Path, scale: str, models: Sequence[str]
) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """By model, in the order of `models`, those that were measured: (report, its variants that
    were run, by name). Raises InputError for a deployment result that is wrong in itself."""
    found = {}
    for report in deployment_reports(results, scale):
        for model, content in report["models"].items():
            ran = {
                name: part
                for name, part in ordered(content["variants"]).items()
                if "not_run" not in part
            }
            if ran:
                found[model] = (report, ran)
    return {model: found[model] for model in models if model in found}


def deployment_source(results: Path, scale: str, model: str) -> str:
    return source(results, Path(results) / scale / "deploy" / model / RESULT)


def built(model: str, report: Mapping[str, Any]) -> str:
    """A model's printed name, and how much of it was built where that is not all."""
    layers = report["settings"]["layers"]
    name = MODELS.get(model, model)
    return name if layers is None else f"{name}, {layers} layer{'' if layers == 1 else 's'} only"


def standins(scale: str, standin: bool) -> str:
    """What has to be said beside every accuracy that was not measured on the published models."""
    said = []
    if standin:
        said.append("Benchmarks are stand-ins: procedural questions in the official schema.")
    if scale != FULL_SCALE:
        said.append(
            f"Measured at scale {scale}: small models trained from scratch, named after those they "
            "stand for; levels are not comparable with reported ones, signs and orders are."
        )
    return " ".join(said)


def counted(numbers: Iterable[int], word: str) -> str:
    """'1 seed', '3 seeds', '1 to 3 seeds'."""
    low, high = min(found := list(numbers)), max(found)
    return f"{low if low == high else f'{low} to {high}'} {word}{'' if high == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
