"""The rehearsal of scale paper: what it replaces, and what it makes. `make rehearsal` runs it."""

import json

import pytest
from PIL import Image

from grace.models import check_model_directory
from replication import rehearsal
from replication.data import miniature
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    place = tmp_path_factory.mktemp("rehearsal") / "published"
    miniature.write_published(place)
    return place


def leaves(tree, path=()):
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in leaves(value, (*path, key)).items()}
    return {path: tree}


def test_names_numbers_and_lengths_are_replaced_and_nothing_else(published):
    before, after = leaves(scale_params("paper")), leaves(rehearsal.rehearsed(published))
    changed = {path for path in before.keys() & after.keys() if before[path] != after[path]}
    added = after.keys() - before.keys()
    names = {("data", "training", name) for name in ("files", "images")}
    names |= {(kind, f, "source") for kind in ("teacher", "baseline") for f in rehearsal_families()}
    numbers = {
        ("train", name) for name in ("accumulation", "devices", "logging_steps", "save_steps")
    }
    numbers |= {("train", "launch", name) for name in ("config", "processes", "workers")}
    numbers |= {("evaluate", "max_new_tokens"), ("compare", "resamples")}
    numbers |= {("ptq", "calibration", "samples")}
    assert changed | added <= names | numbers | {path for path in after if path[0] == "deploy"}
    assert changed >= names
    models = {path[2] for path in after if path[:2] == ("deploy", "models")}
    assert models == set(scale_params("smoke")["deploy"]["models"])
    assert before.keys() - after.keys() >= {("data", "training", "repository")}
    # of the hyperparameters none
    for path in before:
        if path[0] == "train" and path not in numbers:
            assert after[path] == before[path]


def rehearsal_families():
    return parse_params(scale_params("paper")).families


def test_every_stage_of_the_runs_that_are_left_has_its_models(published):
    params = parse_params(rehearsal.rehearsed(published))
    assert set(params.runs) == set(rehearsal.RUNS)
    assert set(params.evaluate.benchmarks) == set(params.folders)


def test_checkpoints_annotations_and_benchmarks_are_made(published):
    params = parse_params(rehearsal.rehearsed(published))
    for models in (params.teacher, params.baseline):
        for family, model in models.items():
            assert check_model_directory(model.source)["model_type"] == family
    records = json.loads((published / "annotations.json").read_text())
    assert len(records) == miniature.CONVERSATIONS
    assert any("image" not in record for record in records)
    for record in records:
        if "image" in record:
            with Image.open(published / "images" / record["image"]) as image:
                image.load()
    for source in params.data.benchmarks.values():
        folder = published / "hub" / f"datasets--{source.repository.replace('/', '--')}"
        assert list(folder.glob("snapshots/*/**/*.parquet")), source
    assert [path.name for path in published.parent.iterdir()] == ["published"]
