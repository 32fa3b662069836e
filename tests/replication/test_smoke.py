"""The whole replication at scale smoke, through its own command, in a copy of the repository.

It runs without a network, see `tests/offline`.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from repository import ROOT, contents, copy_repository, python

from grace.quantization import CODES_FILE
from replication.benchmarks import PRINTED
from replication.evaluate.jobs import jobs_of
from replication.paper import load_tables
from replication.report.figures import FIGURES
from replication.report.tables.deployments import ENGINES
from replication.results.calibration import read_calibrations
from replication.results.measurements import read_measurement
from replication.results.scores import ResultSet
from replication.settings.checks import parse_params

pytestmark = pytest.mark.slow

WORKSPACE = Path(".scales", "smoke")
LOG = Path(".scales", "smoke.network.jsonl")  # where .ci/run has it, too


@pytest.fixture(scope="module")
def replication(tmp_path_factory):
    """A copy of the repository in which the smoke replication has run. What an earlier one left in
    the repository is taken along, if it had no network: dvc runs again what is not of this code."""
    folder = copy_repository(tmp_path_factory.mktemp("smoke"))
    if (ROOT / WORKSPACE / "dvc.lock").is_file() and not with_a_network(ROOT):
        shutil.copytree(ROOT / WORKSPACE, folder / WORKSPACE, symlinks=True)
        shutil.copy(ROOT / LOG, folder / LOG)
    dvc(folder, "repro", timeout=1800)
    return folder


def dvc(folder, *words, timeout=120):
    (folder / LOG).parent.mkdir(exist_ok=True)
    told = {"PYTHONPATH": str(ROOT / "tests" / "offline"), "NETWORK_LOG": str(folder / LOG)}
    words = ("-m", "replication.scale", "smoke", *words)
    done = python(*words, cwd=folder, timeout=timeout, **told)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return done.stdout


def said_of_the_network(folder):
    """What `tests/offline` told: {"ran" | "asked" | "escaped": what} each."""
    if not (folder / LOG).is_file():
        return []
    return [json.loads(line) for line in (folder / LOG).read_text().splitlines()]


def with_a_network(folder):
    """The commands of the stages that have run, less those that ran without a network."""
    stages = yaml.safe_load((folder / WORKSPACE / "dvc.lock").read_text())["stages"]
    ran = {" ".join(line["ran"]) for line in said_of_the_network(folder) if "ran" in line}
    return {stage["cmd"] for stage in stages.values()} - {
        f"python -m {words.partition(' -m ')[2]}" for words in ran
    }


def test_every_stage_ran_and_nothing_asked_the_network(replication):
    assert not with_a_network(replication)
    said = said_of_the_network(replication)
    assert not [line for line in said if "ran" not in line]


def params_of(folder):
    return parse_params(yaml.safe_load((folder / ".scales/smoke/params.yaml").read_text()))


def test_every_result_is_there_and_valid(replication):
    params = params_of(replication)
    results = ResultSet(replication / "results", "smoke")
    shown = set()
    for folder, names in params.evaluate.benchmarks.items():
        for job in jobs_of(params, folder):
            shown.add(f"{job.pair}-{job.name}")
            scores = results.scores(job.pair, job.name)
            assert list(scores.seeds) == list(job.paths)
            assert scores.standin
            assert set(scores.benchmarks) == {PRINTED[name] for name in names}
            for name in scores.benchmarks:
                assert scores.questions(name) == params.standins.evaluation
            assert scores.provenance["seeds"] == list(job.paths)
            assert results.answers(job.pair, [job.name], list(scores.benchmarks))
    for folder, group in params.runs.items():
        for run, settings in group.models.items():
            for seed in settings.seeds:
                logs = replication / "results" / "smoke" / "training" / folder / run
                log = json.loads((logs / f"seed{seed}.json").read_text())
                assert log["history"][-1]["step"] == params.train.steps
                assert log["cost"]["steps"] == params.train.steps
                assert ("gdkd" in log["history"][0]) == (settings.method in ("kd", "grace", "qad"))
    for pair in params.pairs:
        for name in ("teacher", "baseline"):
            logs = replication / "results" / "smoke" / "training" / pair / name
            assert json.loads((logs / "instruction.json").read_text())["history"]
    for family in params.families:
        for name in ("entropy_error", "gate_covariance", "export"):
            found = read_measurement(replication / "results", "smoke", f"{name}-{family}")
            assert found.n
        assert found.values["mismatches"].point == found.values["differing"].point == 0
    for family in params.internals.families:
        found = read_measurement(replication / "results", "smoke", f"internals-{family}")
        assert found.n["questions"] == params.internals.samples
        assert len(found.data["scenes"]) == params.internals.scenes
    for model in params.deploy.models:
        found = read_measurement(replication / "results", "smoke", f"deploy-{model}")
        assert found.data["layers"] == params.deploy.layers
        assert found.values["throughput"].low > 0
    plain = json.loads((replication / "results" / "smoke" / "scores.json").read_text())
    for pair in params.tuning.pairs:  # the best of each grid stands under a name of its own
        shown |= {f"{pair}-{method}_int4_tuned" for method in params.tuning.candidates}
    assert set(plain) == shown
    calibrated = read_calibrations(replication / "results", "smoke")
    assert set(calibrated) == set(params.pairs)
    rows = {row.name: row for row in calibrated["qwen2_vl"].rows}
    undefined = {"entropy_error", "calibration_error"}  # where the teacher says no letter yet
    assert all(row.measured for row in rows.values() if row.quantity not in undefined)
    assert not list((replication / ".scales").rglob("*.tmp"))


def test_models_say_what_was_trained(replication):
    """Quantized models lie on their grid; the others were trained, too."""
    import torch
    from safetensors.torch import load_file

    params = params_of(replication)
    models = replication / ".scales" / "smoke" / "models" / "smoke"
    for folder, group in params.runs.items():
        start = models.joinpath(*params.model_of(group, "baseline"))
        before = load_file(start / "model.safetensors")
        for run, settings in group.models.items():
            codes = models / folder / run / "seed0" / CODES_FILE
            assert codes.is_file() == (settings.bits != 16)
            if settings.bits != 16:
                for name, value in load_file(codes).items():
                    if name.endswith(".codes"):
                        assert int(value.min()) >= -(2 ** (settings.bits - 1))
                        assert int(value.max()) < 2 ** (settings.bits - 1)
            weights = load_file(models / folder / run / "seed0" / "model.safetensors")
            assert any(not torch.equal(weights[name], before[name]) for name in before)


def test_every_table_is_there_in_all_forms(replication):
    folder = replication / "results" / "smoke" / "tables"
    names = load_tables().short_names()
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in names for kind in ("csv", "json", "md", "tex")
    }
    table = json.loads((folder / "table4.json").read_text())
    for row in table["rows"]:
        for cell in row["cells"].values():
            if cell["reported"] is not None:  # the paper's rows; of the others some do not run here
                assert cell["evidence"] == "measured"
                assert cell["measured"] is not None
    for name in names:
        with (folder / f"{name}.csv").open() as file:
            assert all(value for line in csv.DictReader(file) for value in line.values()), name
    assert "stand-in" in (folder / "table4.md").read_text()


def test_figures_and_examples_are_there_or_say_what_is_missing(replication):
    folder = replication / "results" / "smoke" / "figures"
    not_run = {"effects"}  # scale smoke trains one run of every kind
    if not (replication / "results" / ENGINES).is_file():
        not_run.add("engines")
    results, families = replication / "results", params_of(replication).families
    found = [read_measurement(results, "smoke", f"entropy_error-{family}") for family in families]
    if not any(one.values for one in found):  # after a few steps a teacher may say no letter at all
        assert all(one.undefined == "every answer is wrong" for one in found)
        not_run.add("entropy_error")
    drawn = set(FIGURES) - not_run
    kinds = {name: ("json", "png", "svg") if name in drawn else ("json",) for name in FIGURES}
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{kind}" for name in kinds for kind in kinds[name]
    }
    for name in FIGURES:
        record = json.loads((folder / f"{name}.json").read_text())
        assert ("not_run" in record) == (name in not_run), name
    for family in params_of(replication).families:
        place = replication / "results" / "smoke" / "examples"
        assert json.loads((place / f"{family}.json").read_text())["family"] == family
        assert (place / f"{family}.png").is_file()


def test_the_claims_are_judged(replication):
    done = python("-m", "replication.verify", "--scale", "smoke", cwd=replication)
    assert done.returncode == 0, done.stdout + done.stderr
    claims = json.loads((replication / "results" / "smoke" / "claims.json").read_text())
    assert claims["scale"] == "smoke"
    assert claims["failed"] == []


def test_what_is_committed_is_untouched(replication, tmp_path):
    fresh = copy_repository(tmp_path)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        assert (replication / name).exists() == (fresh / name).exists()
        if (fresh / name).exists():
            assert (replication / name).read_bytes() == (fresh / name).read_bytes()
    kept = {p.relative_to(replication) for p in (replication / "results").glob("small/**/*")}
    assert kept == {p.relative_to(fresh) for p in (fresh / "results").glob("small/**/*")}


def test_dvc_shows_metrics_that_fit_a_terminal(replication):
    shown = dvc(replication, "metrics", "show")
    assert max(map(len, shown.splitlines())) <= 100
    files = json.loads(dvc(replication, "metrics", "show", "--json"))[""]["data"]
    for path, content in files.items():
        table = json.loads(
            (replication / ".scales/smoke" / path.replace("metrics", "tables")).read_text()
        )
        rows = {row["run"]: row["cells"]["Avg"] for row in table["rows"] if row["run"]}
        assert content["data"].pop("baseline") == rows["baseline"]["measured"]
        for run, value in content["data"].items():
            assert value == rows[run]["delta_measured"]
    assert {"table2.json", "table4.json"} <= {Path(path).name for path in files}


def test_dvc_s_plots_need_no_network_and_leave_nothing_untracked(replication):
    dvc(replication, "plots", "show")
    folder = replication / ".scales" / "smoke" / "dvc_plots"
    page = (folder / "index.html").read_text()
    assert "regimes.png" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    shutil.rmtree(folder)
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert "dvc_plots/" in ignored


def test_what_is_pushed_to_a_folder_can_be_pulled(replication, tmp_path):
    """As docs/dvc.md says it: another clone without a cache gets models from a remote."""
    processor = "models/smoke/qwen2_vl/processor"
    made = contents(replication / WORKSPACE / processor)
    other = tmp_path / "clone"
    shutil.copytree(
        replication,
        other,
        symlinks=True,
        ignore=lambda folder, names: (
            {"models", "data", "cache", "tmp"} & set(names) if str(WORKSPACE) in folder else set()
        ),
    )
    remote = tmp_path / "store"
    for folder in (replication, other):
        dvc(folder, "remote", "add", "--local", "--default", "store", str(remote))
    try:
        dvc(replication, "push", processor)
        status = json.loads(dvc(other, "status", "--json"))
        assert "vision@qwen2_vl" in status
        dvc(other, "pull", processor)
        assert contents(other / WORKSPACE / processor) == made
    finally:
        dvc(replication, "remote", "remove", "--local", "store")


def test_nothing_is_done_twice(replication):
    said = dvc(replication, "repro", timeout=300)
    assert "Running stage" not in said
    assert "up to date" in said


@pytest.mark.weekly
def test_a_run_s_parameter_re_runs_that_run_and_what_follows(replication):
    scale = replication / "replication" / "settings" / "values" / "smoke.yaml"
    before = scale.read_text()
    changed = "      kd_int4: {seeds: [0], distillation: {temperature: 3.0}}"
    models = replication / ".scales" / "smoke" / "models" / "smoke" / "qwen2_vl_controls"
    times = {path: path.stat().st_mtime_ns for path in models.glob("*/*/model.safetensors")}
    assert "      kd_int4: {seeds: [0]}" in before
    try:
        scale.write_text(before.replace("      kd_int4: {seeds: [0]}", changed))
        status = json.loads(dvc(replication, "status", "--json", timeout=300))
        assert "train@qwen2_vl_controls" in status
        # the values lie among the code, which is hashed again and found to be the same
        following = {"evaluate@qwen2_vl_controls", "regimes", "code"}
        assert set(status) <= {"train@qwen2_vl_controls", *following}
        dvc(replication, "repro", "train@qwen2_vl_controls", timeout=600)
        now = {path: path.stat().st_mtime_ns for path in models.glob("*/*/model.safetensors")}
        assert now.keys() == times.keys()
        assert {path.parts[-3] for path in now if now[path] != times[path]} == {"kd_int4"}
    finally:
        scale.write_text(before)
    dvc(replication, "repro", timeout=600)
