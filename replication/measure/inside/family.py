"""All models of one family on the same questions, and their distributions: one measurement."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from transformers import AutoConfig

from grace.data import ConversationDataset
from grace.models import check_model_directory, load_processor
from grace.training import CachedTeacher
from replication.base.workers import run_all
from replication.measure.inside.distributions import gate_histogram, gates, quantizer_histograms
from replication.measure.inside.observing import observe_model
from replication.measure.inside.questions import BENCHMARK, draw_questions
from replication.measure.inside.record import OTHERS, STUDENT, intervals, rounded, scenes
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Params, section
from replication.stats.bootstrap import generator
from replication.train.fit import conversations
from replication.train.runs import method_config

METHOD = (
    f"forward passes over questions of {BENCHMARK}, posed as in the evaluation; "
    "attention of the position that predicts the answer's first token, mean over heads; "
    "visual tokens at the penultimate decoder layer; bootstrap over questions and seeds"
)
SETTINGS = (
    *("compare.resamples", "coefficients"),
    *(f"internals.{name}" for name in ("bins", "conversations", "samples", "scenes", "seed")),
)
"""Dotted names of the parameters that are read."""


def look_inside(params: Params, layout: Layout, family: str) -> dict[str, Any]:
    """Observe teacher, baseline and students of a family.

    Args:
        params: all parameters; `SETTINGS` are read.
        layout: where the models, questions and teacher's outputs are.
        family: the family's name.

    Returns:
        "n", "values" and "data" of a measurement.

    Raises:
        InputError: for a model, question file or teacher's output that is missing or cannot be
            read.
    """
    settings = params.internals
    models = model_paths(params, layout, family)
    _, run = params.find_run(family, STUDENT)
    method = method_config(params, run)
    assert method.distillation is not None
    assert method.quantization is not None
    kappa = method.distillation.kappa
    needed(layout.teacher_outputs(family), "teacher_outputs")
    questions = draw_questions(  # the same in every family
        layout.benchmarks, settings.samples, generator(settings.seed, "questions")
    )
    gate_values, conversations = _teacher_gates(params, layout, family, kappa)
    distributions = {
        "gates": gate_histogram(gate_values, kappa, settings.bins),
        **quantizer_histograms(
            models["baseline"][0], models[STUDENT][0], method.quantization, settings.bins
        ),
    }
    jobs = [(path, questions) for paths in models.values() for path in paths]
    observed = iter(run_all(observe_model, jobs))
    observations = {name: [next(observed) for _ in paths] for name, paths in models.items()}
    data = {
        "benchmark": BENCHMARK,
        "bits": run.bits,
        "kappa": kappa,
        "seeds": {name: len(paths) for name, paths in models.items()},
        "scenes": scenes(observations, questions, settings.scenes),
        "distributions": distributions,
    }
    return {
        "n": {
            "questions": len(questions),
            "conversations": conversations,
            "tokens": len(gate_values),
            "seeds": len(models[STUDENT]),
        },
        "values": rounded(intervals(observations, settings.seed, family, params.compare.resamples)),
        "data": rounded(data),
    }


def model_paths(params: Params, layout: Layout, family: str) -> dict[str, list[Path]]:
    """The directories of all models that are observed, by name, one for each seed.

    Raises:
        InputError: for one that is missing.
    """
    paths = {name: [layout.model(family, name)] for name in ("teacher", "baseline")}
    params.find_run(family, STUDENT)
    for folder, group in params.runs.items():
        for name, run in group.models.items():
            if group.pair == family and name in (*OTHERS, STUDENT):
                paths[name] = [layout.trained(folder, name, seed) for seed in run.seeds]
    for path in (path for of_seeds in paths.values() for path in of_seeds):
        check_model_directory(path)
    return paths


def _teacher_gates(
    params: Params, layout: Layout, family: str, kappa: float
) -> tuple[np.ndarray, int]:
    """The gate at the supervised tokens of some conversations, and the number of conversations."""
    settings = params.internals
    path = layout.model(family, "baseline")
    portion = section(params.methods, "methods")[family]
    with reading(layout.conversations, "standins"):
        total = pq.read_metadata(layout.conversations).num_rows
    rows = np.arange(*(portion.records or [total]))
    teacher = CachedTeacher(layout.teacher_outputs(family), samples=len(rows))
    count = min(settings.conversations, len(rows))
    rng = generator(settings.seed, f"{family} conversations")
    samples = rng.choice(len(rows), count, replace=False)
    data = ConversationDataset(
        conversations(layout.conversations, portion.labels),
        load_processor(path),
        AutoConfig.from_pretrained(path),
        records=rows[samples].tolist(),
    )
    return gates(teacher, samples, data.supervised, kappa), count
