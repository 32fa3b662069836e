"""What a frozen teacher says about a batch: live, or computed once and read back.

Both kinds answer the same call, ``outputs(batch)``, with the teacher's logits at the supervised
positions and, for relational alignment, its visual tokens at the penultimate decoder layer.
"""

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from grace.distillation import centered_gram, shared_vocabulary
from grace.errors import InputError
from grace.models import Family, check_model_directory, family_of, load_model

TEACHER_BITS = (16, 8, 4)
"""Bits in which a frozen teacher can be held."""


@dataclass
class TeacherOutputs:
    """Teacher outputs for one batch.

    Attributes:
        logits: (N, V) at the supervised positions.
        relational: hidden states (B, S, d), or one centered Gram matrix (n, n) an image.
    """

    logits: torch.Tensor
    relational: torch.Tensor | list[torch.Tensor] | None


@dataclass(frozen=True)
class Identity:
    """What a teacher and a student must have in common, as far as it is known.

    Attributes:
        model_type: the family.
        rows: rows of the output layer.
        tokens: tokens of the tokenizer.
        vocabulary: SHA-256 of the tokenizer's tokens and their ids.
    """

    model_type: str
    rows: int
    tokens: int | None = None
    vocabulary: str | None = None

    @classmethod
    def of(cls, config: Any, tokenizer: Any = None) -> "Identity":
        """The identity of a model's configuration and its tokenizer."""
        rows = config.get_text_config().vocab_size
        if tokenizer is None:
            return cls(config.model_type, rows)
        content = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        digest = hashlib.sha256(content.encode()).hexdigest()
        return cls(config.model_type, rows, len(tokenizer), digest)


def check_teacher(student: Identity, teacher: Identity) -> None:
    """Check that the logits of the two mean the same token column by column.

    Raises:
        InputError: for different families or different vocabularies.
    """
    if student.model_type != teacher.model_type:
        raise InputError(
            f"the student is of family {student.model_type!r} and the teacher of "
            f"{teacher.model_type!r}; choose a teacher of the student's family"
        )
    if student.tokens is None or teacher.tokens is None:
        return
    shared_vocabulary(student.rows, teacher.rows, student.tokens, teacher.tokens)
    if student.vocabulary != teacher.vocabulary:
        raise InputError(
            f"the student's tokenizer and the teacher's both have {student.tokens} tokens, but not "
            "the same ones; distillation compares logits token by token, so choose a teacher with "
            "the student's tokenizer"
        )


