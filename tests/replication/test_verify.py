"""The ledger's verdicts: what holds, what a worse model does to them, and the command."""

import copy
import json

import pytest
from repository import ROOT
from synthetic_results import GOOD, strict_ledger, write_results

from grace.errors import InputError
from replication import paper as reported
from replication import verify
from replication.base import terminal
from replication.base.files import write_json_atomic
from replication.base.scales import SCALES
from replication.judge import record
from replication.judge.record import document
from replication.judge.summary import summary_text
from replication.judge.text import claims_text
from replication.paper.history import Written
from replication.results import scores as results
from replication.stats.verdict import Status


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return write_results(tmp_path_factory.mktemp("good"), GOOD, seed=1)


def judged(root, scale="small", ledger=None):
    found = verify.verify(root, scale, ledger)
    parts = {part.part.id: part for claim in found for part in claim.parts}
    return {claim.claim.id: claim for claim in found}, parts


def raw_ledger():
    return copy.deepcopy(reported.read_yaml(reported.FOLDER / "claims.yaml"))


# --- verdicts


def test_results_in_the_papers_order_hold(good):
    claims, parts = judged(good)
    assert claims["C02"].status is Status.DIRECTION_HOLDS
    assert claims["C06"].status is Status.DIRECTION_HOLDS
    for name in ("C03", "C04", "C05", "C14"):  # other families were not run
        assert claims[name].status is Status.INCONCLUSIVE
        qwen = [part for part in claims[name].parts if "qwen2_vl" in part.part.id]
        assert [part.status for part in qwen if part.part.twin is None] == [Status.DIRECTION_HOLDS]
        rest = [part for part in claims[name].parts if part not in qwen or part.part.twin]
        assert {part.status for part in rest} == {Status.NOT_RUN}
    assert not any(claim.failed for claim in claims.values())
    assert parts["C04.qwen2_vl"].interval.point == pytest.approx(0.65, abs=0.1)
    assert parts["C02.difference"].questions == 1500
    assert parts["C02.difference"].seeds == {"grace_int4": [0], "baseline": [0]}
    assert parts["C02.difference"].mcnemar.p_value < 0.001
    assert parts["C03.qwen2_vl"].questions == 4500
    assert 0 < parts["C03.qwen2_vl"].resolvable < 5


def test_what_has_no_results_is_not_run(good):
    claims, parts = judged(good)
    for name in ("C01", "C07", "C09", "C10", "C15", "R03", "R09"):
        assert claims[name].status is Status.NOT_RUN
        assert not claims[name].failed
    assert "llava/grace_int4" in parts["C01.difference"].note


@pytest.mark.slow
def test_exact_claims_are_reproduced_at_any_scale_or_contradicted_as_explained(tmp_path):
    for scale in SCALES:
        claims, parts = judged(tmp_path, scale)
        assert claims["C16"].status is Status.CONTRADICTED
        assert not claims["C16"].failed
        assert parts["C16.averages.table1"].interval.point == 1
        assert parts["C16.statements"].interval.point == 4
        assert "D02" in parts["C16.statements"].explanation.text
        for name in ("averages.table2", "averages.table3", "averages.table4", "cells"):
            assert parts[f"C16.{name}"].status is Status.REPRODUCED


def test_a_new_misprint_is_not_explained_by_the_known_one(tmp_path):
    raw = reported.read_yaml(reported.FOLDER / "tables.yaml")
    raw["tables"]["table1_kd_llava"]["rows"][0]["values"][0] = 85.0
    changed = reported.parse_tables(raw)
    found = verify.verify(tmp_path, "small", reported=changed, only=["C16"])
    parts = {part.part.id: part for part in found[0].parts}
    assert parts["C16.averages.table1"].failed
    assert "new" in parts["C16.averages.table1"].note
    assert parts["C16.cells"].failed  # table 2 prints that cell too


def test_several_seeds_widen_the_interval_and_are_named(tmp_path):
    pair = {name: GOOD[name] for name in ("baseline", "grace_int4")}
    root = write_results(tmp_path, pair, seed=4, n=300, seeds={"grace_int4": (0, 1, 2)})
    _, parts = judged(root)
    part = parts["C02.difference"]
    assert part.status is Status.DIRECTION_HOLDS
    assert part.seeds == {"grace_int4": [0, 1, 2], "baseline": [0]}
    assert part.mcnemar is None  # not a single pair


