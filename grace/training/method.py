"""What is trained, and under which loss."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import family_of, save_model
from grace.quantization import QuantSpec, bake, prepare, write_codes
from grace.training.options import MethodOptions

METHODS = ("sft", "qat", "kd", "grace", "qad")
"""Cross-entropy alone; on fake-quantized weights; with naive distillation; with all of GRACE; the
divergence from the student's own unquantized weights alone."""
TEACHER_METHODS = ("kd", "grace", "qad")
"""The methods that need a teacher."""
NAIVE_KD: dict[str, Any] = {
    "decoupled": False,
    "kappa": 0.0,
    "adaptive": False,
    "rcka_weight": 0.0,
}
"""Naive distillation as fields of ``DistillationConfig``: the full softened distribution under a
fixed weight, without gate and relational term."""
QAD: dict[str, Any] = {**NAIVE_KD, "temperature": 1.0}
"""Quantization-aware self-distillation (arXiv 2601.20088) as fields of ``DistillationConfig``: the
divergence of the whole distribution as it is; the loss has no cross-entropy."""


@dataclass(frozen=True)
class MethodConfig:
    """What is trained and under which loss.

    ::

        MethodConfig("sft")                                          # 16 bits, no teacher
        MethodConfig("grace", 4, QuantSpec(bits=4), DistillationConfig())
        MethodConfig("kd", 4, QuantSpec(bits=4), DistillationConfig.from_dict(NAIVE_KD))

    Attributes:
        method: One of `METHODS`: ``sft`` (cross-entropy, no quantization), ``qat`` (cross-entropy
            on fake-quantized weights), ``kd`` (cross-entropy and naive distillation), ``grace``,
            ``qad`` (distillation alone, from the student's own unquantized weights).
        bits: 16 (no quantization) or 2 to 8.
        quantization: The quantizer, for fewer than 16 bits.
        distillation: Components and weights of the loss, for ``kd``, ``grace`` and ``qad``.
        scale_lr_multiplier: Learning rate of the scales relative to the weights' (10 in the paper).

    Raises:
        InputError: The settings do not go together.
    """

    method: str
    bits: int = 16
    quantization: QuantSpec | None = None
    distillation: DistillationConfig | None = None
    scale_lr_multiplier: float = 10.0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(
                f"method {self.method!r} is unknown; choose one of {', '.join(METHODS)}"
            )
        if self.method == "sft" and self.bits != 16:
            raise InputError(f"method sft does not quantize, bits is {self.bits}; use method qat")
        if self.method in ("qat", "qad") and self.bits == 16:
            raise InputError(
                f"method {self.method} quantizes, bits is 16; use method sft or fewer bits"
            )
        if (self.bits == 16) != (self.quantization is None):
            raise InputError(
                f"bits is {self.bits} and the quantization is {self.quantization}; "
                "give a QuantSpec for fewer than 16 bits, and none at 16"
            )
        if self.quantization is not None and self.quantization.bits != self.bits:
            raise InputError(
                f"bits is {self.bits} but the QuantSpec says {self.quantization.bits}; "
                "give both the same number"
            )
        if self.needs_teacher != (self.distillation is not None):
            raise InputError(
                f"method {self.method} {'needs' if self.needs_teacher else 'takes no'} "
                "distillation settings"
            )
        if self.scale_lr_multiplier <= 0:
            raise InputError(
                f"scale_lr_multiplier is {self.scale_lr_multiplier}; use a positive number"
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with a teacher."""
        return self.method in TEACHER_METHODS

    @property
    def cross_entropy(self) -> bool:
        """Whether the loss has a term of the labels."""
        return self.method != "qad"

    @property
    def relational(self) -> bool:
        """Whether the objective reads visual tokens (RCKA)."""
        return self.distillation is not None and self.distillation.rcka_weight > 0


def method_of(options: MethodOptions) -> MethodConfig:
    """The method that the options of `grace train` describe.

    Raises:
        InputError: What does not go together.
    """
    name, bits, size = options.method, options.bits, options.group_size
    if bits is None:
        bits = 16 if name == "sft" else 4
    assert isinstance(options.quantization, dict | None)
    assert isinstance(options.distillation, dict | None)
    more, chosen = options.quantization or {}, options.distillation or {}
    spec = None
    if bits != 16:
        group_size = int(size) if size.isdigit() else size
        spec = QuantSpec.from_dict({"bits": bits, "group_size": group_size, **more})
    elif more:
        raise InputError(f"quantization is {more} at 16 bits; remove one of the two")
    distillation = None
    if name in TEACHER_METHODS:
        shared = {"kd": NAIVE_KD, "qad": QAD}.get(name, {})
        distillation = DistillationConfig.from_dict({**shared, **chosen})
    elif chosen:
        raise InputError(f"{next(iter(chosen))} is set, but method {name} does not distil")
    return MethodConfig(name, bits, spec, distillation, options.scale_lr_multiplier)


def prepare_student(model: nn.Module, method: MethodConfig) -> list[str]:
    """Freeze the vision tower and put fake quantization into the decoder's linears, in place.

    Example::

        prepare_student(student, MethodConfig("qat", 4, QuantSpec(bits=4)))

    Returns:
        The dotted names of the quantized modules; empty at 16 bits.
    """
    config: Any = model.config
    family = family_of(config)
    family.freeze_vision(model)
    if method.quantization is None:
        return []
    return prepare(model, method.quantization, family.decoder_linears(model))


def save_student(
    model: Any,
    processor: Any,
    path: str | Path,
    method: MethodConfig,
    *,
    overwrite: bool = False,
    also: Callable[[Path], object] | None = None,
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Write a trained student: weights on the integer grid, the codes and scales beside them.

    The model is baked in place: its fake-quantized linears become plain ones.

    Example::

        trainer.train()
        save_student(student, processor, "student", method)

    Args:
        model: The student, prepared by :func:`prepare_student` and trained.
        processor: Its processor.
        path: The directory to write.
        method: What the model was trained with.
        overwrite: Replace a model directory at ``path``, once the new one is complete.
        also: Called with the directory before it gets its name, to write further files into it.

    Returns:
        Codes (out, in) and scales (out, groups) by linear; empty at 16 bits.

    Raises:
        InputError: Something else is at ``path``.
    """
    exact = bake(model) if method.quantization is not None else {}

    def write_more(directory: Path) -> None:
        if method.quantization is not None:
            write_codes(directory, exact, method.quantization.to_dict())
        if also is not None:
            also(directory)

    save_model(model, processor, path, overwrite=overwrite, also=write_more)
    return exact
