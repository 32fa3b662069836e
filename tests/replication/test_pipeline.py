"""The pipeline is complete: stages, files, parameters, runs, tables and dependencies agree."""

import ast
import functools
import importlib
import json
import re

import pytest
import yaml
from repository import ROOT, copy_repository, python

from replication.results.measurements import measurement_path
from replication.settings.paths import Layout
from replication.settings.scales import pipeline_of, scale_params, workspace
from replication.settings.schema import REDUCED_ONLY, SCALES, parse_params
from replication.stages import NOT_AT_FULL_SCALE

PIPELINE = yaml.safe_load((ROOT / pipeline_of("small")).read_text())["stages"]
PAPER = yaml.safe_load((ROOT / pipeline_of("paper")).read_text())["stages"]
FILES = {path.stem for path in (ROOT / "replication" / "stages").glob("*.py")} - {"__init__"}
RAW = scale_params("small")
PARAMS = parse_params(RAW)

# Modules that decide no number: where things lie, how parameters and results are read and written.
FRAME = {
    "grace",
    "grace.errors",
    "grace.files",
    "grace.torchvision_compat",
    "replication",
    "replication.base.files",
    "replication.settings.paths",
    "replication.base.workers",
    "replication.settings.schema",
    "replication.base.provenance",
    "replication.results.scores",
    "replication.stages",
    "replication.stages.baseline",
    "replication.stages.language",
    "replication.stages.teacher",
}
# What these say reaches a stage through its data, not through the code.
BY_DATA = {f"replication.data.world.{name}" for name in ("conversations", "questions", "scenes")}


# What only scale paper runs: its own pipeline depends on it.
FULL_SCALE_ONLY = {
    "grace.shards",
    "replication.plan.machine",
    "replication.evaluate.parts",
    "replication.base.hub",
    "replication.train.launch",
    "replication.train.launch.run",
}


def body(name: str, pipeline: dict = PIPELINE) -> dict:
    return pipeline[name].get("do", pipeline[name])


def module_file(module: str):
    path = ROOT / module.replace(".", "/")
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imported(module: str) -> set[str]:
    """The project's modules that a module imports, anywhere in its text."""
    found = set()
    for node in ast.walk(ast.parse(module_file(module).read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            for alias in node.names:
                if module_file(f"{node.module}.{alias.name}").is_file():
                    names.append(f"{node.module}.{alias.name}")
        found |= {name for name in names if name.split(".")[0] in ("grace", "replication")}
    return found


def closure(module: str) -> set[str]:
    seen, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in seen or name in FRAME | FULL_SCALE_ONLY:
            continue
        seen.add(name)
        waiting += imported(name)
    return seen


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
    named = {p.split(".")[0] for name in PIPELINE for p in body(name).get("params", [])}
    assert sections == {name for name in named if "$" not in name} | {"scale", "tuning"}
    stages_with_sections = sections & FILES
    for name in stages_with_sections:
        own = [p for p in body(name)["params"] if p.split(".")[0] == name]
        assert own, f"stage {name} does not list its own section"
    assert set(REDUCED_ONLY) <= FILES
    assert set(NOT_AT_FULL_SCALE) <= FILES


@pytest.mark.parametrize("scale", SCALES)
def test_runs_are_trained_and_evaluated(scale):
    params = parse_params(scale_params(scale))
    assert PIPELINE["train"]["foreach"] == "${runs}"
    assert PIPELINE["evaluate"]["foreach"] == "${evaluate.benchmarks}"
    assert PIPELINE["ptq"]["foreach"] == "${ptq.groups}"
    assert set(params.evaluate.benchmarks) == {*params.families, *params.runs, *params.ptq.groups}
    for name in set(params.runs) & set(PARAMS.runs):
        group = params.runs[name]
        assert group.family == PARAMS.runs[name].family
        for run, settings in group.models.items():
            known = PARAMS.runs[name].models[run]
            assert (settings.method, settings.bits) == (known.method, known.bits)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PIPELINE))
def test_the_code_of_a_stage_is_among_its_dependencies(name):
    deps = [dep for dep in body(name)["deps"] if "${" not in dep]
    for dep in deps:
        assert (ROOT / dep).exists(), dep
    for module in set().union(*map(closure, imported(f"replication.stages.{name}"))):
        path = str(module_file(module).relative_to(ROOT))
        covered = any(path == dep or path.startswith(dep + "/") for dep in deps)
        assert covered or module in BY_DATA, f"{name} imports {path}, which it does not depend on"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PAPER))
