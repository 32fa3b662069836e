"""Products of every back end against float64, and the choice of one."""

import functools
import types
import warnings

import pytest
import tinygemm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from storages import LiveBytes
from torch._subclasses.fake_tensor import FakeTensorMode

from grace.arithmetic import native_dtype
from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, Int8Linear, available
from grace.int4.backends import cpu as cpu_module
from grace.int4.backends import cuda as cuda_module
from grace.int4.backends import select
from grace.int4.layouts import BlockedLayout, WeightShape

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
@given(seeds, shapes([4, 8]), st.integers(1, 4), st.booleans())
def test_cuda_kernel_by_its_definition(seed, shape, rows, bias):
    """The operator is `tinygemm.product`: the layout's and the kernel's text, in NumPy."""
    codes, scales, offset, x, weight = draw(seed, shape, rows, bias)
    backend = BACKENDS["cuda"]
    buffers = backend.pack(codes, scales, shape)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.ops.aten, "_weight_int4pack_mm", tinygemm.product)
        result = backend.packed(x, buffers, shape, offset)
    assert (result.dtype, result.shape) == (torch.bfloat16, (rows, shape.out_features))
    # at 8 bits the planes of a code are rounded one by one: 16 |h| + l <= |q| + 30
    widest = weight.abs() + (30 * scales.double().repeat_interleave(shape.group_size, 1)) * (
        shape.bits == 8
    )
    expected, allowed = bound(x, weight, offset, rounded_weight=False, roundings=2)
    allowed += (x.double().abs() @ widest.t()) * ROUNDING * 1.02
    assert ((result.double() - expected).abs() <= allowed).all()


@pytest.fixture
def gpu(monkeypatch):
    """A CUDA device as far as torch says, whose memory is the host's; it records the calls.

    It packs as `tinygemm` does.
    """
    asked = types.SimpleNamespace(
        capability={"cuda:1": (8, 0), "cuda:0": (12, 0), "cuda": (9, 0)},
        places=[],
        nibbles=set(),
        convert=tinygemm.convert,
    )
    to = torch.Tensor.to

    def move(tensor, *where, **options):
        if isinstance(where[0], str) and where[0].startswith("cuda"):
            asked.places.append(where[0])
            return tensor
        return to(tensor, *where, **options)

    def convert(pairs, tiles):
        asked.nibbles |= {
            int(nibble) for byte in pairs.unique() for nibble in divmod(int(byte), 16)
        }
        return asked.convert(pairs, tiles)

    monkeypatch.setattr(torch.Tensor, "to", move)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(
        torch.cuda, "get_device_capability", lambda device: asked.capability[str(device)]
    )
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", convert)
    cuda_module._packs_as_expected.cache_clear()
    yield asked
    cuda_module._packs_as_expected.cache_clear()


def test_cuda_runs_where_torch_packs_as_its_kernel_reads(gpu):
    """Compared once a device, for every code and every number of tiles that lie together."""
    backend, shape = BACKENDS["cuda"], WeightShape(32, 128, 1, 4)
    state = torch.get_rng_state()
    assert select("auto", shape, torch.device("cuda:1")) == (backend, "the kernel for cuda")
    assert select("cuda", shape, torch.device("cuda")) == (backend, "asked for by name")
    assert backend.unavailable(torch.device("cuda:1")) is None
    assert gpu.places == ["cuda:1"] * 3 + ["cuda:3"] * 3
    assert gpu.nibbles == set(range(16))
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator stays
    cuda_module._packs_as_expected.cache_clear()
    with torch.device("meta"):  # as `torch.set_default_device` would say
        assert backend.unavailable(torch.device("cuda:1")) is None
    assert backend.unavailable(HOST) == "it runs on CUDA devices, and the weight is on cpu"


@pytest.mark.parametrize("tiles", [2, 4, 8])
def test_cuda_is_refused_where_torch_packs_otherwise(gpu, tiles):
    def convert(pairs, inner):
        words = tinygemm.convert(pairs, inner)
        return words.flip(0) if inner == tiles else words

    gpu.convert = convert
    with pytest.raises(InputError, match=r"'cuda' is not available: .* packs in an unknown layout"):
        select("cuda", WeightShape(32, 128, 1, 4), torch.device("cuda:0"), "q")


