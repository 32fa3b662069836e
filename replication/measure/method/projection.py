"""The vocabulary projection of the supervised positions alone, and of all positions.

From the decoder's last hidden states to their gradient and the projection's: cross-entropy and
GDKD on float32 copies of the logits, as the trainer takes them, with the teacher's logits given.
`grace.training.SupervisedForward` selects before it projects; the other way makes logits of the
whole sequence and selects in the loss.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from grace.distillation import distillation_sums, gated_decoupled_kd
from replication.measure.clock import Call
from replication.measure.method.compare import compare, device_with


@dataclass(frozen=True)
class Case:
    """One sequence.

    Attributes:
        positions: its length.
        supervised: number of supervised positions, at its end.
        width: of the decoder.
        vocabulary: number of classes.
    """

    positions: int
    supervised: int
    width: int
    vocabulary: int


DEFAULT = (Case(1024, 256, 1536, 151_936),)
QUICK = (Case(64, 16, 32, 1_000),)


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case; there are no bounds."""
    device = device_with(threads)
    return {"rows": [_row(Case(**case), repeats, seed, device) for case in cases], "bounds": []}


def _row(case: Case, repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).bfloat16()

    hidden = normal(case.positions, case.width)
    head = (normal(case.vocabulary, case.width) / case.width**0.5).requires_grad_()
    teacher = normal(case.positions, case.vocabulary)
    targets = torch.randint(case.vocabulary, (case.supervised,), generator=generator, device=device)
    labels = torch.full((case.positions,), -100, device=device)
    labels[-case.supervised :] = targets
    # position s predicts the label of position s + 1
    rows = torch.arange(case.positions - case.supervised, case.positions, device=device) - 1
    chosen = teacher[rows]

    calls: dict[str, Call] = {
        "grace": lambda: step(selected, hidden, head, chosen, targets, rows),
        "straightforward": lambda: step(whole, hidden, head, teacher, labels),
    }
    return {
        "case": f"{case.supervised:,} of {case.positions:,} positions, width {case.width:,}, "
        f"{case.vocabulary:,} classes",
        "sizes": {
            "positions": case.positions,
            "supervised": case.supervised,
            "width": case.width,
            "vocabulary": case.vocabulary,
        },
        **compare(calls, repeats, device),
    }


def selected(
    hidden: Tensor, head: Tensor, teacher: Tensor, targets: Tensor, rows: Tensor
) -> Tensor:
    """CE + GDKD of hidden states (S, d), projected at the supervised `rows` (N,) alone; the
    teacher's logits (N, V) and the targets (N,) are of those."""
    logits = functional.linear(hidden[rows], head).float()
    sums = distillation_sums(logits, teacher, targets)
    return functional.cross_entropy(logits, targets) + sums.loss_sum / sums.gate_sum


def whole(hidden: Tensor, head: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
    """The same from logits of all positions: teacher (S, V), labels (S,), -100 if unsupervised."""
    logits = functional.linear(hidden, head).float()
    gdkd = gated_decoupled_kd(logits[None], teacher[None], labels[None])
    return functional.cross_entropy(logits[:-1], labels[1:]) + gdkd


def step(way: Any, hidden: Tensor, head: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
    """The loss's gradients with respect to the hidden states and the projection."""
    leaf = hidden.detach().requires_grad_()
    gradients: tuple[Tensor, ...] = torch.autograd.grad(way(leaf, head, *rest), (leaf, head))
    return gradients
