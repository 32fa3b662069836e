"""The settings of a weight quantizer: bit width, group size, initial scales and their dtype."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from grace.errors import InputError

GROUP_SIZES = (32, 64, 128, 256)
INITS = ("mse", "percentile", "max")
SCALE_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


@dataclass(frozen=True)
class QuantSpec:
    """Symmetric group-wise weight quantizer (Eq. 14 of arXiv 2601.22709).

    Examples:
        >>> from grace.quantization import QuantSpec
        >>> spec = QuantSpec(bits=4, group_size=128)
        >>> spec.qmin, spec.qmax
        (-8, 7)
        >>> QuantSpec.from_dict(spec.to_dict()) == spec
        True

    Attributes:
        bits: 2 to 8. Codes are the integers `qmin` .. `qmax`; there is no zero point.
        group_size: Input channels that share one scale: 32, 64, 128 or 256, or "row" for one scale
            per output row.
        init: Initial scales. "mse": the best of 20 candidates by squared error; "percentile": the
            99th percentile of abs(W) over qmax (v1 to v4 of the paper); "max": max abs(W) over
            qmax.
        scale_dtype: Dtype in which the deployed kernel stores scales: "bfloat16", "float16" or
            "float32". Fake quantization rounds to it, so that what is trained is what is deployed.
        gradient_factor: Multiply the scale's gradient by 1/sqrt(N_group * qmax) (arXiv 1902.08153,
            Section 2.2).

    Raises:
        InputError: An illegal value; the message names the field, the value and the legal ones.
    """

    bits: int = 4
    group_size: int | str = 128
    init: str = "mse"
    scale_dtype: str = "bfloat16"
    gradient_factor: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int):
            raise InputError(f"QuantSpec.bits is {self.bits!r}: give an integer from 2 to 8")
        if self.bits == 16:
            raise InputError(
                "QuantSpec.bits is 16: sixteen bits means no quantization, which is no QuantSpec; "
                "leave the model unprepared, or give an integer from 2 to 8"
            )
        if not 2 <= self.bits <= 8:
            raise InputError(f"QuantSpec.bits is {self.bits}: give an integer from 2 to 8")
        # 128.0 == 128 and True == 1, so the type is checked too.
        sized = type(self.group_size) is int and self.group_size in GROUP_SIZES
        if not sized and self.group_size != "row":
            raise InputError(
                f"QuantSpec.group_size is {self.group_size!r}: "
                f'give one of {", ".join(map(str, GROUP_SIZES))} or "row"'
            )
        if not isinstance(self.init, str) or self.init not in INITS:
            raise InputError(f"QuantSpec.init is {self.init!r}: give one of {', '.join(INITS)}")
        if not isinstance(self.scale_dtype, str) or self.scale_dtype not in SCALE_DTYPES:
            raise InputError(
                f"QuantSpec.scale_dtype is {self.scale_dtype!r}: "
                f"give one of {', '.join(SCALE_DTYPES)}, as a string"
            )
        if not isinstance(self.gradient_factor, bool):
            raise InputError(
                f"QuantSpec.gradient_factor is {self.gradient_factor!r}: give true or false"
            )

    @property
    def qmin(self) -> int:
        """The lowest code, -2^(bits-1)."""
        return -(2 ** (self.bits - 1))

    @property
    def qmax(self) -> int:
        """The highest code, 2^(bits-1) - 1."""
        return 2 ** (self.bits - 1) - 1

    def group_width(self, in_features: int, name: str = "") -> int:
        """Input channels per group of a linear layer.

        Args:
            in_features: Input features of the layer.
            name: Name of the layer, for the error message.

        Returns:
            The group size; `in_features` where it is "row".

        Raises:
            InputError: The group size does not divide `in_features`. Choosing another one silently
                would be another method.
        """
        if isinstance(self.group_size, str):
            return in_features
        if in_features % self.group_size:
            fitting = [str(size) for size in GROUP_SIZES if in_features % size == 0] + ['"row"']
            raise InputError(
                f"{name or 'linear'}: group size {self.group_size} does not divide its "
                f"{in_features} input features: use {' or '.join(fitting)}"
            )
        return self.group_size

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "QuantSpec":
        """The spec that `to_dict` wrote; missing keys take their defaults.

        Raises:
            InputError: An unknown key or an illegal value.
        """
        if not isinstance(values, Mapping):
            raise InputError(f"QuantSpec: {values!r} is no mapping: give the fields by name")
        known = [field.name for field in fields(cls)]
        unknown = [str(key) for key in values if key not in known]
        if unknown:
            raise InputError(
                f"QuantSpec has no field {', '.join(unknown)}: the fields are {', '.join(known)}"
            )
        return cls(**values)
