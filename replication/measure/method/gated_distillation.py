"""GDKD over a large vocabulary: forward and backward of the loss alone, bfloat16 logits.

Beside time: the memory that is used beyond the two logit tensors and the student's gradient, and
how far each way's gradient is from float64.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grace.distillation import distillation_sums
from grace.distillation._common import WORKSPACE_BYTES
from replication.measure.memory import peak_allocated, shortage
from replication.measure.method.compare import bound, compare, device_with
from replication.measure.method.straightforward import gated_distillation

TIME, WORKSPACE, ERROR = 0.5, 0.1, 2.0
_ORACLE_TOKENS = 16
_SLACK = 2 * 2**30  # bytes to leave free


@dataclass(frozen=True)
class Case:
    """Logits of a batch.

    Attributes:
        tokens: number of supervised tokens.
        vocabulary: number of classes.
    """

    tokens: int
    vocabulary: int


DEFAULT = (Case(512, 32_064), Case(512, 151_936), Case(2048, 151_936))
QUICK = (Case(64, 1_000), Case(64, 4_000))


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case, and bounds; the straightforward way only where memory allows."""
    device = device_with(threads)
    rows, bounds = [], []
    for values in cases:
        case = Case(**values)
        row = _row(case, repeats, seed, device)
        rows.append(row)
        bounds += _bounds(case, row)
    return {"rows": rows, "bounds": bounds}


def _bounds(case: Case, row: Mapping[str, Any]) -> list[dict[str, Any]]:
    size = f"{case.tokens:,} tokens x {case.vocabulary:,} classes"
    bounds = []
    if "straightforward" in row["time"]:
        time = row["time"]["straightforward"]
        bounds.append(bound(f"GDKD over straightforward, {size}: time", TIME, time))
    # the chunks' workspace is of one size, so only a large tensor can be ten times as large
    if WORKSPACE * row["sizes"]["logit_bytes"] >= WORKSPACE_BYTES:
        what = f"GDKD, {size}: bytes beyond logits and gradient, of one logit tensor"
        bounds.append(bound(what, WORKSPACE, row["workspace"]["grace"]))
    quotient = row["error"]["grace"] / row["error"]["straightforward"]
    what = f"GDKD, {size}: gradient's error over straightforward's"
    return [*bounds, bound(what, ERROR, quotient)]


def _row(case: Case, repeats: int, seed: int, device: torch.device) -> dict[str, Any]:
    student, teacher, targets = logits(case, seed, device)
    size = student.numel() * student.element_size()
    ways = {"grace": ours, "straightforward": gated_distillation}
    left_out: dict[str, Any] = {}
    # a few tokens tell what all will need
    few = [tensor[:_ORACLE_TOKENS] for tensor in (student, teacher, targets)]
    need = peak_allocated(lambda: gradient(gated_distillation, *few), device)
    need = need * case.tokens // _ORACLE_TOKENS
    if reason := shortage(need + _SLACK, device):
        del ways["straightforward"]
        left_out = {"straightforward": {"not_run": reason}}
    calls = {
        name: lambda way=way: gradient(way, student, teacher, targets) for name, way in ways.items()
    }
    comparison = compare(calls, repeats, device)
    workspace = {
        name: (way["peak_bytes"] - size) / size for name, way in comparison["ways"].items()
    }
    comparison["ways"].update(left_out)
    return {
        "case": f"{case.tokens:,} tokens, {case.vocabulary:,} classes",
        "sizes": {"tokens": case.tokens, "vocabulary": case.vocabulary, "logit_bytes": size},
        **comparison,
        "workspace": workspace,
        "error": errors(*few),
    }


def logits(case: Case, seed: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Student's and teacher's logits (N, V) bfloat16 and targets (N,): the two models agree in
    part, and are sure of some tokens."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.tokens, case.vocabulary)
    student, teacher = (torch.empty(shape, dtype=torch.bfloat16, device=device) for _ in "st")
    targets = torch.randint(case.vocabulary, shape[:1], generator=generator, device=device)
    for start in range(0, case.tokens, 64):
        rows = slice(start, min(start + 64, case.tokens))
        size = (rows.stop - rows.start, case.vocabulary)
        common, own, other = (torch.randn(size, generator=generator, device=device) for _ in "cso")
        sure = 20 * torch.rand(size[0], 1, generator=generator, device=device)
        index = targets[rows, None]
        student[rows] = (2 * common + own).scatter_add_(1, index, 0.8 * sure)
        teacher[rows] = (2 * common + other).scatter_add_(1, index, sure)
    return student, teacher, targets


def ours(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """GDKD of one batch as the trainer computes it, from the sums."""
    sums = distillation_sums(student, teacher, targets)
    return sums.loss_sum / sums.gate_sum


def gradient(way: Any, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """The loss's gradient with respect to the student's logits."""
    leaf = student.detach().requires_grad_()
    (result,) = torch.autograd.grad(way(leaf, teacher, targets), leaf)
    return result


def errors(student: Tensor, teacher: Tensor, targets: Tensor) -> dict[str, float]:
    """|gradient - float64's| / |float64's| of both ways, Euclidean norms."""
    exact = gradient(gated_distillation, student.double(), teacher.double(), targets)
    return {
        name: float(
            (gradient(way, student, teacher, targets).double() - exact).norm() / exact.norm()
        )
        for name, way in {"grace": ours, "straightforward": gated_distillation}.items()
    }
