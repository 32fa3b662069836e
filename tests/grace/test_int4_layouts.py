"""Where the bits lie: against torch's own packing, PTX's fragments, and one code at a time."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.errors import InputError
from grace.int4.backends.cpu import native_layout
from grace.int4.layouts import (
    BlockedLayout,
    WeightShape,
    check,
    codes_of_kernel,
    inner_tiles,
    join_bytes,
    kernel_codes,
    kernel_scales,
    pack_plain,
    pack_tensor_core,
    scales_of_kernel,
    split_bytes,
    unpack_plain,
    unpack_tensor_core,
)

few = settings(deadline=None, max_examples=12)
seeds = st.integers(0, 2**32 - 1)
bits = st.sampled_from([4, 8])
LAYOUTS = [
    BlockedLayout(64, halves=True),
    BlockedLayout(32, halves=True),
    BlockedLayout(32, halves=False),
    BlockedLayout(16, halves=False),
]


def draw_codes(seed, rows, columns, bits=4):
    generator = torch.Generator().manual_seed(seed)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1)
    codes = torch.randint(low, high, (rows, columns), generator=generator, dtype=torch.int8)
    codes.view(-1)[0], codes.view(-1)[-1] = low, high - 1  # the extremes always occur
    return codes


def draw_scales(seed, rows, groups):
    """Scales over many binades, every one with a full bfloat16 significand somewhere."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-20, 8, (rows, groups), generator=generator)
    fractions = torch.randint(128, 256, (rows, groups), generator=generator)
    return torch.ldexp(fractions.float(), exponents - 7)


