"""The pipeline is complete: stages, files, parameters, runs, tables and dependencies agree."""

import functools
import itertools
import re

import pytest
import yaml
from repository import ROOT, copy_repository, python

from replication.base.scales import SCALES
from replication.results.measurements import measurement_path
from replication.settings.checks import parse_params
from replication.settings.paths import Layout
from replication.settings.scales import scale_params
from replication.settings.schema import REDUCED_ONLY
from replication.settings.workspace import pipeline_of, workspace
from replication.stages import NOT_AT_FULL_SCALE

PIPELINE = yaml.safe_load((ROOT / pipeline_of("small")).read_text())["stages"]
PAPER = yaml.safe_load((ROOT / pipeline_of("paper")).read_text())["stages"]
FILES = {path.stem for path in (ROOT / "replication" / "stages").glob("*.py")} - {"__init__"}
RAW = scale_params("small")
PARAMS = parse_params(RAW)


def body(name: str, pipeline: dict = PIPELINE) -> dict:
    return pipeline[name].get("do", pipeline[name])


def names_of(stage: str) -> list[str]:
    """The parameters of a stage but for its code."""
    return [entry for entry in body(stage).get("params", []) if isinstance(entry, str)]


def test_every_stage_is_a_file_and_every_file_a_stage():
    assert set(PIPELINE) | set(PAPER) == FILES
    assert set(PAPER) == FILES - set(NOT_AT_FULL_SCALE)
    for name in PAPER:
        command = body(name, PAPER)["cmd"].split()
        assert command[:3] == ["python", "-m", f"replication.stages.{name}"]
    for name in PIPELINE:
        over = PIPELINE[name].get("foreach")
        if isinstance(over, str):  # a place in the parameters
            over = functools.reduce(dict.__getitem__, over[2:-1].split("."), RAW)
        word = "" if over is None else " ${item}" if isinstance(over, list) else " ${key}"
        assert body(name)["cmd"] == f"python -m replication.stages.{name}{word}"


def test_every_section_of_the_parameters_is_read_by_a_stage():
    sections = set(yaml.safe_load((ROOT / "params.yaml").read_text()))
    named = {p.split(".")[0] for name in PIPELINE for p in names_of(name)}
    assert sections == {name for name in named if "$" not in name} | {"scale", "families"}
    for name in sections & FILES:
        own = [p for p in names_of(name) if p.split(".")[0] == name]
        assert own, f"stage {name} does not list its own section"
    assert set(REDUCED_ONLY) <= FILES | {"methods"}
    assert set(NOT_AT_FULL_SCALE) <= FILES


@pytest.mark.parametrize("scale", SCALES)
def test_runs_are_trained_and_evaluated(scale):
    params = parse_params(scale_params(scale))
    assert PIPELINE["train"]["foreach"] == "${runs}"
    assert PIPELINE["evaluate"]["foreach"] == "${evaluate.benchmarks}"
    assert PIPELINE["ptq"]["foreach"] == "${ptq.groups}"
    assert set(params.evaluate.benchmarks) == set(params.folders)
    for name in set(params.runs) & set(PARAMS.runs):
        group = params.runs[name]
        assert group.pair == PARAMS.runs[name].pair
        for run, settings in group.models.items():
            known = PARAMS.runs[name].models[run]
            assert (settings.method, settings.bits) == (known.method, known.bits)


@pytest.mark.parametrize("pipeline", [PIPELINE, PAPER], ids=["small", "paper"])
def test_a_stage_depends_on_the_hash_of_its_code_and_names_no_file_of_it(pipeline):
    for name in set(pipeline) - {"code"}:
        params = [entry for entry in body(name, pipeline)["params"] if isinstance(entry, dict)]
        assert params == [{"code.yaml": [name]}]
        deps = body(name, pipeline).get("deps", [])
        assert not [dep for dep in deps if dep.startswith(("grace", "replication"))]
    assert pipeline["code"]["deps"] == ["grace", "replication"]


def _any(out: str) -> str:
    """A pattern for whatever an output's path may become."""
    return re.sub(r"\\\$\\\{[a-z_.\\]+\\\}", ".*", re.escape(out))


