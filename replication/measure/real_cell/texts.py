"""Texts: the teacher's own answers, and documentation that people wrote."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from grace.arithmetic import native_dtype
from grace.data import IGNORE_INDEX
from grace.errors import InputError
from grace.files import atomic_path
from replication.measure.real_cell.checkpoint import END_OF_ANSWER
from replication.measure.real_cell.decoder import DECODER
from replication.measure.real_cell.prompts import questions
from replication.measure.real_cell.settings import Settings


class Texts:
    """Texts as samples: what `grace.data.ConversationDataset` is to the trainer.

    Example::

        texts = Texts([np.array([1, 5, 7, 2])], [2], tokenizer)
        texts[0]["labels"]    # [-100, -100, 7, 2]

    Args:
        ids: of every text, (tokens,).
        starts: the first supervised token of every text.
        tokenizer: whose ids they are.

    Attributes:
        family: the adapter of language models.
        processor: the tokenizer, where a processor has it.
        lengths: tokens of every text.
        supervised: supervised tokens of every text.
        sha256: of ids and starts.
    """

    bad_records: tuple = ()
    truncated = 0
    dropped_images = 0
    family = DECODER

    def __init__(self, ids: Sequence[np.ndarray], starts: Sequence[int], tokenizer: Any) -> None:
        self._ids = [np.asarray(one, dtype=np.int64) for one in ids]
        self._starts = [int(start) for start in starts]
        self.processor = SimpleNamespace(tokenizer=tokenizer)
        self.lengths = [len(one) for one in self._ids]
        self.supervised = [n - start for n, start in zip(self.lengths, self._starts, strict=True)]
        digest = hashlib.sha256()
        for one, start in zip(self._ids, self._starts, strict=True):
            digest.update(np.array([len(one), start, *one], dtype="<i8").tobytes())
        self.sha256 = digest.hexdigest()

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self._ids[index]
        labels = ids.copy()
        labels[: self._starts[index]] = IGNORE_INDEX
        return {"input_ids": ids, "labels": labels, "index": index}

    def first(self, count: int) -> "Texts":
        """The first texts alone."""
        return Texts(self._ids[:count], self._starts[:count], self.processor.tokenizer)

    def summary(self) -> dict[str, Any]:
        """Counts and hash, as `replication.results.real_cell.TextPart` has them."""
        return {"sequences": len(self), "tokens": sum(self.supervised), "sha256": self.sha256}

    def save(self, path: Path) -> None:
        """Write ids and starts."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            joined = np.concatenate(self._ids)
            np.savez(file, ids=joined, lengths=self.lengths, starts=self._starts)

    @classmethod
    def read(cls, path: Path, tokenizer: Any) -> "Texts":
        """What `save` wrote."""
        with np.load(path) as held:
            ids = np.split(held["ids"], np.cumsum(held["lengths"])[:-1])
            return cls(ids, held["starts"].tolist(), tokenizer)


def own_texts(teacher: Any, tokenizer: Any, settings: Settings, work: Path) -> tuple[Texts, Texts]:
    """The teacher's answers to the questions of training and to the held-out ones.

    They are sampled at temperature 1 from the whole vocabulary, in parts that are kept in ``work``.
    """
    asked = questions(settings.training, settings.held_out, settings.seed)
    parts = []
    for name, prompts in zip(("training", "held_out"), asked, strict=True):
        starts = range(0, len(prompts), settings.generated)
        answers: list[Texts] = []
        for number, start in enumerate(tqdm(starts, desc=f"{name} texts")):
            file = work / name / f"{number:03}.npz"
            if not file.is_file():
                some = prompts[start : start + settings.generated]
                seed = 1000 * settings.seed + 2 * number + (name == "held_out")
                file.parent.mkdir(parents=True, exist_ok=True)
                _answers(teacher, tokenizer, some, settings.tokens, seed).save(file)
            answers.append(Texts.read(file, tokenizer))
        parts.append(_joined(answers, tokenizer))
    return parts[0], parts[1]


def _joined(parts: Sequence[Texts], tokenizer: Any) -> Texts:
    ids = [one for part in parts for one in part._ids]
    return Texts(ids, [start for part in parts for start in part._starts], tokenizer)


@torch.no_grad()
def _answers(teacher: Any, tokenizer: Any, prompts: list[str], tokens: int, seed: int) -> Texts:
    """One sampled answer to each question; a text ends with the answer or has ``tokens`` tokens."""
    asked = [
        tokenizer(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n").input_ids
        for text in prompts
    ]
    longest = max(map(len, asked))
    if longest >= tokens:
        raise InputError(f"tokens is {tokens}; the longest question has {longest}")
    end = tokenizer.convert_tokens_to_ids(END_OF_ANSWER)
    padded = torch.tensor([[end] * (longest - len(one)) + one for one in asked])
    mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in asked])
    torch.manual_seed(seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=native_dtype() == torch.bfloat16):
        drawn = teacher.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=tokens - min(map(len, asked)),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            eos_token_id=end,
            pad_token_id=end,
        )[:, longest:]
    ids = []
    for one, answer in zip(asked, drawn.tolist(), strict=True):
        length = answer.index(end) + 1 if end in answer else len(answer)
        ids.append(np.array([*one, *answer[:length]][:tokens]))
    return Texts(ids, [len(one) for one in asked], tokenizer)


def documentation(tokenizer: Any, settings: Settings) -> Texts:
    """Pieces of Python's help on its language, which people wrote; all but the first token count.

    Which pieces follows from the seed, and the text from Python's version.
    """
    from pydoc_data.topics import topics

    text = "\n".join(topics[name] for name in sorted(topics))
    ids = np.array(tokenizer(text, verbose=False).input_ids)
    length = settings.tokens
    pieces = ids[: len(ids) // length * length].reshape(-1, length)
    if len(pieces) < settings.documentation:
        raise InputError(
            f"documentation is {settings.documentation}; Python's help has {len(pieces)} pieces of "
            f"{length} tokens"
        )
    rng = np.random.default_rng(settings.seed)
    chosen = sorted(rng.permutation(len(pieces))[: settings.documentation].tolist())
    return Texts(list(pieces[chosen]), [1] * len(chosen), tokenizer)
