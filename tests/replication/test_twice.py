"""What `make determinism` compares, and what it does not; it takes too long to be run here."""

import json

import pytest
from repository import ROOT, contents
from twice import TIMED, differences


@pytest.fixture(scope="module")
def results():
    return contents(ROOT / "results" / "small")


def test_the_same_results_do_not_differ(results):
    assert len([name for name in results if not name.startswith(TIMED)]) > 100
    assert not differences(results, dict(results))


def test_every_kind_of_file_that_holds_times_is_there(results):
    for start in TIMED:
        assert [name for name in results if name.startswith(start)], start


@pytest.mark.parametrize(
    "name",
    [
        *("scores.json", "world.json", "averages.json", "tables/table4.md", "figures/pareto.svg"),
        *("measurements/entropy_error-llava.json", "outcomes/qwen2_vl/baseline.parquet"),
    ],
)
def test_a_changed_byte_is_named(results, name):
    content = bytearray(results[name])
    content[len(content) // 2] ^= 1
    assert differences(results, {**results, name: bytes(content)}) == [name]
    assert differences(results, {n: c for n, c in results.items() if n != name}) == [name]


def changed(results, name, change):
    found = json.loads(results[name])
    change(found)
    return differences(results, {**results, name: json.dumps(found).encode()})


def test_times_may_differ_and_what_was_trained_may_not(results):
    name = "training/qwen2_vl_runs/grace_int4/seed0.json"
    assert not changed(results, name, lambda log: log["cost"].update(seconds=1.0))
    assert changed(results, name, lambda log: log["history"][0].update(ce=1.0)) == [name]
    assert not changed(results, "deploy/llava-1.5-7b/deploy.json", lambda found: found.clear())


def test_a_verdict_may_not_differ_unless_of_times(results):
    def change(of):
        def alter(found):
            parts = [part for claim in found["claims"] for part in claim["parts"]]
            part = next(part for part in parts if part["quantity"]["kind"] == of)
            part["status"] = "OTHER"

        return changed(results, "claims.json", alter)

    assert change("difference") == ["claims.json"]
    assert not change("cost_ratio")
    assert not change("deployment")
