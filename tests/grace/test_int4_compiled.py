"""The compiled product: values, threads, and what happens where it cannot be built."""

import re
import shutil
import subprocess

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.int4 import BACKENDS, Int4Linear, Int8Linear
from grace.int4.backends import compiled as module
from grace.int4.backends.base import KernelBackend
from grace.int4.layouts import WeightShape
from grace.machine import cache_folder

CPU = BACKENDS["cpu"]
PRODUCT, REASON = module.compiled()
needs_it = pytest.mark.skipif(PRODUCT is None, reason=f"not compiled here: {REASON}")


def weight(generator, outputs, groups, width, bits):
    """Codes, scales, and the weight in float64."""
    limit = 2 ** (bits - 1)
    size = (outputs, groups * width)
    codes = torch.randint(-limit, limit, size, generator=generator, dtype=torch.int8)
    codes[0, :2] = torch.tensor([-limit, limit - 1])
    scales = (torch.rand(outputs, groups, generator=generator) + 0.01).bfloat16().float()
    exact = codes.double().unflatten(1, (groups, width)) * scales.double()[..., None]
    return codes, scales, exact.flatten(1)


@needs_it
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([4, 8]),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from([32, 64, 128]),
    st.integers(1, 20),
    st.integers(1, 3),
)
@settings(deadline=None, max_examples=60)
def test_products_are_those_of_float64(seed, bits, blocks, groups, width, rows, threads):
    """Inputs are exact, so only float32 sums and the result's rounding to bfloat16 remain."""
    generator = torch.Generator().manual_seed(seed)
    shape = WeightShape(64 * blocks, groups * width, groups, bits)
    codes, scales, exact = weight(generator, shape.out_features, groups, width, bits)
    buffers = CPU.pack(codes, scales, shape)
    assert CPU.kernel_name(shape) == "compiled"
    x = torch.randn(rows, shape.in_features, generator=generator).bfloat16()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        y = CPU.packed(x, buffers, shape).double()
    finally:
        torch.set_num_threads(before)
    expected = x.double() @ exact.t()
    sums = x.double().abs() @ exact.abs().t()
    bound = expected.abs() * 2.0**-8 + sums * 2.0**-20
    assert ((y - expected).abs() <= bound).all()


@needs_it
@pytest.mark.parametrize("layer", [Int4Linear, Int8Linear])
def test_a_layer_s_answers_are_those_of_torch_s_kernel_up_to_rounding(layer, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    codes, scales, _ = weight(generator, 128, 4, 64, layer.bits)
    bias = torch.randn(128, generator=generator)
    made = layer.from_codes(codes, scales, bias, crossover=64)
    x = torch.randn(2, 5, 256, generator=generator).bfloat16()
    found = made(x)
    monkeypatch.setattr(CPU, "packed", lambda *given: KernelBackend.packed(CPU, *given))
    other = made(x)
    assert found.shape == other.shape == (2, 5, 128)
    torch.testing.assert_close(found, other, rtol=2**-7, atol=2**-6 * float(other.abs().max()))


@needs_it
def test_shapes_that_it_does_not_take_run_torch_s_kernel():
    generator = torch.Generator().manual_seed(1)
    codes, scales, exact = weight(generator, 80, 2, 32, 4)
    shape = WeightShape(80, 64, 2, 4)
    assert CPU.kernel_name(shape) == "_weight_int4pack_mm_for_cpu"
    x = torch.randn(3, 64, generator=generator).bfloat16()
    y = CPU.packed(x, CPU.pack(codes, scales, shape), shape).double()
    torch.testing.assert_close(y, x.double() @ exact.t(), rtol=2**-7, atol=0.05)


@pytest.fixture
def anew(monkeypatch, tmp_path):
    """As in a new process on a processor with the instructions, with an empty cache."""
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    module.compiled.cache_clear()
    yield module.compiled
    module.compiled.cache_clear()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda patch: patch.setenv("GRACE_INT4_COMPILE", "0"), r"\$GRACE_INT4_COMPILE is 0"),
        (
            lambda patch: patch.setattr(torch.cpu, "get_capabilities", dict),
            "no AVX-512 products of bfloat16",
        ),
        (lambda patch: patch.setattr(shutil, "which", lambda name: None), r"no C\+\+ compiler"),
        (lambda patch: patch.setenv("CXX", "false"), "does not build it"),
    ],
)
def test_without_it_the_reason_is_said(anew, monkeypatch, change, told):
    change(monkeypatch)
    product, reason = anew()
    assert product is None
    assert re.search(told, reason)
    assert CPU.kernel_name(WeightShape(64, 64, 1, 4)) == "_weight_int4pack_mm_for_cpu"


@needs_it
def test_it_is_built_once(anew, monkeypatch):
    assert anew()[0] is not None
    (library,) = cache_folder().glob("*.so")
    written = library.stat().st_mtime_ns
    anew.cache_clear()
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("compiled again"))
    assert anew()[0] is not None
    assert library.stat().st_mtime_ns == written
