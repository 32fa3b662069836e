"""Where the bits of a quantized weight lie, as functions on tensors: exact, invertible, no kernel.

A weight is integer codes q (out, in) with one scale for every g consecutive inputs of a row,
What = s * q (Eq. 14 of arXiv 2601.22709). Three layouts hold its 4-bit codes, each as the unsigned
nibble q + 8:

    plain        (out, ceil(in / 2)) uint8, two neighbours of a row in a byte, the even one low
    blocked      what torch's CPU kernel reads: blocks of rows, input by input (`BlockedLayout`)
    tensor core  what torch's CUDA kernel reads: fragments of mma.m16n8k16 (`pack_tensor_core`)

8-bit codes are two 4-bit planes, q = 16 h + l, laid side by side along the inputs: a kernel that
takes x W^T with 4-bit W takes [x, x] [16 s h, s l]^T just so, in one accumulation
(`split_bytes`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from grace.errors import InputError

BITS = (4, 8)
# What torch's kernels take: inputs that share one scale. Descending.
KERNEL_GROUPS = (256, 128, 64, 32)
SCALE_DTYPE = torch.bfloat16

# Codes that are packed or unpacked at a time: temporaries of ten bytes each stay below 3 MiB
# (or what 64 rows need, where they have more).
_BLOCK = 1 << 18


@dataclass(frozen=True)
class WeightShape:
    """The shape of a quantized weight.

    Attributes:
        out_features: Rows.
        in_features: Columns.
        groups: Scales per row.
        bits: 4 or 8, in which a code is stored.
    """

    out_features: int
    in_features: int
    groups: int
    bits: int = 4

    @property
    def group_size(self) -> int:
        """Inputs that share one scale."""
        return self.in_features // self.groups

    @property
    def kernel_group(self) -> int | None:
        """The largest group size that torch's kernels take and that divides this one, or None.

        A group of 512, or a whole row, runs as groups of 256 that have the same scale.
        """
        return next((size for size in KERNEL_GROUPS if self.group_size % size == 0), None)

    def __str__(self) -> str:
        return (
            f"{self.out_features} x {self.in_features}, {self.bits} bits, groups of "
            f"{self.group_size}"
        )


def check(codes: Tensor, scales: Tensor, bits: int, name: str = "") -> WeightShape:
    """The shape of a weight, after its codes and scales were checked.

    Args:
        codes: int8 (out, in), in -2^(bits-1) .. 2^(bits-1) - 1.
        scales: (out, groups), floating point, positive, exactly representable in bfloat16, and so
            small that every code times its scale is finite there.
        bits: 4 or 8.
        name: Name of the layer, for messages.

    Raises:
        InputError: Anything else; the message names the tensor, the value and the mend.
    """
    label = name or "linear"
    _check_kind(codes, f"{label}: codes", torch.int8)
    _check_kind(scales, f"{label}: scales", None)
    if codes.device != scales.device:
        raise InputError(
            f"{label}: codes are on {codes.device} and scales on {scales.device}: "
            "move them to one device"
        )
    shape = check_scales(scales, (codes.shape[0], codes.shape[1]), bits, name)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    least, most = (int(value) for value in codes.aminmax())
    if least < low or most > high:
        worst = least if least < low else most
        hint = "" if bits == 8 else "; codes of more than 4 bits need bits=8, an Int8Linear"
        raise InputError(
            f"{label}: codes hold {worst}, outside {low} .. {high}: quantize to {bits} bits{hint}"
        )
    return shape


def check_scales(scales: Tensor, size: tuple[int, int], bits: int, name: str = "") -> WeightShape:
    """The part of `check` that needs no codes but only their shape, `size` (out, in)."""
    label = name or "linear"
    if type(bits) is not int or bits not in BITS:
        raise InputError(f"{label}: bits is {bits!r}: codes are packed in 4 or 8 bits")
    _check_kind(scales, f"{label}: scales", None)
    rows, columns = size
    groups = scales.shape[1]
    if scales.shape[0] != rows or groups == 0 or columns == 0 or rows == 0 or columns % groups:
        raise InputError(
            f"{label}: scales have shape {tuple(scales.shape)} for codes {rows} x {columns}: give "
            f"one scale for every group of a row, ({rows}, groups), groups a divisor of {columns}"
        )
    _check_values(scales, 2 ** (bits - 1), label)
    return WeightShape(rows, columns, groups, bits)


def _check_kind(tensor: Tensor, what: str, dtype: torch.dtype | None) -> None:
    assert isinstance(tensor, Tensor), f"{what} are a {type(tensor).__name__}"
    right = tensor.dtype == dtype if dtype else tensor.is_floating_point()
    if not right or tensor.dim() != 2:
        raise InputError(
            f"{what} have shape {tuple(tensor.shape)} and dtype {tensor.dtype}: give a matrix of "
            f"{dtype or 'a floating-point dtype'}"
        )
    if tensor.is_meta:
        raise InputError(f"{what} are on the meta device: load their values first")


def _check_values(scales: Tensor, largest_code: int, label: str) -> None:
    bad = ~(scales > 0) | ~torch.isfinite(scales)
    reason, mend = "not a positive number", "mend the file that they come from"
    if not bad.any():
        bad = scales.to(SCALE_DTYPE).to(scales.dtype) != scales
        reason = "not representable in bfloat16, the dtype in which the kernels store scales"
        mend = 'train with QuantSpec(scale_dtype="bfloat16")'
    if not bad.any():
        bad = scales.to(torch.float32) * largest_code > torch.finfo(SCALE_DTYPE).max
        reason = f"so large that {largest_code} steps overflow bfloat16"
        mend = "mend the file that they come from"
    if bad.any():
        row, group = (int(index) for index in bad.nonzero()[0])
        raise InputError(
            f"{label}: scales hold {float(scales[row, group])} (row {row}, group {group}), "
            f"{reason}: {mend}"
        )


# ---------------------------------------------------------------------------------------- scales


def kernel_scales(scales: Tensor, shape: WeightShape) -> Tensor:
    """Scales and zero points as torch's kernels read them.

    The kernels compute w = (nibble - 8) * scale + zero. At 8 bits there are first the groups of the
    high nibbles, with 16 s, then those of the low ones, with s and the zero point 8 s.

    Args:
        scales: (out, groups).
        shape: Of the weight.

    Returns:
        (K / g, out, 2) bfloat16, with g = `shape.kernel_group`, K = in_features at 4 bits and twice
        that at 8.
    """
    assert shape.kernel_group is not None
    scale = scales.to(torch.float32).t()
    scale = scale.repeat_interleave(shape.group_size // shape.kernel_group, 0)
    zero = torch.zeros_like(scale)
    if shape.bits == 8:  # powers of two times s: exact
        scale, zero = torch.cat([scale * 16, scale]), torch.cat([zero, scale * 8])
    return torch.stack([scale, zero], -1).to(SCALE_DTYPE)


def scales_of_kernel(scales_and_zeros: Tensor, shape: WeightShape) -> Tensor:
    """(out, groups) float32: the inverse of `kernel_scales`."""
    assert shape.kernel_group is not None
    scale = scales_and_zeros[..., 0]
    if shape.bits == 8:
        scale = scale[len(scale) // 2 :]
    return scale[:: shape.group_size // shape.kernel_group].t().to(torch.float32).contiguous()


def split_bytes(codes: Tensor) -> Tensor:
    """8-bit codes (out, in) as two planes of 4-bit codes (out, 2 in) int8, [h, l - 8].

    q = 16 h + l with h in -8 .. 7 and l in 0 .. 15.
    """
    return torch.cat([codes >> 4, (codes & 15) - 8], dim=1)


def join_bytes(planes: Tensor) -> Tensor:
    """The inverse of `split_bytes`: (out, 2 in) -> (out, in) int8."""
    high, low = planes.chunk(2, dim=1)
    return (high << 4) + (low + 8)


def kernel_codes(codes: Tensor, shape: WeightShape) -> Tensor:
    """The 4-bit codes that a kernel is given: (out, in), or (out, 2 in) for 8 bits."""
    return split_bytes(codes) if shape.bits == 8 else codes


def codes_of_kernel(codes: Tensor, shape: WeightShape) -> Tensor:
    """The inverse of `kernel_codes`."""
    return join_bytes(codes) if shape.bits == 8 else codes


# ----------------------------------------------------------------------------------------- plain


def pack_plain(codes: Tensor, bits: int) -> Tensor:
    """4-bit codes (out, in) -> (out, ceil(in / 2)) uint8; 8-bit codes are int8 as they are."""
    if bits == 8:
        return codes.contiguous()
    nibbles = functional.pad(_nibbles(codes), (0, codes.shape[1] % 2))
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)


def unpack_plain(packed: Tensor, shape: WeightShape) -> Tensor:
    """The inverse of `pack_plain`: int8 (rows of `packed`, in)."""
    if shape.bits == 8:
        return packed
    both = torch.stack([packed & 15, packed >> 4], -1).flatten(1)
    return _codes(both[:, : shape.in_features])


def unpack_stored(packed: Tensor, size: tuple[int, int], bits: int, label: str) -> Tensor:
    """int8 codes (out, in) of a layer that was stored by `pack_plain`.

    Args:
        packed: From a state dict or a file.
        size: (out, in) of the layer that it is loaded into.
        bits: Of that layer.
        label: Name of the tensor, for the message.

    Raises:
        InputError: The shape or the dtype is that of another layer.
    """
    rows, columns = size
    dtype, width = (torch.int8, columns) if bits == 8 else (torch.uint8, (columns + 1) // 2)
    if (packed.dtype, tuple(packed.shape)) != (dtype, (rows, width)):
        raise InputError(
            f"{label} is {packed.dtype} {tuple(packed.shape)} and the layer needs {dtype} "
            f"{(rows, width)}: load it into a layer of the same shape and bits"
        )
    return unpack_plain(packed, WeightShape(rows, columns, 1, bits))


# --------------------------------------------------------------------------------------- blocked


@dataclass(frozen=True)
class BlockedLayout:
    """4-bit codes in blocks of `width` rows, and within a block input by input.

    A block of w rows is (in, w / 2) bytes. Byte j of an input holds rows j and j + w / 2 of the
    block where `halves`, else rows 2 j and 2 j + 1; the first named is the low nibble. The last
    block has what rows remain, a multiple of 16, and always holds neighbours together.

    torch packs so in `_convert_weight_to_int4pack_for_cpu`: width 64 in halves with AVX-512,
    32 in halves with AVX2, else neighbours.
    """

    width: int
    halves: bool

    def pack(self, codes: Tensor) -> Tensor:
        """int8 (out, in) in -8 .. 7 -> uint8 (out, in / 2); out a multiple of 16, in even."""
        rows, columns = codes.shape
        packed = torch.empty(rows, columns // 2, dtype=torch.uint8, device=codes.device)
        for part, target in self.blocks(packed):
            nibbles = _nibbles(codes[part]).view(target.shape[0], -1, columns)
            if self.halves and target.shape[2] * 2 == self.width:
                low, high = nibbles.chunk(2, dim=1)
            else:
                low, high = nibbles[:, 0::2], nibbles[:, 1::2]
            target.copy_((low | (high << 4)).transpose(1, 2))
        return packed

    def unpack(self, packed: Tensor) -> Tensor:
        """The inverse of `pack`."""
        codes = torch.empty(
            packed.shape[0], packed.shape[1] * 2, dtype=torch.int8, device=packed.device
        )
        for part, block in self.blocks(packed):
            nibbles = self.nibbles(block)
            codes[part].view(nibbles.shape[0], -1, codes.shape[1]).copy_(
                _codes(nibbles).transpose(1, 2)
            )
        return codes

    def blocks(self, packed: Tensor, limit: int = _BLOCK) -> Iterator[tuple[slice, Tensor]]:
        """Pairs (rows, uint8 (blocks, in, w / 2)): views of `packed`, one after another.

        Args:
            packed: uint8 (out, in / 2).
            limit: Codes per view; there is at least one block in each.
        """
        rows, columns = packed.shape[0], packed.shape[1] * 2
        step = max(1, limit // (self.width * columns)) * self.width
        flat, full = packed.view(-1), rows - rows % self.width
        for start in range(0, full, step):
            stop = min(start + step, full)
            part = flat[start * columns // 2 : stop * columns // 2]
            yield slice(start, stop), part.view(-1, columns, self.width // 2)
        if full < rows:
            yield slice(full, rows), flat[full * columns // 2 :].view(1, columns, -1)

    def nibbles(self, block: Tensor, out: Tensor | None = None) -> Tensor:
        """The unsigned nibbles of `blocks`' blocks, (blocks, in, w), rows in their order."""
        return self.in_order(block & 15, block >> 4, out)

    def in_order(self, low: Tensor, high: Tensor, out: Tensor | None = None) -> Tensor:
        """Bytes (blocks, in, w / 2) of the low and of the high nibbles -> (blocks, in, w)."""
        if self.halves and low.shape[2] * 2 == self.width:
            return torch.cat([low, high], -1, out=out)
        return torch.stack([low, high], -1).flatten(-2)