def test_cuda_is_refused_on_devices_that_are_too_old_or_of_rocm(gpu, monkeypatch):
    backend, device = BACKENDS["cuda"], torch.device("cuda:2")
    gpu.capability["cuda:2"] = (7, 5)
    assert backend.unavailable(device) == "it needs compute capability 8.0, and cuda:2 has 7.5"
    gpu.capability["cuda:2"] = (8, 0)
    assert backend.unavailable(device) is None
    monkeypatch.setattr(torch.version, "hip", "6.1")
    assert backend.unavailable(device) == "on ROCm the kernel has another layout"


@pytest.mark.parametrize("bits", [4, 8])
def test_cuda_dense_product_by_and_by(monkeypatch, bits):
    shape = WeightShape(40, 128, 2, bits)
    codes, scales, offset, x, weight = draw(6, shape, 3, bias=True)
    backend = BACKENDS["cuda"]
    buffers = backend.pack(codes, scales, shape)
    blocks = list(backend.code_rows(buffers, shape, limit=16 * 128))
    assert [rows for rows, _ in blocks] == [slice(0, 16), slice(16, 32), slice(32, 40)]
    assert torch.equal(torch.cat([block for _, block in blocks]), codes)
    little = functools.partial(backend.code_rows, limit=16 * 128)
    monkeypatch.setattr(backend, "code_rows", little)
    expected, allowed = bound(x, weight, offset, rounded_weight=True, roundings=1)
    result = backend.dense(x, buffers, shape, offset.float())
    assert result.dtype == torch.bfloat16
    assert ((result.double() - expected).abs() <= allowed).all()


