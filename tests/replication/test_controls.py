"""Every claim and control on made-up results: what holds, and what must be noticed.

Each control has negative tests: runs relabelled or made worse on purpose, which its claim catches.
"""

import json
import shutil

import numpy as np
import pytest
from synthetic_results import GOOD, strict_ledger, write_results

from replication.judge.claims import verify
from replication.results import measurements, training_logs
from replication.results import scores as results
from replication.stats.verdict import Interval, Status

HOLDS, OPEN, WRONG, NOT_RUN = (
    Status.DIRECTION_HOLDS,
    Status.INCONCLUSIVE,
    Status.DIRECTION_FAILS,
    Status.NOT_RUN,
)
FAMILY = "qwen2_vl"
COMPONENTS = {
    "kd_bf16": 0.68,
    "gdkd_bf16": 0.71,
    "rcka_bf16": 0.715,
    "ib_bf16": 0.70,
    "gdkd_rcka_bf16": 0.74,
    "gdkd_ib_bf16": 0.73,
    "rcka_ib_bf16": 0.735,
}
BITS = {
    **{"rtn_int2": 0.40, "awq_int2": 0.44, "qat_int2": 0.50, "kd_int2": 0.54, "grace_int2": 0.65},
    **{"rtn_int3": 0.52, "awq_int3": 0.54, "qat_int3": 0.56, "kd_int3": 0.60, "grace_int3": 0.72},
}
GATES = {
    "grace_int4_gate0": 0.71,
    "grace_int4_gate4": 0.76,
    "grace_int4_gate16": 0.77,
    "grace_int4_inverted": 0.69,
    **{"grace_int4_tuned": 0.76, "qat_int4_tuned": 0.6},
}
ALL = {**GOOD, **COMPONENTS, **BITS, **GATES, "grace_bf16": 0.79, "shuffled_int4": 0.575}
SWEEP = ("eta0_01", "eta0_1", "eta1_0", "beta0_5", "beta2_0")


def relabel(root, run, name, family=FAMILY):
    """The results of a run once more, under another run's name."""
    record = json.loads(results.scores_path(root, "small", family, run).read_text())
    results.write_scores(root, {**record, "run": name})
    shutil.copy(
        results.outcomes_path(root, "small", family, run),
        results.outcomes_path(root, "small", family, name),
    )


def make(folder, accuracies, n=900, **more):
    return write_results(folder, accuracies, seed=11, n=n, **more)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return make(tmp_path_factory.mktemp("controls"), ALL)


@pytest.fixture
def copy(good, tmp_path):
    return shutil.copytree(good, tmp_path / "results")


def judged(root, name):
    (claim,) = verify(root, "small", strict_ledger(), only=[name])
    own = [part for part in claim.parts if part.part.twin is None]
    parts = {part.part.id.removeprefix(f"{name}."): part for part in own}
    return claim, parts


def statuses(root, name):
    return {part: result.status for part, result in judged(root, name)[1].items()}


# --- what holds where it was made to, and what is caught where it was not