def test_a_difference_too_small_for_n_is_inconclusive(tmp_path):
    root = write_results(tmp_path, {"baseline": 0.6, "grace_int4": 0.61}, seed=3, n=100)
    claims, parts = judged(root)
    assert claims["C02"].status is Status.INCONCLUSIVE
    assert "expected to hold" in parts["C02.difference"].note
    assert not claims["C02"].failed


def test_no_gap_between_teacher_and_baseline_is_inconclusive(tmp_path):
    same = {"baseline": 0.7, "teacher": 0.7, "grace_int4": 0.8}
    _, parts = judged(write_results(tmp_path, same, seed=3, n=200))
    assert parts["C04.qwen2_vl"].status is Status.INCONCLUSIVE
    assert parts["C04.qwen2_vl"].interval is None
    assert "not told apart" in parts["C04.qwen2_vl"].note


# --- falsifiers: a model made worse on purpose


WORSE = {
    "C02": {"grace_int4": 0.50},
    "C03": {"grace_int4": 0.50},
    "C04": {"grace_int4": 0.50},
    "C05": {"grace_int4": 0.50},
    "C06": {"kd_int8": 0.50},
    "C14": {"grace_int8": 0.65},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WORSE))
def test_a_worse_model_fails_the_claim(tmp_path, name, capsys, monkeypatch):
    root = write_results(tmp_path, {**GOOD, **WORSE[name]}, seed=5, n=600)
    monkeypatch.setattr(verify, "load_ledger", strict_ledger)
    claims, _ = judged(root, ledger=strict_ledger())
    assert claims[name].status is Status.DIRECTION_FAILS
    assert claims[name].failed
    assert verify.main(["--results", str(root)]) == 1
    printed = capsys.readouterr().out
    (line,) = [line for line in printed.splitlines() if line.startswith(name)]
    assert "DIRECTION FAILS" in line
    assert name in printed.partition("failing without an explanation")[2]
    data = json.loads((root / "small" / "claims.json").read_text())
    assert name in data["failed"]


@pytest.mark.slow
def test_baseline_and_run_exchanged_is_noticed(tmp_path):
    swapped = {**GOOD, "baseline": GOOD["grace_int4"], "grace_int4": GOOD["baseline"]}
    claims, parts = judged(write_results(tmp_path, swapped, seed=5, n=600))
    assert claims["C02"].status is Status.DIRECTION_FAILS
    assert parts["C02.difference"].interval.high < 0
    assert claims["C04"].status is Status.DIRECTION_FAILS


@pytest.mark.slow
def test_teacher_and_student_exchanged_is_noticed(tmp_path):
    swapped = {**GOOD, "teacher": GOOD["baseline"], "baseline": GOOD["teacher"]}
    claims, _ = judged(write_results(tmp_path, swapped, seed=5, n=600))
    assert claims["C03"].status is Status.DIRECTION_FAILS
    assert claims["C04"].status is Status.INCONCLUSIVE  # there is no gap to close


def explaining(*names):
    """The ledger with one explanation of these parts beside those of C16."""
    raw = raw_ledger()
    kept = [one for one in raw["explanations"] if one["of"][0].startswith("C16")]
    raw["explanations"] = [*kept, {"of": list(names), "text": "as was found in the first run"}]
    return reported.parse_ledger(raw, reported.load_tables())


@pytest.mark.slow
def test_a_failure_that_is_explained_is_as_recorded_and_one_that_is_not_fails(
    tmp_path, monkeypatch, capsys
):
    root = write_results(tmp_path, {**GOOD, **WORSE["C02"]}, seed=5, n=600)
    names = {claim.claim.id for claim in judged(root, ledger=strict_ledger())[0].values()
             if claim.failed}  # fmt: skip
    monkeypatch.setattr(verify, "load_ledger", lambda: explaining(*names))
    assert verify.main(["--results", str(root)]) == 0
    printed = capsys.readouterr().out
    assert printed.count("as was found in the first run") == 1
    assert "As recorded" in printed
    assert verify.main(["--results", str(root), "--strict"]) == 1
    monkeypatch.setattr(verify, "load_ledger", lambda: explaining(*(names - {"C02"})))
    assert verify.main(["--results", str(root)]) == 1
    assert capsys.readouterr().out.endswith("failing without an explanation: C02\n")


