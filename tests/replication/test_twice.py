"""What `make determinism` compares, and what it does not; it takes too long to be run here."""

import json

import pytest
from repository import ROOT, contents
from twice import differences

LOG = "training/qwen2_vl_runs/grace_int4/seed0.json"


@pytest.fixture(scope="module")
def results():
    return contents(ROOT / "results" / "small")


@pytest.mark.parametrize(
    "name", ["scores.json", "tables/table4.md", "outcomes/qwen2_vl/baseline.parquet", LOG]
)
def test_a_changed_or_missing_file_differs(results, name):
    assert not differences(results, dict(results))
    changed = results[name].replace(b"1", b"2")
    assert differences(results, {**results, name: changed}) == [name]
    assert differences(results, {n: c for n, c in results.items() if n != name}) == [name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        (LOG, lambda log: log["cost"].update(seconds=1.0)),
        ("deploy/llava-1.5-7b/deploy.json", lambda report: report.clear()),
    ],
)
def test_what_the_clock_says_may_differ(results, name, change):
    content = json.loads(results[name])
    change(content)
    assert not differences(results, {**results, name: json.dumps(content).encode()})
