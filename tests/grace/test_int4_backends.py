"""Products of every back end against float64, and the choice of one."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, Int8Linear, available
from grace.int4.backends import cpu as cpu_module
from grace.int4.backends import select
from grace.int4.layouts import WeightShape, kernel_codes, kernel_scales

few = settings(deadline=None, max_examples=12)
seeds = st.integers(0, 2**32 - 1)
HOST = torch.device("cpu")
ROUNDING = 2.0**-8  # to bfloat16: the largest relative error of one


def draw(seed, shape, rows, bias):
    """codes, scales, bias, x and the exact weight; all but the weight as a layer takes them."""
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (shape.bits - 1)), 2 ** (shape.bits - 1)
    size = (shape.out_features, shape.in_features)
    codes = torch.randint(low, high, size, generator=generator, dtype=torch.int8)
    scales = torch.rand(size[0], shape.groups, generator=generator).mul_(0.1).add_(0.01)
    scales = scales.bfloat16().float()
    offset = torch.randn(size[0], generator=generator).bfloat16() if bias else None
    x = torch.randn(rows, size[1], generator=generator).bfloat16()
    weight = codes.double() * scales.double().repeat_interleave(shape.group_size, 1)
    return codes, scales, offset, x, weight


@st.composite
def shapes(draw_from, bits):
    group_size = draw_from(st.sampled_from([32, 64, 96, 128, 256, 512]))
    groups = draw_from(st.integers(1, 3 if group_size < 256 else 1))
    outputs = 16 * draw_from(st.integers(1, 9))
    return WeightShape(outputs, group_size * groups, groups, draw_from(st.sampled_from(bits)))


def bound(x, weight, bias, *, rounded_weight, roundings):
    """How far a product may be off: accumulation in float32, results rounded to bfloat16.

    The accumulation's part is the usual n * eps * sum |x w|; a weight rounded to bfloat16 errs by
    ROUNDING of itself, and so does each rounding of the result.
    """
    magnitude = x.double().abs() @ weight.abs().t()
    exact = x.double() @ weight.t()
    total = exact if bias is None else exact + bias.double()
    slack = magnitude * (x.shape[1] * 2.0**-24 + (ROUNDING if rounded_weight else 0))
    largest = torch.maximum(exact.abs(), total.abs()) + slack
    return total, slack + roundings * (ROUNDING) * largest * 1.01


@pytest.mark.parametrize("product", ["packed", "dense"])
@few
@given(seeds, shapes([4, 8]), st.integers(1, 9), st.booleans())
def test_cpu_products_are_within_rounding_of_float64(product, seed, shape, rows, bias):
    codes, scales, offset, x, weight = draw(seed, shape, rows, bias)
    backend = BACKENDS["cpu"]
    buffers = backend.pack(codes, scales, shape)
    result = getattr(backend, product)(x, buffers, shape, offset)
    assert (result.dtype, result.shape) == (torch.bfloat16, (rows, shape.out_features))
    roundings = 2 if bias and product == "packed" else 1
    expected, allowed = bound(
        x, weight, offset, rounded_weight=product == "dense", roundings=roundings
    )
    assert ((result.double() - expected).abs() <= allowed).all()


@few
@given(seeds, shapes([4, 8]), st.integers(1, 9), st.booleans())
def test_cuda_layout_on_the_host(seed, shape, rows, bias):
    """Everything of the CUDA back end but its kernel is plain torch, and runs anywhere."""
    codes, scales, offset, x, weight = draw(seed, shape, rows, bias)
    backend = BACKENDS["cuda"]
    assert backend.unsupported(shape) is None
    buffers = backend.pack(codes, scales, shape)
    again = backend.unpack(buffers, shape)
    assert torch.equal(again[0], codes) and torch.equal(again[1], scales)
    expected, allowed = bound(x, weight, offset, rounded_weight=True, roundings=1)
    result = backend.dense(x, buffers, shape, offset)
    assert ((result.double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_cuda_kernel_takes_the_shapes_that_are_packed(bits):
    """torch's own declaration of the kernel, on tensors without values."""
    shape = WeightShape(48, 256, 2, bits)
    backend = BACKENDS["cuda"]
    codes, scales, _, x, _ = draw(0, shape, 3, bias=False)
    buffers = backend.pack(codes, scales, shape)
    with FakeTensorMode() as mode:
        fake = {name: mode.from_tensor(tensor) for name, tensor in buffers.items()}
        y = backend.packed(mode.from_tensor(x), fake, shape)
    assert (y.shape, y.dtype) == ((3, 48), torch.bfloat16)


