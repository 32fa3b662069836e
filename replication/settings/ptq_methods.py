"""The methods of post-training quantization and what each of them can do."""

from grace.errors import InputError
from grace.quantization import QuantSpec
from replication.base.messages import unknown

BITS: dict[str, tuple[int, ...]] = {
    "rtn": tuple(range(2, 9)),
    "awq": tuple(range(2, 9)),
    "gptq": tuple(range(2, 9)),
    "nf4": (4,),
    "llm_int8": (8,),
}
"""The bit widths that a method has."""

ON_GRID = ("rtn", "awq", "gptq")
"""Methods whose weights are a scale times an integer code."""

CALIBRATED = ("awq", "gptq")
"""Methods that see training conversations."""

_COMPRESSOR = ("torch", "transformers", "llmcompressor", "compressed-tensors")
_BITSANDBYTES = ("torch", "transformers", "bitsandbytes")
LIBRARIES: dict[str, tuple[str, ...]] = {
    "rtn": ("torch", "transformers"),
    "awq": _COMPRESSOR,
    "gptq": _COMPRESSOR,
    "nf4": _BITSANDBYTES,
    "llm_int8": _BITSANDBYTES,
}
"""The distributions whose versions can change a method's result."""


def check_method(method: str, bits: int, group_size: int | str = 128) -> None:
    """Check that a method exists, and that it has a bit width and a group size.

    Raises:
        InputError: naming what is wrong and what there is.
    """
    if method not in BITS:
        raise InputError(unknown(f"quantization method {method!r}", method, BITS))
    if isinstance(bits, bool) or bits not in BITS[method]:
        known = BITS[method]
        widths = str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"
        raise InputError(f"method {method} at {bits} bits: it has {widths}")
    if method in ON_GRID:
        QuantSpec(bits=bits, group_size=group_size)
