"""Recording elsewhere: what is run, what is brought in, and what the tables then show."""

import csv
import io
import json
import shutil
import subprocess

import pytest
import yaml
from repository import ROOT, contents, copy_repository, python
from synthetic_results import GOOD, write_results
from test_stages import FAMILY, tiny_params

from grace.errors import InputError
from replication import record
from replication.base.files import read_json, write_json_atomic
from replication.report.tables import files as tables
from replication.results.elsewhere import read_recordings, slug_of
from replication.results.scores import ResultSet
from replication.settings import recording
from replication.settings.checks import parse_params

FORMS = ("json", "markdown", "csv", "tex")
DEVICE = "NVIDIA H100 80GB HBM3"
SLUG = "nvidia-h100-80gb-hbm3"
VERSIONS = {"torch": "2.13.0+cu130", "transformers": "5.17.0"}
ORIGIN = {
    "commit": "a" * 40,
    "dirty": False,
    "device": DEVICE,
    "python": "3.12.1",
    "versions": VERSIONS,
    "params_hash": "b" * 64,
    "command": "python -m x",
}


def commit(folder, message="all"):
    def git(*words):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)

    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "--allow-empty", "-m", message)


# --- what is run ----------------------------------------------------------------------------------


def test_seeds_replace_those_of_the_headline_runs_alone():
    params = json.loads(json.dumps(recording.recorded_params("small", 5)))  # aliases apart
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, group in params["runs"].items():
        for run, settings in group["models"].items():
            before = committed["runs"][name]["models"][run]["seeds"]
            assert settings["seeds"] == (
                [0, 1, 2, 3, 4] if name.endswith(("_controls", "_runs")) else before
            )
            settings["seeds"] = before
    assert params == committed


def test_families_left_out_are_left_out_everywhere():
    params = recording.recorded_params("small", 2, ["qwen2_vl", "llava"])
    assert params["families"] == ["llava", "qwen2_vl"]
    assert {pair["family"] for pair in params["pairs"].values()} == {"llava", "qwen2_vl"}
    assert set(params["teacher"]) == set(params["methods"]) == set(params["pairs"])
    assert "qwen3_vl" not in json.dumps([params["runs"], params["ptq"], params["evaluate"]])
    assert "llava_ptq" in params["ptq"]["groups"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smal", 5), "did you mean 'small'"),
        (("paper", 5), "scale paper cannot be recorded"),
        (("small", 0), "--seeds is 0"),
        (("small", 5, ["lava"]), "did you mean 'llava'"),
        (("small", 5, ["llava"]), "the pair llava starts from qwen2_vl"),
    ],
)
def test_bad_parameters_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        recording.recorded_params(*arguments)


def test_every_stage_is_recorded_but_those_that_only_read_results():
    params = parse_params(recording.recorded_params("small", 5))
    pipeline = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages = [*recording.training_stages(params), *recording.measuring_stages(params)]
    kinds = {name.partition("@")[0] for name in stages}
    before = {"code", "standins", "vision", "features", "teacher_outputs", "ptq"}  # read by them
    after = {"tables", "figures", "claims", "report", "examples", "deploy"}
    assert set(pipeline) == kinds | before | after
    assert not kinds & (before | after)
    assert {"train@gates", "language", "evaluate@llava_ptq", "tuning@llava"} <= set(stages)


@pytest.mark.parametrize("package", ["lmms_eval", "llmcompressor"])
def test_a_missing_package_is_named_before_anything_runs(monkeypatch, package):
    find = recording.importlib.util.find_spec
    absent = lambda name: None if name == package else find(name)  # noqa: E731
    monkeypatch.setattr(recording.importlib.util, "find_spec", absent)
    with pytest.raises(InputError, match=f"{package} is not installed.*--only training"):
        recording.check_packages()


@pytest.fixture
def root(tmp_path):
    """A repository of parameters alone."""
    root = tmp_path / "repository"
    root.mkdir()
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, root)
    (root / "recorded").mkdir()
    return root


