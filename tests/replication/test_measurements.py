"""Measurement files: what is written is what is read, and wrong files are refused."""

import json

import pytest

from grace.errors import InputError
from replication.results import measurements
from replication.stats.verdict import Interval


def record(**changes):
    return {
        "name": "x",
        "scale": "small",
        "method": "m",
        "n": {"items": 3},
        "values": {"r": Interval(0.5, 0.4, 0.6, standard_error=0.05)},
        "provenance": {"commit": "0" * 40},
        **changes,
    }


def test_a_measurement_is_read_as_it_was_written(tmp_path):
    path = measurements.write_measurement(tmp_path, record(data={"bins": [1, 2]}))
    assert path == tmp_path / "small" / "measurements" / "x.json"
    found = measurements.read_measurement(tmp_path, "small", "x")
    assert found.values["r"] == Interval(0.5, 0.4, 0.6, standard_error=0.05)
    assert found.data == {"bins": [1, 2]}
    assert found.evidence == "measured"
    assert measurements.read_measurement(tmp_path, "small", "y") is None
    path.rename(path.with_name("y.json"))
    with pytest.raises(InputError, match="holds 'x'"):
        measurements.read_measurement(tmp_path, "small", "y")


GOOD_VALUE = {"point": 1, "low": 0, "high": 2, "level": 0.95, "standard_error": 0.5}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"values": {}}, "not empty"),
        ({"values": {"r": {"point": 1}}}, "must hold"),
        ({"values": {"r": {**GOOD_VALUE, "low": 3}}}, "above high"),
        ({"values": {"r": {**GOOD_VALUE, "high": "2"}}}, "expected a number"),
        ({"values": {"r": {**GOOD_VALUE, "level": 2}}}, "no interval"),
        ({"n": {"items": 0}}, "positive whole number"),
        ({"scale": "tiny"}, "unknown scale"),
        ({"evidence": "guessed"}, "evidence"),
        ({"name": ""}, "expected text"),
        ({"extra": 1}, "unknown"),
    ],
)
def test_a_wrong_measurement_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        measurements.write_measurement(tmp_path, record(**changes))
    assert not list(tmp_path.iterdir())


def test_a_measurement_that_lacks_an_entry_is_refused():
    whole = json.loads(json.dumps({**record(), "values": {"r": GOOD_VALUE}}))
    for name in ("name", "n", "values", "provenance"):
        with pytest.raises(InputError, match=name):
            measurements.validate_measurement({k: v for k, v in whole.items() if k != name})
