"""The cell of the map with a pretrained language model: what its result file holds.

    results/real_cell/real_cell.json

Text, no images: the teacher is a published language model, the student its first layers after a
short recovery training, and the text is the teacher's own. Every value is an interval over
held-out texts and seeds. `python -m replication.real_cell` writes the file and the table beside it;
`read_real_cell` reads it::

    cell = read_real_cell("results")
    cell.runs["kd_int4"].effects["nll"].interval()     # nats; negative is better
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from replication.base.files import read_json
from replication.base.validation import Natural, Number, Positive, Text, record, validate
from replication.results.measurements import IntervalRecord

RESULT = Path("real_cell") / "real_cell.json"
"""Under the folder of all results."""
Values = dict[Text, IntervalRecord]


@record
class LanguageModel:
    """A language model, by what was counted.

    Attributes:
        name: what it is.
        parameters: all of them; a tied output layer counts once.
        layers: of the decoder.
        width: of the hidden states.
        vocabulary: tokens.
    """

    name: Text
    parameters: Positive
    layers: Positive
    width: Positive
    vocabulary: Positive


@record
class TextPart:
    """Texts that something was trained or measured on.

    Attributes:
        sequences: number of texts.
        tokens: supervised ones.
        sha256: of the token ids; the texts are not kept.
    """

    sequences: Positive
    tokens: Positive
    sha256: Text


@record
class Run:
    """A method, trained from the recovered student.

    Attributes:
        method: "sft", "qat", "kd", "grace" or "qad".
        bits: of the decoder's linears.
        distillation: settings that are not `grace.distillation.DistillationConfig`'s defaults.
        seeds: of the trainings.
        scores: on held-out text: "nll" (nats a token; its exponential is the perplexity),
            "agreement" (percent of tokens whose most likely one is the teacher's), "kl" (nats a
            token, of the student from the teacher).
        effects: each score less that of the recovered student at 16 bits, paired by text.
    """

    method: Text
    bits: Positive
    distillation: dict[str, Any]
    seeds: list[Natural]
    scores: Values
    effects: Values


@record
class Course:
    """The loss terms and the controller over one training.

    Attributes:
        steps: at which the values were logged.
        gdkd: mean of the distillation term since the last time.
        gate: mean of the teacher's gate.
        beta: the multiplier.
        ema: the controller's moving average of `gdkd`; empty under a fixed weight.
        tau: the constraint; None under a fixed weight.
        bounds: of the multiplier; None under a fixed weight.
    """

    steps: list[Natural]
    gdkd: list[Number]
    gate: list[Number]
    beta: list[Number]
    ema: list[Number]
    tau: Number | None
    bounds: Annotated[list[Number], Field(min_length=2, max_length=2)] | None


@record
class Measured:
    """A measurement on real logits.

    Attributes:
        n: what it rests on.
        values: with their intervals.
        data: points of a figure.
    """

    n: dict[Text, Positive]
    values: Values
    data: dict[str, Any] = Field(default_factory=dict, repr=False)


@record
class RealCell:
    """The result file.

    Attributes:
        teacher: the published model.
        student: its first layers.
        settings: of texts, trainings and measurements.
        texts: "training", "methods" (the part of it that the methods train on), "held_out" (all by
            the teacher) and "documentation" (by people: Python's help).
        levels: scores as `Run.scores` of "teacher", "truncated" (before recovery) and "recovered".
        runs: by name.
        comparisons: "<run> - <run>": the first one's scores less the second's, paired by text and
            seed.
        teacher_on: by text, "entropy" (nats) and "gate" of the teacher.
        courses: by run and seed.
        gate_covariance: by student, "covariance": N Cov(w, DKD) in nats, on held-out text.
        entropy_error: by text, the teacher's entropy against its error: "pearson_r", "binned_r2",
            "rank_correlation".
        seconds: that each part took.
        provenance: commit, versions, processor, arithmetic, hash of the model's file.
    """

    teacher: LanguageModel
    student: LanguageModel
    settings: dict[str, Any]
    texts: dict[Text, TextPart]
    levels: dict[Text, Values]
    runs: dict[Text, Run]
    comparisons: dict[Text, Values]
    teacher_on: dict[Text, Measured]
    courses: dict[Text, dict[Text, Course]]
    gate_covariance: dict[Text, Measured]
    entropy_error: dict[Text, Measured]
    seconds: dict[Text, Number]
    provenance: Annotated[dict[str, Any], Field(min_length=1, repr=False)]


def read_real_cell(results: str | Path) -> RealCell | None:
    """The result under the folder of all results, or None if there is none.

    Raises:
        InputError: naming the place, for a missing, unknown or ill-typed entry.
    """
    path = Path(results) / RESULT
    return validate(RealCell, read_json(path), str(path)) if path.exists() else None
