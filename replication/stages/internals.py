"""Stage ``internals``: what a family's trained models do inside.

Where the attention of the answer goes, how alike the visual tokens of teacher and students are, and
how gates, weights and scales are distributed.
"""

from pathlib import Path

import pyarrow.parquet as pq
from transformers import AutoConfig

from grace.data import ConversationDataset
from grace.models import check_model_directory, load_processor
from grace.teacher import CachedTeacher
from replication.base import provenance
from replication.base.workers import run_all
from replication.measure.inside.distributions import gate_histogram, gates, quantizer_histograms
from replication.measure.inside.observing import observe_model
from replication.measure.inside.questions import BENCHMARK, draw_questions
from replication.measure.inside.record import OTHERS, STUDENT, intervals, rounded, scenes
from replication.results.measurements import write_measurement
from replication.settings.paths import Layout, needed, reading
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import generator
from replication.train.runs import method_config


def models_of(params: Params, layout: Layout, family: str) -> dict[str, list[Path]]:
    """The directories of every model that is looked into, by name, one a seed.

    Raises InputError for one that is missing.
    """
    found = {name: [layout.model(family, name)] for name in ("teacher", "baseline")}
    params.find_run(family, STUDENT)
    for folder, group in params.runs.items():
        for name, run in group.models.items():
            if group.family == family and name in (*OTHERS, STUDENT):
                found[name] = [layout.trained(folder, name, seed) for seed in run.seeds]
    for paths in found.values():
        for path in paths:
            check_model_directory(path)
    return found


def teacher_gates(params: Params, layout: Layout, family: str, kappa: float) -> tuple:
    """The gate at the supervised tokens of some training conversations, and how many these are."""
    settings = params.internals
    path = layout.model(family, "baseline")
    with reading(layout.conversations, "standins"):
        total = pq.read_metadata(layout.conversations).num_rows
    teacher = CachedTeacher(layout.teacher_outputs(family), samples=total)
    count = min(settings.conversations, total)
    picked = generator(settings.seed, f"{family} conversations").choice(total, count, replace=False)
    data = ConversationDataset(
        layout.conversations,
        load_processor(path),
        AutoConfig.from_pretrained(path),
        records=picked,
    )
    return gates(teacher, picked, data.supervised, kappa), count


@stage
def main(params: Params, name: str) -> None:
    family, settings, layout = params.known_family(name), params.internals, Layout(params)
    models = models_of(params, layout, family)
    _, run = params.find_run(family, STUDENT)
    method = method_config(params.train, run)
    assert method.distillation is not None
    assert method.quantization is not None
    kappa = method.distillation.kappa
    needed(layout.teacher_outputs(family), "teacher_outputs")
    # the same questions in every family
    questions = draw_questions(
        layout.benchmarks, settings.samples, generator(settings.seed, "questions")
    )
    values, conversations = teacher_gates(params, layout, family, kappa)
    data = {
        "gates": gate_histogram(values, kappa, settings.bins),
        **quantizer_histograms(
            models["baseline"][0], models[STUDENT][0], method.quantization, settings.bins
        ),
    }
    jobs = [(path, questions) for paths in models.values() for path in paths]
    observed = iter(run_all(observe_model, jobs))
    seen = {name: [next(observed) for _ in paths] for name, paths in models.items()}
    record = {
        "name": f"internals-{family}",
        "scale": params.scale,
        "method": f"forward passes over questions of {BENCHMARK}, posed as in the evaluation; "
        "attention of the position that predicts the answer's first token, mean over heads; "
        "visual tokens at the penultimate decoder layer; bootstrap over questions and seeds",
        "n": {
            "questions": len(questions),
            "conversations": conversations,
            "tokens": len(values),
            "seeds": len(models[STUDENT]),
        },
        "values": rounded(intervals(seen, settings.seed, family, params.compare.resamples)),
        "data": rounded(
            {
                "benchmark": BENCHMARK,
                "bits": run.bits,
                "kappa": kappa,
                "seeds": {name: len(paths) for name, paths in models.items()},
                "scenes": scenes(seen, questions, settings.scenes),
                "distributions": data,
            }
        ),
        "provenance": provenance.collect(
            {"params": repr(params)},
            run.seeds,
            f"python -m replication.stages.internals {family}",
        ),
    }
    write_measurement(layout.results.parent, record)


if __name__ == "__main__":
    main()