class SupervisedForward:
    """Runs a model so that only supervised positions reach the vocabulary projection, and keeps
    the hidden states that relational alignment reads, and no other layer's.

    Works through forward pre-hooks, so that wrapped models (DDP, FSDP) are called as usual.
    """

    def __init__(self, model: nn.Module, family: Family, *, relational: bool) -> None:
        self._positions: tuple[torch.Tensor, torch.Tensor] | None = None
        self._hidden: torch.Tensor | None = None
        self._armed = False
        self._inputs = family.model_inputs
        head = model.get_submodule(family.output_head)
        head.register_forward_pre_hook(self._select)
        if relational:
            layer = family.relational_layer(model)
            layer.register_forward_pre_hook(self._keep, with_kwargs=True)

    def __call__(
        self, model: nn.Module, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits (N, V) at the batch's supervised positions and hidden states (B, S, d)."""
        self._positions = (batch["token_rows"], batch["token_columns"])
        self._armed = True
        inputs = {name: batch[name] for name in self._inputs if name in batch}
        try:
            logits = model(**inputs, use_cache=False).logits[0]
        finally:
            self._positions = None
            self._armed = False
        hidden, self._hidden = self._hidden, None
        return logits, hidden

    def _select(self, _module: nn.Module, args: tuple[torch.Tensor, ...]):
        if self._positions is None:
            return None  # an ordinary call, for example generation
        rows, columns = self._positions
        return (args[0][rows, columns].unsqueeze(0),)

    def _keep(self, _module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        # armed once a forward: under gradient checkpointing the layer runs again in backward
        if self._armed:
            self._hidden = args[0] if args else kwargs["hidden_states"]
            self._armed = False


class LiveTeacher:
    """A frozen model that answers as training goes; with its tokenizer it can be checked whether
    it is a teacher for a student."""

    def __init__(
        self, model: nn.Module, family: Family, *, relational: bool, tokenizer: Any = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.identity = Identity.of(model.config, tokenizer)
        self._forward = SupervisedForward(self.model, family, relational=relational)

    @torch.no_grad()
    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        logits, hidden = self._forward(self.model, batch)
        return TeacherOutputs(logits, hidden)


def load_frozen(path: str | Path, *, bits: int = 16, device: torch.device | str) -> nn.Module:
    """Load a teacher onto a device: in bfloat16, or its decoder's linears in 8 or 4 bits
    (bitsandbytes: LLM.int8, NF4) and the rest in bfloat16.

    Raises:
        InputError: for other bits, a model that cannot be loaded, or bitsandbytes not installed.
    """
    if bits not in TEACHER_BITS:
        known = ", ".join(map(str, TEACHER_BITS))
        raise InputError(f"a teacher in {bits} bits is not known; choose one of {known}")
    if bits == 16:
        return load_model(path, dtype=torch.bfloat16).to(device)
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            f"a teacher in {bits} bits needs bitsandbytes: pip install bitsandbytes, or use 16 bits"
        )
    from transformers import AutoConfig, AutoModelForImageTextToText, BitsAndBytesConfig

    check_model_directory(path)
    family = family_of(AutoConfig.from_pretrained(path).model_type)
    quantization = BitsAndBytesConfig(
        load_in_8bit=bits == 8,
        load_in_4bit=bits == 4,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=[family.vision_tower, *family.projectors, family.output_head],
    )
    return AutoModelForImageTextToText.from_pretrained(
        path, dtype=torch.bfloat16, quantization_config=quantization, device_map={"": device}
    )


def shard_frozen(model: nn.Module) -> nn.Module:
    """Shard a frozen model over all processes (FSDP2), block by block, in place.

    Every process then has to ask for outputs the same number of times.
    """
    from torch.distributed.fsdp import fully_shard

    model.requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(model)
    return model


class CachedTeacher:
    """Teacher outputs read back from a directory that :func:`write_teacher_outputs` wrote.

    Raises:
        InputError: for a missing or incomplete directory, or one of another size.
    """

    def __init__(self, path: str | Path, *, samples: int) -> None:
        directory = Path(path)
        try:
            meta = json.loads((directory / "meta.json").read_text())
            self._offsets = np.load(directory / "offsets.npy")
            self._logits = np.load(directory / "logits.npy", mmap_mode="r")
            self._grams = np.load(directory / "grams.npy", mmap_mode="r")
        except Exception as error:  # a damaged array fails with types of its own
            raise InputError(
                f"teacher outputs in {str(path)!r} cannot be read ({error}); compute them again"
            ) from error
        try:
            self.identity = Identity(**meta["teacher"])
            self.sha256 = str(meta["sha256"])
            covered = int(meta["samples"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"teacher outputs in {str(path)!r} do not say whose they are; compute them again"
            ) from error
        if covered < samples:
            raise InputError(
                f"teacher outputs in {str(path)!r} cover {covered} samples, the data set has "
                f"{samples}; compute them again"
            )

    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        indices = batch["indices"]
        rows = [self._logits[self._offsets[i] : self._offsets[i + 1]] for i in indices]
        logits = torch.from_numpy(np.concatenate(rows)).view(torch.bfloat16)
        if len(logits) != len(batch["targets"]):
            raise InputError(
                f"teacher outputs hold {len(logits)} supervised tokens for a batch that has "
                f"{len(batch['targets'])}; they were computed on other data: compute them again"
            )
        device = batch["targets"].device
        grams = torch.from_numpy(self._grams[indices].astype(np.float32)).to(device)
        return TeacherOutputs(logits.to(device), list(grams))


def write_teacher_outputs(
    teacher: LiveTeacher, batches: Iterator[dict[str, Any]], path: str | Path, *, lengths: list[int]
) -> None:
    """Write a teacher's outputs for batches that go through a data set in order, one image each.

    Args:
        lengths: number of supervised tokens of every sample.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    logits_out = grams_out = None
    done = 0
    digest = hashlib.sha256()
    for batch in batches:
        outputs = teacher.outputs(batch)
        assert isinstance(outputs.relational, torch.Tensor)
        if logits_out is None:
            first = batch["image_spans"][0]
            tokens = first[2] - first[1]
            logits_out = np.lib.format.open_memmap(
                directory / "logits.npy",
                "w+",
                np.int16,
                (int(offsets[-1]), outputs.logits.shape[-1]),
            )
            grams_out = np.lib.format.open_memmap(
                directory / "grams.npy", "w+", np.float16, (len(lengths), tokens, tokens)
            )
        assert grams_out is not None  # made together with logits_out
        size = len(batch["indices"])
        bits = outputs.logits.to(torch.bfloat16).view(torch.int16).cpu().numpy()
        logits_out[offsets[done] : offsets[done + size]] = bits
        digest.update(bits.tobytes())
        for row, start, stop in batch["image_spans"]:
            gram = centered_gram(outputs.relational[row, start:stop])
            grams_out[done + row] = gram.cpu().numpy()
        done += size
    assert logits_out is not None and grams_out is not None
    logits_out.flush()
    grams_out.flush()
    np.save(directory / "offsets.npy", offsets)
    meta = {"samples": done, "teacher": asdict(teacher.identity), "sha256": digest.hexdigest()}
    (directory / "meta.json").write_text(json.dumps(meta))