HOLDING = {
    "C03": [FAMILY],
    "R01": [FAMILY],
    "R02": [f"{FAMILY}.bf16", f"{FAMILY}.int4", f"{FAMILY}.tuned"],
    "R03": ["no_gain", "shuffled"],
    "R08": [
        *("breaks.rtn_int2", "breaks.awq_int2", "beats.trained.int2.grace_int2>kd_int2"),
        *("holds.int3", "quantized.grace_int2"),
    ],
    "R09": ["gate", "inverted"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOLDING)
def test_results_as_claimed_hold(good, name):
    found = statuses(good, name)
    assert {part: found[part] for part in HOLDING[name]} == dict.fromkeys(HOLDING[name], HOLDS)


@pytest.mark.slow
def test_components_that_add_hold_and_their_effects_are_as_made(good):
    claim, parts = judged(good, "C07")
    assert claim.status is HOLDS
    expected = 100 * np.mean([0.03, 0.03, 0.025, 0.055])
    assert parts["gdkd"].interval.point == pytest.approx(expected, abs=1.5)
    assert parts["gdkd"].seeds["gdkd_rcka_bf16"] == [0]
    assert parts["gdkd"].resolvable > 0
    assert "best.grace_bf16>gdkd_ib_bf16" in parts


def exchange(first, second):
    return {first: ALL[second], second: ALL[first]}


HURTING = {"gdkd_bf16": 0.60, "gdkd_rcka_bf16": 0.62, "gdkd_ib_bf16": 0.61, "grace_bf16": 0.66}
WRONG_LABELS = [
    ("C03", {"grace_int4": 0.57}, [FAMILY]),  # the falsifier stated in review
    ("C07", HURTING, ["gdkd", "best.grace_bf16>rcka_ib_bf16"]),
    ("C07", exchange("grace_bf16", "kd_bf16"), ["best.grace_bf16>kd_bf16"]),
    ("R01", exchange("grace_bf16", "grace_int4"), [FAMILY]),
    ("R02", exchange("grace_bf16", "sft_bf16"), [f"{FAMILY}.bf16"]),
    ("R02", exchange("grace_int4", "qat_int4"), [f"{FAMILY}.int4"]),
    ("R02", exchange("grace_int4_tuned", "qat_int4_tuned"), [f"{FAMILY}.tuned"]),
    ("R09", exchange("grace_int4_inverted", "grace_int4"), ["gate", "inverted"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "changes", "wrong"), WRONG_LABELS)
def test_a_worse_model_or_an_exchanged_label_fails(tmp_path, name, changes, wrong):
    claim, parts = judged(make(tmp_path, {**ALL, **changes}), name)
    assert {part: parts[part].status for part in wrong} == dict.fromkeys(wrong, WRONG)
    assert claim.failed


@pytest.mark.slow
def test_one_model_under_two_names_is_remarked(copy):
    relabel(copy, "grace_bf16", "grace_int4")
    _, parts = judged(copy, "R01")
    assert parts[FAMILY].status is OPEN
    assert "one model under two names" in parts[FAMILY].note


# --- R03: the shuffled teacher


@pytest.mark.slow
def test_r03_an_unshuffled_teacher_labelled_shuffled_is_caught(copy):
    relabel(copy, "grace_int4", "shuffled_int4")
    claim, parts = judged(copy, "R03")
    assert parts["no_gain"].status is WRONG  # it gains what GRACE gains
    assert parts["shuffled"].status is WRONG  # and gives the very same answers
    assert parts["shuffled"].interval.high == 0
    assert claim.failed


@pytest.mark.slow
def test_r03_it_is_caught_where_grace_gains_nothing_too(copy):
    make(copy, {**ALL, "grace_int4": ALL["qat_int4"]})
    relabel(copy, "grace_int4", "shuffled_int4")
    assert statuses(copy, "R03")["shuffled"] is WRONG


# --- R04: the sweep, and whether beta settles


@pytest.mark.slow
def test_r04_equal_runs_hold_and_a_run_that_stands_out_fails(copy):
    for name in SWEEP:
        relabel(copy, "grace_int4", f"grace_int4_{name}")
    assert statuses(copy, "R04") == {
        **{"eta": HOLDS, "beta": HOLDS},
        **{f"settles.{run}": NOT_RUN for run in (*SWEEP[:3], "inside")},
    }
    relabel(copy, "qat_int4", "grace_int4_eta0_1")
    found = statuses(copy, "R04")
    assert (found["eta"], found["beta"]) == (WRONG, HOLDS)


def log(root, run, *, seed=0, beta=None, ema=None, epochs=6.0, cost=None, family=FAMILY, **more):
    """A training log with the controller's course and a cost."""
    beta = np.full(100, 1.0) if beta is None else beta
    ema = np.full(100, 0.3) if ema is None else ema
    count = len(beta)
    steps = np.arange(1, count + 1) * 10
    history = [
        {"step": int(s), "epoch": epochs * s / steps[-1], "beta": float(b), "ema": float(e)}
        for s, b, e in zip(steps, beta, ema, strict=True)
    ]
    content = {"family": family, "history": [{"loss": 1.0, "step": 1}, *history], **more}
    if cost is not None:
        content["cost"] = cost
    path = training_logs.logs_path(root, "small", family, run) / f"seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


CONTROLLER = {"tau": 0.35, "beta_min": 0.1, "beta_max": 5.0}


def test_r04_beta_that_settles_early_holds_and_late_fails(tmp_path):
    early = np.where(np.arange(100) < 30, 2.0, 1.0)
    late = np.where(np.arange(100) < 55, 2.0, 1.0)  # of ten epochs: after five
    moving = np.linspace(0.5, 2.0, 100)
    log(tmp_path, "grace_int4_eta0_01", beta=early, controller=CONTROLLER)
    log(tmp_path, "grace_int4_eta0_1", beta=late, epochs=10.0, controller=CONTROLLER)
    log(tmp_path, "grace_int4_eta1_0", beta=moving, epochs=2.0, controller=CONTROLLER)
    _, parts = judged(tmp_path, "R04")
    assert parts["settles.eta0_01"].status is HOLDS
    assert parts["settles.eta0_01"].interval.point == pytest.approx(6.0 * 31 / 100)
    assert parts["settles.eta0_1"].status is WRONG
    assert parts["settles.eta1_0"].status is OPEN
    assert "still moved" in parts["settles.eta1_0"].note


# --- R05: seeds


@pytest.mark.parametrize(("seeds", "status"), [((0, 1, 2), HOLDS), ((0, 1), OPEN)])
def test_r05_counts_the_seeds_of_every_headline_row(tmp_path, seeds, status):
    runs = ("sft_bf16", "kd_bf16", "grace_bf16", "qat_int8", "kd_int8", "grace_int8")
    runs = (*runs, "qat_int4", "kd_int4")
    three = dict.fromkeys(runs, (0, 1, 2))
    make(
        tmp_path,
        {run: 0.6 for run in (*runs, "grace_int4")},
        n=20,
        seeds={**three, "grace_int4": seeds},
    )
    _, parts = judged(tmp_path, "R05")
    assert parts[FAMILY].status is status
    assert parts[FAMILY].interval.point == len(seeds)
    assert parts["llava"].status is NOT_RUN
    if status is OPEN:
        assert "fewest: grace_int4" in parts[FAMILY].note


# --- R06: cost


def cost(seconds, memory=1000, parameters=500, device="cpu"):
    return {
        **{"seconds": seconds, "steps": 100, "tokens": 9000},
        **{"peak_memory_bytes": memory, "trained_parameters": parameters},
        **{"threads": 2, "device": device},
    }


def test_r06_costs_hold_and_wrong_ones_fail(tmp_path):
    for seed, jitter in enumerate((1.0, 1.02, 0.98)):
        log(tmp_path, "qat_int4", seed=seed, cost=cost(10 * jitter))
        log(tmp_path, "kd_int4", seed=seed, cost=cost(12 * jitter))
        log(tmp_path, "grace_int4", seed=seed, cost=cost(14 * jitter, memory=1300))
    _, parts = judged(tmp_path, "R06")
    assert {name: part.status for name, part in parts.items()} == dict.fromkeys(
        ("time", "time.kd", "memory", "parameters"), HOLDS
    )
    assert parts["time"].interval.point == pytest.approx(1.4)
    for seed, jitter in enumerate((1.0, 1.02, 0.98)):
        slow = cost(25 * jitter, memory=2500, parameters=600)
        log(tmp_path, "grace_int4", seed=seed, cost=slow)
    found = statuses(tmp_path, "R06")
    assert (found["time"], found["memory"], found["parameters"]) == (WRONG, WRONG, WRONG)
    assert found["time.kd"] is HOLDS


def test_r06_one_timing_is_no_evidence_and_no_timing_is_not_run(tmp_path):
    log(tmp_path, "qat_int4", cost=cost(10))
    log(tmp_path, "grace_int4", cost=cost(11))
    log(tmp_path, "kd_int4")
    _, parts = judged(tmp_path, "R06")
    assert parts["time"].status is OPEN
    assert "1.10 ×, without an interval" in parts["time"].note
    assert parts["time.kd"].status is NOT_RUN
    assert "kd_int4 states its cost" in parts["time.kd"].note


# --- R07: question types


@pytest.mark.slow
def test_r07_a_type_that_loses_much_is_named_and_fails(copy):
    make(copy, {**ALL, "grace_bf16": 0.755})
    assert statuses(copy, "R07")["bf16"] is HOLDS
    path = results.outcomes_path(copy, "small", FAMILY, "grace_bf16")
    columns = outcome_columns(path)
    columns["credit"] = [
        1.0 if skill == "reading" else value
        for value, skill in zip(columns["credit"], columns["skill"], strict=True)
    ]
    rewrite(copy, "grace_bf16", columns)
    claim, parts = judged(copy, "R07")
    assert parts["bf16"].status is WRONG
    assert "most lost on reading, of 3" in parts["bf16"].note
    assert claim.failed


def outcome_columns(path):
    import pyarrow.parquet as pq

    return pq.read_table(path, partitioning=None).to_pydict()


def rewrite(root, run, columns):
    """Outcomes and the score file that agrees with them."""
    results.write_outcomes(root, "small", FAMILY, run, columns)
    path = results.scores_path(root, "small", FAMILY, run)
    record = json.loads(path.read_text())
    benchmarks = np.array(columns["benchmark"])
    values = np.array(columns["credit"])
    for name, entry in record["seeds"]["0"]["benchmarks"].items():
        entry["score"] = float(100.0 * values[benchmarks == name].mean())
    del record["seeds"]["0"]["average"]
    results.write_scores(root, record)


# --- R08: bits


@pytest.mark.slow
def test_r08_a_quantizer_that_does_nothing_is_noticed(copy):
    relabel(copy, "baseline", "rtn_int2")
    relabel(copy, "grace_bf16", "grace_int2")
    claim, parts = judged(copy, "R08")
    assert parts["breaks.rtn_int2"].status is WRONG
    assert parts["quantized.grace_int2"].status is WRONG
    assert parts["breaks.awq_int2"].status is HOLDS
    assert claim.failed


# --- C11, C12: measurements


def measure(root, name, values, n=400):
    measurements.write_measurement(
        root,
        {
            "name": name,
            "scale": "small",
            "method": "made up",
            "n": {"items": n},
            "values": values,
            "provenance": {"commit": "0" * 40},
        },
    )


@pytest.mark.slow
def test_c11_is_decided_by_its_measurement(tmp_path):
    assert set(statuses(tmp_path, "C11").values()) == {NOT_RUN}
    rng = np.random.default_rng(3)
    entropy = rng.uniform(size=2000)
    for chance, status in ((0.8 * entropy, HOLDS), (0.8 - 0.8 * entropy, WRONG)):
        wrong = rng.uniform(size=2000) < chance
        found = measurements.entropy_error(entropy, wrong, rng, resamples=500)
        measure(tmp_path, "entropy_error-llava", found["values"])
        assert statuses(tmp_path, "C11")["pearson_r"] is status
    shuffled = rng.permutation(rng.uniform(size=2000) < 0.8 * entropy)
    found = measurements.entropy_error(entropy, shuffled, rng, resamples=500)
    measure(tmp_path, "entropy_error-llava", found["values"])
    assert statuses(tmp_path, "C11")["pearson_r"] is OPEN


def test_c12_has_the_covariance_s_sign(tmp_path):
    measure(tmp_path, "gate_covariance-llava", {"covariance": Interval(-0.02, -0.03, -0.01)})
    measure(tmp_path, "gate_covariance-qwen2_vl", {"covariance": Interval(0.02, 0.01, 0.03)})
    measure(tmp_path, "gate_covariance-qwen3_vl", {"covariance": Interval(0.0, -0.01, 0.01)})
    assert statuses(tmp_path, "C12") == {"llava": HOLDS, "qwen2_vl": WRONG, "qwen3_vl": OPEN}


# --- C13: the controller


def test_c13_a_budget_that_is_kept_holds_and_steps_outside_the_bounds_do_not(tmp_path):
    log(tmp_path, "grace_int4", controller=CONTROLLER, ema=np.linspace(1.0, 0.33, 100))
    inside = {"inside.bounds": NOT_RUN, "inside.budget": NOT_RUN}
    assert statuses(tmp_path, "C13") == {"bounds": HOLDS, "budget": HOLDS, **inside}
    log(tmp_path, "grace_int4", seed=1, controller=CONTROLLER, beta=np.linspace(1.0, 5.1, 100))
    assert statuses(tmp_path, "C13")["bounds"] is WRONG


def test_c13_a_budget_that_is_missed_fails_unless_that_is_not_the_controller(tmp_path):
    high = np.full(100, 0.7)
    cases = (
        ({"ema": high}, WRONG, ""),
        ({"ema": high, "beta": np.linspace(1.0, 6.0, 100).clip(0.1, 5.0)}, OPEN, "upper bound"),
        ({"ema": np.linspace(2.0, 0.7, 100)}, OPEN, "still falling"),
    )
    for course, status, note in cases:
        log(tmp_path, "grace_int4", controller=CONTROLLER, **course)
        _, parts = judged(tmp_path, "C13")
        assert parts["budget"].status is status
        assert note in parts["budget"].note
    log(tmp_path, "grace_int4", ema=high)
    assert statuses(tmp_path, "C13")["budget"] is NOT_RUN  # the log lacks the settings


@pytest.mark.parametrize("bound", [0.1, 5.0])
def test_c13_a_multiplier_on_its_bound_shows_nothing_and_one_that_moves_inside_does(
    tmp_path, bound
):
    """Neither a kept budget nor a missed one; the run in which beta moves has its own status."""
    travelled = np.concatenate([np.linspace(1.0, bound, 40), np.full(60, bound)])
    for ema in (0.3, 0.7):
        course = {"controller": CONTROLLER, "beta": travelled, "ema": np.full(100, ema)}
        log(tmp_path, "grace_int4", **course)
        log(tmp_path, "grace_int4_inside", controller=CONTROLLER, beta=np.linspace(2.0, 1.0, 100))
        claim, parts = judged(tmp_path, "C13")
        assert {name: part.status for name, part in parts.items()} == {
            **{"bounds": OPEN, "budget": OPEN},
            **{"inside.bounds": HOLDS, "inside.budget": HOLDS},
        }
        assert "sits on its bound" in parts["budget"].note
        assert claim.status is OPEN


def test_r04_beta_that_settles_on_its_bound_shows_nothing(tmp_path):
    pinned = np.concatenate([np.linspace(1.0, 5.0, 20), np.full(80, 5.0)])
    log(tmp_path, "grace_int4_eta0_1", beta=pinned, controller=CONTROLLER)
    settled = np.concatenate([np.linspace(1.0, 3.0, 20), np.full(80, 3.0)])
    log(tmp_path, "grace_int4_eta1_0", beta=settled, controller=CONTROLLER)
    found = statuses(tmp_path, "R04")
    assert (found["settles.eta0_1"], found["settles.eta1_0"]) == (OPEN, HOLDS)


@pytest.mark.slow
def test_r04_a_spread_of_multipliers_on_their_bounds_shows_nothing(copy):
    for name in SWEEP:
        relabel(copy, "grace_int4", f"grace_int4_{name}")
        log(copy, f"grace_int4_{name}", beta=np.full(100, 5.0), controller=CONTROLLER)
    found = statuses(copy, "R04")
    assert (found["eta"], found["beta"]) == (OPEN, OPEN)
    log(copy, "grace_int4_eta0_1", beta=np.linspace(1.0, 2.0, 100), controller=CONTROLLER)
    assert statuses(copy, "R04")["eta"] is HOLDS


# --- R10: a second world


def second_world(root, accuracies):
    """Results of the second world's pair, with other answers."""
    return write_results(root, accuracies, seed=23, n=900, pair="qwen2_vl_world2")


@pytest.mark.slow
def test_r10_verdicts_repeat_or_not_and_what_was_not_run_is_said(copy):
    assert set(statuses(copy, "R10").values()) == {NOT_RUN}
    headline = ("baseline", "teacher", "qat_int4", "grace_int4", "kd_int4")
    second_world(copy, {name: ALL[name] for name in headline})
    claim, parts = judged(copy, "R10")
    assert parts["C02"].status is parts["C03"].status is HOLDS
    assert parts["C06"].status is NOT_RUN  # without runs at 8 bits
    assert "DIRECTION HOLDS in the first world, DIRECTION HOLDS in the second" in parts["C02"].note
    assert "verdicts repeat" in claim.note
    second_world(copy, {**{name: ALL[name] for name in headline}, "grace_int4": 0.5})
    claim, parts = judged(copy, "R10")
    assert parts["C02"].status is WRONG
    assert "DIRECTION FAILS in the second" in parts["C02"].note
    assert claim.status is WRONG


# --- the launcher's coefficients


@pytest.mark.slow
def test_the_launcher_s_coefficients_decide_where_they_were_run(copy):
    """GRACE gains under the code's coefficients and loses under the launcher's."""
    (claim,) = verify(copy, "small", strict_ledger(), only=["C02"])
    assert (claim.status, claim.under) == (HOLDS, {"launcher": NOT_RUN, "code": HOLDS})
    write_results(copy, {**ALL, "grace_launcher_int4": 0.5}, seed=11, n=900)
    (claim,) = verify(copy, "small", strict_ledger(), only=["C02"])
    assert (claim.status, claim.under) == (WRONG, {"launcher": WRONG, "code": HOLDS})
    assert [part.part.id for part in claim.deciding] == ["C02.difference.launcher"]


def test_a_part_without_its_counterpart_has_no_twin():
    parts = {part.id for claim in strict_ledger().claims for part in claim.parts}
    assert {"C14.qwen2_vl.launcher", "C13.budget.launcher", "R08.holds.int4.launcher"} <= parts
    for name in ("R08.quantized.grace_int2", "R02.qwen2_vl.tuned", "C06.kd_int4"):
        assert name in parts
        assert f"{name}.launcher" not in parts


# --- C17: retention


@pytest.mark.slow
def test_c17_retention_is_judged_for_each_benchmark(tmp_path):
    names = ("MMBench", "GQA", "POPE", "ScienceQA")
    pair = {"baseline": 0.6, "grace_int4": 0.66}
    make(tmp_path, pair, family="llava", benchmarks=names)
    assert set(statuses(tmp_path, "C17").values()) == {HOLDS}
    make(tmp_path, {**pair, "grace_int4": 0.5}, family="llava", benchmarks=names)
    assert set(statuses(tmp_path, "C17").values()) == {WRONG}