@pytest.mark.parametrize("name", sorted(PIPELINE))
def test_what_a_stage_reads_another_writes(name):
    written = set()
    for stage in PIPELINE:
        for out in body(stage).get("outs", []) + body(stage).get("metrics", []):
            written.add(out if isinstance(out, str) else next(iter(out)))
    for dep in body(name).get("deps", []):
        if "${" in dep:
            pattern = re.compile(re.sub(r"\\\$\\\{[a-z_.\\]+\\\}", ".*", re.escape(dep)))
            generic = [re.sub(r"\$\{(item|key)\}", "x_runs", out) for out in written]
            found = any(pattern.fullmatch(out) or out.startswith(dep + "/") for out in generic)
            assert found or any(re.fullmatch(_any(out), dep) for out in written), dep


def test_the_layout_is_the_pipeline_s():
    layout = Layout(PARAMS)

    def outs(name, word=""):
        listed = body(name).get("outs", []) + body(name).get("metrics", [])
        paths = [out if isinstance(out, str) else next(iter(out)) for out in listed]
        values = {"scale": PARAMS.scale, "key": word, "item": word}
        return {re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], path) for path in paths}

    assert outs("standins") == {str(layout.benchmarks)}
    assert outs("vision", "llava") == {str(layout.processor("llava")), str(layout.vision("llava"))}
    assert outs("features", "llava") == {str(layout.features("llava"))}
    pair = {str(layout.model("llava", name)) for name in ("teacher", "baseline")}
    assert outs("pairs", "llava") == {*pair, str(layout.training_logs("llava"))}
    language = {str(layout.models / "language"), str(layout.training_logs("language"))}
    assert outs("language") == language
    assert outs("teacher_outputs", "llava") == {str(layout.teacher_outputs("llava"))}
    assert outs("train", "gates") == {
        str(layout.models / "gates"),
        str(layout.training_logs("gates")),
    }
    assert outs("deploy", "llava-1.5-7b") == {
        str(layout.deployment("llava-1.5-7b")),
        str(measurement_path("results", PARAMS.scale, "deploy-llava-1.5-7b")),
    }
    assert outs("evaluate", "gates") == {str(layout.scores("gates")), str(layout.outcomes("gates"))}


@pytest.mark.slow
def test_dvc_reads_the_pipeline(tmp_path):
    """In a workspace of scale smoke: the graph has every stage, and the plots and metrics parse."""
    folder = workspace("smoke", copy_repository(tmp_path))
    done = python("-m", "dvc", "dag", "--mermaid", "--full", cwd=folder)
    assert done.returncode == 0, done.stderr
    params = parse_params(scale_params("smoke"))
    words = {
        "train": [*params.runs],
        "ptq": [*params.ptq.groups],
        "evaluate": [*params.evaluate.benchmarks],
        "deploy": [*params.deploy.models],
        "internals": params.internals.families,
        "vision": [*params.vision],
        "features": [*params.vision],
        "pairs": [*params.pairs],
        "teacher_outputs": [*params.methods],
        "calibration": [*params.pairs],
        "entropy_error": [*params.pairs],
        "tuning": params.tuning.pairs,
        "alignment": params.alignment.pairs,
    }
    names = set()
    for name, stage in PIPELINE.items():
        if "foreach" in stage:
            names |= {f"{name}@{word}" for word in words.get(name, params.families)}
        else:
            names.add(name)
    shown = set(re.findall(r'"([\w@.-]+)"', done.stdout))
    assert shown == names
    stages = dict(re.findall(r'(node\d+)\["([\w.-]+)', done.stdout))
    arrows = re.findall(r"(node\d+)-->(node\d+)", done.stdout)
    document = (ROOT / "docs" / "dvc.md").read_text().partition("flowchart LR\n")[2]
    drawn = set()
    for line in document.partition("```")[0].splitlines():
        steps = [re.findall(r"\w+", step) for step in line.split("-->")]
        drawn |= {pair for ends in itertools.pairwise(steps) for pair in itertools.product(*ends)}
    assert followers(drawn) == followers({(stages[a], stages[b]) for a, b in arrows})


def followers(arrows: set[tuple[str, str]]) -> dict[str, set[str]]:
    """By name, everything that its arrows lead to, at once or by others."""
    after = {name: {end for start, end in arrows if start == name} for name, _ in arrows}
    for name, found in after.items():
        waiting = list(found)
        while waiting:
            new = after.get(waiting.pop(), set()) - found
            found.update(new)
            waiting += new
        found.discard(name)  # stages of a name that follow each other
    return after
