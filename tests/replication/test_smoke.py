"""The whole replication at scale smoke, through its own command, in a copy of the repository."""

import csv
import json
import shutil

import pytest
import yaml
from repository import copy_repository, python

from replication.params import parse_params
from replication.results import ResultSet, read_outcomes, read_scores

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def replication(tmp_path_factory):
    """A copy of the repository in which the smoke replication has run."""
    folder = copy_repository(tmp_path_factory.mktemp("smoke"))
    done = python("-m", "replication.scale", "smoke", "repro", cwd=folder, timeout=1800)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return folder


def dvc(folder, *words, **options):
    done = python("-m", "replication.scale", "smoke", *words, cwd=folder, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def params_of(folder):
    return parse_params(yaml.safe_load((folder / ".scales/smoke/params.yaml").read_text()))


def test_every_result_is_there_and_valid(replication):
    params = params_of(replication)
    results = replication / "results"
    for model in params.evaluate.models:
        scores = read_scores(results, "smoke", params.family, model)
        outcomes = read_outcomes(results, "smoke", params.family, model)
        seeds = params.runs[model].seeds if model in params.runs else [0]
        assert list(scores.seeds) == seeds == list(outcomes.answers.seeds)
        assert scores.standin
        assert len(scores.benchmarks) == len(params.evaluate.benchmarks)
        for name in scores.benchmarks:
            assert scores.questions(name) == params.standins.evaluation
        assert scores.provenance["seeds"] == seeds
    assert ResultSet(results, "smoke").answers(
        params.family, params.evaluate.models, scores.benchmarks
    )
    for run, settings in params.runs.items():
        for seed in settings.seeds:
            log = results / "smoke" / "training" / params.family / run / f"seed{seed}.json"
            entries = json.loads(log.read_text())["history"]
            assert entries[-1]["step"] == params.train.steps
            assert ("gdkd" in entries[0]) == (settings.method in ("kd", "grace"))
    for name in ("teacher", "baseline"):
        log = results / "smoke" / "training" / params.family / name / "instruction.json"
        assert json.loads(log.read_text())["history"]
    averages = json.loads((results / "smoke" / "averages.json").read_text())
    plain = json.loads((results / "smoke" / "scores.json").read_text())
    assert {entry["model"] for entry in averages} == set(plain) == set(params.evaluate.models)
    assert json.loads((results / "smoke" / "world.json").read_text())["checks"]
    assert not list((replication / ".scales").rglob("*.tmp"))


def test_models_say_what_was_trained(replication):
    """Quantized models lie on their grid; the others were trained, too."""
    import torch
    from safetensors.torch import load_file

    params = params_of(replication)
    models = replication / ".scales" / "smoke" / "models" / "smoke" / params.family
    for run, settings in params.runs.items():
        codes = models / run / "seed0" / "quantized.safetensors"
        assert codes.is_file() == (settings.bits != 16)
        if settings.bits != 16:
            for name, value in load_file(codes).items():
                if name.endswith(".codes"):
                    assert int(value.min()) >= -(2 ** (settings.bits - 1))
                    assert int(value.max()) < 2 ** (settings.bits - 1)
        weights = load_file(models / run / "seed0" / "model.safetensors")
        before = load_file(models / "baseline" / "model.safetensors")
        assert any(not torch.equal(weights[name], before[name]) for name in before)


def test_table_4_is_there_in_all_forms(replication):
    folder = replication / "results" / "smoke" / "tables"
    assert {path.name for path in folder.iterdir()} == {
        f"table4.{kind}" for kind in ("csv", "json", "md", "tex")
    }
    table = json.loads((folder / "table4.json").read_text())
    for row in table["rows"]:
        for cell in row["cells"].values() if isinstance(row["cells"], dict) else row["cells"]:
            assert cell["evidence"] == "measured"
            assert cell["measured"] is not None
    with (folder / "table4.csv").open() as file:
        assert all(value for line in csv.DictReader(file) for value in line.values())
    assert "stand-in" in (folder / "table4.md").read_text()


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


def test_dvc_shows_metrics_and_plots(replication):
    shown = json.loads(dvc(replication, "metrics", "show", "--json"))
    files = shown[""]["data"]
    assert {name.rpartition("/")[2] for name in files} == {"scores.json", "world.json"}
    dvc(replication, "plots", "show", "-o", "plots")
    page = replication / ".scales" / "smoke" / "plots" / "index.html"
    assert "grace_int4" in page.read_text()
    shutil.rmtree(page.parent)


def test_nothing_is_done_twice(replication):
    said = dvc(replication, "repro", timeout=300)
    assert "Running stage" not in said
    assert "up to date" in said


def test_a_run_s_parameter_re_runs_that_run_and_what_follows(replication):
    scale = replication / "replication" / "scales" / "smoke.yaml"
    before = scale.read_text()
    try:
        scale.write_text(before + "runs: {kd_int4: {distillation: {temperature: 3.0}}}\n")
        status = json.loads(dvc(replication, "status", "--json", timeout=300))
        assert {"train@kd_int4"} == set(status) - {"evaluate@kd_int4"}
        said = dvc(replication, "repro", "--dry", timeout=300)
    finally:
        scale.write_text(before)
    ran = {line.split("'")[1] for line in said.splitlines() if line.startswith("Running stage")}
    assert "train@kd_int4" in ran
    assert ran <= {"train@kd_int4", "evaluate@kd_int4", "world", "table4", "claims"}


def test_the_same_seed_gives_the_same_results(replication):
    params = params_of(replication)
    run = "grace_int4"
    files = [
        f"smoke/{kind}/{params.family}/{run}.{end}"
        for kind, end in (("scores", "json"), ("outcomes", "parquet"))
    ]
    files += [f"smoke/training/{params.family}/{run}/seed0.json", "smoke/scores.json"]
    results = replication / "results"
    before = {name: (results / name).read_bytes() for name in files}
    models = replication / ".scales" / "smoke" / "models" / "smoke" / params.family
    weights = (models / run / "seed0" / "model.safetensors").read_bytes()
    dvc(replication, "repro", "--force", "--single-item", f"train@{run}", timeout=600)
    dvc(replication, "repro", "--force", "--single-item", f"evaluate@{run}", timeout=600)
    assert (models / run / "seed0" / "model.safetensors").read_bytes() == weights
    for name in files[:2]:
        assert (results / name).read_bytes() == before[name], name

    def steady(text):  # times of day and speeds are not results
        slow = ("runtime", "per_second")
        return [
            {k: v for k, v in entry.items() if not k.endswith(slow)}
            for entry in json.loads(text)["history"]
        ]

    assert steady((results / files[2]).read_text()) == steady(before[files[2]])
