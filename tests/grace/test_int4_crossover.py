"""The crossover: found by bisection, kept in a file, and measured again where that is damaged."""

import json
import os
import platform
import time
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grace.errors import InputError
from grace.int4 import BACKENDS, Int4Linear, crossover, crossover_path
from grace.int4.crossover import (
    ROWS,
    Crossover,
    crossover_key,
    extend,
    forced_crossover,
    forget,
    measure,
)
from grace.int4.layouts import WeightShape
from grace.machine import processor_name

SHAPE = WeightShape(32, 64, 2, 4)
CPU = BACKENDS["cpu"]


def buffers(shape=SHAPE):
    codes = torch.zeros(shape.out_features, shape.in_features, dtype=torch.int8)
    return CPU.pack(codes, torch.ones(shape.out_features, shape.groups), shape)


WEIGHT = buffers()


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
    monkeypatch.setattr(crossover, "measure", lambda *_: calls.append(1) or Crossover(24, 512))
    return calls


@given(st.integers(0, 600))
@settings(max_examples=50)
def test_bisection_finds_where_the_dense_product_wins(last):
    """A clock by which the packed product wins up to `last` rows and loses above."""
    asked = []

    def clock(call, device):
        rows = call.args[0].shape[0]
        asked.append(rows)
        assert call.args[0].dtype == torch.bfloat16
        packed = call.func.__name__ == "packed"
        return float(rows) if packed else float(last) if rows > last else float(rows) + 0.5

    crossing = measure(CPU, WEIGHT, SHAPE, clock)
    assert crossing == (max((rows for rows in ROWS if rows <= last), default=1), ROWS[-1])
    assert len(asked) <= 2 * 5  # of 17 candidates


