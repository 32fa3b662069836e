"""Stage ``gate_covariance``: does the gate lower the distillation loss (Theorem 3.1)?"""

from typing import Any

from grace.models import load_model, load_processor
from grace.training import CachedTeacher
from replication.base.provenance import device_description
from replication.measure.gate import METHOD, RUN, gates_and_losses
from replication.measure.records import write_record
from replication.results.measurements import gate_covariance
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import generator
from replication.train.fit import load_training_data
from replication.train.runs import method_config


@stage
def main(params: Params, name: str) -> None:
    params.known_family(name)
    layout, settings = Layout(params), params.gate_covariance
    group, run = params.find_run(name, RUN)
    config = method_config(params.train, run).distillation
    assert config is not None
    needed(layout.conversations, "standins")
    needed(layout.features(name), "features")
    outputs = needed(layout.teacher_outputs(name), "teacher_outputs")
    path = needed(layout.trained(group, RUN, run.seeds[0]), "train")
    model: Any = load_model(path).eval()
    processor = load_processor(path)
    data = load_training_data(layout, name, processor, model.config)
    teacher = CachedTeacher(outputs, samples=len(data))
    rng = generator(settings.seed, name)
    samples = rng.choice(len(data), min(settings.samples, len(data)), replace=False)
    gates, losses, owners = gates_and_losses(
        model, processor, data, teacher, samples=samples, config=config
    )
    parts = gate_covariance(gates, losses, rng, clusters=owners, resamples=params.compare.resamples)
    write_record(
        params,
        "gate_covariance",
        name,
        parts,
        method=METHOD,
        seeds=[run.seeds[0]],
        settings=["compare.resamples", "gate_covariance", "train.distillation", f"runs.{group}"],
        device=device_description(),
    )


if __name__ == "__main__":
    main()
