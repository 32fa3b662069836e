"""Parts of a benchmark: one process each, a result or a reason, and nothing measured twice."""

import os
import sys

import pytest
import torch

from grace.errors import InputError
from grace.machine import instruction_set
from replication.measure import harness
from replication.measure.clock import Clock, ratio, side_by_side, spread
from replication.measure.harness import Benchmark, Part, measure_in_process
from replication.measure.printing import ResultTable, markdown, range_text

CPU = torch.device("cpu")
PARTS = [
    Part("model/fast", "replication.measure.clock", {"speed": 2.0}),
    Part("model/slow", "replication.measure.clock", {"speed": 1.0}),
    Part("model/peer", "replication.measure.clock", {"speed": 0.0}, optional=True),
]


@pytest.fixture
def measured(monkeypatch):
    """No processes; the arguments of every part that is measured."""
    calls = []

    def measure(module, arguments, *, keep_memory, python):
        assert python == sys.executable
        calls.append(arguments["speed"])
        if not arguments["speed"]:
            raise InputError("no such package")
        return {"seconds": 1 / arguments["speed"]}

    monkeypatch.setattr(harness, "measure_in_process", measure)
    return calls


def run(folder, parts=PARTS, device="a processor"):
    return Benchmark(device).run(parts, folder)


def test_what_is_done_is_kept_and_what_was_not_run_is_tried_again(tmp_path, measured, monkeypatch):
    first = run(tmp_path)
    assert first["model/fast"] == {"seconds": 0.5}
    assert first["model/peer"] == {"not_run": "no such package"}
    assert measured == [2.0, 1.0, 0.0]
    assert run(tmp_path) == first
    assert measured[3:] == [0.0]
    (tmp_path / "model" / "fast.json").write_text("{", encoding="utf-8")
    run(tmp_path)
    assert measured[4:] == [2.0, 0.0]
    changes = (
        lambda: run(tmp_path, device="another processor"),
        lambda: run(tmp_path, [Part("model/fast", "replication.measure.memory", {"speed": 2.0})]),
        lambda: run(tmp_path, [Part("model/fast", "replication.measure.clock", {"speed": 3.0})]),
    )
    for change in changes:
        before = len(measured)
        change()
        assert len(measured) > before
    monkeypatch.setattr(harness, "_code_hash", lambda modules: "other code")
    before = len(measured)
    run(tmp_path, PARTS[1:2])
    assert len(measured) == before + 1


def test_an_interrupted_run_keeps_what_is_done(tmp_path, measured, monkeypatch):
    whole = harness.measure_in_process

    def stop(module, arguments, **options):
        if arguments["speed"] == 1.0:
            raise KeyboardInterrupt
        return whole(module, arguments, **options)

    monkeypatch.setattr(harness, "measure_in_process", stop)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(harness, "measure_in_process", whole)
    measured.clear()
    run(tmp_path)
    assert measured == [1.0, 0.0]


def test_a_part_that_has_to_be_measured_fails_the_benchmark(tmp_path, measured):
    with pytest.raises(InputError, match="required: no such package"):
        run(tmp_path, [Part("required", "replication.measure.clock", {"speed": 0.0})])


def test_the_provenance_names_what_decides(measured):
    origin = Benchmark("a processor").provenance(PARTS, {"a": 1}, 7, "a command")
    assert (origin["device"], origin["seeds"]) == ("a processor", [7])
    assert origin["instruction_set"] == instruction_set()
    assert origin["code"] and "torch" in origin["libraries"]


def test_the_instruction_set_is_that_of_the_processor():
    flags = set(os.popen("grep -m1 -i '^flags' /proc/cpuinfo").read().split())
    if not flags:
        pytest.skip("the processor does not list its instructions")
    name = instruction_set()
    assert ("AVX-512" in name) <= ("avx512f" in flags)
    assert ("bfloat16" in name) == bool(flags & {"avx512_bf16", "amx_bf16"})


@pytest.mark.slow
def test_a_process_ends_in_a_result_or_its_last_error(monkeypatch, tmp_path):
    module = tmp_path / "told.py"
    module.write_text(
        "import os\n"
        "def measure_part(signal=0, **arguments):\n"
        "    if signal: os.kill(os.getpid(), signal)\n"
        "    if not arguments: raise ValueError('nothing to measure')\n"
        "    cache = os.listdir(os.environ['GRACE_CACHE'])\n"
        "    return {**arguments, 'kept': os.environ.get('MALLOC_MMAP_MAX_'), 'cache': cache}\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("MALLOC_MMAP_MAX_", "5")
    monkeypatch.setenv("GRACE_CACHE", str(tmp_path))  # where an earlier process left something
    assert measure_in_process("told", {"a": [1]}) == {"a": [1], "kept": None, "cache": []}
    assert measure_in_process("told", {"a": 1}, keep_memory=True)["kept"] == "0"
    with pytest.raises(InputError, match="ValueError: nothing to measure"):
        measure_in_process("told", {})
    with pytest.raises(InputError, match="signal 9"):
        measure_in_process("told", {"signal": 9})


# ------------------------------------------------------------------------------- clock and tables


def test_calls_take_turns_and_every_other_round_goes_backwards():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "abc"}
    seconds = side_by_side(calls, 2, CPU)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert {len(values["values"]) for values in seconds.values()} == {2}


def test_quotients_are_taken_round_by_round():
    quotients = ratio({"values": [1.0, 3.0, 8.0]}, {"values": [2.0, 3.0, 2.0]})
    assert quotients == {"median": 1.0, "low": 0.5, "high": 4.0, "values": [0.5, 1.0, 4.0]}


def test_the_seconds_of_steps_sum_to_the_whole():
    total, steps = Clock(CPU).steps(lambda after: [after() for _ in range(4)])
    assert len(steps) == 4
    assert sum(steps) == pytest.approx(total)


def test_processor_time_does_not_count_waiting():
    import time

    assert Clock(CPU, processor=True).time(lambda: time.sleep(0.2)) < 0.1
    assert Clock(CPU).time(lambda: time.sleep(0.2)) >= 0.2


def test_ranges_and_markdown():
    assert range_text(spread([1.0, 2.0, 4.0])) == "2 [1, 4]"
    assert range_text(spread([2.0]), ".1f") == "2.0"
    text = markdown("Measured.", [ResultTable("Title", ("a", "b"), [("1", "2")])])
    assert text == "Measured.\n\n**Title**\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