def test_an_explanation_of_what_holds_is_out_of_date(good, monkeypatch, capsys):
    monkeypatch.setattr(verify, "load_ledger", lambda: explaining("C02"))
    assert verify.main(["--results", str(good)]) == 0
    assert "Explained, and does not fail: C02" in capsys.readouterr().out


def test_an_explanation_of_no_part_is_refused():
    with pytest.raises(InputError, match=r"explanations: part 'C99' is unknown"):
        explaining("C99")


# --- bands: positive and negative controls at full scale


def at_full_scale(tmp_path, run, baseline=0.62):
    """Results at scale paper with these accuracies of INT4 GRACE and the baseline."""
    pair = {"baseline": baseline, "grace_int4": run}
    return write_results(tmp_path, pair, seed=6, n=6000, scale="paper", standin=False)


@pytest.mark.slow
def test_results_within_the_band_are_reproduced(tmp_path):
    _, parts = judged(at_full_scale(tmp_path, 0.775, 0.716), "paper")
    assert parts["C02.difference"].status is Status.REPRODUCED
    assert parts["C02.int4"].status is Status.REPRODUCED
    assert parts["C03.qwen2_vl"].status is Status.REPRODUCED


@pytest.mark.slow
@pytest.mark.parametrize(
    ("run", "baseline", "difference", "value"),
    [
        (0.93, 0.716, Status.CONTRADICTED, Status.CONTRADICTED),  # above both upper ends
        (0.65, 0.716, Status.CONTRADICTED, Status.CONTRADICTED),  # below both lower ends
        (0.76, 0.55, Status.CONTRADICTED, Status.REPRODUCED),  # right level, gain too large
        (0.60, 0.545, Status.REPRODUCED, Status.CONTRADICTED),  # right gain, wrong level
        (0.82, 0.736, Status.INCONCLUSIVE, Status.INCONCLUSIVE),  # across the upper ends
    ],
)
def test_results_that_violate_a_band_are_not(tmp_path, run, baseline, difference, value):
    claims, parts = judged(at_full_scale(tmp_path, run, baseline), "paper")
    assert parts["C02.difference"].status is difference
    assert parts["C02.int4"].status is value
    failed = Status.CONTRADICTED in (difference, value)
    assert claims["C02"].failed is failed
    anything = any(claim.failed for claim in claims.values())
    assert verify.main(["--results", str(tmp_path), "--scale", "paper"]) == int(anything)


@pytest.mark.slow
def test_smoke_scale_shows_numbers_and_judges_none_of_them(tmp_path):
    root = write_results(tmp_path, {**GOOD, **WORSE["C02"]}, seed=5, n=60, scale="smoke")
    claims, parts = judged(root, "smoke")
    assert claims["C02"].status is Status.INCONCLUSIVE
    assert parts["C02.difference"].interval is not None
    assert "not judged at scale smoke" in parts["C02.difference"].note
    assert "C02.int4" not in parts  # a level is compared at full scale alone
    assert not any(claim.failed for claim in claims.values())


# --- the command


@pytest.mark.slow
def test_claims_json_is_complete_and_deterministic(good, tmp_path):
    paths = [tmp_path / "one.json", tmp_path / "two.json"]
    for path in paths:
        assert verify.main(["--results", str(good), "--json", str(path)]) == 0
    assert paths[0].read_bytes() == paths[1].read_bytes()
    data = json.loads(paths[0].read_text())
    assert data["scale"] == "small"
    counts = {by: sum(own.values()) for by, own in data["summary"].items()}
    assert counts == {"paper": 17, "reviewers": 9, "repository": 1}
    part = data["claims"][1]["parts"][0]
    assert part["id"] == "C02.difference"
    assert part["measured"]["low"] < part["measured"]["point"] < part["measured"]["high"]
    assert part["band"]["reason"]
    assert part["expected"]["outcome"] == "holds"
    assert part["smallest_resolvable_difference"] > 0


def test_every_claim_is_one_plain_line_when_piped(good, capsys):
    assert verify.main(["--results", str(good)]) == 0
    printed = capsys.readouterr().out
    assert "\033" not in printed
    lines = printed.splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    for claim in reported.load_ledger().claims:
        (line,) = [line for line in lines if line.startswith(claim.id)]
        assert any(status.value in line for status in Status)
    (line,) = [line for line in lines if line.startswith("C02")]
    assert "DIRECTION HOLDS" in line
    assert "not run      holds" in line  # with the launcher's coefficients, and with the code's


