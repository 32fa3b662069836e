"""The result file as a table."""

import math

from replication.measure.printing import ResultTable, markdown
from replication.results.real_cell import RealCell, Values

_NAMES = {
    "teacher": "teacher",
    "truncated": "first layers, before recovery",
    "recovered": "student, recovered (16 bits)",
}


def tables(cell: RealCell) -> list[ResultTable]:
    """Scores and effects of every run, comparisons, and what was measured on logits."""
    return [_scores(cell), _comparisons(cell), _courses(cell), _logits(cell)]


def table_text(cell: RealCell) -> str:
    """The page beside the result file."""
    teacher, student = cell.teacher, cell.student
    made, texts = cell.provenance, cell.texts
    introduction = (
        f"Text, no images. Teacher: {teacher.name}, {_millions(teacher.parameters)}, "
        f"{teacher.layers} layers. Student: its first {student.layers} layers, "
        f"{_millions(student.parameters)}, after {cell.settings['recovery_steps']} steps of "
        f"cross-entropy on {texts['training'].sequences} texts that the teacher generated. Every "
        f"run: {cell.settings['steps']} steps of {cell.settings['batch_size']} texts from the same "
        f"student, seeds {', '.join(map(str, cell.settings['seeds']))}. Scores are means over "
        f"{texts['held_out'].sequences} held-out texts about other subjects; intervals of 95% over "
        f"texts and seeds. {made['device']}, {made['native_arithmetic']}, commit "
        f"{(made['commit'] or 'unknown')[:10]}."
    )
    return markdown(introduction, tables(cell))


def _millions(parameters: int) -> str:
    return f"{parameters / 1e6:.0f} M parameters"


def _scores(cell: RealCell) -> ResultTable:
    header = ["", "bits", "perplexity", "agreement %", "KL, nats"]
    header += ["effect: nats", "agreement, points", "KL, nats"]
    rows = [
        [_NAMES.get(name, name), "16", *_levels(values)] for name, values in cell.levels.items()
    ]
    for name, run in cell.runs.items():
        effects = [_text(run.effects, "nll", 3), _text(run.effects, "agreement", 2)]
        effects.append(_text(run.effects, "kl", 3))
        rows.append([name, str(run.bits), *_levels(run.scores), *effects])
    notes = [
        "Effects are against the recovered student; nats a token (the logarithm of the quotient of "
        "perplexities) and KL are better when negative, agreement with the teacher's most likely "
        "token when positive."
    ]
    return ResultTable("Held-out text", header, rows, notes)


def _levels(values: Values) -> list[str]:
    perplexity = math.exp(values["nll"].point)
    return [f"{perplexity:.2f}", f"{values['agreement'].point:.2f}", f"{values['kl'].point:.3f}"]


def _text(values: Values, name: str, digits: int) -> str:
    one = values[name]
    return f"{one.point:+.{digits}f} [{one.low:+.{digits}f}, {one.high:+.{digits}f}]"


def _comparisons(cell: RealCell) -> ResultTable:
    rows = [
        [name, _text(values, "nll", 3), _text(values, "agreement", 2), _text(values, "kl", 3)]
        for name, values in cell.comparisons.items()
    ]
    return ResultTable("First less second", ["", "nats", "agreement, points", "KL, nats"], rows)


def _courses(cell: RealCell) -> ResultTable:
    rows = []
    for name, seeds in cell.courses.items():
        for seed, course in seeds.items():
            if not course.steps:
                continue
            tau = "" if course.tau is None else f"{course.tau:g}"
            bounds = "" if course.bounds is None else "{:g} to {:g}".format(*course.bounds)
            ends = [f"{course.gdkd[0]:.3f}", f"{course.gdkd[-1]:.3f}", tau]
            beta = [f"{course.beta[0]:.4g}", f"{course.beta[-1]:.4g}", bounds]
            rows.append([name, seed, *ends, *beta, f"{course.gate[-1]:.3f}"])
    header = ["", "seed", "term: first", "last", "τ", "weight: first", "last", "bounds", "gate"]
    return ResultTable("The distillation term over the steps", header, rows)


def _logits(cell: RealCell) -> ResultTable:
    rows = []
    for name, measured in cell.teacher_on.items():
        for key, one in measured.values.items():
            rows.append([f"teacher's {key}, {name}", _plain(one.point, one.low, one.high)])
    for name, measured in cell.gate_covariance.items():
        one = measured.values["covariance"]
        rows.append([f"N·Cov(w, DKD), {name}", _plain(one.point, one.low, one.high)])
    for name, measured in cell.entropy_error.items():
        for key, one in measured.values.items():
            label = f"entropy against error, {key.replace('_', ' ')}, {name}"
            rows.append([label, _plain(one.point, one.low, one.high)])
    return ResultTable("On real logits", ["", "value"], rows)


def _plain(point: float, low: float, high: float) -> str:
    return f"{point:.3f} [{low:.3f}, {high:.3f}]"
