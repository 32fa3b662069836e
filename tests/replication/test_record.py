"""Recording elsewhere: what is run, going on, bringing in, and what the tables then show."""

import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

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
from replication.results.scores import ResultSet, validate_scores
from replication.settings.pipeline import read_pipeline

DEVICE = "NVIDIA H100 80GB HBM3"
SLUG = "nvidia-h100-80gb-hbm3"
VERSIONS = {"torch": "2.13.0+cu130", "transformers": "5.17.0"}
WHERE = {
    "commit": "a" * 40,
    "dirty": False,
    "device": DEVICE,
    "python": "3.12.1",
    "versions": VERSIONS,
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
    params = record.recorded_params("small", 5)
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, group in params["runs"].items():
        for run, settings in group["models"].items():
            before = committed["runs"][name]["models"][run]["seeds"]
            assert settings["seeds"] == ([0, 1, 2, 3, 4] if name.endswith("_runs") else before)
            settings["seeds"] = before
    assert params == committed


def test_families_left_out_are_left_out_everywhere():
    params = record.recorded_params("small", 2, ["qwen2_vl", "llava"])
    assert list(params["teacher"]) == list(params["vision"]) == ["llava", "qwen2_vl"]
    assert "qwen3_vl" not in json.dumps([params["runs"], params["ptq"], params["evaluate"]])
    assert "llava_ptq" in params["ptq"]["groups"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("smal", 5), "did you mean 'small'"),
        (("paper", 5), "scale paper is not run"),
        (("small", 0), "--seeds is 0"),
        (("small", 5, ["lava"]), "family 'lava' is unknown"),
        (("small", 5, ["llava"]), "teacher of llava starts from qwen2_vl"),
    ],
)
def test_bad_parameters_are_refused(given, message):
    with pytest.raises(InputError, match=message):
        record.recorded_params(*given)


@pytest.mark.slow
def test_what_needs_lmms_eval_comes_after_training():
    pipeline = read_pipeline(ROOT / "dvc.yaml", record.recorded_params("small", 5))
    everything = {stage.kind for stage in pipeline}
    recorded = {stage.kind for stage in record.recorded_stages(pipeline)}
    left_out = {"world", "tables", "figures", "claims", "report", "examples", "deploy"}
    assert everything - recorded == left_out
    training = record.training_stages(pipeline)
    assert recorded - {stage.kind for stage in training} == set(record.NEEDS)
    assert {stage.name for stage in training} >= {"train@gates", "gate_covariance@llava"}
    assert set(record.TRAINING) < set(record.ACCELERATED) < recorded


@pytest.mark.slow
def test_what_follows_from_a_stage_left_out_is_left_out(monkeypatch):
    monkeypatch.setattr(record, "NEEDS", {"vision": ("json",)})
    pipeline = read_pipeline(ROOT / "dvc.yaml", record.recorded_params("small", 5))
    assert [stage.name for stage in record.training_stages(pipeline)] == ["standins"]


@pytest.mark.slow
@pytest.mark.parametrize("package", ["lmms_eval", "llmcompressor"])
def test_a_missing_package_is_named_before_anything_runs(monkeypatch, package):
    pipeline = read_pipeline(ROOT / "dvc.yaml", record.recorded_params("small", 5))
    find = record.importlib.util.find_spec
    monkeypatch.setattr(
        record.importlib.util, "find_spec", lambda name: None if name == package else find(name)
    )
    with pytest.raises(InputError, match=f"needs {package}.*--only training"):
        record.check_packages(pipeline)
    record.check_packages(record.training_stages(pipeline))


