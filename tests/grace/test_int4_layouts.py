"""Where the bits lie: against torch's own packing, PTX's fragments, NumPy, one code at a time."""

import dataclasses
import re

import numpy as np
import pytest
import tinygemm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from grace.errors import InputError
from grace.int4.backends.cpu import native_layout
from grace.int4.layouts import (
    BlockedLayout,
    WeightShape,
    check,
    check_scales,
    codes_of_kernel,
    inner_tiles,
    join_bytes,
    kernel_codes,
    kernel_scales,
    pack_plain,
    pack_tensor_core,
    row_steps,
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


def test_eight_bit_codes_are_packed_side_by_side():
    codes = draw_codes(0, 6, 10, 8).t()
    packed = pack_plain(codes, 8)
    assert packed.is_contiguous() and torch.equal(packed, codes)


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


def blocked_in_numpy(codes, layout):
    nibbles = (codes.numpy() + 8).view(np.uint8)
    parts = []
    for first in range(0, len(nibbles), layout.width):
        block = nibbles[first : first + layout.width].T
        half = block.shape[1] // 2
        if layout.halves and 2 * half == layout.width:
            low, high = block[:, :half], block[:, half:]
        else:
            low, high = block[:, 0::2], block[:, 1::2]
        parts.append((low | high << 4).ravel())
    return torch.from_numpy(np.concatenate(parts))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1040, 512), (144, 8192), (48, 2)])
def test_blocked_layouts_beyond_what_is_packed_at_a_time(layout, rows, columns):
    codes = draw_codes(rows, rows, columns)
    packed = layout.pack(codes)
    assert torch.equal(packed.view(-1), blocked_in_numpy(codes, layout))
    assert torch.equal(layout.unpack(packed), codes)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@few