def test_scale_paper_depends_on_what_it_alone_runs(name):
    deps = [dep for dep in body(name, PAPER)["deps"] if "${" not in dep]
    for dep in deps:
        assert (ROOT / dep).exists(), dep
    modules = {f"replication.stages.{name}"} | closure(f"replication.stages.{name}")
    for module in set().union(*map(imported, modules)) & FULL_SCALE_ONLY - {
        "replication.plan.machine"
    }:
        path = str(module_file(module).relative_to(ROOT))
        assert any(path == dep or path.startswith(dep + "/") for dep in deps), path


def grace_files(paths) -> set[str]:
    """The package's files among these, relative to the root; a folder stands for all in it."""
    found = set()
    for path in (ROOT / one for one in paths if one.partition("/")[0] == "grace"):
        found |= set(path.rglob("*.py")) if path.is_dir() else {path}
    return {str(file.relative_to(ROOT)) for file in found}


def grace_imports(module: str) -> set[str]:
    """The package's files that a module needs, those of lazy imports too."""
    needed = (
        closure(module) if module not in FRAME else set().union(*map(closure, imported(module)))
    )
    return {
        str(module_file(name).relative_to(ROOT)) for name in needed if name.startswith("grace.")
    }


# Training is long: it must not become stale by a change of what it does not use.
TRAINS = ("language", "teacher", "baseline", "teacher_outputs", "train", "ptq", "gate_covariance")


@pytest.mark.parametrize("name", TRAINS)
def test_what_trains_depends_on_exactly_the_modules_that_it_imports(name):
    listed = [dep for dep in body(name)["deps"] if dep.startswith("grace")]
    assert listed == sorted(listed)
    assert grace_files(listed) == grace_imports(f"replication.stages.{name}")


@pytest.mark.parametrize("module", ["replication.train.runs", "replication.train.start"])
def test_the_code_of_an_origin_is_exactly_what_is_imported(module):
    code = importlib.import_module(module).CODE
    listed = [path for path in code if path.startswith("grace")]
    assert listed == sorted(listed)
    assert grace_files(listed) == grace_imports(module)


@pytest.mark.slow
def test_what_a_stage_has_in_memory_is_among_what_its_text_imports():
    """Reading the text finds every import: none of these stages has loaded a module beside them."""
    names = [f"replication.stages.{name}" for name in TRAINS]
    code = (
        f"import importlib, json, sys; [importlib.import_module(n) for n in {names!r}]; "
        "print(json.dumps([n for n in sys.modules if n.split('.')[0] == 'grace']))"
    )
    done = python("-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout)) - FRAME
    found = {str(module_file(name).relative_to(ROOT)) for name in loaded}
    assert found
    assert found <= set().union(*map(grace_imports, names))


def _any(out: str) -> str:
    """A pattern for whatever an output's path may become."""
    return re.sub(r"\\\$\\\{[a-z_.\\]+\\\}", ".*", re.escape(out))


@pytest.mark.parametrize("name", sorted(PIPELINE))
def test_what_a_stage_reads_another_writes(name):
    written = set()
    for stage in PIPELINE:
        for out in body(stage).get("outs", []) + body(stage).get("metrics", []):
            written.add(out if isinstance(out, str) else next(iter(out)))
    for dep in body(name)["deps"]:
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
    for name in ("teacher", "baseline"):
        log = layout.training_log("llava", name, "instruction").parent
        assert outs(name, "llava") == {str(layout.model("llava", name)), str(log)}
        log = layout.training_log("language", name, "text").parent
        assert outs("language", name) == {str(layout.model("language", name)), str(log)}
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
        "language": ["teacher", "baseline"],
        "train": [*params.runs],
        "ptq": [*params.ptq.groups],
        "evaluate": [*params.evaluate.benchmarks],
        "deploy": [*params.deploy.models],
        "internals": params.internals.families,
    }
    names = set()
    for name, stage in PIPELINE.items():
        if "foreach" in stage:
            names |= {f"{name}@{word}" for word in words.get(name, params.families)}
        else:
            names.add(name)
    shown = set(re.findall(r'"([\w@.-]+)"', done.stdout))
    assert shown == names
