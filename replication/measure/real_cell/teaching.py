"""A teacher of which the last hidden states are kept; its head makes logits of them again.

At 49,152 classes the logits of 50,000 tokens take 5 GB, and the hidden states 60 MB.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from grace.arithmetic import native_dtype
from grace.data import Collator
from grace.errors import InputError
from grace.files import atomic_path
from grace.training import TeacherOutputs
from replication.measure.real_cell.texts import Texts


def collator(texts: Texts) -> Collator:
    """Makes batches of texts."""
    family = texts.family
    return Collator(family, family.image_token_id(None), texts.processor.tokenizer.pad_token_id)


class HeadTeacher:
    """Answers a batch from hidden states that :func:`write_hidden` kept.

    ::

        teacher = HeadTeacher(model.lm_head.weight, write_hidden(model, texts, file), texts)
        teacher.outputs(collator(texts)([texts[0]])).logits    # (supervised tokens, vocabulary)

    Args:
        head: the output layer's weights, (vocabulary, width).
        hidden: of every supervised token's predecessor, in the order of the texts, (tokens, width).
        texts: what they were computed on.

    Attributes:
        sha256: of hidden states and texts.
    """

    def __init__(self, head: torch.Tensor, hidden: torch.Tensor, texts: Texts) -> None:
        if len(hidden) != sum(texts.supervised):
            raise InputError(
                f"{len(hidden)} hidden states for {sum(texts.supervised)} supervised tokens: they "
                "are of other texts; remove the work folder"
            )
        self._head = head.detach().to(hidden.dtype)
        self._hidden = hidden
        self._offsets = np.concatenate([[0], np.cumsum(texts.supervised)])
        digest = hashlib.sha256(hidden.view(torch.uint8).numpy().data)
        self.sha256 = hashlib.sha256((digest.hexdigest() + texts.sha256).encode()).hexdigest()

    @torch.no_grad()
    def outputs(self, batch: dict[str, Any]) -> TeacherOutputs:
        """Logits (N, V) for a collated batch."""
        rows = [self._hidden[self._offsets[i] : self._offsets[i + 1]] for i in batch["indices"]]
        return TeacherOutputs(torch.cat(rows) @ self._head.T, None)


@torch.no_grad()
def write_hidden(model: Any, texts: Texts, path: Path, *, batch_size: int) -> torch.Tensor:
    """The hidden states that a model's head reads before every supervised token, kept in a file.

    Returns:
        (tokens, width), bfloat16 where the processor multiplies it and float32 elsewhere.
    """
    if path.is_file():
        return load_file(path)["hidden"]
    dtype, collate, parts = native_dtype(), collator(texts), []
    for start in tqdm(range(0, len(texts), batch_size), desc=f"hidden states, {path.stem}"):
        some = range(start, min(start + batch_size, len(texts)))
        batch = collate([texts[index] for index in some])
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            states = model.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
        parts.append(states[batch["token_rows"], batch["token_columns"]].to(dtype))
    hidden = torch.cat(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file({"hidden": hidden}, temporary)
    return hidden
