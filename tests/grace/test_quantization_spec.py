"""Every illegal quantizer is refused by name; every legal one survives the round trip."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.errors import InputError
from grace.quantization import QuantSpec

specs = st.builds(
    QuantSpec,
    bits=st.integers(2, 8),
    group_size=st.sampled_from([32, 64, 128, 256, "row"]),
    init=st.sampled_from(["mse", "percentile", "max"]),
    scale_dtype=st.sampled_from(["bfloat16", "float16", "float32"]),
    gradient_factor=st.booleans(),
)


@settings(deadline=None, max_examples=30)
@given(specs)
def test_dict_round_trip(spec):
    assert QuantSpec.from_dict(spec.to_dict()) == spec


def test_defaults_are_the_papers():
    assert QuantSpec().to_dict() == {
        "bits": 4,
        "group_size": 128,
        "init": "mse",
        "scale_dtype": "bfloat16",
        "gradient_factor": False,
    }
    assert QuantSpec.from_dict({}) == QuantSpec()


@pytest.mark.parametrize(
    ("bits", "qmin", "qmax"), [(2, -2, 1), (3, -4, 3), (4, -8, 7), (8, -128, 127)]
)
def test_code_range(bits, qmin, qmax):
    spec = QuantSpec(bits=bits)
    assert (spec.qmin, spec.qmax) == (qmin, qmax)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        QuantSpec().bits = 8


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 1),
        ("bits", 9),
        ("bits", 0),
        ("bits", -4),
        ("bits", 16),
        ("bits", 4.0),
        ("bits", True),
        ("bits", "4"),
        ("bits", None),
        ("group_size", 0),
        ("group_size", 16),
        ("group_size", 127),
        ("group_size", -128),
        ("group_size", 128.0),
        ("group_size", "128"),
        ("group_size", "column"),
        ("group_size", None),
        ("init", "MSE"),
        ("init", "minmax"),
        ("init", None),
        ("init", ["mse"]),
        ("scale_dtype", "int8"),
        ("scale_dtype", "bf16"),
        ("scale_dtype", None),
        ("gradient_factor", 1),
        ("gradient_factor", "yes"),
    ],
)
def test_illegal_values_are_named(field, value):
    with pytest.raises(InputError) as raised:
        QuantSpec(**{field: value})
    message = str(raised.value)
    assert f"QuantSpec.{field}" in message
    assert (str(value) if field == "bits" and type(value) is int else repr(value)) in message
    assert "give" in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"bits": 16}, "sixteen bits means no quantization"),
        ({"group_size": 96}, '32, 64, 128, 256 or "row"'),
        ({"init": "mean"}, "mse, percentile, max"),
        ({"scale_dtype": "int8"}, "bfloat16, float16, float32"),
        ({"groupsize": 128, "bit": 4}, r"no field groupsize, bit: the fields are bits, group_size"),
        (4, "4 is no mapping"),
    ],
)
def test_refusals_say_what_to_give(values, said):
    with pytest.raises(InputError, match=said):
        QuantSpec.from_dict(values)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([32, 64, 128, 256]), st.integers(1, 2000))
def test_group_width_divides_or_is_refused(group_size, in_features):
    spec = QuantSpec(group_size=group_size)
    if in_features % group_size == 0:
        assert spec.group_width(in_features) == group_size
        return
    with pytest.raises(InputError) as raised:
        spec.group_width(in_features, "layers.0.mlp.down_proj")
    message = str(raised.value)
    for part in ("layers.0.mlp.down_proj", str(group_size), str(in_features), '"row"'):
        assert part in message


@pytest.mark.parametrize(
    ("in_features", "mend"),
    [
        (10, '"row"'),
        (96, '32 or "row"'),
        (192, '32 or 64 or "row"'),
        (128, '32 or 64 or 128 or "row"'),
    ],
)
def test_the_mend_names_every_size_that_divides(in_features, mend):
    spec = QuantSpec(group_size=256)
    for arguments, label in (((in_features, "up"), "up"), ((in_features,), "linear")):
        with pytest.raises(InputError, match=f"^{label}: group size 256 .* use {mend}$"):
            spec.group_width(*arguments)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 2000))
def test_row_group_is_the_whole_row(in_features):
    assert QuantSpec(group_size="row").group_width(in_features) == in_features
