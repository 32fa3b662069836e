"""How long stages and tables take, and the line on a run."""

import io
import re

import pytest
from dvc.repo import Repo
from dvc.repo.reproduce import plan_repro
from repository import ROOT

from grace.errors import InputError
from replication.base import warm
from replication.base.workers import run_all
from replication.plan import progress, times
from replication.plan.progress import duration, status, with_progress
from replication.plan.times import (
    Work,
    graph_of,
    kept_stages,
    read_log,
    stage_seconds,
    stages_behind,
    table_seconds,
)
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params


def begins(at, stage):
    return {"at": at, "stage": stage, "begins": stage}


def test_a_stage_lasts_until_the_next_begins_in_a_run_that_went_on():
    lines = [
        {"at": 0.0, "starts": []},
        begins(1.0, "standins"),
        begins(5.0, "train@a"),
        {"at": 6.0, "stage": "train@a", "jobs": 3},
        {"at": 9.0, "ends": 1},  # train@a failed
        {"at": 20.0, "starts": []},
        begins(21.0, "train@a"),  # and this run was killed
        {"at": 90.0, "starts": []},
        begins(91.0, "standins"),
        begins(93.5, "report"),
        {"at": 94.0, "ends": 0},
    ]
    assert stage_seconds(lines) == {"standins": 2.5, "report": 0.5}
    again = [*lines, begins(100.0, "train@a"), begins(107.0, "report")]
    assert stage_seconds(again) == {"standins": 2.5, "report": 0.5, "train@a": 7.0}


GRAPH = {"report": ["b", "d"], "b": ["a"], "a": [], "d": ["a", "c"], "c": []}


def test_stages_whose_results_were_there_are_those_that_a_whole_run_did_not_begin():
    table = [
        {"at": 0.0, "starts": ["--table", "t", "small", "repro"]},
        {"at": 1.0, "stage": "a", "begins": "a"},
        {"at": 2.0, "ends": 0},
    ]
    whole = [{"at": 3.0, "starts": ["small", "repro"]}, {"at": 4.0, "stage": "c", "begins": "c"}]
    assert kept_stages(table, "abcd") == []
    assert kept_stages([*table, *whole, {"at": 5.0, "ends": 1}], "abcd") == []
    assert kept_stages([*table, *whole, {"at": 5.0, "ends": 0}], "abcd") == ["b", "d"]
    assert kept_stages([*table, *whole, {"at": 5.0, "ends": 0}, *table], "abcd") == ["b", "d"]


def test_stages_come_in_the_order_of_dvc():
    assert stages_behind(GRAPH) == ["a", "b", "c", "d", "report"]
    assert stages_behind(GRAPH, ["d", "a"]) == ["a", "c", "d"]


def test_a_table_takes_the_stages_behind_it(monkeypatch):
    wanted = {"table1": ["b"], "table2": ["d"], "table3": ["c", "b"]}

    def of_table(_, table):
        if table not in wanted:
            raise InputError("nothing of it")
        return wanted[table]

    monkeypatch.setattr(times, "stages_of", of_table)
    known = {"a": 1.0, "b": 2.0, "c": 4.0, "report": 8.0}
    found = table_seconds(None, GRAPH, known)
    assert found == {"table1": 3.0, "table2": None, "table3": 7.0, "all": None}
    assert table_seconds(None, GRAPH, known | {"d": 16.0})["all"] == 31.0


@pytest.mark.slow
def test_the_pipeline_is_in_the_order_in_which_dvc_would_run_it():
    graph = graph_of(ROOT)
    with Repo(ROOT) as repo:
        order = [stage.addressing for stage in plan_repro(repo.index.graph)]
    assert stages_behind(graph) == order
    behind = stages_behind(graph, ["evaluate@qwen2_vl_runs"])
    assert {"code", "standins", "pairs@qwen2_vl", "train@qwen2_vl_runs"} < set(behind)
    assert not any("llava" in stage or stage == "report" for stage in behind)


WORKS = {
    "code": Work(0, 5.0),
    "train@a": Work(4, 600.0, frozenset({"code"})),
    "train@b": Work(6, 900.0, frozenset({"code", "train@a"})),
    "report": Work(0, 5.0, frozenset({"code", "train@a", "train@b"})),
}


def test_the_line_counts_runs_and_what_is_left(monkeypatch):
    monkeypatch.setattr(progress, "cores", lambda: 2)
    assert status(WORKS, [], 0.0) == (
        "runs: 0 done, 0 running, 10 to come; about 25 min left; stage 0 of 4: starting"
    )
    lines = [
        begins(0.0, "code"),
        begins(5.0, "train@a"),
        {"at": 6.0, "stage": "train@a", "jobs": 4},
        {"at": 200.0, "stage": "train@a", "done": 1},
    ]
    # a quarter done, and two of four half way: 600 / 2 + 905 s
    assert status(WORKS, lines, 300.0) == (
        "runs: 1 done, 2 running, 7 to come; about 20 min left; stage 2 of 4: train@a 1 of 4"
    )
    # train@a took twice as long as expected: (5 + 1200 + 60) / (5 + 600 + 60) = 1.902
    slow = [*lines, begins(1205.0, "train@b"), {"at": 1206.0, "stage": "train@b", "jobs": 6}]
    assert status(WORKS, slow, 1210.0) == (  # 1.902 * (900 * 5 / 6 + 5) s
        "runs: 4 done, 2 running, 4 to come; about 24 min left; stage 3 of 4: train@b 0 of 6"
    )


