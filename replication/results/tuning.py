"""What the stage ``tuning`` found: every method's candidates, and which of them was best.

results/<scale>/tuning/<pair>.json
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from replication.base.files import read_json, write_json_atomic
from replication.base.scales import Scale, check_scale
from replication.base.validation import Flag, Number, Positive, Text, record, validate


@record
class Candidate:
    """A run that was tried.

    Attributes:
        method: its method.
        run: its name.
        settings: how it differs from the shared settings, in words.
        score: average on the validation questions, in percent.
        chosen: whether it is its method's best.
    """

    method: Text
    run: Text
    settings: Text
    score: Annotated[Number, Field(ge=0, le=100)]
    chosen: Flag


@record
class Tuned:
    """A pair's candidates.

    Attributes:
        scale: of the results.
        pair: the pair.
        bits: of all candidates.
        benchmarks: printed names of those whose validation questions were asked.
        questions: of each of them.
        candidates: method by method.
        provenance: of the scores.
    """

    scale: Scale
    pair: Text
    bits: Positive
    benchmarks: tuple[Text, ...]
    questions: Positive
    candidates: tuple[Candidate, ...]
    provenance: dict[Text, Any]


def tuned_name(method: str, bits: int) -> str:
    """The name that the results of a method's best candidate go by, beside that of the run."""
    return f"{method}_int{bits}_tuned"


def tuning_path(results: str | Path, scale: str, pair: str) -> Path:
    """Where a pair's record lies under the folder ``results``."""
    return Path(results) / check_scale(scale) / "tuning" / f"{pair}.json"


def write_tuning(path: Path, content: Mapping[str, Any]) -> Path:
    """Validate a record and write it."""
    validate(Tuned, dict(content), str(path))
    return write_json_atomic(path, dict(content))


def read_tuning(results: str | Path, scale: str) -> list[Tuned]:
    """The records of all pairs.

    Raises:
        InputError: for a file that is no record.
    """
    folder = tuning_path(results, scale, "").parent
    return [validate(Tuned, read_json(path), str(path)) for path in sorted(folder.glob("*.json"))]
