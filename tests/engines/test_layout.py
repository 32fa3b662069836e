"""The tests' reading of vLLM's layout, and their product in plain torch."""

import time

import numpy as np
import pytest
import torch
from layout import has_kernel, plain_product, read_codes

NO_KERNEL = (
    "not run: vLLM's build for this processor has no cpu_gemm_wna16, which wants AVX-512, or "
    "ENGINES_KERNEL=plain leaves it out"
)


def packed(stored: np.ndarray) -> torch.Tensor:
    """(in, out) of 0 .. 15 in the layout, number by number."""
    in_features, out_features = stored.shape
    words = np.zeros((out_features // 16, 2 * in_features), dtype=np.uint32)
    for i in range(in_features):
        for o in range(out_features):
            word = words[o // 16, 2 * i : 2 * i + 2]
            word[o % 16 // 8] |= np.uint32(stored[i, o]) << np.uint32(4 * (o % 8))
    return torch.from_numpy(words.view(np.int32))


def drawn(seed: int, rows: int, in_features: int, out_features: int, groups: int, dtype):
    """(input, words, scales, bias, the dense weight in float64) of random numbers."""
    draw = np.random.default_rng(seed)
    stored = draw.integers(0, 16, (in_features, out_features))
    scales = torch.from_numpy(draw.uniform(0.01, 0.05, (groups, out_features))).to(dtype)
    numbers = (draw.normal(size=(rows, in_features)), draw.normal(size=out_features))
    inputs, bias = (torch.from_numpy(values).to(dtype) for values in numbers)
    factors = np.repeat(scales.double().numpy(), in_features // groups, 0)
    return inputs, packed(stored), scales, bias, torch.from_numpy((stored - 8) * factors).t()


def test_codes_are_read_back():
    stored = np.random.default_rng(1).integers(0, 16, (64, 48))
    codes = torch.from_numpy(stored - 8).t().to(torch.int8)
    assert torch.equal(read_codes(packed(stored), None, 2), codes)
    zeros = torch.full((2, 6), 0x77777777, dtype=torch.int32)
    assert torch.equal(read_codes(packed(stored), zeros, 2), codes + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_product_is_that_of_the_dense_weight(dtype):
    inputs, words, scales, bias, dense = drawn(2, 5, 64, 48, 2, dtype)
    product = plain_product(inputs, words, scales, None, bias, 8, "vec")
    exact = inputs.double() @ dense.t() + bias.double()
    assert product.dtype == dtype and product.shape == (5, 48)
    assert (product.double() - exact).abs().max() <= 8 * torch.finfo(dtype).eps * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_the_kernel_is_the_plain_product(dtype, groups):
    if not has_kernel():
        pytest.skip(NO_KERNEL)
    from vllm import _custom_ops

    for rows in (1, 7, 40):
        inputs, words, scales, bias, _ = drawn(3, rows, 256, 96, groups, dtype)
        zeros = torch.full((groups, 12), -2004318072, dtype=torch.int32)  # 8 everywhere
        plain = plain_product(inputs, words, scales, zeros, bias, 8, "vec").double()
        for points in (None, zeros):
            theirs = _custom_ops.cpu_gemm_wna16(inputs, words, scales, points, bias, 8, "vec")
            bound = 8 * torch.finfo(dtype).eps * plain.abs().max()
            assert (theirs.double() - plain).abs().max() <= bound, (rows, points is None)


def test_speed_of_the_kernel(record_property):
    """One row through 4096 x 4096, against the dense product: only a number, no bound."""
    if not has_kernel():
        pytest.skip(NO_KERNEL)
    from vllm import _custom_ops

    size, groups, dtype = 4096, 32, torch.bfloat16
    words = torch.randint(-(2**31), 2**31 - 1, (size // 16, 2 * size), dtype=torch.int32)
    scales = torch.full((groups, size), 0.01, dtype=dtype)
    dense, row = torch.randn(size, size).to(dtype), torch.randn(1, size).to(dtype)

    def best(product) -> float:
        times = []
        for _ in range(8):
            start = time.perf_counter()
            product()
            times.append(time.perf_counter() - start)
        return 1000 * min(times)

    kernel = best(lambda: _custom_ops.cpu_gemm_wna16(row, words, scales, None, None, 8, "vec"))
    plain = best(lambda: torch.nn.functional.linear(row, dense))
    record_property("milliseconds", {"kernel": kernel, "dense": plain})
    print(f"one row, {size} x {size}: kernel {kernel:.2f} ms, dense bfloat16 {plain:.2f} ms")
