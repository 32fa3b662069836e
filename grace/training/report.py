"""What a trained directory says of itself: training.json and the model card."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grace.files import file_sha256, read_json, write_json
from grace.quantization import CODES_FILE
from grace.training.arguments import Options
from grace.training.card import model_card
from grace.training.checks import Source
from grace.training.manifest import plain, versions
from grace.training.method import MethodConfig

REPORT_FILE = "training.json"


@dataclass(frozen=True)
class Run:
    """A run that is complete.

    Attributes:
        options: Its options.
        method: Its method.
        student: The student before training.
        teacher: The teacher; None without one.
        made_with: What it was made with.
        history: The trainer's log.
        device: Where it ran.
    """

    options: Options
    method: MethodConfig
    student: Source
    teacher: Source | None
    made_with: dict[str, Any]
    history: list[dict[str, Any]]
    device: str


def write_report(run: Run, directory: Path) -> None:
    """Write training.json and README.md into a directory that has the model already."""
    report = training_report(run, directory)
    write_json(directory / REPORT_FILE, report)
    (directory / "README.md").write_text(model_card(report), encoding="utf-8")


def training_report(run: Run, directory: Path) -> dict[str, Any]:
    """The content of training.json.

    Args:
        run: The run.
        directory: Where its model is.
    """
    given, decided = run.options, run.made_with["result"]
    before = run.student.directory / REPORT_FILE
    codes = directory / CODES_FILE
    model = {"name": run.student.name, "files": decided["model"]}
    if before.is_file():  # a student that was trained before: what it comes from
        model["trained_from"] = {
            key: value for key, value in read_json(before).items() if key in ("model", "method")
        }
    return plain(
        {
            "name": given.run.out,
            "family": run.student.config.model_type,
            "model": model,
            "teacher": None
            if run.teacher is None
            else {"name": run.teacher.name, **(decided["teacher"] or {})},
            "data": {**asdict(given.data), **decided["data"]},
            "method": asdict(run.method),
            "training": given.trainer.to_dict(),
            "samples_per_step": decided["samples of an optimizer step"],
            "processes": given.trainer.world_size,
            "device": run.device,
            "versions": versions(),
            "codes_sha256": file_sha256(codes) if codes.is_file() else None,
            "history": run.history,
        }
    )
