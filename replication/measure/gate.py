"""Does the confidence gate lower the distillation loss (Theorem 3.1)?

Measured on the logits of a family's trained INT4 student and its teacher, at the supervised tokens
of training conversations.
"""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from grace.data import Collator
from grace.distillation import DistillationConfig, confidence_gate, decoupled_kd
from grace.models import family_of, load_model, load_processor
from grace.training import CachedTeacher, SupervisedForward
from replication.results.measurements import gate_covariance
from replication.settings.paths import Layout, needed
from replication.settings.schema import Params, section
from replication.stats.bootstrap import generator
from replication.train.fit import load_training_data
from replication.train.runs import method_config

RUN = "grace_int4"
METHOD = (
    f"gate and ungated loss of {RUN} at supervised tokens of training conversations; "
    "bootstrap over conversations"
)
_PART = 100  # samples in one forward pass


def measure_gate(params: Params, layout: Layout, family: str) -> dict[str, Any]:
    """The covariance of gate and loss over some training conversations of a family.

    Args:
        params: the sections train, runs, gate_covariance and compare are read.
        layout: where the student, the data and the teacher's outputs are.
        family: the family's name.

    Returns:
        "n" and "values" of a measurement.

    Raises:
        InputError: where a stage that comes before has not run.
    """
    group, run = params.find_run(family, RUN)
    config = method_config(params, run).distillation
    assert config is not None
    outputs = needed(layout.teacher_outputs(family), "teacher_outputs")
    path = needed(layout.trained(group, RUN, run.seeds[0]), "train")
    model: Any = load_model(path).eval()
    processor = load_processor(path)
    portion = section(params.methods, "methods")[family]
    data = load_training_data(layout, family, portion, processor, model.config)
    teacher = CachedTeacher(outputs, samples=len(data))
    settings = params.gate_covariance
    rng = generator(settings.seed, family)
    samples = rng.choice(len(data), min(settings.samples, len(data)), replace=False)
    gates, losses, owners = gates_and_losses(
        model, processor, data, teacher, samples=samples, config=config
    )
    return gate_covariance(gates, losses, rng, clusters=owners, resamples=params.compare.resamples)


def gates_and_losses(
    model: Any,
    processor: Any,
    data: Any,
    teacher: CachedTeacher,
    *,
    samples: np.ndarray,
    config: DistillationConfig,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gate (Eq. 5) and ungated loss (Eq. 1-3) at every supervised token of some samples.

    Args:
        model: the student.
        processor: the student's processor.
        data: the training data, with vision features.
        teacher: the teacher's outputs on all of `data`.
        samples: places of the samples in `data`, (samples,).
        config: temperature, weights and the gate's sharpness.

    Returns:
        Three arrays of shape (tokens,): gates, losses in nats, and each token's sample.
    """
    family = family_of(model.config)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    forward = SupervisedForward(model, family, relational=False)
    gates, losses, owners = [], [], []
    with torch.no_grad(), family.take_vision_features(model):
        for part in tqdm(np.array_split(samples, -(-len(samples) // _PART)), desc="gate and loss"):
            batch = collate([data[int(index)] for index in part])
            student, _ = forward(model, batch)
            target = teacher.outputs(batch).logits.float()
            width = min(student.shape[-1], target.shape[-1])
            gates.append(confidence_gate(target[:, :width], kappa=config.kappa))
            losses.append(
                decoupled_kd(
                    student[:, :width].float(),
                    target[:, :width],
                    batch["targets"],
                    temperature=config.temperature,
                    alpha=config.alpha,
                    beta=config.beta_dkd,
                )
            )
            owners.append(part[batch["token_rows"].numpy()])
    return (
        torch.cat(gates).double().numpy(),
        torch.cat(losses).double().numpy(),
        np.concatenate(owners),
    )
