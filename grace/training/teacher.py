"""What a frozen teacher says about a batch.

Every teacher answers the same call, ``outputs(batch)``, with its logits at the supervised
positions and, for relational alignment, its visual tokens at the penultimate decoder layer.
"""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from grace.arithmetic import native_dtype
from grace.distillation import shared_vocabulary
from grace.errors import InputError
from grace.models import Family, check_model_directory, family_of, load_model, model_directory
from grace.training.distributed import shard_frozen
from grace.training.forward import SupervisedForward

TEACHER_BITS = (16, 8, 4)
"""Bits in which a frozen teacher can be held."""
_PIXELS = ("image_mean", "image_std")


@dataclass
class TeacherOutputs:
    """Teacher outputs for one batch.

    Example::

        outputs = teacher.outputs(collate([data[0], data[1]]))
        outputs.logits.shape    # (supervised tokens, vocabulary)

    Attributes:
        logits: (N, V) at the supervised positions.
        relational: Hidden states (B, S, d), or one centered Gram matrix (n, n) an image; None
            without relational alignment.
    """

    logits: torch.Tensor
    relational: torch.Tensor | list[torch.Tensor] | None


class Teacher(Protocol):
    """Anything that answers a batch: :class:`LiveTeacher` or ``CachedTeacher``.

    Example::

        teacher: Teacher = LiveTeacher(model, family, relational=True)
        teacher.outputs(batch).logits
    """

    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        """The teacher's outputs (N, V) and (B, S, d) or (n, n) for a collated batch."""
        ...


@dataclass(frozen=True)
class Identity:
    """What a teacher and a student must have in common, as far as it is known.

    Example::

        Identity.of(student.config, processor) == Identity.of(teacher.config, processor)

    Attributes:
        model_type: The family.
        rows: Rows of the output layer.
        tokens: Tokens of the tokenizer; None if unknown.
        vocabulary: SHA-256 of the tokenizer's tokens and their ids; None if unknown.
        images: How an image becomes visual tokens (`grace.models.Family.image_layout`); None if
            unknown.
    """

    model_type: str
    rows: int
    tokens: int | None = None
    vocabulary: str | None = None
    images: dict[str, Any] | None = None

    @classmethod
    def of(cls, config: Any, tokenizer: Any = None) -> "Identity":
        """The identity of a model's configuration and its tokenizer, or the processor around it."""
        rows = config.get_text_config().vocab_size
        images = family_of(config).image_layout(config)
        pixels = getattr(tokenizer, "image_processor", None)
        for name in _PIXELS:
            if pixels is not None and getattr(pixels, name, None) is not None:
                images[name] = list(getattr(pixels, name))
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        if tokenizer is None:
            return cls(config.model_type, rows, images=images)
        content = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return cls(config.model_type, rows, len(tokenizer), digest, images)


def check_teacher(student: Identity, teacher: Identity) -> None:
    """Check that two models read a sample as the same tokens, and that their logits mean the same
    token column by column. They may be of different families.

    Example::

        check_teacher(Identity.of(student.config, processor), teacher.identity)

    Raises:
        InputError: They do not, or that is not known of two families; the line says what differs.
    """
    known = None not in (student.images, teacher.images, student.tokens, teacher.tokens)
    if student.model_type != teacher.model_type and not known:
        raise InputError(
            f"the student is of family {student.model_type!r} and the teacher of "
            f"{teacher.model_type!r}, whose tokens are not known; choose a teacher of the "
            "student's family"
        )
    _check_images(student, teacher)
    if student.tokens is None or teacher.tokens is None:
        return
    shared_vocabulary(student.rows, teacher.rows, student.tokens, teacher.tokens)
    if student.vocabulary != teacher.vocabulary:
        raise InputError(
            f"the student's tokenizer and the teacher's both have {student.tokens} tokens, but not "
            "the same ones; distillation compares logits token by token, so choose a teacher with "
            "the student's tokenizer"
        )