def test_measured_on_inputs_of_the_back_end_without_gradients():
    """Every product of a size on the same rows; where both are equally fast, the packed one."""
    seen = []

    def clock(call, device):
        x, given, shape = call.args
        assert given is weight and shape is SHAPE and not call.keywords
        assert device == torch.device("cpu") and not torch.is_grad_enabled()
        seen.append((call.func.__name__, x))
        return 1.0

    weight = buffers()
    assert measure(CPU, weight, SHAPE, clock) == (ROWS[-1], ROWS[-1])
    first, rows = seen, [x.shape[0] for _, x in seen]
    assert [name for name, _ in seen] == ["packed", "dense"] * (len(seen) // 2)
    assert rows[0::2] == rows[1::2] == [32, 192, 384, 512]
    assert all(x.dtype == torch.bfloat16 and x.shape[1] == 64 for _, x in seen)
    assert all(one is other for (_, one), (_, other) in zip(seen[0::2], seen[1::2], strict=True))
    assert 0.9 < seen[-1][1].float().std() < 1.1  # as activations are, not zeros
    seen, state = [], torch.get_rng_state()
    measure(CPU, weight, SHAPE, clock)
    assert torch.equal(torch.get_rng_state(), state)  # torch's own generator stays
    assert all(torch.equal(one[1], other[1]) for one, other in zip(first, seen, strict=True))


@pytest.mark.parametrize("last", [512, 1000, 1024, 5000])
def test_more_rows_are_compared_where_more_come(monkeypatch, last):
    """The packed product wins up to `last` rows: nothing above is taken to be dense unasked."""
    asked = []

    def seconds(call, device):
        rows = call.args[0].shape[0]
        asked.append(rows)
        return float(rows > last) if call.func.__name__ == "packed" else 0.5

    monkeypatch.setattr(crossover, "_seconds", seconds)
    codes = torch.zeros(32, 64, dtype=torch.int8)
    layer = Int4Linear.from_codes(codes, torch.ones(32, 2))
    assert layer.product(512) == "packed" and max(asked) == 512
    for rows in (513, 640, 1024, 1100, 4096):
        limit = max(size for size in (512, 1024, 2048, 4096) if size <= last)
        assert layer.product(rows) == ("packed" if rows <= limit else "dense")
    assert max(asked) <= 4096 and (max(asked) > last or last > 4096)
    seen = len(asked)
    forget()  # another process reads all of it from the file
    other = Int4Linear.from_codes(codes, torch.ones(32, 2))
    assert [other.product(rows) for rows in (640, 4096)] == [
        layer.product(rows) for rows in (640, 4096)
    ]
    assert len(asked) == seen


@pytest.mark.parametrize(("packed", "expected"), [(1.0, (2048, 2048)), (2.0, (1024, 2048))])
def test_a_longer_search_doubles_the_rows(packed, expected):
    def clock(call, device):
        assert call.args[0].shape == (2048, 64)
        return packed if call.func.__name__ == "packed" else 1.5

    assert extend(Crossover(1024, 1024), CPU, WEIGHT, SHAPE, clock) == expected


@pytest.mark.parametrize(("activations", "dtype"), [(None, "float32"), (torch.half, "float16")])
def test_measured_on_the_device_of_the_weight_in_the_kernels_dtype(activations, dtype):
    """Of which the meta device is one."""
    kernel = types.SimpleNamespace(packed=print, dense=repr, activations=activations)

    def clock(call, device):
        assert device.type == call.args[0].device.type == "meta"
        assert call.args[0].dtype == getattr(torch, dtype)
        return float(call.func is print)

    weight = {name: tensor.to("meta") for name, tensor in buffers().items()}
    assert measure(kernel, weight, SHAPE, clock) == (1, ROWS[-1])


class Clock:
    """A clock that stands still, but for what is done at it."""

    def __init__(self, monkeypatch):
        self.now, self.queued, self.asked = 100.0, 0.0, []
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(torch.cuda, "synchronize", self.synchronize)

    def synchronize(self, device):
        self.asked.append(device)
        self.now, self.queued = self.now + self.queued, 0.0


def test_seconds_are_the_median_of_five_after_one_that_is_not_counted(monkeypatch):
    clock = Clock(monkeypatch)
    durations = iter([90.0, 0.07, 0.01, 0.5, 0.03, 0.02])

    def call():
        clock.now += next(durations)

    assert crossover._seconds(call, torch.device("cpu")) == pytest.approx(0.03)
    assert next(durations, None) is None and clock.asked == []
    durations = iter([9.0, 0.7, 0.5, 0.1])  # no third call after more than a second
    assert crossover._seconds(call, torch.device("cpu")) == pytest.approx(0.6)
    assert next(durations) == 0.1


def test_seconds_of_a_device_are_until_it_has_finished(monkeypatch):
    """What was queued before does not count, and what is queued does."""
    clock, device = Clock(monkeypatch), torch.device("cuda:1")
    clock.queued = 1000.0

    def call():
        clock.queued += 0.125

    assert crossover._seconds(call, device) == 0.125
    assert set(clock.asked) == {device} and len(clock.asked) == 12


def test_measured_with_a_real_clock():
    assert measure(CPU, buffers(), SHAPE).rows in (1, *ROWS)


def test_measured_once_and_kept_in_a_file(measured, cache):
    weight = buffers()
    assert crossover.crossover(CPU, weight, SHAPE) == (24, 512)
    assert crossover.crossover(CPU, weight, SHAPE) == (24, 512)
    assert len(measured) == 1
    assert crossover_path() == cache / "int4_crossover.json"
    content = json.loads(crossover_path().read_text())
    key = crossover_key(CPU, SHAPE, torch.device("cpu"))
    assert content == {"format": 4, "rows": {key: [24, 512]}}
    assert os.listdir(cache) == ["int4_crossover.json"]  # nothing temporary is left

    forget()  # another process
    content["rows"][key] = [1, 512]
    crossover_path().write_text(json.dumps(content))
    assert crossover.crossover(CPU, weight, SHAPE) == (1, 512)
    assert len(measured) == 1


def test_this_process_comes_before_the_file_and_the_file_before_a_measurement(measured):
    crossover.crossover(CPU, buffers(), SHAPE)
    wide = WeightShape(128, 64, 2, 4)
    device = torch.device("cpu")
    rows = {
        crossover_key(CPU, SHAPE, device): (3, 512),
        crossover_key(CPU, wide, device): (5, 512),
    }
    crossover_path().write_text(json.dumps({"format": 4, "rows": rows}))
    assert crossover.crossover(CPU, buffers(wide), wide) == (5, 512)
    assert crossover.crossover(CPU, buffers(), SHAPE) == (24, 512)
    assert len(measured) == 1


def test_measured_on_the_weight_that_is_about_to_be_used(monkeypatch):
    weight, seen = buffers(), []
    monkeypatch.setattr(
        crossover, "measure", lambda *given: seen.append(given) or Crossover(6, 512)
    )
    assert crossover.crossover(CPU, weight, SHAPE) == (6, 512)
    ((backend, given, shape),) = seen
    assert backend is CPU and given is weight and shape is SHAPE


def test_what_others_wrote_meanwhile_stays(measured):
    crossover.crossover(CPU, buffers(), SHAPE)
    content = json.loads(crossover_path().read_text())
    content["rows"]["another device"] = [3, 512]
    crossover_path().write_text(json.dumps(content))
    wide = WeightShape(128, 64, 2, 4)
    crossover.crossover(CPU, buffers(wide), wide)
    assert len(measured) == 2
    rows = json.loads(crossover_path().read_text())["rows"]
    assert len(rows) == 3 and rows["another device"] == [3, 512]


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        '{"format": 4}',
        '{"format": 4, "rows": [3]}',
        '{"format": 2, "rows": {KEY: [3, 512]}}',
        '{"format": 4, "rows": {KEY: 3}}',
        '{"format": 4, "rows": {KEY: [-3, 512]}}',
        '{"format": 4, "rows": {KEY: [0, 512]}}',
        '{"format": 4, "rows": {KEY: [3.5, 512]}}',
        '{"format": 4, "rows": {KEY: [true, 512]}}',
        '{"format": 4, "rows": {KEY: ["3", 512]}}',
        '{"format": 4, "rows": {KEY: [600, 512]}}',
        '{"format": 4, "rows": {KEY: [3, 4]}}',
        '{"format": 4, "rows": {KEY: [3, 512, 1]}}',
        "[" * 100_000,
        b"\xff\xfe\x00",
    ],
)
def test_a_damaged_file_is_measured_again_and_replaced(measured, damage):
    key = json.dumps(crossover_key(CPU, SHAPE, torch.device("cpu")))
    raw = damage if isinstance(damage, bytes) else damage.replace("KEY", key).encode()
    crossover_path().write_bytes(raw)
    assert crossover.crossover(CPU, buffers(), SHAPE) == (24, 512)
    assert list(json.loads(crossover_path().read_text())["rows"].values()) == [[24, 512]]


