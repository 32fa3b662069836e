"""The crossover: found by bisection, kept in a file, and measured again where that is damaged."""

import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, crossover, crossover_path
from grace.int4.crossover import (
    ROWS,
    crossover_key,
    forced_crossover,
    forget,
    measure,
)
from grace.int4.layouts import WeightShape

SHAPE = WeightShape(32, 64, 2, 4)
CPU = BACKENDS["cpu"]


def buffers(shape=SHAPE):
    codes = torch.zeros(shape.out_features, shape.in_features, dtype=torch.int8)
    return CPU.pack(codes, torch.ones(shape.out_features, shape.groups), shape)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache directory, and a process that knows nothing."""
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path))
    monkeypatch.delenv("GRACE_INT4_CROSSOVER", raising=False)
    forget()
    yield tmp_path
    forget()


@pytest.fixture
def measured(monkeypatch):
    """Measurements take no time, give 24, and are counted."""
    calls = []
    monkeypatch.setattr(crossover, "measure", lambda *_: calls.append(1) or 24)
    return calls


@given(st.integers(0, 600))
def test_bisection_finds_where_the_dense_product_wins(last):
    """A clock by which the packed product wins up to `last` rows and loses above."""
    asked = []

    def clock(call, device):
        rows = call.args[0].shape[0]
        asked.append(rows)
        assert call.args[0].dtype == torch.bfloat16
        packed = call.func.__name__ == "packed"
        return float(rows) if packed else float(last) if rows > last else float(rows) + 0.5

    found = measure(CPU, buffers(), SHAPE, clock)
    assert found == max((rows for rows in ROWS if rows <= last), default=1)
    assert len(asked) <= 2 * 5  # of 17 candidates


def test_measured_with_a_real_clock():
    assert measure(CPU, buffers(), SHAPE) in (1, *ROWS)


def test_measured_once_and_kept_in_a_file(measured, cache):
    weight = buffers()
    assert crossover.crossover(CPU, weight, SHAPE) == 24
    assert crossover.crossover(CPU, weight, SHAPE) == 24
    assert len(measured) == 1
    assert crossover_path() == cache / "int4_crossover.json"
    content = json.loads(crossover_path().read_text())
    key = crossover_key(CPU, SHAPE, torch.device("cpu"))
    assert content == {"format": 2, "rows": {key: 24}}
    assert f"torch {torch.__version__}" in key
    assert f"{torch.get_num_threads()} threads" in key
    assert os.listdir(cache) == ["int4_crossover.json"]  # nothing temporary is left

    forget()  # another process
    content["rows"][key] = 96
    crossover_path().write_text(json.dumps(content))
    assert crossover.crossover(CPU, weight, SHAPE) == 96
    assert len(measured) == 1


def test_what_others_wrote_meanwhile_stays(measured):
    crossover.crossover(CPU, buffers(), SHAPE)
    content = json.loads(crossover_path().read_text())
    content["rows"]["another device"] = 3
    crossover_path().write_text(json.dumps(content))
    wide = WeightShape(128, 64, 2, 4)
    crossover.crossover(CPU, buffers(wide), wide)
    assert len(measured) == 2
    rows = json.loads(crossover_path().read_text())["rows"]
    assert len(rows) == 3 and rows["another device"] == 3


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"format": 2}',
        '{"format": 2, "rows": [3]}',
        '{"format": 0, "rows": {KEY: 3}}',
        '{"format": 2, "rows": {KEY: -3}}',
        '{"format": 2, "rows": {KEY: 3.5}}',
        '{"format": 2, "rows": {KEY: true}}',
        '{"format": 2, "rows": {KEY: "3"}}',
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_file_is_measured_again_and_replaced(measured, damage):
    key = json.dumps(crossover_key(CPU, SHAPE, torch.device("cpu")))
    raw = damage if isinstance(damage, bytes) else damage.replace("KEY", key).encode()
    crossover_path().write_bytes(raw)
    assert crossover.crossover(CPU, buffers(), SHAPE) == 24
    assert list(json.loads(crossover_path().read_text())["rows"].values()) == [24]


def test_a_directory_that_cannot_be_written_costs_a_warning(measured, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("GRACE_CACHE", str(cache / "file"))
    with pytest.warns(UserWarning, match=r"crossovers cannot be kept .*\$GRACE_CACHE"):
        assert crossover.crossover(CPU, buffers(), SHAPE) == 24
    assert crossover.crossover(CPU, buffers(), SHAPE) == 24
    assert len(measured) == 1


def test_keys_tell_apart_what_may_differ(monkeypatch):
    device = torch.device("cpu")
    shapes = [
        SHAPE,
        WeightShape(32, 64, 1, 4),
        WeightShape(32, 64, 2, 8),
        WeightShape(64, 64, 2, 4),
        WeightShape(32, 128, 4, 4),
    ]
    keys = [crossover_key(CPU, shape, device) for shape in shapes]
    keys.append(crossover_key(BACKENDS["cuda"], SHAPE, device))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    keys.append(crossover_key(CPU, SHAPE, device))
    monkeypatch.setattr(torch, "__version__", "9.9")
    keys.append(crossover_key(CPU, SHAPE, device))
    assert len(set(keys)) == len(keys)
    # and one class holds shapes of nearly the same size
    near = [WeightShape(11008, 4096, 32, 4), WeightShape(8960, 4096, 32, 4)]
    assert len({crossover_key(CPU, shape, device) for shape in near}) == 1


@given(st.integers(1, 10**6))
def test_sides_are_rounded_on_the_logarithmic_scale(side):
    power = crossover._round_log2(side)
    assert 2**power <= side * 2**0.5 * (1 + 1e-12) and side <= 2**power * 2**0.5 * (1 + 1e-12)


def test_a_layer_asks_only_beyond_one_row(measured):
    codes = torch.zeros(32, 64, dtype=torch.int8)
    layer = Int4Linear.from_codes(codes, torch.ones(32, 2))
    layer(torch.zeros(1, 64))
    assert not measured and layer.crossover_rows(measure=False) is None
    assert layer.product(24) == "packed" and layer.product(25) == "dense"
    assert len(measured) == 1 and "packed up to 24 rows" in repr(layer)
    # another number of threads is another measurement
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        layer(torch.zeros(2, 64))
        assert len(measured) == 2
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("text", ["-1", "1.5", "eight", " "])
def test_a_bad_override_is_refused(monkeypatch, text):
    monkeypatch.setenv("GRACE_INT4_CROSSOVER", text)
    with pytest.raises(InputError, match="give a number of rows"):
        forced_crossover()


def test_the_default_place_is_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("GRACE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert crossover_path() == tmp_path / "xdg" / "grace" / "int4_crossover.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert crossover_path() == tmp_path / ".cache" / "grace" / "int4_crossover.json"