def test_the_world_was_fixed_before_the_runs_of_grace_alone(tmp_path, monkeypatch):
    """What the world was chosen by ran before it was fixed."""
    for run, method, commit in (("a", "sft", "c0"), ("b", "grace", "c1"), ("c", "grace", "c2")):
        path = tmp_path / "scores" / "group" / f"{run}.json"
        write_json_atomic(path, {"method": method, "provenance": {"commit": commit}})
    measured = record.result_commits(tmp_path)
    assert measured == {"sft": {"c0"}, "grace": {"c1", "c2"}}
    asked = []
    monkeypatch.setattr(record, "precedes", lambda world, later: asked.append(set(later)) or True)
    content = document([], [], "small", reported.load_ledger(), measured)
    assert content["world"]["before_grace"] is True
    assert asked == [{"c1", "c2"}]


def test_the_committed_results_fit_a_screen(capsys):
    """At most 60 lines of 120 columns, and each explanation once."""
    found = verify.verify(ROOT / "results", "small")
    ledger = reported.load_ledger()
    lines = summary_text(found, [], document(found, [], "small", ledger))
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 120
    text = " ".join(" ".join(lines).split())
    shown = {part.explanation.text for claim in found for part in claim.parts if part.explanation}
    for one in shown:
        assert text.count(one) == 1


class OneCommit:
    """A history in which one commit wrote everything: a checkout may have none of its own."""

    def first(self, text):
        return Written("0a1b2c3", "2026-02-03")


def test_long_has_every_part_with_its_band(good, capsys, monkeypatch):
    monkeypatch.setattr(record, "ledger_history", lambda path: OneCommit())
    assert verify.main(["--results", str(good), "--long"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for claim in reported.load_ledger().claims:
        (line,) = [line for line in lines if line.startswith(claim.id)]
        for piece in (claim.text, claim.reported, "measured", "band"):
            assert piece in line
    (line,) = [line for line in lines if line.startswith("  difference ") and "MMBench" in line]
    assert "measured +" in line
    assert "band [+0.8, +9.8]" in line
    assert any("(2026-02-03, 0a1b2c3): holds: The teacher is clearly" in line for line in lines)


@pytest.mark.parametrize("width", [60, 120])
def test_lines_fit_the_terminal_and_say_the_same(good, width):
    found, ledger = verify.verify(good, "small"), reported.load_ledger()
    parts = claims_text(found, document(found, [], "small", ledger))
    lines = terminal.as_text(*parts, width=width).splitlines()
    assert max(map(len, lines)) <= width
    for word in ("C07", "DIRECTION HOLDS", "NOT RUN"):
        assert any(word in line for line in lines)


def test_abstract_shows_its_figures_alone(good, capsys):
    before = (good / "small" / "claims.json").exists()
    assert verify.main(["--results", str(good), "--abstract"]) == 0
    lines = capsys.readouterr().out.splitlines()
    heads = [line[:3] for line in lines if line[:1] in "CR" and line[1:3].isdigit()]
    assert heads == ["C01", "C02", "C09", "C10"]
    text = "\n".join(lines)
    for piece in ("70.1", "66.8", "76.9", "72.6", "3×", "54 %"):
        assert piece in text
    assert sum("NOT RUN" in line and line.startswith("C") for line in lines) == 3
    assert (good / "small" / "claims.json").exists() == before


def test_without_any_result_everything_measured_is_not_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert verify.main([]) == 0
    printed = capsys.readouterr().out
    assert "16 NOT RUN" in printed  # C16 needs no results
    assert not list(tmp_path.iterdir())


def test_bad_input_is_exit_code_2_and_one_line(good, tmp_path, capsys):
    assert verify.main(["--scale", "medium"]) == 2
    assert "smoke, small, paper" in capsys.readouterr().err
    assert verify.main(["--results", str(tmp_path / "absent")]) == 2
    assert "no such folder" in capsys.readouterr().err
    root = write_results(tmp_path, {"baseline": 0.6, "grace_int4": 0.7}, seed=1, n=20)
    results.outcomes_path(root, "small", "qwen2_vl", "baseline").unlink()
    assert verify.main(["--results", str(root)]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert not (root / "small" / "claims.json").exists()


def test_verdicts_on_an_unknown_scale_are_refused(tmp_path):
    with pytest.raises(InputError, match="is unknown"):
        verify.verify(tmp_path, "big")
