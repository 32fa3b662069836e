"""Teacher outputs that are computed once, written to a directory and read back."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grace.distillation import centered_gram, visual_token_count, visual_tokens
from grace.errors import InputError
from grace.training.teacher import Identity, LiveTeacher, TeacherOutputs
from grace.types import ImageSpan


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
            self._grams, self._gram_starts = _read_grams(directory)
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
        return TeacherOutputs(logits.to(device), self._relations(batch, device))

    def _relations(self, batch: dict[str, Any], device: torch.device) -> list[torch.Tensor] | None:
        """The Gram matrix (n, n) of every image of a batch; None where none were kept."""
        if self._grams is None:
            return None
        counts = [visual_token_count(span) for span in batch["image_spans"]]
        places = {row: int(self._gram_starts[i]) for row, i in enumerate(batch["indices"])}
        parts = []
        for (row, *_), count in zip(batch["image_spans"], counts, strict=True):
            start = places[row]
            parts.append(self._grams[start : start + count**2])
            places[row] = start + count**2
        if not parts:
            return []
        values = torch.from_numpy(np.concatenate(parts).astype(np.float32)).to(device)
        pieces = values.split([count**2 for count in counts])
        return [piece.view(count, count) for piece, count in zip(pieces, counts, strict=True)]


def _read_grams(directory: Path) -> tuple[Any, Any]:
    """Gram matrices one after the other, and where every sample's begin; None without them."""
    if not (directory / "grams.npy").is_file():
        return None, None
    grams = np.load(directory / "grams.npy", mmap_mode="r")
    if grams.ndim == 1:
        return grams, np.load(directory / "gram_starts.npy")
    samples, tokens, _ = grams.shape  # one image a sample, of equal size
    return grams.reshape(-1), np.arange(samples + 1) * tokens**2


def write_teacher_outputs(
    teacher: LiveTeacher, batches: Iterable[dict[str, Any]], path: str | Path, *, lengths: list[int]
) -> None:
    """Write a teacher's outputs for batches that go through a data set in order.

    They take 2 bytes for every supervised token and word of the vocabulary, and 2 bytes for every
    pair of an image's visual tokens if the teacher keeps hidden states (``relational=True``)::

        write_teacher_outputs(teacher, batches, "outputs", lengths=data.supervised)
        cached = CachedTeacher("outputs", samples=len(data))

    Args:
        teacher: The teacher.
        batches: Collated batches.
        path: The directory to write into.
        lengths: Number of supervised tokens of every sample.
    """
    directory = Path(path)
    directory.mkdir(parents=True, exist_ok=True)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    logits_out = None
    done = 0
    digest = hashlib.sha256()
    with _Grams(directory, len(lengths)) as grams:
        for batch in batches:
            outputs = teacher.outputs(batch)
            if logits_out is None:
                shape = (int(offsets[-1]), outputs.logits.shape[-1])
                file = directory / "logits.npy"
                logits_out = np.lib.format.open_memmap(file, "w+", np.int16, shape)
            size = len(batch["indices"])
            bits = outputs.logits.to(torch.bfloat16).view(torch.int16).cpu().numpy()
            logits_out[offsets[done] : offsets[done + size]] = bits
            digest.update(bits.tobytes())
            if outputs.relational is not None:
                grams.add(outputs.relational, batch["image_spans"], size)
            done += size
    assert logits_out is not None
    logits_out.flush()
    np.save(directory / "offsets.npy", offsets)
    known = asdict(teacher.identity)
    del known["images"]  # the student's own: both have read the same batches
    meta = {"samples": done, "teacher": known, "sha256": digest.hexdigest()}
    (directory / "meta.json").write_text(json.dumps(meta))


class _Grams:
    """Writes Gram matrices as they come: (samples, n, n) in grams.npy where every sample has one
    image of n tokens; else one after the other, and where each sample's begin in gram_starts.npy.
    """

    def __init__(self, directory: Path, samples: int) -> None:
        self._directory, self._samples = directory, samples
        self._counts: list[list[int]] = []  # tokens of each image, by sample
        self._file: Any = None

    def __enter__(self) -> "_Grams":
        return self

    def add(self, relational: Any, spans: Sequence[ImageSpan], size: int) -> None:
        """The images of a batch of ``size`` samples, whose spans go by rows."""
        if self._file is None:
            self._file = (self._directory / "grams.npy").open("wb")
            self._header((self._samples, 1, 1))
        counts: list[list[int]] = [[] for _ in range(size)]
        for span in spans:
            gram = centered_gram(visual_tokens(relational, span))
            self._file.write(gram.cpu().numpy().astype(np.float16).tobytes())
            counts[span[0]].append(len(gram))
        self._counts += counts

    def _header(self, shape: tuple[int, ...]) -> None:
        """numpy's header; it has room for the lengths of an array that grows."""
        self._file.seek(0)
        values = {"descr": "<f2", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self._file, values)

    def __exit__(self, *error: object) -> None:
        if self._file is None:
            return
        starts = np.concatenate([[0], np.cumsum([sum(n * n for n in c) for c in self._counts])])
        kinds = {tuple(counts) for counts in self._counts}
        end = self._file.tell()
        if len(kinds) == 1 and len(only := next(iter(kinds))) == 1:
            self._header((self._samples, only[0], only[0]))
        else:
            self._header((int(starts[-1]),))
            np.save(self._directory / "gram_starts.npy", starts)
        assert self._file.tell() + 2 * starts[-1] == end, "the header has another length"
        self._file.close()