def _check_images(student: Identity, teacher: Identity) -> None:
    if student.images is None or teacher.images is None:
        return
    for name in dict.fromkeys([*student.images, *teacher.images]):
        ours, theirs = student.images.get(name), teacher.images.get(name)
        if name in _PIXELS and None in (ours, theirs):
            continue  # one processor is not known
        if ours != theirs:
            raise InputError(
                f"the student ({student.model_type}) and the teacher ({teacher.model_type}) do not "
                f"read an image as the same tokens: {name} is {ours} in the student and {theirs} "
                "in the teacher; choose a teacher that agrees"
            )


class LiveTeacher:
    """A frozen model that answers while the student is trained.

    ::

        teacher = LiveTeacher(load_frozen(path, device="cuda"), family, relational=True,
                              tokenizer=load_processor(path))

    Args:
        model: The teacher; it is frozen and put into evaluation mode.
        family: Its adapter.
        relational: Whether the objective reads visual tokens (RCKA).
        tokenizer: The teacher's tokenizer, or the processor around it: with it
            :func:`check_teacher` can compare vocabularies, and how pixels are normalised.

    Attributes:
        model: The frozen teacher.
        identity: What a student must have in common with it.
    """

    def __init__(
        self, model: nn.Module, family: Family, *, relational: bool, tokenizer: Any = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = Identity.of(model.config, tokenizer)
        self._forward = SupervisedForward(self.model, family, relational=relational)

    @torch.no_grad()
    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        """Logits (N, V) and hidden states (B, S, d) for a collated batch."""
        logits, hidden = self._forward(self.model, batch)
        return TeacherOutputs(logits, hidden)


def check_bits(bits: int) -> None:
    """Check that a teacher can be held in so many bits.

    Raises:
        InputError: Other bits, or bitsandbytes not installed.
    """
    if bits not in TEACHER_BITS:
        known = ", ".join(map(str, TEACHER_BITS))
        raise InputError(f"a teacher in {bits} bits is not known; choose one of {known}")
    if bits != 16 and importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"a teacher in {bits} bits needs bitsandbytes: pip install bitsandbytes, or use 16 bits"
        )


def load_teacher(
    path: str | Path,
    processor: Any,
    *,
    relational: bool,
    bits: int = 16,
    sharded: bool = False,
    device: torch.device | str,
) -> LiveTeacher:
    """A teacher that answers on a device, or on the devices of all processes together.

    ::

        teacher = load_teacher(path, load_processor(path), relational=True, bits=4, device="cuda")

    Args:
        path: A model directory or hub name.
        processor: Its processor.
        relational: Whether the objective reads visual tokens (RCKA).
        bits: As :func:`load_frozen`; at 16, float32 on a device that only emulates bfloat16.
        sharded: Shard it over all processes (FSDP2).
        device: Of this process.

    Raises:
        InputError: As :func:`load_frozen`.
    """
    model: Any = load_frozen(
        path,
        bits=bits,
        device="cpu" if sharded else device,
        dtype=native_dtype(torch.device(device).type),
    )
    family = family_of(model.config)
    teacher = LiveTeacher(model, family, relational=relational, tokenizer=processor)
    if sharded:
        shard_frozen(model)  # after the hooks, which its own have to run before
    return teacher


def load_frozen(
    path: str | Path,
    *,
    bits: int = 16,
    device: torch.device | str,
    dtype: torch.dtype = torch.bfloat16,
) -> nn.Module:
    """Load a teacher onto a device.

    Example::

        model = load_frozen("Qwen/Qwen2-VL-7B-Instruct", bits=8, device="cuda")

    Args:
        path: A model directory or hub name.
        bits: 16 for ``dtype`` throughout; 8 or 4 for the decoder's linears in that many bits
            (bitsandbytes: LLM.int8, NF4) and the rest in bfloat16.
        device: Where the weights go.
        dtype: Of 16-bit weights.

    Raises:
        InputError: Other bits, a model that cannot be loaded, or bitsandbytes not installed.
    """
    check_bits(bits)
    if bits == 16:
        return load_model(path, dtype=dtype).to(device)
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    check_model_directory(path)
    directory = model_directory(path)
    family = family_of(AutoConfig.from_pretrained(directory))
    quantization = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[
            family.vision_tower,
            *family.frozen,
            *family.projectors,
            family.output_head,
        ],
    )
    return AutoModelForImageTextToText.from_pretrained(
        directory, dtype=torch.bfloat16, quantization_config=quantization, device_map={"": device}
    )