@few
@given(seeds, shapes([4, 8]), st.integers(1, 4))
def test_cuda_kernel_by_its_definition(seed, shape, rows):
    """What `_weight_int4pack_mm` is defined to compute from these buffers: fragments, then fma.

    The kernel gives bfloat16((nibble - 8) * scale + zero) to the tensor cores; here those products
    are summed in float64.
    """
    codes, scales, _, x, weight = draw(seed, shape, rows, bias=False)
    buffers = BACKENDS["cuda"].pack(codes, scales, shape)
    words = buffers["packed"].long() & 0xFFFFFFFF
    n_tiles, k_tiles, _, pairs = words.shape
    columns = k_tiles * pairs * 32
    nibbles = torch.empty(n_tiles * 8, columns, dtype=torch.double)
    lane = torch.arange(32)
    for place, offset in enumerate((0, 8, 16, 24, 1, 9, 17, 25)):
        value = (words >> (4 * place)) & 15
        for k_tile in range(k_tiles):
            for pair in range(pairs):
                k = 32 * (k_tile * pairs + pair) + 2 * (lane % 4) + offset
                for n_tile in range(n_tiles):
                    nibbles[8 * n_tile + lane // 4, k] = value[n_tile, k_tile, :, pair].double()
    table = buffers["scales_and_zeros"].double().repeat_interleave(shape.kernel_group, 0)
    fragments = (nibbles - 8) * table[..., 0].t() + table[..., 1].t()
    planes = shape.bits // 4
    result = x.double().repeat(1, planes) @ fragments.bfloat16().double().t()
    expected = x.double() @ weight.t()
    # at 8 bits the planes of a code are rounded one by one: 16 |h| + l <= |q| + 30
    widest = weight.abs() + (30 * scales.double().repeat_interleave(shape.group_size, 1)) * (
        shape.bits == 8
    )
    assert ((result - expected).abs() <= (x.double().abs() @ widest.t()) * ROUNDING * 1.01).all()


@few
@given(seeds, st.sampled_from([4, 8]), st.integers(1, 5), st.integers(1, 4), st.booleans())
def test_reference_computes_in_the_inputs_precision(seed, bits, outputs, groups, bias):
    shape = WeightShape(outputs, 9 * groups, groups, bits)  # a group size no kernel takes
    codes, scales, offset, x, weight = draw(seed, shape, 3, bias)
    layer = (Int4Linear if bits == 4 else Int8Linear).from_codes(codes, scales, offset, "reference")
    expected = x.double() @ weight.t() + (0 if offset is None else offset.double())
    torch.testing.assert_close(layer(x.double()), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(layer(x.float()).double(), expected, rtol=1e-5, atol=1e-5)
    # rounded once: nothing in bfloat16 is closer, but for the float32 sum's own error
    assert layer(x).dtype == torch.bfloat16
    torch.testing.assert_close(layer(x).double(), expected, rtol=ROUNDING * 1.001, atol=1e-6)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["cpu", "cuda", "reference"])
def test_rows_beyond_one_block(name, bits):
    """More rows than are packed, unpacked and multiplied at a time, and a last block of 16."""
    shape = WeightShape(4096 + 16, 1024, 8, bits)
    codes, scales, _, x, weight = draw(1, shape, 2, bias=False)
    backend = BACKENDS[name]
    buffers = backend.pack(codes, scales, shape)
    assert backend.mismatches(buffers, shape, codes, scales) == 0
    blocks = list(backend.code_rows(buffers, shape))
    assert len(blocks) > 1 or name == "cuda"
    assert [rows.start for rows, _ in blocks[1:]] == [rows.stop for rows, _ in blocks[:-1]]
    expected, allowed = bound(x, weight, None, rounded_weight=True, roundings=1)
    assert ((backend.dense(x, buffers, shape).double() - expected).abs() <= allowed).all()


@pytest.mark.parametrize("name", ["cpu", "cuda", "reference"])
def test_mismatches_are_counted(name):
    shape = WeightShape(32, 128, 2, 4)
    codes, scales, *_ = draw(2, shape, 1, bias=False)
    backend = BACKENDS[name]
    buffers = backend.pack(codes, scales, shape)
    other, others = codes.clone(), scales.clone()
    other[3, 5] ^= 1
    other[31, 127] ^= 4
    others[7, 1] *= 2
    assert backend.mismatches(buffers, shape, other, others) == 3


def test_nf4_is_another_quantizer():
    """It runs bitsandbytes' NF4 of the dequantized weight, and holds no codes."""
    functional = pytest.importorskip("bitsandbytes.functional")
    shape = WeightShape(64, 128, 1, 4)
    codes, scales, offset, x, weight = draw(3, shape, 4, bias=True)
    layer = Int4Linear.from_codes(codes, scales, offset, "bitsandbytes")
    packed, state = functional.quantize_4bit(weight.bfloat16(), blocksize=64, quant_type="nf4")
    rounded = functional.dequantize_4bit(packed, state).double()
    assert not torch.equal(rounded, weight.bfloat16().double())
    expected = x.double() @ rounded.t() + offset.double()
    error = (layer(x).double() - expected).norm() / expected.norm()
    # bitsandbytes' kernel for AVX512-BF16 also rounds absmax and its levels to bfloat16
    assert error < 3 * ROUNDING
    assert (
        layer(x).double() - x.double() @ weight.t() - offset.double()
    ).norm() > expected.norm() / 50
    assert not layer.exact and "not the codes" in layer.arithmetic
    with pytest.raises(InputError, match="use the model it was from"):
        layer.codes()
    with pytest.raises(InputError, match="use the model it was from"):
        layer.state_dict()


def test_asking_for_a_back_end_that_cannot_run_is_an_error():
    shape = WeightShape(32, 128, 1, 4)
    with pytest.raises(
        InputError, match=r"q_proj: there is no back end 'triton': give one of auto"
    ):
        select("triton", shape, HOST, "q_proj")
    with pytest.raises(InputError, match="no back end 4"):
        select(4, shape, HOST)
    with pytest.raises(InputError, match=r"'cuda' is not available: .*use 'cpu' or 'reference'"):
        select("cuda", shape, HOST)
    with pytest.raises(InputError, match="'cpu' is not available: it runs on the CPU"):
        select("cpu", shape, torch.device("cuda"))
    with pytest.raises(InputError, match=r"'cpu' cannot take it: 24 output features .* of 16"):
        select("cpu", WeightShape(24, 128, 1, 4), HOST)
    with pytest.raises(InputError, match="'cpu' cannot take it: groups of 16 are no multiple"):
        select("cpu", WeightShape(32, 128, 8, 4), HOST)
    with pytest.raises(InputError, match=r"'bitsandbytes' cannot take it: NF4 has 4 bits"):
        select("bitsandbytes", WeightShape(32, 128, 1, 8), HOST)


def test_cuda_is_refused_without_a_device():
    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    assert available()["cuda"] == "torch sees no CUDA device"
    codes, scales, *_ = draw(0, WeightShape(32, 128, 1, 4), 1, bias=False)
    with pytest.raises(InputError, match="'cuda' is not available: torch sees no CUDA device"):
        Int4Linear.from_codes(codes, scales, backend="cuda")


def test_auto_takes_the_kernel_and_otherwise_says_so():
    backend, reason = select("auto", WeightShape(32, 128, 1, 4), HOST)
    assert (backend.name, reason) == ("cpu", "the kernel for cpu")
    with pytest.warns(UserWarning, match=r"k_proj.*slow reference .* groups of 16"):
        backend, reason = select("auto", WeightShape(32, 128, 8, 4), HOST, "k_proj")
    assert backend.name == "reference" and "groups of 16" in reason
    backend, reason = select("auto", WeightShape(32, 128, 1, 4), torch.device("mps"))
    assert backend.name == "reference" and "mps" in reason


def test_a_layout_that_torch_does_not_use_is_not_guessed(monkeypatch):
    """Where torch packs in a way unknown here, its kernel would compute nonsense."""
    monkeypatch.setattr(cpu_module, "_KNOWN_LAYOUTS", cpu_module._KNOWN_LAYOUTS[-1:])
    cpu_module.native_layout.cache_clear()
    try:
        assert "known layout" in available()["cpu"]
        with pytest.raises(InputError, match="known layout"):
            select("cpu", WeightShape(32, 128, 1, 4), HOST)
        with pytest.warns(UserWarning, match="known layout"):
            assert select("auto", WeightShape(32, 128, 1, 4), HOST)[0].name == "reference"
    finally:
        cpu_module.native_layout.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, 512])
def test_cuda_kernel_on_a_device(bits, group_size):
    shape = WeightShape(72, 512, 512 // group_size, bits)
    codes, scales, offset, x, weight = draw(4, shape, 5, bias=True)
    layer_class = Int4Linear if bits == 4 else Int8Linear
    on_device = [t.cuda() for t in (codes, scales, offset)]
    for crossover in (0, 8):
        layer = layer_class.from_codes(*on_device, "cuda", crossover=crossover)
        assert torch.equal(layer.codes().cpu(), codes)
        assert torch.equal(layer.scales().cpu(), scales)
        expected, allowed = bound(x, weight, offset, rounded_weight=True, roundings=2)
        assert ((layer(x.cuda()).cpu().double() - expected).abs() <= 2 * allowed).all()


def test_kernel_tables_of_both_kernels_are_the_same():
    shape = WeightShape(32, 128, 2, 8)
    codes, scales, *_ = draw(5, shape, 1, bias=False)
    tables = [BACKENDS[n].pack(codes, scales, shape)["scales_and_zeros"] for n in ("cpu", "cuda")]
    assert torch.equal(*tables) and torch.equal(tables[0], kernel_scales(scales, shape))
    assert kernel_codes(codes, shape).shape == (32, 256)