@pytest.mark.slow
def test_code_that_is_not_committed_is_not_run(root, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "run_dvc", pytest.fail)
    options = {"seeds": 1, "families": None, "only": "training", "root": root}
    with pytest.raises(InputError, match="no git repository"):
        recording.start(tmp_path / "folder", "small", **options)
    commit(root)
    (root / "new.py").write_text("")
    with pytest.raises(InputError, match="not committed"):
        recording.start(tmp_path / "folder", "small", **options)
    (root / "new.py").unlink()
    for folder in (root, tmp_path / "clone"):
        (folder / ".git").mkdir(parents=True, exist_ok=True)
        with pytest.raises(InputError, match="is a repository"):
            recording.start(folder, "small", **options)
    assert not (tmp_path / "folder").exists()


# --- bringing in ----------------------------------------------------------------------------------

RUNS = {name: GOOD[name] for name in ("teacher", "baseline", "grace_int4")}
SEEDS = (0, 1, 2, 3, 4)


def edit(path, change):
    content = read_json(path)
    change(content)
    write_json_atomic(path, content)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished recording of drawn answers: results, training logs and parameters."""
    folder, group = tmp_path_factory.mktemp("finished") / "folder", f"{FAMILY}_runs"
    write_results(folder / "results", RUNS, seed=5, n=120, seeds={"grace_int4": SEEDS})
    params = recording.recorded_params("small", len(SEEDS), [FAMILY])
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    for path in (folder / "results/small").glob(f"*/{FAMILY}/*"):
        if path.suffix == ".json":
            origin = {**ORIGIN, "device": "Some CPU, 2 cores"}
            edit(path, lambda content, origin=origin: content.update(provenance=origin))
        if path.stem == "grace_int4":
            target = path.parent.parent / group / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    for name in (f"{group}/grace_int4/seed0", f"{FAMILY}/teacher/instruction"):
        log = folder / f"results/small/training/{name}.json"
        write_json_atomic(log, {"cost": {"device": DEVICE}})
    write_json_atomic(folder / recording.TRAINED_BY, [ORIGIN])
    return folder


@pytest.fixture(scope="module", autouse=True)
def up_to_date():
    """DVC itself is asked in the test from end to end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "outdated", lambda folder, stages: [])
        patch.setattr(recording, "prepare", lambda folder, params, root: None)
        yield


def test_scores_and_outcomes_are_brought_in_as_recorded(finished, root):
    before = contents(finished)
    target = recording.import_recording(finished, root)
    assert target == root / "recorded" / SLUG / "small"
    assert contents(finished) == before
    assert (target / "params.yaml").read_bytes() == (finished / "params.yaml").read_bytes()
    source = ResultSet(finished / "results", "small")
    (brought,) = read_recordings(root / "recorded", "small")
    assert (brought.device, brought.slug) == (DEVICE, SLUG)
    assert {scores.run for scores in brought.results.all()} == set(RUNS)
    for scores in brought.results.all():
        original = source.scores(FAMILY, scores.run)
        assert (scores.evidence, scores.seeds) == ("recorded", original.seeds)
        added = {"trained_on": DEVICE, "training": [ORIGIN]}
        assert scores.provenance == {**original.provenance, **added}
        answers = brought.results.answers(FAMILY, [scores.run], scores.benchmarks)
        theirs = source.answers(FAMILY, [scores.run], scores.benchmarks)
        assert answers[0].seeds == theirs[0].seeds
    assert [path.name for path in (root / "recorded").iterdir()] == [SLUG]
    with pytest.raises(InputError, match="is there already"):
        recording.import_recording(finished, root)


def change(name, **changes):
    return lambda folder: edit(folder / name, lambda content: content.update(changes))


BASELINE = f"results/small/scores/{FAMILY}/baseline.json"
TEACHER_LOG = f"results/small/training/{FAMILY}/teacher/instruction.json"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(BASELINE, scale=None), "scale"),
        (change(BASELINE, provenance={}), "lacks commit, dirty, device"),
        (change(BASELINE, provenance={**ORIGIN, "dirty": True}), "not committed"),
        (change(BASELINE, provenance={**ORIGIN, "params_hash": None}), "lacks params_hash"),
        (lambda f: (f / recording.TRAINED_BY).unlink(), r"recording\.json"),
        (
            lambda f: write_json_atomic(f / recording.TRAINED_BY, [{**ORIGIN, "dirty": True}]),
            r"recording\.json.*not committed",
        ),
        (change(TEACHER_LOG, cost={"device": "Other"}), "trained on NVIDIA.* and Other"),
        (lambda f: shutil.rmtree(f / "results/small/training"), "no device"),
    ],
)
def test_what_is_not_whole_or_not_of_a_commit_is_refused(finished, root, tmp_path, spoil, message):
    folder = shutil.copytree(finished, tmp_path / "folder")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        recording.import_recording(folder, root)
    assert list((root / "recorded").iterdir()) == []