@few
@given(seeds, bits, st.integers(1, 7), st.integers(1, 33))
def test_plain_layout_by_one_code_at_a_time(seed, bits, rows, columns):
    codes = draw_codes(seed, rows, columns, bits)
    packed = pack_plain(codes, bits)
    assert torch.equal(unpack_plain(packed, WeightShape(rows, columns, 1, bits)), codes)
    if bits == 8:
        assert packed.dtype == torch.int8
        return
    assert (packed.dtype, packed.shape) == (torch.uint8, (rows, (columns + 1) // 2))
    for row in range(rows):
        for column in range(columns):
            byte = int(packed[row, column // 2])
            nibble = byte >> 4 if column % 2 else byte & 15
            assert nibble - 8 == codes[row, column]


@few
@given(seeds, st.integers(1, 13), st.integers(1, 40))
def test_blocked_layout_is_what_torch_packs_here(seed, sixteens, pairs):
    layout = native_layout()
    assert layout is not None
    codes = draw_codes(seed, 16 * sixteens, 2 * pairs)
    expected = torch.ops.aten._convert_weight_to_int4pack_for_cpu((codes + 8).int(), 1)
    packed = layout.pack(codes)
    assert packed.dtype == expected.dtype
    assert torch.equal(packed.view(-1), expected.view(-1))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@few
@given(seeds, st.integers(1, 9), st.integers(1, 5))
def test_blocked_layouts_by_one_code_at_a_time(layout, seed, sixteens, pairs):
    """By the text of `BlockedLayout`: which byte and which nibble has the code (row, column)."""
    rows, columns = 16 * sixteens, 2 * pairs
    codes = draw_codes(seed, rows, columns)
    packed = layout.pack(codes)
    assert torch.equal(layout.unpack(packed), codes)
    flat = packed.view(-1).tolist()
    for row in range(rows):
        first = row - row % layout.width
        width = min(layout.width, rows - first)
        within = row - first
        if layout.halves and width == layout.width:
            byte, high = within % (width // 2), within >= width // 2
        else:
            byte, high = within // 2, within % 2
        for column in range(columns):
            value = flat[first * columns // 2 + column * (width // 2) + byte]
            assert (value >> 4 if high else value & 15) - 8 == codes[row, column]


@few
@given(seeds, st.integers(1, 3), st.sampled_from([32, 64, 96, 128, 160, 256]))
def test_tensor_core_layout_is_the_fragment_of_the_instruction(seed, tiles, columns):
    """PTX, mma.m16n8k16, B: lane t has n = t / 4 and k = 2 (t % 4) + {0, 1} and + {8, 9}."""
    codes = draw_codes(seed, 8 * tiles, columns)
    inner = inner_tiles(columns)
    packed = pack_tensor_core(codes)
    assert packed.shape == (tiles, columns // (16 * inner), 32, inner // 2)
    assert torch.equal(unpack_tensor_core(packed), codes)
    for n_tile in range(tiles):
        for k_tile in range(packed.shape[1]):
            for lane in range(32):
                for pair in range(inner // 2):
                    word = int(packed[n_tile, k_tile, lane, pair]) & 0xFFFFFFFF
                    k = 16 * (inner * k_tile + 2 * pair) + 2 * (lane % 4)
                    of_two_tiles = [k + step for step in (0, 1, 8, 9, 16, 17, 24, 25)]
                    for place, index in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
                        code = (word >> (4 * place) & 15) - 8
                        assert code == codes[8 * n_tile + lane // 4, of_two_tiles[index]]


@pytest.mark.parametrize("columns", [32, 64, 96, 128, 1024])
def test_tensor_core_layout_has_the_shape_that_torch_declares(columns):
    codes = draw_codes(0, 24, columns)
    declared = torch.ops.aten._convert_weight_to_int4pack(
        torch.empty(24, columns // 2, dtype=torch.uint8, device="meta"), inner_tiles(columns)
    )
    packed = pack_tensor_core(codes)
    assert (packed.shape, packed.dtype) == (declared.shape, declared.dtype)
    assert packed.is_contiguous()
    # a part of the n-tiles is a part of the rows
    assert torch.equal(unpack_tensor_core(packed[1:]), codes[8:])


def test_bytes_are_two_planes():
    codes = torch.arange(-128, 128, dtype=torch.int8).view(4, 64)
    planes = split_bytes(codes)
    assert planes.min() == -8 and planes.max() == 7
    high, low = planes.int().chunk(2, 1)
    assert torch.equal(16 * high + (low + 8), codes.int())
    assert torch.equal(join_bytes(planes), codes)


@few
@given(seeds, bits, st.sampled_from([32, 64, 96, 128, 256, 512, 768]), st.integers(1, 3))
def test_kernel_arithmetic_gives_the_exact_weight(seed, bits, group_size, groups):
    """Sum over planes of (nibble - 8) * scale + zero is s * q, in float64, for every code."""
    rows, columns = 5, group_size * groups
    codes, scales = draw_codes(seed, rows, columns, bits), draw_scales(seed, rows, groups)
    shape = WeightShape(rows, columns, groups, bits)
    table = kernel_scales(scales, shape)
    planes = bits // 4
    assert table.dtype == torch.bfloat16 and table.is_contiguous()
    assert table.shape == (planes * columns // shape.kernel_group, rows, 2)
    nibbles = kernel_codes(codes, shape).double() + 8
    each = table.double().repeat_interleave(shape.kernel_group, 0).permute(2, 1, 0)
    weight = ((nibbles - 8) * each[0] + each[1]).view(rows, planes, columns).sum(1)
    expected = codes.double() * scales.double().repeat_interleave(group_size, 1)
    assert torch.equal(weight, expected)
    assert torch.equal(scales_of_kernel(table, shape), scales)
    assert torch.equal(codes_of_kernel(kernel_codes(codes, shape), shape), codes)


@pytest.mark.parametrize(
    ("group_size", "expected"),
    [(16, None), (32, 32), (48, None), (96, 32), (128, 128), (512, 256), (11008, 256)],
)
def test_groups_that_kernels_take(group_size, expected):
    assert WeightShape(16, 2 * group_size, 2).kernel_group == expected


def with_value(tensor, value):
    changed = tensor.clone()
    changed.view(-1)[5] = value
    return changed


CODES, SCALES = draw_codes(0, 4, 64), draw_scales(0, 4, 2)


@pytest.mark.parametrize(
    ("codes", "scales", "bits", "message"),
    [
        (with_value(CODES, 8), SCALES, 4, r"q_proj: codes hold 8, outside -8 \.\. 7.*Int8Linear"),
        (with_value(CODES, -9), SCALES, 4, r"codes hold -9"),
        (CODES.short(), SCALES, 4, r"codes have shape \(4, 64\) and dtype torch\.int16"),
        (CODES[0], SCALES, 4, r"codes have shape \(64,\)"),
        (CODES.tolist(), SCALES, 4, r"codes are a list"),
        (CODES, with_value(SCALES, float("nan")), 4, r"scales hold nan \(row 2, group 1\)"),
        (CODES, with_value(SCALES, float("inf")), 4, r"scales hold inf"),
        (CODES, with_value(SCALES, 0.0), 4, r"scales hold 0\.0.*not a positive number"),
        (CODES, with_value(SCALES, -1.0), 4, r"scales hold -1\.0"),
        (CODES, with_value(SCALES, 1.001), 4, r"scales hold 1\.00.*bfloat16.*QuantSpec"),
        (CODES, with_value(SCALES, 2.0**126), 4, r"8 steps overflow bfloat16"),
        (CODES, SCALES.long(), 4, r"scales have shape \(4, 2\) and dtype torch\.int64"),
        (CODES, SCALES[:3], 4, r"scales have shape \(3, 2\) for codes 4 x 64"),
        (CODES, draw_scales(0, 4, 5), 4, r"groups a divisor of 64"),
        (CODES, SCALES[:, :0], 4, r"scales have shape \(4, 0\)"),
        (CODES.to("meta"), SCALES, 4, r"codes are on the meta device"),
        (CODES, SCALES.to("meta"), 4, r"scales are on the meta device"),
        (CODES, SCALES, 5, r"bits is 5"),
        (CODES, SCALES, True, r"bits is True"),
    ],
)
def test_bad_weights_are_refused_by_name(codes, scales, bits, message):
    with pytest.raises(InputError, match=message) as caught:
        check(codes, scales, bits, "layers.0.q_proj")
    assert "layers.0.q_proj" in str(caught.value)


def test_good_weights_have_their_shape():
    assert check(CODES, SCALES, 4) == WeightShape(4, 64, 2, 4)
    assert check(with_value(CODES, -128), SCALES.bfloat16(), 8).group_size == 32
