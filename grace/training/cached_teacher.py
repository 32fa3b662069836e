"""Teacher outputs that are computed once, written to a directory and read back."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.distillation import centered_gram, visual_token_count, visual_tokens
from grace.errors import InputError
from grace.training.teacher import Identity, LiveTeacher, TeacherOutputs


class CachedTeacher:
    """Teacher outputs read back from a directory that :func:`write_teacher_outputs` wrote.

    ::

        teacher = CachedTeacher("data/teacher_outputs", samples=len(data))
        GraceTrainer(student, arguments, data, collate, method=method, teacher=teacher).train()

    Args:
        path: The directory.
        samples: Size of the data set that it is used for.

    Attributes:
        identity: What a student must have in common with the teacher.
        sha256: Hash of the logits.

    Raises:
        InputError: The directory is missing, damaged, or covers fewer samples.
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
        """Logits (N, V) and Gram matrices (n, n) for a collated batch.

        Raises:
            InputError: The outputs were computed on other data.
        """
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
    """Write a teacher's outputs for batches that go through a data set in order.

    Args:
        teacher: The teacher; it must keep hidden states (``relational=True``).
        batches: Collated batches; every sample has one image, of the same number of tokens.
        path: The directory to write into.
        lengths: Number of supervised tokens of every sample.
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
            tokens = visual_token_count(batch["image_spans"][0])
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
        for span in batch["image_spans"]:
            gram = centered_gram(visual_tokens(outputs.relational, span))
            grams_out[done + span[0]] = gram.cpu().numpy()
        done += size
    assert logits_out is not None and grams_out is not None
    logits_out.flush()
    grams_out.flush()
    np.save(directory / "offsets.npy", offsets)
    known = asdict(teacher.identity)
    del known["images"]  # the student's own: both have read the same batches
    meta = {"samples": done, "teacher": known, "sha256": digest.hexdigest()}
    (directory / "meta.json").write_text(json.dumps(meta))
