"""What a model makes of held-out texts, beside what its teacher makes of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grace.arithmetic import native_dtype
from grace.distillation import confidence_gate, decoupled_kd, teacher_entropy
from replication.measure.real_cell.teaching import HeadTeacher, collator
from replication.measure.real_cell.texts import Texts

TEMPERATURE, ALPHA, BETA = 2.0, 1.0, 4.0
"""The code's default coefficients of the decoupled loss."""


@dataclass(frozen=True)
class TokenScores:
    """A model's numbers at every supervised token, (tokens,) each.

    Attributes:
        text: number of the token's text.
        nll: negative log likelihood, nats.
        agreement: 100 where the most likely token is the teacher's, else 0.
        kl: divergence of the model from its teacher, nats.
        loss: ungated decoupled loss with the code's coefficients, nats times temperature².
    """

    text: np.ndarray
    nll: np.ndarray
    agreement: np.ndarray
    kl: np.ndarray
    loss: np.ndarray

    def by_text(self) -> dict[str, np.ndarray]:
        """The mean of each score over each text's tokens, (texts,)."""
        return {name: text_means(getattr(self, name), self.text) for name in SCORES}


SCORES = ("nll", "agreement", "kl")


def text_means(values: np.ndarray, text: np.ndarray) -> np.ndarray:
    """Means over the tokens of each text, in the order of the texts."""
    _, number = np.unique(text, return_inverse=True)
    return np.bincount(number, values) / np.bincount(number)


def _batches(texts: Texts, size: int) -> Any:
    collate = collator(texts)
    for start in range(0, len(texts), size):
        yield collate([texts[index] for index in range(start, min(start + size, len(texts)))])


def _owners(batch: dict[str, Any]) -> np.ndarray:
    return np.array(batch["indices"])[batch["token_rows"].numpy()]


@torch.no_grad()
def token_scores(model: Any, texts: Texts, teacher: HeadTeacher, *, batch_size: int) -> TokenScores:
    """A model's scores at every supervised token.

    Args:
        model: a language model; it is put into evaluation mode.
        texts: what it reads.
        teacher: of these texts.
        batch_size: texts in one forward pass.
    """
    model.eval()
    dtype, columns = native_dtype(), []
    for batch in _batches(texts, batch_size):
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            states = model.model(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
            ).last_hidden_state
            logits = model.lm_head(states[batch["token_rows"], batch["token_columns"]])
        student, target = logits.float(), teacher.outputs(batch).logits.float()
        labels = batch["targets"]
        loss = decoupled_kd(
            student, target, labels, temperature=TEMPERATURE, alpha=ALPHA, beta=BETA
        )
        same = (student.argmax(1) == target.argmax(1)).double() * 100
        student, target = student.log_softmax(1), target.log_softmax(1)
        kl = (target.exp() * (target - student)).sum(1)
        nll = -student[torch.arange(len(labels)), labels]
        columns.append((_owners(batch), *(one.double().numpy() for one in (nll, same, kl, loss))))
    return TokenScores(*map(np.concatenate, zip(*columns, strict=True)))


@dataclass(frozen=True)
class TeacherTokens:
    """A teacher's numbers at every supervised token, (tokens,) each.

    Attributes:
        text: number of the token's text.
        nll: negative log likelihood, nats.
        entropy: of its distribution, nats.
        gate: its confidence gate.
        wrong: 1 where its most likely token is not the text's, else 0.
    """

    text: np.ndarray
    nll: np.ndarray
    entropy: np.ndarray
    gate: np.ndarray
    wrong: np.ndarray


@torch.no_grad()
def teacher_tokens(texts: Texts, teacher: HeadTeacher, *, batch_size: int) -> TeacherTokens:
    """What a teacher itself makes of texts."""
    columns = []
    for batch in _batches(texts, batch_size):
        logits, labels = teacher.outputs(batch).logits.float(), batch["targets"]
        nll = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
        values = (nll, teacher_entropy(logits), confidence_gate(logits))
        wrong = logits.argmax(1) != labels
        columns.append((_owners(batch), *(one.double().numpy() for one in (*values, wrong))))
    return TeacherTokens(*map(np.concatenate, zip(*columns, strict=True)))
