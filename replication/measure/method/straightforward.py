"""The same functions as one would first write them: whole tensors, float32, autograd."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from grace.distillation import DistillationConfig, decoupled_kd
from grace.quantization import FakeQuantLinear, QuantSpec
from grace.quantization.primitives import MSE_CANDIDATES, MSE_RANGE
from grace.quantization.spec import SCALE_DTYPES

_DEFAULT = DistillationConfig()


class StraightThroughLinear(nn.Module):
    """`FakeQuantLinear` by autograd: rounding as identity in the backward pass (Eq. 14)."""

    def __init__(self, layer: FakeQuantLinear) -> None:
        super().__init__()
        self.weight, self.bias, self.log_scale = layer.weight, layer.bias, layer.log_scale
        self.spec = layer.spec

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) -> (..., out_features)."""
        exact = self.log_scale.exp()
        stored = exact.to(SCALE_DTYPES[self.spec.scale_dtype]).float()
        scale = (exact + (stored - exact).detach()).unsqueeze(-1)
        grouped = self.weight.float().unflatten(-1, (scale.shape[1], -1))
        ratio = (grouped / scale).clamp(self.spec.qmin, self.spec.qmax)
        codes = ratio + (ratio.round() - ratio).detach()
        weight = (codes * scale).flatten(1).to(self.weight.dtype)
        return functional.linear(x, weight, self.bias)


def scale_search(weight: Tensor, spec: QuantSpec) -> Tensor:
    """Scales (out, groups) of least squared error, one candidate after another over the weight."""
    width = spec.group_width(weight.shape[1])
    grouped = weight.float().unflatten(-1, (-1, width))
    largest = grouped.abs().amax(-1)
    best, least = torch.zeros_like(largest), torch.full_like(largest, torch.inf)
    for fraction in torch.linspace(*MSE_RANGE, MSE_CANDIDATES).tolist():
        scale = (largest * (fraction / spec.qmax)).to(SCALE_DTYPES[spec.scale_dtype]).float()
        step = scale.unsqueeze(-1)
        quantized = (grouped / step).round().clamp(spec.qmin, spec.qmax) * step
        error = (grouped - quantized).square().sum(-1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def gated_distillation(student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
    """GDKD of one batch of selected tokens, (N, V) logits: the definitions, by autograd.

    In float32, or float64 for float64 logits.
    """
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_p = teacher.to(dtype).log_softmax(1)
    entropy = -(log_p.exp() * log_p).sum(1)
    gates = (-_DEFAULT.kappa * entropy / math.log(teacher.shape[1])).exp()
    terms = decoupled_kd(
        student, teacher, targets, _DEFAULT.temperature, _DEFAULT.alpha, _DEFAULT.beta_dkd
    )
    return (gates * terms).sum() / gates.sum()


def relational(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - CKA of one image's visual tokens, (n, d_S) and (n, d_T), through both Gram matrices."""
    ours, theirs = _centered_gram(student), _centered_gram(teacher)
    return 1 - (ours * theirs).sum() / (ours.norm() * theirs.norm())


def _centered_gram(x: Tensor) -> Tensor:
    x = functional.normalize(x.to(torch.promote_types(x.dtype, torch.float32)), dim=1)
    gram = x @ x.mT
    return gram - gram.mean(0) - gram.mean(1, keepdim=True) + gram.mean()