# Seconds of `make repro TABLE=table4` in float32 on an Intel Xeon restricted to AVX2, 2 cores.
TABLE4 = {
    "standins": 116,
    "vision@qwen2_vl": 93,
    "features@qwen2_vl": 41,
    "language": 346,
    "alignment@qwen2_vl": 497,
    "pairs@qwen2_vl": 466,
    "teacher_outputs@qwen2_vl": 18,
    "pairs@qwen2_vl_pair2": 463,
    "teacher_outputs@qwen2_vl_pair2": 11,
    "train@qwen2_vl_controls": 243,
    "evaluate@qwen2_vl_controls": 101,
    "train@qwen2_vl_pair2_controls": 77,
    "evaluate@qwen2_vl_pair2": 56,
    "evaluate@qwen2_vl": 56,
    "train@qwen2_vl_pair2_runs": 98,
    "evaluate@qwen2_vl_pair2_runs": 68,
    "evaluate@qwen2_vl_pair2_controls": 67,
    "train@qwen2_vl_runs": 331,
    "evaluate@qwen2_vl_runs": 108,
}


def test_a_first_run_tells_early_how_long_it_takes(monkeypatch):
    monkeypatch.setattr(times, "cores", lambda: 2)
    graph = {stage: list(TABLE4)[:place] for place, stage in enumerate(TABLE4)}
    works = times.works_of(parse_params(scale_params("small")), graph, {})
    lines, now = [], 0.0
    for stage, seconds in TABLE4.items():
        lines.append(begins(now, stage))
        left = re.search(r"about (?:(\d+) h )?(\d+) min left", status(works, lines, now))
        told = 60 * int(left[1] or 0) + int(left[2])
        true = (sum(TABLE4.values()) - now) / 60
        now += seconds
        if stage != "standins" and true > 10:  # of the first stage nothing is known yet
            assert 0.6 < told / true < 1.6, (stage, told, true)


def test_what_is_over_when_a_stage_begins(monkeypatch):
    monkeypatch.setattr(times, "work_of", lambda *_: Work(1, 10.0))
    works = times.works_of(None, GRAPH, {})
    assert works["c"].behind == {"a", "b"} and works["report"].behind == {"a", "b", "c", "d"}
    named = times.works_of(None, GRAPH, {}, ["report"])
    assert named["c"].behind == set() and named["d"].behind == {"a", "c"}
    # asked for by name, DVC may begin with c: nothing is done yet
    monkeypatch.setattr(progress, "cores", lambda: 1)
    assert "0 done, 1 running, 4 to come" in status(named, [begins(0.0, "c")], 1.0)
    assert "1 done, 1 running, 3 to come" in status(
        named, [begins(0.0, "c"), begins(9.0, "a")], 10.0
    )
    assert "3 done, 1 running, 1 to come; " in status(
        named, [begins(0.0, "c"), begins(9.0, "a"), begins(19.0, "b"), begins(20.0, "d")], 21.0
    )
    assert "2 done, 1 running, 2 to come" in status(works, [begins(0.0, "c")], 1.0)


def test_minutes_are_hours_where_there_are_many():
    texts = [duration(seconds) for seconds in (0, 90, 5900, 6000, 9000)]
    assert texts == ["1 min", "2 min", "98 min", "1 h 40 min", "2 h 30 min"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_run_is_shown_and_logged(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "_TICK", 0.01)
    log = tmp_path / "log.jsonl"

    def run(variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        for stage in ("code", "train@a"):
            monkeypatch.setenv("DVC_STAGE", stage)
            warm.tell(begins=stage)
            while f": {stage}" not in stream.getvalue():
                pass
        run_all(pow, [(2, 3)])
        return 3

    assert with_progress(run, log, lambda: WORKS, stream) == 3
    lines = read_log(log)
    assert [set(line) - {"at", "stage"} for line in lines] == [
        *({"starts"}, {"begins"}, {"begins"}, {"jobs"}, {"done"}, {"ends"})
    ]
    assert lines[-1]["ends"] == 3 and lines[3]["stage"] == "train@a"
    text = stream.getvalue()
    if stream.isatty():
        assert "\x1b[1;23r" in text  # the last of 24 rows does not scroll
        assert text.endswith("\x1b7\x1b[r\x1b[24;1H\x1b[2K\x1b8")  # and does again
        text = re.sub(r"\x1b(\[[0-9;]*[A-Za-z]|[78])", "", text)
        assert "runs: 0 done" in text
    else:
        assert [line.rpartition(": ")[2] for line in text.splitlines()] == ["code", "train@a"]
