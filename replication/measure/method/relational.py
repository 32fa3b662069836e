"""RCKA of one image as visual tokens grow: forward, and backward into the student.

Beside time and memory: the products that either way multiplies, and how far the value is from the
Gram form's in float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from grace.distillation import rcka_loss
from replication.measure.method.compare import bound, compare, device_with
from replication.measure.method.straightforward import relational

ERROR = 1e-5


@dataclass(frozen=True)
class Case:
    """One image.

    Attributes:
        tokens: number of visual tokens.
        student: width of the student's decoder.
        teacher: width of the teacher's decoder.
    """

    tokens: int
    student: int
    teacher: int


DEFAULT = (
    Case(576, 4096, 5120),
    *(Case(tokens, 1536, 3584) for tokens in (144, 576, 1024, 2304, 4096)),
    Case(4096, 1024, 1024),
)
QUICK = (Case(36, 48, 64), Case(256, 48, 64))


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case, and the bound on the value's distance."""
    device = device_with(threads)
    rows = [_row(Case(**case), repeats, seed, device) for case in cases]
    bounds = [
        bound(f"RCKA, {row['case']}: distance from the Gram form", ERROR, row["distance"])
        for row in rows
    ]
    return {"rows": rows, "bounds": bounds}


def _row(case: Case, repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    student, teacher = hidden_states(case, seed, device)
    calls = {
        "grace": lambda: step(ours, student, teacher),
        "straightforward": lambda: step(relational, student, teacher),
    }
    comparison = compare(calls, repeats, device)
    exact = relational(student.double(), teacher.double())
    return {
        "case": f"{case.tokens:,} tokens, widths {case.student:,} and {case.teacher:,}",
        "sizes": {"tokens": case.tokens, "student": case.student, "teacher": case.teacher},
        **comparison,
        "products": {name: products(call) for name, call in calls.items()},
        "distance": abs(float(ours(student, teacher)) - float(exact)),
    }


def hidden_states(case: Case, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(n, d_S) and (n, d_T) bfloat16 that share a part of what they say, as two models would."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    common = normal(case.tokens, 64)
    student, teacher = (
        (common @ normal(64, width) / 8 + normal(case.tokens, width)).bfloat16()
        for width in (case.student, case.teacher)
    )
    return student, teacher


def ours(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - CKA as the trainer computes it: one image in a batch of one."""
    return rcka_loss(student[None], teacher[None], [(0, 0, len(student))])


def step(way: Any, student: Tensor, teacher: Tensor) -> Tensor:
    """The loss's gradient with respect to the student's hidden states."""
    leaf = student.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(way(leaf, teacher), leaf)
    return gradient


def products(call: Any) -> int:
    """Multiplications in the matrix products of a call."""
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops() // 2
