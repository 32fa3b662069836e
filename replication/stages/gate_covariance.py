"""Stage ``gate_covariance``: does the gate lower the distillation loss (Theorem 3.1)?

Measured on the logits of a family's trained INT4 student and its teacher, at the supervised tokens
of training conversations.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from grace.data import Collator
from grace.distillation import confidence_gate, decoupled_kd
from grace.models import family_of, load_model, load_processor
from grace.teacher import CachedTeacher, SupervisedForward
from replication.base import provenance
from replication.results.measurements import gate_covariance, write_measurement
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params
from replication.stages import stage
from replication.stats.bootstrap import generator
from replication.train.fit import load_training_data
from replication.train.runs import method_config

RUN = "grace_int4"


@stage
def main(params: Params, name: str) -> None:
    family, layout = family_of(params.known_family(name)), Layout(params)
    settings = params.gate_covariance
    group, run = params.find_run(name, RUN)
    method = method_config(params.train, run)
    assert method.distillation is not None
    needed(layout.conversations, "standins")
    needed(layout.features(name), "features")
    needed(layout.teacher_outputs(name), "teacher_outputs")
    path = needed(layout.trained(group, RUN, run.seeds[0]), "train")
    model: Any = load_model(path).eval()
    processor = load_processor(path)
    data = load_training_data(layout, name, processor, model.config)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    teacher = CachedTeacher(layout.teacher_outputs(name), samples=len(data))
    forward = SupervisedForward(model, family, relational=False)
    rng = generator(settings.seed, name)
    picked = rng.choice(len(data), min(settings.samples, len(data)), replace=False)
    gates, losses, owners = [], [], []
    with torch.no_grad(), family.take_vision_features(model):
        for part in tqdm(np.array_split(picked, -(-len(picked) // 100)), desc="gate and loss"):
            batch = collate([data[int(index)] for index in part])
            student, _ = forward(model, batch)
            said = teacher.outputs(batch).logits.float()
            width = min(student.shape[-1], said.shape[-1])
            gates.append(confidence_gate(said[:, :width], kappa=method.distillation.kappa))
            losses.append(
                decoupled_kd(
                    student[:, :width].float(),
                    said[:, :width],
                    batch["targets"],
                    temperature=method.distillation.temperature,
                    alpha=method.distillation.alpha,
                    beta=method.distillation.beta_dkd,
                )
            )
            owners.append(part[batch["token_rows"].numpy()])
    found = gate_covariance(
        torch.cat(gates).double().numpy(),
        torch.cat(losses).double().numpy(),
        rng,
        clusters=np.concatenate(owners),
        resamples=params.compare.resamples,
    )
    record = {
        "name": f"gate_covariance-{name}",
        "scale": params.scale,
        "method": f"gate and ungated loss of {RUN} at supervised tokens of training conversations; "
        "bootstrap over conversations",
        **found,
        "provenance": provenance.collect(
            {"params": repr(params)},
            [run.seeds[0]],
            f"python -m replication.stages.gate_covariance {name}",
            device=provenance.device_description(),
        ),
    }
    write_measurement(layout.results.parent, record)


if __name__ == "__main__":
    main()
