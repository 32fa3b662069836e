"""Result files, read for figures: what is missing is `NotRun`, what is wrong an `InputError`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grace.errors import InputError
from replication.base.files import read_json
from replication.base.scales import FULL_SCALE
from replication.paper import AVERAGE
from replication.report.figures.figure import Figure, NotRun, command_of
from replication.report.figures.style import reach
from replication.report.names import FAMILIES, Models, read_models
from replication.report.tables.deployments import deployment_reports, ordered

STUDENTS = {"llava": "llava-1.5-7b", "qwen2_vl": "qwen2-vl-2b", "qwen3_vl": "qwen3-vl-2b"}
"""The published architecture that a family's student stands for."""
MODELS = {"llava-1.5-7b": "LLaVA-1.5-7B", "qwen2-vl-2b": "Qwen2-VL-2B",
          "qwen3-vl-2b": "Qwen3-VL-2B", "llava-1.5-13b": "LLaVA-1.5-13B",
          "qwen2-vl-7b": "Qwen2-VL-7B", "qwen3-vl-8b": "Qwen3-VL-8B"}  # fmt: skip


@dataclass(frozen=True)
class Inputs:
    """The results of a scale that figures are drawn from.

    Attributes:
        results: The folder of results.
        scale: The scale's name.
        family: The family shown where only one is, and first where all are.
    """

    results: Path
    scale: str
    family: str

    @property
    def families(self) -> list[str]:
        """All families, the one that is shown alone before the others."""
        return [self.family, *(name for name in FAMILIES if name != self.family)]

    def models(self, family: str) -> Models:
        """Teacher and baseline of a family, as they are called at this scale."""
        return read_models(self.results, self.scale, family)

    def named(self, family: str) -> str:
        """The models of a family: 'Qwen2-VL classes', or of published ones 'Qwen2-VL'."""
        return self.models(family).group

    def figure(self, families: Iterable[str] = (), **content: Any) -> Figure:
        """A figure of these results; ``families`` are those whose trained models it shows."""
        shown = [self.models(family) for family in families]
        models = tuple(one.both for one in shown if one.standins)
        return Figure(**{"command": command_of(self.scale), "models": models, **content})

    def source(self, place: str | Path) -> str:
        """A result file's path relative to the repository; ``place`` is within the scale's."""
        return (Path("results") / self.scale / place).as_posix()

    def deployment_source(self, model: str) -> str:
        return self.source(f"deploy/{model}/deploy.json")

    def table(self, name: str, of_one_family: str = "") -> Mapping[str, Any]:
        """A finished table (`replication.report.tables.files`) of the scale.

        Args:
            name: The table's short name.
            of_one_family: What the table has of one family alone, in words.

        Raises:
            NotRun: where it was not written, or is of another family.
            InputError: for a file that is no table.
        """
        path = self.results / self.scale / "tables" / f"{name}.json"
        if not path.is_file():
            raise NotRun(f"there is no table {name}: run the stage tables")
        data = read_json(path)
        if not isinstance(data, dict) or not {"columns", "rows", "footnotes"} <= set(data):
            raise InputError(f"{path} is no table; run the stage tables again")
        if of_one_family and data["family"] != self.family:
            raise NotRun(f"{of_one_family} in {data['family']}, not in {self.family}")
        return data

    def deployments(
        self, models: Sequence[str]
    ) -> dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]]:
        """By model, in the order of ``models``, those measured: (report, its variants that ran).

        Raises:
            InputError: for a deployment result that is wrong in itself.
        """
        measured = {}
        for report in deployment_reports(self.results, self.scale):
            for model, content in report["models"].items():
                variants = ordered(content["variants"]).items()
                if ran := {name: part for name, part in variants if "not_run" not in part}:
                    measured[model] = (report, ran)
        return {model: measured[model] for model in models if model in measured}

    def reservations(self, standin: bool = False) -> str:
        """What has to be said beside accuracies that were not measured on the published models."""
        sentences = []
        if standin:
            sentences.append(
                "Benchmarks are stand-ins: procedural questions in the official schema."
            )
        if self.scale != FULL_SCALE:
            sentences.append(
                f"Measured at scale {self.scale} on small models trained from scratch, stand-ins "
                "for the published ones; levels are not comparable with reported ones, signs and "
                "orders are."
            )
        return " ".join(sentences)


@dataclass(frozen=True)
class Accuracy:
    """A run's average accuracy in percent.

    Attributes:
        run: The run's name.
        bits: Of a decoder weight.
        accuracy: The average.
        low: The lower end of the 95 % interval of its difference from the baseline, added to the
            baseline's accuracy; None for the baseline.
        high: The upper end.
        n: Questions.
        seeds: Seeds.
    """

    run: str
    bits: int
    accuracy: float
    low: float | None
    high: float | None
    n: int
    seeds: int

    @property
    def reach(self) -> tuple[float, float]:
        """How far the interval goes below and above the accuracy."""
        if self.low is None or self.high is None:
            return 0.0, 0.0
        return reach(self.accuracy, self.low, self.high)


def accuracies(table: Mapping[str, Any]) -> dict[str, Accuracy]:
    """The averages of a table's rows that were measured, by run; empty without a baseline."""
    rows = {row["run"]: row for row in table["rows"] if row["run"] is not None}
    cells = {run: row["cells"][AVERAGE] for run, row in rows.items()}
    base = cells["baseline"]["measured"] if "baseline" in cells else None
    return {
        run: Accuracy(
            run=run,
            bits=rows[run]["bits"],
            accuracy=cell["measured"],
            low=None if cell["delta_low"] is None else base + cell["delta_low"],
            high=None if cell["delta_high"] is None else base + cell["delta_high"],
            n=cell["n"],
            seeds=len(cell["seeds"]),
        )
        for run, cell in cells.items()
        if base is not None and cell["measured"] is not None
    }


def averaged(table: Mapping[str, Any]) -> list[str]:
    """The benchmarks that a table's average is of."""
    column = next(column for column in table["columns"] if column["name"] == AVERAGE)
    return list(column["benchmarks"])


def is_standin(table: Mapping[str, Any]) -> bool:
    return any(column["standin"] for column in table["columns"])


def built(model: str, report: Mapping[str, Any]) -> str:
    """A model's printed name, and how much of it was built where that is not all."""
    layers = report["settings"]["layers"]
    name = MODELS.get(model, model)
    return name if layers is None else f"{name}, {layers} layer{'' if layers == 1 else 's'} only"


def counted(numbers: Iterable[int], word: str) -> str:
    """'1 seed', '3 seeds', '1 to 3 seeds'."""
    numbers = list(numbers)
    low, high = min(numbers), max(numbers)
    return f"{low if low == high else f'{low} to {high}'} {word}{'' if high == 1 else 's'}"


def listed(words: Sequence[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else list(words))