def test_cuda_packs_a_part_of_the_rows_at_a_time():
    """2^21 codes, of which the largest temporary holds 16 bits each."""
    shape = WeightShape(4096, 1024, 8, 4)
    codes = torch.zeros(4096, 1024, dtype=torch.int8)
    live = LiveBytes()
    live.count(codes)
    del live.made[:]
    with live:
        BACKENDS["cuda"].pack(codes, torch.ones(4096, 8), shape)
    assert max(live.made) == 2 << 21


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("name", ["cuda", "reference"])
def test_packing_stays_on_the_device_of_the_codes(name, bits):
    """Of which the meta device is one."""
    shape, backend = WeightShape(48, 256, 2, bits), BACKENDS[name]
    codes, scales, *_ = draw(0, shape, 3, bias=False)
    buffers = backend.pack(codes.to("meta"), scales.to("meta"), shape)
    tensors = [*buffers.values(), *backend.unpack(buffers, shape)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


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


def test_the_reference_unpacks_long_rows_one_by_one():
    shape, backend = WeightShape(3, 1 << 18, 1, 8), BACKENDS["reference"]
    codes, scales, *_ = draw(1, shape, 1, bias=False)
    buffers = backend.pack(codes, scales, shape)
    blocks = list(backend.code_rows(buffers, shape))
    assert [rows for rows, _ in blocks] == [slice(0, 1), slice(1, 2), slice(2, 3)]
    assert torch.equal(torch.cat([block for _, block in blocks]), codes)


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


@pytest.mark.parametrize(
    ("backend", "shape", "device", "message"),
    [
        *(
            (
                name,
                (128, 1, 4),
                "cpu",
                f"there is no back end {name!r}.*auto, cpu, cuda, reference$",
            )
            for name in ("triton", "bitsandbytes", 4)
        ),
        ("cpu", (128, 1, 4), "cuda:1", "'cpu' is not available: .*on cuda:1; use 'reference'"),
        ("cpu", (128, 8, 8), "cpu", "cannot take it: groups of 16 are no multiple of 32; use 'ref"),
    ],
)
def test_asking_for_a_back_end_that_cannot_run_is_an_error(
    monkeypatch, backend, shape, device, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name, label in (("q_proj", "q_proj"), ("", "linear")):
        with pytest.raises(InputError, match=rf"^{label}\b.*{message}"):
            select(backend, WeightShape(32, *shape), torch.device(device), name)


@pytest.mark.parametrize(("name", "multiple"), [("cpu", 16), ("cuda", 8)])
def test_kernels_take_multiples_of_their_rows(name, multiple):
    backend = BACKENDS[name]
    assert backend.unsupported(WeightShape(3 * multiple, 128, 1, 4)) is None
    for rows in (1, multiple - 1, multiple + 1, 5 * multiple // 2):
        why_not = backend.unsupported(WeightShape(rows, 128, 1, 4))
        assert why_not == f"{rows} output features are no multiple of {multiple}"
    assert "groups of 16" in backend.unsupported(WeightShape(multiple, 128, 8, 4))


def test_where_nothing_else_runs_another_device_is_advised(monkeypatch):
    for name in ("cpu", "reference"):
        monkeypatch.setattr(BACKENDS[name], "unavailable", lambda device: "broken")
    with pytest.raises(InputError, match="'cpu' is not available: broken; use another device"):
        select("cpu", WeightShape(32, 128, 1, 4), HOST)


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
    for name in (["k_proj"], []):
        said = "^linears of 32 x 128, 4 bits, groups of 16 run on the slow reference back end"
        with pytest.warns(UserWarning, match=said):
            backend, reason = select("auto", WeightShape(32, 128, 8, 4), HOST, *name)
        assert backend.name == "reference"
        assert reason == "cpu cannot: groups of 16 are no multiple of 32"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # there is nothing to be missed
        backend, reason = select("auto", WeightShape(32, 128, 1, 4), torch.device("mps"))
    assert backend.name == "reference" and reason == "no kernel for devices of type mps"


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


@pytest.fixture
def asked_anew():
    """torch is asked for its layout in this test, and again after it."""
    cpu_module.native_layout.cache_clear()
    yield
    cpu_module.native_layout.cache_clear()


LAYOUTS = [(64, True), (32, True), (64, False), (32, False), (16, False)]


@pytest.mark.parametrize(("width", "halves"), LAYOUTS)
def test_every_layout_of_torch_is_told_from_the_others(monkeypatch, asked_anew, width, halves):
    """Also where torch gives it another shape."""
    layout, state, seen = BlockedLayout(width, halves), torch.get_rng_state(), []

    def convert(codes, inner):
        seen.append(codes)
        return layout.pack((codes - 8).to(torch.int8)).view(8, -1)

    operator = types.SimpleNamespace(
        _convert_weight_to_int4pack_for_cpu=convert, _weight_int4pack_mm_for_cpu=None
    )
    monkeypatch.setattr(torch.ops, "aten", operator)
    assert cpu_module.native_layout() == layout
    assert available()["cpu"] is None and len(seen) == 1
    assert seen[0].dtype == torch.int32 and seen[0].unique().tolist() == list(range(16))
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator stays


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_builds_of_torch_without_the_kernel_are_told(monkeypatch, asked_anew, error):
    def convert(codes, inner):
        raise error("not here")

    right = cpu_module.native_layout().pack
    reason = f"torch {torch.__version__} has no int4pack kernel of a known layout here"
    for operators in (
        {},
        {"_weight_int4pack_mm_for_cpu": None},
        {"_convert_weight_to_int4pack_for_cpu": lambda codes, _: right((codes - 8).to(torch.int8))},
        {"_convert_weight_to_int4pack_for_cpu": convert, "_weight_int4pack_mm_for_cpu": None},
    ):
        cpu_module.native_layout.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(torch.ops, "aten", types.SimpleNamespace(**operators))
            assert available()["cpu"] == reason


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bits", [4, 8])
def test_dense_products_on_the_cpu_take_a_bounded_scratch(monkeypatch, bits, threads):
    """2^19 codes, or 2^18 a thread, once as bytes and once in the native format, however many
    rows there are."""
    monkeypatch.setattr(cpu_module, "_CODES", 1 << 19)
    layout = BlockedLayout(64, halves=True)
    monkeypatch.setattr(cpu_module, "_layout", lambda: layout)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    shape, backend = WeightShape(64 * 3 * 4, 4096, 16, bits), BACKENDS["cpu"]
    codes = torch.zeros(shape.out_features, 4096, dtype=torch.int8)
    buffers = backend.pack(codes, torch.ones(shape.out_features, 16), shape)
    live = LiveBytes()
    for tensor in buffers.values():
        live.count(tensor)
    del live.made[:]
    with live:
        y = backend.dense(torch.ones(2, 4096).bfloat16(), buffers, shape)
    assert not y.any()
    at_a_time = max(1 << 19, threads << 18)
    large = [size for size in live.made if size >= at_a_time]
    assert large == [at_a_time, native_dtype().itemsize * at_a_time]


def test_back_ends_without_a_kernel_say_so():
    assert not BACKENDS["reference"].kernel
    with pytest.raises(NotImplementedError, match="reference has no kernel"):
        BACKENDS["reference"].packed(torch.zeros(1, 64), {}, WeightShape(16, 64, 1))
