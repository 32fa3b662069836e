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
from grace.models import family_of
from grace.training import CachedTeacher, SupervisedForward

RUN = "grace_int4"
METHOD = (
    f"gate and ungated loss of {RUN} at supervised tokens of training conversations; "
    "bootstrap over conversations"
)
_PART = 100  # samples in one forward pass


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
    family = family_of(model.config.model_type)
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
