"""Stage ``evaluate``: every benchmark on one model, every seed of it, scores and outcomes."""

import sys

import pandas as pd
import torch

from grace.models import check_model_directory
from replication import provenance
from replication.evaluation import Evaluation, evaluate_model
from replication.layout import Layout
from replication.parallel import run_all
from replication.params import Params
from replication.results import write_outcomes, write_scores
from replication.stages import stage
from replication.tasks import BENCHMARKS, PRINTED


def evaluate_one(params: Params, path: str) -> Evaluation:
    settings = params.evaluate
    return evaluate_model(
        path,
        settings.benchmarks,
        Layout(params).benchmarks,
        batch_size=settings.batch_size,
        max_new_tokens=settings.max_new_tokens,
        dtype=settings.dtype,
    )


@stage
def main(params: Params, model: str) -> None:
    layout = Layout(params)
    if model in ("teacher", "baseline"):
        method, bits, paths = model, 16, {0: layout.model(model)}
    else:
        run = params.run(model)
        method, bits = run.method, run.bits
        paths = {seed: layout.trained(model, seed) for seed in run.seeds}
    for path in paths.values():
        check_model_directory(path)
    evaluations = run_all(evaluate_one, [(params, str(path)) for path in paths.values()])
    seeds, frames = {}, []
    for seed, evaluation in zip(paths, evaluations, strict=True):
        benchmarks = {PRINTED[name]: entry for name, entry in evaluation.scores.items()}
        seeds[str(seed)] = {"benchmarks": benchmarks}
        frame = evaluation.outcomes.assign(seed=seed)
        frames.append(frame.assign(benchmark=frame["benchmark"].map(PRINTED)))
    results = layout.results.parent
    outcomes = pd.concat(frames)
    write_outcomes(
        results, params.scale, params.family, model, {name: outcomes[name] for name in outcomes}
    )
    write_scores(
        results,
        {
            "family": params.family,
            "run": model,
            "method": method,
            "bits": bits,
            "scale": params.scale,
            "standin": True,
            "seeds": seeds,
            "provenance": provenance.collect(
                {"params": repr(params)},
                list(paths),
                f"python -m replication.stages.evaluate {model}",
                device=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
                extra={
                    "settings": evaluations[0].settings,
                    "official_tasks": {
                        name: BENCHMARKS[name].sha256() for name in params.evaluate.benchmarks
                    },
                },
            ),
        },
    )
    print({name: round(entry["score"], 2) for name, entry in benchmarks.items()}, file=sys.stderr)


if __name__ == "__main__":
    main()