@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 3000))
def test_blocks_are_views_that_come_in_order_within_a_limit(layout, sixteens, pairs, limit):
    rows, columns = 16 * sixteens, 2 * pairs
    packed = torch.zeros(rows, columns // 2, dtype=torch.uint8)
    ends, full = [0], rows // layout.width * layout.width
    for part, block in layout.blocks(packed, limit):
        count, inputs, half = block.shape
        assert part.start == ends[-1] and inputs == columns
        assert 2 * half == (layout.width if part.stop <= full else rows - full)
        assert count * 2 * half == part.stop - part.start
        assert block.data_ptr() == packed.data_ptr() + part.start * columns // 2
        width = layout.width * columns
        assert block.numel() * 2 <= max(limit, width)  # and no more of them would do:
        assert part.stop >= full or block.numel() * 2 + width > limit
        ends.append(part.stop)
    assert ends[-1] == rows


@few
@given(st.integers(1, 300), st.integers(1, 40), st.sampled_from([1, 8, 64]), st.integers(1, 3000))
def test_row_steps_part_the_rows_within_a_limit(rows, columns, multiple, limit):
    shape = WeightShape(rows, columns, 1)
    steps = list(row_steps(shape, multiple, limit))
    assert [step.start for step in steps] == [0, *[step.stop for step in steps[:-1]]]
    assert steps[-1].stop == rows
    size = multiple * columns
    for step in steps:
        codes = (step.stop - step.start) * columns
        assert step.start % multiple == 0 and codes <= max(limit, size)
        assert step.stop == rows or codes + size > limit


def test_as_many_codes_are_taken_at_a_time_as_documented():
    """2^18: temporaries of ten bytes a code stay below 3 MiB."""
    assert next(row_steps(WeightShape(4096, 1024, 8), 64)) == slice(0, 256)
    packed = torch.zeros(4096, 512, dtype=torch.uint8)
    assert next(BlockedLayout(64, halves=True).blocks(packed))[0] == slice(0, 256)


def test_nibbles_are_put_where_asked():
    layout = BlockedLayout(64, halves=True)
    packed = layout.pack(draw_codes(0, 64, 4))
    ((_, block),) = layout.blocks(packed)
    out = torch.empty(1, 4, 64, dtype=torch.uint8)
    assert layout.nibbles(block, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, layout.nibbles(block))


@few
@given(seeds, st.integers(1, 9), st.integers(1, 20))
def test_tensor_core_layout_in_numpy(seed, tiles, columns):
    codes = draw_codes(seed, 8 * tiles, 32 * columns)
    nibbles = (codes.numpy() + 8).view(np.uint8)
    words = torch.from_numpy(tinygemm.pack_nibbles(nibbles, inner_tiles(32 * columns)))
    assert torch.equal(pack_tensor_core(codes), words)
    assert torch.equal(unpack_tensor_core(words), codes)
    assert np.array_equal(tinygemm.unpack_nibbles(words.numpy()), nibbles)


@pytest.mark.parametrize(
    ("columns", "expected"), [(16, None), (48, None), (32, 2), (96, 2), (64, 4), (128, 8), (384, 8)]
)
def test_tiles_that_lie_together(columns, expected):
    assert inner_tiles(columns) == expected


@pytest.mark.parametrize("size", [(12, 32), (8, 16), (12, 16)])
def test_tensor_core_layout_is_of_whole_tiles(size):
    with pytest.raises(AssertionError):
        pack_tensor_core(torch.zeros(size, dtype=torch.int8))


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
    again = scales_of_kernel(table, shape)
    assert again.dtype == torch.float32 and again.is_contiguous() and torch.equal(again, scales)
    assert torch.equal(codes_of_kernel(kernel_codes(codes, shape), shape), codes)


@pytest.mark.parametrize(
    ("group_size", "expected"),
    [(16, None), (32, 32), (48, None), (96, 32), (128, 128), (512, 256), (11008, 256)],
)
def test_groups_that_kernels_take(group_size, expected):
    assert WeightShape(16, 2 * group_size, 2).kernel_group == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_everything_stays_on_the_device_of_its_input(bits):
    """Of which the meta device is one."""
    shape = WeightShape(48, 256, 2, bits)
    codes, scales = draw_codes(0, 48, 256, bits).to("meta"), draw_scales(0, 48, 2).to("meta")
    fours = kernel_codes(codes, shape)
    plain, words = pack_plain(codes, bits), pack_tensor_core(fours)
    layout = BlockedLayout(32, halves=True)
    blocks, table = layout.pack(fours), kernel_scales(scales, shape)
    results = [fours, plain, words, blocks, table, unpack_plain(plain, shape)]
    results += [unpack_tensor_core(words), layout.unpack(blocks), scales_of_kernel(table, shape)]
    results += [codes_of_kernel(fours, shape)]
    assert {result.device.type for result in results} == {"meta"}


def with_value(tensor, value, place=5):
    changed = tensor.clone()
    changed.view(-1)[place] = value
    return changed


CODES, SCALES = draw_codes(0, 4, 64), draw_scales(0, 4, 2)
LARGEST = torch.finfo(torch.bfloat16).max


def shaped(scales, rows=4, columns=64):
    return f"scales have shape {tuple(scales.shape)} for codes {rows} x {columns}: "


@pytest.mark.parametrize(
    ("codes", "scales", "bits", "message"),
    [
        (with_value(CODES, 8), SCALES, 4, "codes hold 8, outside -8 .. 7: "),
        (with_value(CODES, -9), SCALES, 4, "codes hold -9, outside -8 .. 7: "),
        (with_value(with_value(CODES, 11), -9, 6), SCALES, 4, "codes hold -9, outside"),
        (CODES.short(), SCALES, 4, "codes have shape (4, 64) and dtype torch.int16"),
        (CODES[0], SCALES, 4, "codes have shape (64,) and dtype torch.int8"),
        *(
            (CODES, with_value(SCALES, value), bits, f"scales hold {value} (row 2, group 1), {why}")
            for value, bits, why in [
                (float("nan"), 4, "not a positive number"),
                (float("inf"), 4, "not a positive number"),
                (0.0, 4, "not a positive number"),
                (-1.0, 4, "not a positive number"),
                (1.0 + 2.0**-8, 4, "not representable in bfloat16"),
                (2.0**126, 4, "so large that 8 steps overflow"),
                (2.0**121, 8, "so large that 128 steps overflow"),
            ]
        ),
        (CODES, SCALES.long(), 4, "scales have shape (4, 2) and dtype torch.int64"),
        (CODES, SCALES[0], 4, "scales have shape (2,) and dtype torch.float32"),
        (CODES, SCALES[:3], 4, shaped(SCALES[:3])),
        (CODES, draw_scales(0, 4, 5), 4, shaped(draw_scales(0, 4, 5))),
        (CODES, SCALES[:, :0], 4, shaped(SCALES[:, :0])),
        (CODES[:, :0], SCALES, 4, shaped(SCALES, columns=0)),
        (CODES[:0], SCALES[:0], 4, shaped(SCALES[:0], rows=0)),
        (CODES.to("meta"), SCALES, 4, "codes are on the meta device"),
        (CODES, SCALES.to("meta"), 4, "scales are on the meta device"),
        (CODES, SCALES, 5, "bits is 5: "),
        (CODES, SCALES, 4.0, "bits is 4.0: "),
        (CODES, SCALES, True, "bits is True: "),
    ],
)
def test_bad_weights_are_refused_by_name(codes, scales, bits, message):
    for name, label in [("layers.0.q_proj", "layers.0.q_proj"), ("", "linear")]:
        said = "^" + re.escape(f"{label}: {message}")
        with pytest.raises(InputError, match=said):
            check(codes, scales, bits, name)
        if message.startswith(("scales", "bits")):
            with pytest.raises(InputError, match=said):
                check_scales(scales, tuple(codes.shape), bits, name)


@pytest.mark.parametrize("pair", [(CODES.tolist(), SCALES), (CODES, SCALES.tolist())])
def test_lists_instead_of_tensors_are_programming_errors(pair):
    with pytest.raises(AssertionError):
        check(*pair, 4)


def test_a_weight_without_a_name_is_a_linear():
    for call in (lambda: check(CODES, -SCALES, 4), lambda: check_scales(-SCALES, (4, 64), 4)):
        with pytest.raises(InputError, match=r"^linear: scales hold -"):
            call()


def test_codes_and_scales_on_two_devices_are_refused():
    with FakeTensorMode():  # of a device that this machine may lack
        elsewhere = torch.empty(4, 64, dtype=torch.int8, device="cuda:0")
    with pytest.raises(InputError, match="q: codes are on cuda:0 and scales on cpu"):
        check(elsewhere, SCALES, 4, "q")


def test_good_weights_have_their_shape():
    assert check(CODES, SCALES, 4) == WeightShape(4, 64, 2, 4)
    assert check(with_value(CODES, -128), SCALES.bfloat16(), 8).group_size == 32
    assert check_scales(SCALES, (4, 64), 8) == WeightShape(4, 64, 2, 8)
    assert check(CODES[:1, :1], SCALES[:1, :1], 4) == WeightShape(1, 1, 1)


def test_the_largest_scales_are_those_whose_steps_bfloat16_holds():
    for bits, steps in ((4, 8), (8, 128)):
        assert check(CODES, with_value(SCALES, LARGEST / steps), bits)
    # a dtype of fewer exponents than bfloat16's does not overflow on the way
    assert check(CODES, torch.full((4, 2), 2.0**15, dtype=torch.float16), 4)


def test_shapes_are_values_and_say_what_they_are():
    shape = WeightShape(24, 96, 3, 8)
    assert str(shape) == "24 x 96, 8 bits, groups of 32"
    assert WeightShape(24, 96, 3) == WeightShape(24, 96, 3, 4) != shape
    for value, field in ((shape, "bits"), (BlockedLayout(64, halves=True), "width")):
        assert hash(value) == hash(dataclasses.replace(value))
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, field, 16)
