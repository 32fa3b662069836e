"""Packed integer weights: layouts, kernel back ends, layers, and a model's way there.

`layouts` says where the bits lie, `backends` which product reads them, `crossover` how many rows
the packed product is good for, `linear` is the layer, `pack` puts it into a model and reports what
runs.
"""

from grace.int4.backends import BACKENDS, available
from grace.int4.crossover import crossover_path
from grace.int4.linear import Int4Linear, Int8Linear, PackedLinear
from grace.int4.pack import EffectiveBits, LayerBits, effective_bits, pack

__all__ = [
    "BACKENDS",
    "EffectiveBits",
    "Int4Linear",
    "Int8Linear",
    "LayerBits",
    "PackedLinear",
    "available",
    "crossover_path",
    "effective_bits",
    "pack",
]
