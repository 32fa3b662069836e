"""What is computed in bfloat16 and what in float32, by the processor."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace import arithmetic
from grace.errors import InputError
from grace.int4 import Int4Linear, Int8Linear
from grace.int4.backends import cpu


def test_the_processor_says_what_it_multiplies():
    """Against the flags that the kernel lists, on Linux for x86."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((set(line.split(":")[1].split()) for line in lines if line[:5] == "flags"), None)
    if flags is None:
        pytest.skip("no x86 processor")
    native = bool(flags & {"avx512_bf16", "amx_bf16"})
    assert arithmetic.multiplies_bfloat16("cpu") == native
    assert arithmetic.native_dtype() == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize(
    ("features", "native"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True}, True),  # Arm
        ({}, False),
    ],
)
def test_any_of_the_instruction_sets_with_bfloat16_is_enough(monkeypatch, features, native):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
    assert arithmetic.multiplies_bfloat16.__wrapped__("cpu") is native


def test_a_choice_goes_before_what_the_machine_does(monkeypatch):
    for native in (True, False):
        monkeypatch.setattr(arithmetic, "multiplies_bfloat16", {"cpu": native}.get)
        assert arithmetic.chosen_dtype("bfloat16") == torch.bfloat16
        assert arithmetic.chosen_dtype("float32") == torch.float32
        assert arithmetic.chosen_dtype("auto") == (torch.bfloat16 if native else torch.float32)
    with pytest.raises(InputError, match=r"'float16'.*auto, bfloat16, float32"):
        arithmetic.chosen_dtype("float16")


@pytest.mark.parametrize("linear", [Int4Linear, Int8Linear])
@pytest.mark.parametrize("has_bias", [False, True])
@given(seed=st.integers(0, 2**32 - 1))
def test_without_native_bfloat16_the_dense_product_is_that_of_float32(linear, has_bias, seed):
    """Its only rounding is the last one, to bfloat16: half a unit in the last place."""
    generator = torch.Generator().manual_seed(seed)
    low = -(2 ** (linear.bits - 1))
    codes = torch.randint(low, -low, (64, 128), generator=generator, dtype=torch.int8)
    scales = torch.rand(64, 1, generator=generator).add(0.01).bfloat16().float()
    bias = torch.randn(64, generator=generator) if has_bias else None
    layer = linear.from_codes(codes, scales, bias=bias, backend="cpu", crossover=0)
    x = torch.randn(3, 128, generator=generator).bfloat16()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "native_dtype", lambda: torch.float32)
        result = layer(x).double()
    exact = x.double() @ (codes.double() * scales.double()).t()
    if bias is not None:
        exact += bias.double()
    size = x.double().abs() @ (codes.double() * scales.double()).abs().t()
    assert ((result - exact).abs() <= exact.abs() * 2**-8 + size * 2**-20).all()


@pytest.mark.parametrize("cuda", [False, True])
def test_the_device_is_cuda_where_there_is_one(monkeypatch, cuda):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(arithmetic, "multiplies_bfloat16", {"cpu": False, "cuda": True}.get)
    assert arithmetic.chosen_device() == ("cuda" if cuda else "cpu")
    assert arithmetic.chosen_device("cpu") == "cpu"
    assert arithmetic.arithmetic_name() == ("bfloat16" if cuda else "float32")
    assert arithmetic.arithmetic_name("float32") == "float32"
    if cuda:
        assert arithmetic.chosen_device("cuda") == "cuda"
    else:
        with pytest.raises(InputError, match="sees no CUDA device here; choose cpu"):
            arithmetic.chosen_device("cuda")
