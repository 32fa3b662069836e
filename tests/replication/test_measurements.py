"""Measurement files: what is written is what is read, and wrong files are refused."""

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
        ({"values": {}}, "values are empty"),
        ({"values": {"r": {"point": 1}}}, "values.r lacks the key 'low'"),
        ({"values": {"r": {**GOOD_VALUE, "low": 3}}}, "values.r: .*above high"),
        ({"values": {"r": {**GOOD_VALUE, "high": "2"}}}, "values.r.high is '2'"),
        ({"values": {"r": {**GOOD_VALUE, "level": 2}}}, "values.r.level is 2"),
        ({"n": {"items": 0}}, "n.items is 0"),
        ({"scale": "tiny"}, "scale 'tiny' is unknown"),
        ({"name": ""}, "name is ''"),
        ({"extra": 1}, "'extra' is unknown"),
    ],
)
def test_a_wrong_measurement_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        measurements.write_measurement(tmp_path, record(**changes))
    assert not list(tmp_path.iterdir())