@pytest.mark.slow
def test_training_imports_neither_dvc_nor_lmms_eval():
    """With both made absent, every stage of the training part, and this tool, import."""
    pipeline = read_pipeline(ROOT / "dvc.yaml", record.recorded_params("small", 5))
    kinds = sorted({stage.kind for stage in record.training_stages(pipeline)})
    absent = ("dvc", "lmms_eval", "pandas", "datasets", "llmcompressor", "bitsandbytes", "scipy")
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({absent}))
import replication.record
for kind in {kinds}: importlib.import_module(f"replication.stages.{{kind}}")
from replication.settings.checks import (load_params)
load_params()
"""
    done = python("-c", code, cwd=ROOT, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]


def test_stages_see_one_accelerator_and_full_float32(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    given = record.stage_environment()
    assert (given["CUDA_VISIBLE_DEVICES"], given["NVIDIA_TF32_OVERRIDE"]) == ("3", "0")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert record.stage_environment()["CUDA_VISIBLE_DEVICES"] == "0"


# --- running --------------------------------------------------------------------------------------

SCRIPT = """
import pathlib, sys
name, source = sys.argv[1:]
with open('ran', 'a') as log: log.write(name)
if pathlib.Path('fail').exists() and name == 'b': sys.exit(3)
target = pathlib.Path('data' if name == 'a' else 'models') / name
target.mkdir(parents=True, exist_ok=True)
(target / name).write_text(pathlib.Path(source).read_text() + name)
"""
STAGES = {
    "a": {"deps": ["replication/source"], "params": ["train.steps"], "outs": ["data/a"]},
    "b": {"deps": ["data/a"], "outs": ["models/b"]},
    "c": {"deps": ["models/b"], "params": ["compare"], "outs": [{"models/c": {"persist": True}}]},
}
SOURCES = {"a": "replication/source", "b": "data/a/a", "c": "models/b/b"}


@pytest.fixture
def root(tmp_path):
    """A repository whose pipeline is three stages of one line each."""
    root = tmp_path / "repository"
    for name in ("grace", "replication", "recorded"):
        (root / name).mkdir(parents=True)
        (root / name / "source").write_text(f"{name} ")
    (root / "replication" / "write.py").write_text(SCRIPT)
    shutil.copy(ROOT / "params.yaml", root)
    shutil.copy(ROOT / ".dvcignore", root)
    stages = {
        name: {"cmd": f"python replication/write.py {name} {SOURCES[name]}", **body}
        for name, body in STAGES.items()
    }
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}))
    commit(root)
    return root


@pytest.fixture
def go(root, tmp_path):
    """A function that records, or goes on, and returns the names of the stages that were run."""

    def run(**changes):
        given = {"seeds": 2, "families": None, "only": "all", "root": root, **changes}
        log = tmp_path / "folder" / "ran"
        log.unlink(missing_ok=True)
        try:
            record.start(tmp_path / "folder", "small", **given)
        finally:
            names = log.read_text() if log.exists() else ""
        return names

    return run


@pytest.mark.slow
def test_each_stage_is_run_once_and_says_what_it_followed_from(root, go, tmp_path):
    folder = tmp_path / "folder"
    assert go() == "abc"
    assert (folder / "models/c/c").read_text() == "replication abc"
    done = read_json(folder / ".record" / "b.json")
    assert set(done["deps"]) == {"data/a"}
    assert done["provenance"]["dirty"] is False
    assert len(done["provenance"]["commit"]) == 40
    assert done["provenance"]["versions"]["torch"]
    assert go() == ""
    assert not (root / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "again"),
    [
        (lambda root, folder: (root / "replication/source").write_text("other "), "abc"),
        (lambda root, folder: (folder / "models/b/b").write_text("spoilt"), "b"),
        (lambda root, folder: shutil.rmtree(folder / "models/b"), "b"),
        (lambda root, folder: (folder / ".record/c.json").write_text("{"), "c"),
        (lambda root, folder: (folder / ".record/a.json").unlink(), "a"),
        (lambda root, folder: (folder / "models/b/x.tmp").write_text("scratch"), ""),
    ],
)
def test_a_stage_is_run_again_only_where_something_changed(root, go, tmp_path, change, again):
    """Where an earlier stage writes the same bytes again, later ones are finished still."""
    go()
    change(root, tmp_path / "folder")
    commit(root, "changed")
    assert go() == again
    assert (tmp_path / "folder/models/c/c").read_text().endswith(" abc")


@pytest.mark.slow
def test_changed_parameters_run_the_stages_that_read_them(root, go):
    go()
    params = yaml.safe_load((root / "params.yaml").read_text())
    params["compare"]["resamples"] = 7
    (root / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    commit(root, "changed")
    assert go() == "c"


@pytest.mark.slow
def test_an_interrupted_recording_goes_on(root, go, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fail").touch()
    with pytest.raises(subprocess.CalledProcessError):
        go()
    assert (folder / "ran").read_text() == "ab"
    assert sorted(path.name for path in (folder / ".record").iterdir()) == ["a.json"]
    (folder / "fail").unlink()
    assert go() == "bc"


@pytest.mark.slow
def test_only_persistent_outputs_are_found_as_they_were(root, go, tmp_path):
    go()
    for name in ("b", "c"):
        (tmp_path / "folder/models" / name / "left").write_text("")
    assert go() == "bc"
    assert not (tmp_path / "folder/models/b/left").exists()
    assert (tmp_path / "folder/models/c/left").exists()


def test_code_that_is_not_committed_is_not_run(root, go, tmp_path):
    (root / "replication" / "source").write_text("other")
    with pytest.raises(InputError, match="not committed"):
        go()
    shutil.rmtree(root / ".git")
    with pytest.raises(InputError, match="no git repository"):
        go()
    assert not (tmp_path / "folder").exists()
    with pytest.raises(InputError, match="folder of its own"):
        commit(root)
        record.start(root, "small", seeds=1, families=None, only="all", root=root)


@pytest.mark.slow
def test_evaluation_wants_the_training_that_was_recorded(root, go, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "NEEDS", {"c": ("json",)})
    folder = tmp_path / "folder"
    assert go(only="training") == "ab"
    shutil.rmtree(folder / "data")  # need not be brought along
    record.evaluate(folder, root)
    assert (folder / "ran").read_text() == "abc"
    (folder / "models/b/b").write_text("spoilt")
    with pytest.raises(InputError, match="models/b is not what stage b read or wrote"):
        record.evaluate(folder, root)
    (folder / "models/b/b").write_text("replication ab")
    (root / "replication/source").write_text("other ")
    commit(root, "changed")
    with pytest.raises(InputError, match="replication/source is not what stage a"):
        record.evaluate(folder, root)
    (folder / ".record/a.json").unlink()
    with pytest.raises(InputError, match="stage a is not finished"):
        record.evaluate(folder, root)


# --- bringing in ----------------------------------------------------------------------------------

RUNS = {name: GOOD[name] for name in ("teacher", "baseline", "grace_int4")}
SEEDS = (0, 1, 2, 3, 4)


def recorded_folder(folder: Path) -> Path:
    """A finished recording of drawn answers: results, parameters and what its stages say."""
    params = record.recorded_params("small", len(SEEDS), [FAMILY])
    group = f"{FAMILY}_runs"
    models = params["runs"][group]["models"]
    params["runs"] = {
        group: {"family": FAMILY, "models": {n: models[n] for n in RUNS if n in models}}
    }
    params["ptq"]["groups"] = {}
    asked = params["evaluate"]["benchmarks"]
    params["evaluate"]["benchmarks"] = {name: asked[name] for name in (FAMILY, group)}
    folder.mkdir()
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    write_results(
        folder / "results", RUNS, seed=5, n=120, seeds={n: SEEDS for n in RUNS if n in models}
    )
    for path in (folder / "results/small").glob(f"*/{FAMILY}/*"):
        if path.suffix == ".json":
            content = read_json(path)
            told = {"params_hash": "b" * 64, "seeds": [0], "command": "python -m x"}
            content["provenance"] = {**WHERE, "device": "Some CPU, 2 cores", **told}
            write_json_atomic(path, content)
        if path.stem in models:
            target = path.parent.parent / group / path.name
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    say_done(folder)
    return folder


def say_done(folder):
    recording = record.Recording(folder)
    for stage in record.recorded_stages(recording.pipeline):
        done = {
            "cmd": stage.cmd,
            "params": "",
            "deps": {},
            "outs": {out: recording.digest(out) for out in stage.outs},
            "provenance": WHERE,
            "seconds": 1.0,
        }
        write_json_atomic(folder / ".record" / f"{stage.name}.json", done)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return recorded_folder(tmp_path_factory.mktemp("finished") / "folder")


@pytest.fixture
def here(tmp_path):
    """A repository to import into."""
    root = tmp_path / "here"
    (root / "recorded").mkdir(parents=True)
    shutil.copy(ROOT / "dvc.yaml", root)
    return root


@pytest.mark.slow
def test_scores_and_outcomes_are_brought_in_as_recorded(finished, here):
    before = contents(finished)
    target = record.import_recording(finished, here)
    assert target == here / "recorded" / SLUG / "small"
    assert contents(finished) == before
    assert (target / "params.yaml").read_bytes() == (finished / "params.yaml").read_bytes()
    source = ResultSet(finished / "results", "small")
    (recording,) = read_recordings(here / "recorded", "small")
    assert (recording.device, recording.slug) == (DEVICE, SLUG)
    assert {one.run for one in recording.results.all()} == set(RUNS)
    for one in recording.results.all():
        original = source.scores(FAMILY, one.run)
        assert (one.evidence, one.seeds) == ("recorded", original.seeds)
        assert original.provenance.items() <= one.provenance.items()
        assert one.provenance["trained_on"] == DEVICE
        (training,) = one.provenance["training"]
        assert training["device"] == DEVICE
        assert "teacher@qwen2_vl" in training["stages"]
        assert ("train@qwen2_vl_runs" in training["stages"]) == (one.run == "grace_int4")
        answers = recording.results.answers(FAMILY, [one.run], one.benchmarks)
        theirs = source.answers(FAMILY, [one.run], one.benchmarks)
        assert answers[0].seeds == theirs[0].seeds
    assert [path.name for path in (here / "recorded").iterdir()] == [SLUG]
    with pytest.raises(InputError, match="is there already"):
        record.import_recording(finished, here)


def edit(path, change):
    content = read_json(path)
    change(content)
    write_json_atomic(path, content)


def score_edit(change):
    """A change of a score file that its stage would vouch for."""

    def apply(folder):
        edit(folder / f"results/small/scores/{FAMILY}/baseline.json", change)
        say_done(folder)

    return apply


def done_edit(name, change):
    return lambda folder: edit(folder / f".record/{name}.json", change)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (score_edit(lambda c: c.pop("scale")), "lacks scale"),
        (score_edit(lambda c: c.update(scale="smoke")), "scale"),
        (score_edit(lambda c: c.pop("provenance")), "lacks provenance"),
        (score_edit(lambda c: c.update(provenance={})), "lacks commit, dirty, device"),
        (score_edit(lambda c: c["provenance"].update(commit=None)), "lacks commit"),
        (score_edit(lambda c: c["provenance"].update(dirty=True)), "not committed"),
        (score_edit(lambda c: c["provenance"].pop("versions")), "lacks versions"),
        (score_edit(lambda c: c["provenance"].pop("params_hash")), "lacks params_hash"),
        (
            score_edit(lambda c: c.update(seeds={"1": c["seeds"]["0"]})),
            "scores are of seeds|other seeds",
        ),
        (
            lambda f: edit(
                f / f"results/small/scores/{FAMILY}/baseline.json", lambda c: c.update(note="x")
            ),
            "is not what stage evaluate@qwen2_vl wrote",
        ),
        (
            lambda f: (f / f"results/small/outcomes/{FAMILY}/baseline.parquet").unlink(),
            "is not what stage evaluate@qwen2_vl wrote",
        ),
        (lambda f: (f / ".record/evaluate@qwen2_vl.json").unlink(), "evaluate@qwen2_vl is not fin"),
        (lambda f: (f / ".record/standins.json").unlink(), "standins is not finished"),
        (
            done_edit("teacher@qwen2_vl", lambda c: c["provenance"].update(dirty=True)),
            "stage teacher@qwen2_vl.*not committed",
        ),
        (
            done_edit("train@qwen2_vl_runs", lambda c: c["provenance"].update(commit=None)),
            "stage train@qwen2_vl_runs.*lacks commit",
        ),
        (
            done_edit("train@qwen2_vl_runs", lambda c: c["provenance"].update(device="Other")),
            "trained on NVIDIA.* and Other",
        ),
    ],
)
def test_what_is_not_whole_or_not_of_a_commit_is_refused(finished, here, tmp_path, spoil, message):
    folder = shutil.copytree(finished, tmp_path / "folder")
    spoil(folder)
    with pytest.raises(InputError, match=message):
        record.import_recording(folder, here)
    assert list((here / "recorded").iterdir()) == []


def test_the_command_refuses_with_one_line(here, capsys, tmp_path):
    assert record.main(["--import", str(tmp_path / "nothing")]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    with pytest.raises(SystemExit):
        record.main(["--import", "a", "--evaluate", "b"])


@pytest.mark.slow
def test_recordings_are_what_they_say(finished, here):
    target = record.import_recording(finished, here)
    shutil.copytree(target.parent, here / "recorded" / "other-device")
    with pytest.raises(InputError, match="its folder says other-device"):
        read_recordings(here / "recorded", "small")
    shutil.rmtree(here / "recorded" / "other-device")
    edit(target / f"scores/{FAMILY}/baseline.json", lambda c: c.pop("evidence"))
    with pytest.raises(InputError, match="baseline is measured, not recorded"):
        read_recordings(here / "recorded", "small")
    assert read_recordings(here / "recorded", "smoke") == []
    assert read_recordings(here / "nothing", "small") == []
    with pytest.raises(InputError, match="no name"):
        slug_of("…")


# --- tables ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory, finished):
    """Table 4 with and without recordings, the recordings, and the folders."""
    root = tmp_path_factory.mktemp("shown")
    (root / "recorded").mkdir()
    shutil.copy(ROOT / "dvc.yaml", root)
    measured = {**RUNS, "qat_int4": GOOD["qat_int4"]}
    write_results(root / "results", measured, seed=1, n=100, seeds={"grace_int4": (0, 1, 2)})
    plain = tables.build_table("table4", root / "results", "small", root / "recorded")
    bare = tables.build_table("table4", root / "results", "small")
    record.import_recording(finished, root)
    both = tables.build_table("table4", root / "results", "small", root / "recorded")
    (recording,) = read_recordings(root / "recorded", "small")
    return plain, bare, both, recording


@pytest.mark.slow
def test_without_recordings_nothing_changes(shown):
    plain, bare, _, _ = shown
    for form in ("json", "markdown", "csv", "tex"):
        assert getattr(plain, form)() == getattr(bare, form)()
        assert "recorded" not in getattr(plain, form)()


@pytest.mark.slow
def test_measured_numbers_stay_beside_recorded_ones(shown):
    plain, _, both, recording = shown
    own = tables.build_table("table4", recording.results.results, "small")
    for before, row, other in zip(
        plain.data["rows"], both.data["rows"], own.data["rows"], strict=True
    ):
        assert before == {
            **row,
            "cells": {
                column: {key: value for key, value in cell.items() if key != "recorded"}
                for column, cell in row["cells"].items()
            },
        }
        for column, cell in row["cells"].items():
            (found,) = cell["recorded"].values()
            expected = other["cells"][column]
            assert found == {key: expected[key] for key in found}
            assert found["evidence"] == ("recorded" if row["run"] in RUNS else "not run")


@pytest.mark.slow
def test_every_form_shows_them(shown):
    _, _, both, recording = shown
    (told,) = both.data["recordings"]
    assert (told["id"], told["device"], told["seeds"]) == (SLUG, DEVICE, [5, 5])
    heading = f"recorded ({DEVICE}, 5 seeds)"
    score = recording.results.scores(FAMILY, "grace_int4").score("MMBench")
    lines = both.markdown().splitlines()
    heads = [one for one in lines if one.startswith("| Bits")]
    assert heads[0].count(f"* {heading}") == 4
    assert heads[1].count(f"* Δ {heading}") == 4
    row = next(one for one in lines if "QAT+GRACE" in one and "INT4" in one)
    assert f"{score:.1f} ± " in row
    assert f"measured, 3 seeds; recorded, 5 seeds, {DEVICE}" in row
    row = next(one for one in lines if one.startswith("| INT4 | QAT "))
    assert row.count("not recorded") == 4
    note = next(one for one in lines if one.startswith("- Recorded"))
    assert all(x in note for x in (DEVICE, "Some CPU, 2 cores", "a" * 12, VERSIONS["torch"]))
    assert "no status" in note
    assert any("stand-in" in one for one in lines)
    tex = both.tex()
    assert rf"& {heading} &" in tex
    assert r"\multicolumn{3}{c}{MMBench*}" in tex
    assert r"\cmidrule(lr){3-5} \cmidrule(lr){6-8}" in tex
    found = list(csv.DictReader(io.StringIO(both.csv())))
    for one in found:
        assert None not in one.values() and "" not in one.values()
        assert one[f"recorded_{SLUG}_standin"] == "true"
        if (one["run"], one["column"]) == ("grace_int4", "MMBench"):
            assert float(one[f"recorded_{SLUG}"]) == pytest.approx(score)
            assert one[f"recorded_{SLUG}_seeds"] == "0 1 2 3 4"
            assert float(one[f"recorded_{SLUG}_delta_low"]) < float(one[f"recorded_{SLUG}_delta"])
        if one["run"] == "baseline":
            assert one[f"recorded_{SLUG}_delta"] == "none"
        if one["run"] == "qat_int4":
            assert one[f"recorded_{SLUG}"] == one[f"recorded_{SLUG}_n"] == "not recorded"


@pytest.mark.slow
def test_a_row_that_was_only_recorded_says_so(tmp_path, shown):
    recorded = shown[3].results.results.parent
    table = tables.build_table("table4", tmp_path, "small", recorded)
    text = table.markdown()
    assert f"not run; recorded, 5 seeds, {DEVICE}" in text
    assert "stand-in" in text
    assert "Measured at scale small" in text


@pytest.mark.slow
def test_retention_tables_show_them(shown, tmp_path):
    recorded = shown[3].results.results.parent
    built = tables.build_tables(tmp_path, "small", recorded)
    for table in built:
        if table.data["kind"] == "scores" and table.data["family"] == FAMILY:
            for form in ("json", "markdown", "csv", "tex"):
                assert getattr(table, form)()
        else:
            assert "recordings" not in table.data


COMMITTED = ROOT / "results" / "small" / "tables"


@pytest.mark.parametrize("name", sorted(path.stem for path in COMMITTED.glob("*.json")))
def test_committed_tables_are_what_the_code_writes_of_their_content(name):
    table = tables.Table(json.loads((COMMITTED / f"{name}.json").read_text()))
    if "recordings" in table.data:
        assert read_recordings(ROOT / "recorded", "small")
    for form, suffix in (("json", "json"), ("markdown", "md"), ("csv", "csv"), ("tex", "tex")):
        assert getattr(table, form)() == (COMMITTED / f"{name}.{suffix}").read_text()


# --- end to end -----------------------------------------------------------------------------------


@pytest.fixture
def one_core():
    """Several models then share a process, and with it the seconds that imports take."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.slow