def test_a_directory_that_cannot_be_written_costs_a_warning(measured, cache, monkeypatch):
    (cache / "file").write_text("")
    monkeypatch.setenv("GRACE_CACHE", str(cache / "file"))
    with pytest.warns(UserWarning, match=r"crossovers cannot be kept.*File exists.*GRACE_CACHE"):
        assert crossover.crossover(CPU, buffers(), SHAPE) == (24, 512)
    assert crossover.crossover(CPU, buffers(), SHAPE) == (24, 512)
    assert len(measured) == 1


@pytest.mark.parametrize("removed", [False, True])
def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(
    measured, cache, monkeypatch, removed
):
    """It is written beside its place, under a name that is hidden and its own."""
    monkeypatch.setenv("GRACE_CACHE", str(cache / "a" / "b"))
    sources = []

    def replace(source, target):
        sources.append(Path(source))
        assert target == crossover_path() and json.loads(Path(source).read_text())["rows"]
        if removed:  # by someone who tidies up
            os.remove(source)
        raise OSError("no space")

    monkeypatch.setattr(os, "replace", replace)
    with pytest.warns(UserWarning, match=r"crossovers cannot be kept \(no space\)"):
        assert crossover.crossover(CPU, buffers(), SHAPE) == (24, 512)
    (source,) = sources
    assert source.parent == crossover_path().parent
    assert source.name.startswith(".int4_crossover.json.")
    assert os.listdir(source.parent) == []


def test_a_key_says_what_a_crossover_holds_for(monkeypatch):
    monkeypatch.setattr(crossover, "processor_name", lambda: "Processor")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX9")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 7)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    torch_part = f"torch {torch.__version__}"
    key = crossover_key(CPU, WeightShape(11008, 4096, 8, 4), torch.device("cpu"))
    assert key.split(" | ") == [
        "Processor AVX9",
        torch_part,
        "7 threads",
        CPU.kernel_name(WeightShape(11008, 4096, 8, 4)),
        "4 bits, groups of 256, 8192 x 4096",
    ]
    key = crossover_key(BACKENDS["cuda"], WeightShape(24, 48, 2, 8), torch.device("cuda:1"))
    assert key.split(" | ") == [
        "GPU 1",
        torch_part,
        "-",
        "_weight_int4pack_mm",
        "8 bits, groups of 24, 32 x 64",
    ]


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


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Maker 9: fast\nmodel name\t: other\n", "Maker 9: fast"),
        ("processor\t: 0\nBogoMIPS\t: 50.0\n", "x86"),
        (None, "x86"),
    ],
)
def test_the_processors_name_is_the_systems(monkeypatch, cpuinfo, expected):
    def read_text(path, **options):
        assert path == Path("/proc/cpuinfo")
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return cpuinfo

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "x86")
    assert processor_name.__wrapped__() == expected


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
    with pytest.raises(InputError, match=rf"GRACE_INT4_CROSSOVER is {text!r}: "):
        forced_crossover()


@pytest.mark.parametrize(("text", "expected"), [(None, None), ("", None), ("0", 0), ("48", 48)])
def test_an_override_is_a_number_of_rows(monkeypatch, text, expected):
    if text is not None:
        monkeypatch.setenv("GRACE_INT4_CROSSOVER", text)
    assert forced_crossover() == expected


@pytest.mark.parametrize("unset", [None, ""])
def test_the_default_place_is_the_users_cache(monkeypatch, tmp_path, unset):
    def clear(name):
        if unset is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, unset)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    clear("GRACE_CACHE")
    assert crossover_path() == tmp_path / "xdg" / "grace" / "int4_crossover.json"
    clear("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert crossover_path() == tmp_path / ".cache" / "grace" / "int4_crossover.json"