def test_what_dvc_calls_outdated_is_neither_evaluated_nor_imported(
    finished, root, tmp_path, monkeypatch
):
    folder = shutil.copytree(finished, tmp_path / "folder")
    monkeypatch.setattr(recording, "outdated", lambda folder, stages: stages[:1])
    with pytest.raises(InputError, match=f"evaluate@{FAMILY} is not finished"):
        recording.import_recording(folder, root)
    monkeypatch.setattr(recording, "run_dvc", lambda folder, *words: assert_code(words))
    monkeypatch.setattr(recording, "check_committed", lambda root: None)
    with pytest.raises(InputError, match="language is not finished"):
        recording.evaluate(folder, root)


def assert_code(words):
    assert words == ("repro", "-q", "code")


def test_the_command_refuses_with_one_line(capsys, tmp_path):
    assert record.main(["--import", str(tmp_path / "nothing")]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    with pytest.raises(SystemExit):
        record.main(["--import", "a", "--evaluate", "b"])


def test_recordings_are_what_they_say(finished, root):
    target = recording.import_recording(finished, root)
    shutil.copytree(target.parent, root / "recorded" / "other-device")
    with pytest.raises(InputError, match="its folder says other-device"):
        read_recordings(root / "recorded", "small")
    shutil.rmtree(root / "recorded" / "other-device")
    edit(target / f"scores/{FAMILY}/baseline.json", lambda content: content.pop("evidence"))
    with pytest.raises(InputError, match="baseline is measured, not recorded"):
        read_recordings(root / "recorded", "small")
    assert read_recordings(root / "recorded", "smoke") == []
    assert read_recordings(root / "nothing", "small") == []
    with pytest.raises(InputError, match="no name"):
        slug_of("…")


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table4(tmp_path_factory, finished):
    """Table 4 without and with a recording, and the recording."""
    root = tmp_path_factory.mktemp("tables")
    (root / "recorded").mkdir()
    measured = {**RUNS, "qat_int4": GOOD["qat_int4"]}
    write_results(root / "results", measured, seed=1, n=100, seeds={"grace_int4": (0, 1, 2)})
    before = tables.build_table("table4", root / "results", "small", root / "recorded")
    bare = tables.build_table("table4", root / "results", "small")
    for form in FORMS:
        assert getattr(before, form)() == getattr(bare, form)()
        assert "recorded" not in getattr(before, form)()
    recording.import_recording(finished, root)
    after = tables.build_table("table4", root / "results", "small", root / "recorded")
    (brought,) = read_recordings(root / "recorded", "small")
    return before, after, brought


def test_measured_numbers_stay_beside_recorded_ones(table4):
    before, after, brought = table4
    own = tables.build_table("table4", brought.results.results, "small")
    for old, new, other in zip(
        *(table.data["rows"] for table in (before, after, own)), strict=True
    ):
        for column, cell in new["cells"].items():
            (recorded,) = cell.pop("recorded").values()
            assert recorded.items() <= other["cells"][column].items()
            assert recorded["evidence"] == ("recorded" if new["run"] in RUNS else "not run")
            cell["recorded"] = {SLUG: recorded}
            assert old["cells"][column].items() <= cell.items()


def test_every_form_shows_them(table4):
    _, after, brought = table4
    heading = f"recorded ({DEVICE}, 5 seeds)"
    score = brought.results.scores(FAMILY, "grace_int4").score("MMBench")
    text = after.markdown()
    assert text.count(f"* {heading}") == text.count(f"* Δ {heading}") == 4
    row = next(line for line in text.splitlines() if "QAT+GRACE" in line and "INT4" in line)
    assert f"{score:.1f} ± " in row
    assert f"measured, 3 seeds; recorded, 5 seeds, {DEVICE}" in row
    row = next(line for line in text.splitlines() if line.startswith("| INT4 | QAT "))
    assert row.count("not recorded") == 4
    note = next(line for line in text.splitlines() if line.startswith("- Recorded"))
    assert all(part in note for part in (DEVICE, "Some CPU, 2 cores", "a" * 12, VERSIONS["torch"]))
    assert rf"& {heading} &" in after.tex()
    lines = list(csv.DictReader(io.StringIO(after.csv())))
    assert all(value for line in lines for value in line.values())
    by_place = {(line["run"], line["column"]): line for line in lines}
    line = by_place["grace_int4", "MMBench"]
    assert float(line[f"recorded_{SLUG}"]) == pytest.approx(score)
    assert float(line[f"recorded_{SLUG}_delta_low"]) < float(line[f"recorded_{SLUG}_delta"])
    assert by_place["baseline", "MMBench"][f"recorded_{SLUG}_delta"] == "none"
    assert by_place["qat_int4", "MMBench"][f"recorded_{SLUG}"] == "not recorded"


def test_a_row_that_was_only_recorded_says_so(tmp_path, table4):
    recorded = table4[2].results.results.parent
    text = tables.build_table("table4", tmp_path, "small", recorded).markdown()
    assert f"not run; recorded, 5 seeds, {DEVICE}" in text
    assert "stand-in" in text


COMMITTED = ROOT / "results" / "small" / "tables"


@pytest.mark.parametrize("name", sorted(path.stem for path in COMMITTED.glob("*.json")))
def test_committed_tables_are_what_the_code_writes_of_their_content(name):
    table = tables.Table(json.loads((COMMITTED / f"{name}.json").read_text()))
    for form, suffix in zip(FORMS, ("json", "md", "csv", "tex"), strict=True):
        assert getattr(table, form)() == (COMMITTED / f"{name}.{suffix}").read_text()


# --- end to end -----------------------------------------------------------------------------------


@pytest.mark.weekly
@pytest.mark.slow
def test_training_and_evaluation_apart_end_to_end(tmp_path):
    """The commands on the tiniest world: trained in one place, evaluated in another, imported."""
    there = copy_repository(tmp_path / "there")
    group = f"{FAMILY}_runs"
    params = tiny_params(scale="small")
    params["runs"] = {
        group: {
            "pair": FAMILY,
            "models": {"qat_int4": {"method": "qat", "bits": 4, "seeds": [0]}},
        }
    }
    params["evaluate"]["benchmarks"] = {FAMILY: ["mmbench"], group: ["mmbench"]}
    (there / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    pipeline = yaml.safe_load((there / "dvc.yaml").read_text())
    for name in ("calibration", "gate_covariance", "entropy_error", "export", "internals"):
        # as long again as all others
        stage = pipeline["stages"][name]["do"]
        pipeline["stages"][name]["do"] = {"cmd": "true", "deps": stage["deps"]}
    (there / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    commit(there)
    here = tmp_path / "here"
    subprocess.run(["git", "clone", "-q", str(there), str(here)], check=True, capture_output=True)

    def run(*words, cwd, code=0):
        environment = {"PYTHONPATH": str(cwd)}
        done = python("-m", "replication.record", *words, cwd=cwd, timeout=1800, **environment)
        assert done.returncode == code, done.stderr[-3000:]
        return done.stdout + done.stderr

    run("--only", "training", "--seeds", "2", cwd=there)
    folder = shutil.copytree(there / ".recordings/small", tmp_path / "brought", symlinks=True)
    assert "evaluate@qwen2_vl" in run("--import", str(folder), cwd=here, code=2)
    log = folder / f"results/small/training/{group}/qat_int4/seed0.json"
    text = log.read_text()
    log.write_text(text + " ")
    assert f"train@{group} is not finished" in run("--evaluate", str(folder), cwd=here, code=2)
    log.write_text(text)
    run("--evaluate", str(folder), cwd=here)
    assert "run the pipeline" in run("--import", str(folder), cwd=here)
    (brought,) = read_recordings(here / "recorded", "small")
    scores = brought.results.scores(FAMILY, "qat_int4")
    assert list(scores.seeds) == [0, 1]
    assert scores.provenance["dirty"] is False
    table = tables.build_table("table4", tmp_path / "nothing", "small", here / "recorded")
    assert f"recorded, 2 seeds, {brought.device}" in table.markdown()