# ----------------------------------------------------------------------------------- tensor core


def inner_tiles(columns: int) -> int | None:
    """How many k-tiles of 16 inputs lie together: the most of 8, 4, 2 that divide, or None."""
    return next((tiles for tiles in (8, 4, 2) if columns % (16 * tiles) == 0), None)


def pack_tensor_core(codes: Tensor) -> Tensor:
    """int8 (out, in) in -8 .. 7 -> int32 (out / 8, in / (16 I), 32, I / 2), I = `inner_tiles`.

    The B operand of PTX's mma.m16n8k16 has eight rows n of the weight and 16 inputs k; lane t of
    the warp holds n = t // 4 and k = 2 (t % 4) + {0, 1, 8, 9}. One int32 holds those of two
    k-tiles: the nibbles of even k in its lower half, of odd k in its upper half, each from low to
    high in the order k = 0, 8, 16, 24 (+ 2 (t % 4)).
    """
    rows, columns = codes.shape
    tiles = inner_tiles(columns)
    assert tiles is not None and rows % 8 == 0
    lanes = _nibbles(codes).view(rows // 8, 8, -1, tiles // 2, 4, 4, 2).to(torch.int16)
    halves = lanes[..., 0, :, :].clone()  # (n tiles, n, k tiles, I / 2, lane % 4, k % 2)
    for place in range(1, 4):
        halves |= lanes[..., place, :, :] << (4 * place)
    halves = halves.permute(0, 2, 1, 4, 3, 5).contiguous()
    return halves.view(rows // 8, -1, 32, tiles).view(torch.int32)


def unpack_tensor_core(packed: Tensor) -> Tensor:
    """The inverse of `pack_tensor_core`, for any number of its n-tiles: (8 n, in) int8."""
    n_tiles, k_tiles, _, pairs = packed.shape
    halves = packed.view(torch.int16).view(n_tiles, k_tiles, 8, 4, pairs, 2)
    halves = halves.permute(0, 2, 1, 4, 3, 5)
    lanes = torch.empty(n_tiles, 8, k_tiles, pairs, 4, 4, 2, dtype=torch.int8, device=packed.device)
    for place in range(4):
        lanes[..., place, :, :].copy_((halves >> (4 * place)) & 15)
    return lanes.view(n_tiles * 8, -1).sub_(8)


def row_steps(shape: WeightShape, multiple: int, limit: int = _BLOCK) -> Iterator[slice]:
    """Slices of rows, of about `limit` codes each: all but the last of a multiple of `multiple`."""
    step = max(1, limit // (shape.in_features * multiple)) * multiple
    for start in range(0, shape.out_features, step):
        yield slice(start, min(start + step, shape.out_features))


def _nibbles(codes: Tensor) -> Tensor:
    return (codes + 8).view(torch.uint8)


def _codes(nibbles: Tensor) -> Tensor:
    return nibbles.view(torch.int8) - 8
