"""Gated decoupled distillation, relational alignment and the adaptive weight between them.

Layers, each importing only those before it: `decoupled` (KD terms per token), `gate` (confidence of
the teacher), `gated` (both, chunked over a large vocabulary), `rcka` (centered kernel alignment of
visual tokens), `controller` (adaptive multiplier), `objective` (options and the combined loss).
"""

from grace.distillation.controller import IBController
from grace.distillation.decoupled import decoupled_kd, kd
from grace.distillation.gate import confidence_gate, teacher_entropy
from grace.distillation.gated import (
    DistillationSums,
    distillation_sums,
    gate_sum,
    gated_decoupled_kd,
    shared_vocabulary,
)
from grace.distillation.objective import DistillationConfig, combine, linear_warmup
from grace.distillation.rcka import (
    ImageSpan,
    RckaSums,
    centered_gram,
    cka,
    cka_from_gram,
    rcka_loss,
    rcka_sums,
    visual_token_count,
    visual_tokens,
)

__all__ = [
    "DistillationConfig",
    "DistillationSums",
    "IBController",
    "ImageSpan",
    "RckaSums",
    "centered_gram",
    "cka",
    "cka_from_gram",
    "combine",
    "confidence_gate",
    "decoupled_kd",
    "distillation_sums",
    "gate_sum",
    "gated_decoupled_kd",
    "kd",
    "linear_warmup",
    "rcka_loss",
    "rcka_sums",
    "shared_vocabulary",
    "teacher_entropy",
    "visual_token_count",
    "visual_tokens",
]