def test_training_and_evaluation_apart_end_to_end(tmp_path, one_core):
    """The commands on the tiniest world: trained in one place, evaluated in another, imported."""
    there = copy_repository(tmp_path / "there")
    group = f"{FAMILY}_runs"
    runs = {
        group: {
            "family": FAMILY,
            "models": {"qat_int4": {"method": "qat", "bits": 4, "seeds": [0]}},
        }
    }
    params = tiny_params(scale="small")
    params["runs"] = runs
    params["evaluate"]["benchmarks"] = {FAMILY: ["mmbench"], group: ["mmbench"]}
    (there / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))
    pipeline = yaml.safe_load((there / "dvc.yaml").read_text())
    # as long again as all others
    for name in ("gate_covariance", "entropy_error", "export", "internals"):
        del pipeline["stages"][name]
    (there / "dvc.yaml").write_text(yaml.safe_dump(pipeline))
    commit(there)
    here = tmp_path / "here"
    subprocess.run(["git", "clone", "-q", str(there), str(here)], check=True, capture_output=True)

    def said(*words, cwd):
        done = python("-m", "replication.record", *words, cwd=cwd, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    said("--only", "training", "--seeds", "2", cwd=there)
    recording = record.Recording(there / ".recordings" / "small", there)
    for stage in record.training_stages(recording.pipeline):
        assert recording.finished(stage), stage.name
    folder = shutil.copytree(
        there / ".recordings/small",
        tmp_path / "brought",
        symlinks=True,
        ignore=shutil.ignore_patterns("features.npy", "teacher_outputs"),
    )
    said("--evaluate", str(folder), cwd=here)
    assert "run the pipeline" in said("--import", str(folder), cwd=here)
    (recording,) = read_recordings(here / "recorded", "small")
    scores = recording.results.scores(FAMILY, "qat_int4")
    assert list(scores.seeds) == [0, 1]
    assert scores.provenance["dirty"] is False
    validate_scores(
        read_json(here / "recorded" / recording.slug / "small/scores" / FAMILY / "teacher.json")
    )
    table = tables.build_table("table4", tmp_path / "nothing", "small", here / "recorded")
    assert f"recorded, 2 seeds, {recording.device}" in table.markdown()
