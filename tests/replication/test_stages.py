"""Stages as commands: bad input is one clear line and exit code 2, and leaves nothing behind."""

import copy
import dataclasses
import importlib
import json
import os
import shutil
import sys
import time
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from repository import ROOT, python
from shapes import TEXT, VISION

from grace.data import Collator
from grace.errors import InputError
from grace.models import family_of, load_model, load_processor
from grace.quantization import CODES_FILE
from grace.training import CachedTeacher, Identity, LiveTeacher, check_teacher, prepare_student
from replication import stages
from replication.base.workers import run_all
from replication.evaluate.jobs import jobs_of
from replication.results.measurements import read_measurement
from replication.settings.checks import load_params, parse_params
from replication.settings.paths import Layout, teacher_outputs_of
from replication.settings.scales import merge, scale_params
from replication.settings.schema import Portion
from replication.train import tower
from replication.train.fit import (
    conversations,
    fit,
    last_checkpoint,
    load_training_data,
    origin_of,
    read_origin,
)
from replication.train.runs import method_config

RUN, GROUP, FAMILY, CELL = "grace_int4", "small_runs", "qwen2_vl", "regime_cell"
BUILT = (
    *("standins", f"vision {FAMILY}", f"features {FAMILY}", "language"),
    *(f"alignment {FAMILY}", f"pairs {FAMILY}"),
    *(f"teacher_outputs {FAMILY}", f"train {GROUP}"),
    *("regimes", f"train {CELL}"),
)
STEPS = {"steps": 2, "batch_size": 8}
PORTION = Portion([8, 40])
OTHERS = dict.fromkeys(["llava", "qwen2_vl_pair2", "qwen2_vl_world2", "qwen3_vl"])
RUNS = {GROUP: {"pair": FAMILY, "models": {RUN: {"method": "grace", "bits": 4, "seeds": [0]}}}}
RUNS[CELL] = {
    **{"pair": "regimes", "teacher": "regimes/little", "baseline": "regimes/noisy"},
    **{"records": [0, 16], "labels": "noisy"},
    "models": {"kd": {"method": "kd", "bits": 16, "seeds": [0]}},
}
TINY = {
    "scale": "smoke",
    "standins": {
        **{"train": 48, "alignment": {"images": 8, "turns": 2}, "language": 40},
        **{"evaluation": 30, "turns": 2, "vocab_size": 400},
    },
    "families": [FAMILY],
    "pairs": OTHERS,
    "methods": {**OTHERS, FAMILY: {"records": [8, 40]}},
    "vision": {
        **OTHERS,
        FAMILY: {"images": 24, "steps": 2, "batch_size": 8, "config": VISION},
    },
    "language": {"teacher": STEPS, "baseline": STEPS},
    "alignment": {
        **{"pairs": [FAMILY], "teacher": STEPS, "baseline": STEPS},
        **{"projector": {"steps": 2, "batch_size": 8}, "where_steps": 2},
    },
    "teacher": {
        **OTHERS,
        FAMILY: {**STEPS, "records": [0, 40], "text": {**TEXT, "num_hidden_layers": 3}},
    },
    "baseline": {**OTHERS, FAMILY: {**STEPS, "records": [0, 24], "text": TEXT}},
    "train": {"steps": 2, "batch_size": 8, "logging_steps": 1, "save_steps": 1},
    "evaluate": {"batch_size": 30},
    "internals": {"families": [FAMILY], "scenes": 2, "samples": 3, "conversations": 20},
    "tuning": {"questions": 10, "pairs": []},
    "teacher_outputs": {"baselines": []},
}


def tiny_params(**changes) -> dict:
    params = merge(yaml.safe_load((ROOT / "params.yaml").read_text()), TINY)
    params["ptq"]["groups"] = {}
    params["regimes"] = {
        "pair": FAMILY,
        "models": {
            "little": {"like": "teacher", "records": [0, 16]},
            "noisy": {"like": "baseline", "labels": "noisy"},
        },
    }
    folders = [FAMILY, GROUP, "regimes", CELL]
    params["evaluate"]["benchmarks"] = {folder: ["mmbench"] for folder in folders}
    return merge({**params, "runs": RUNS}, changes)


def run_changes(**changes) -> dict:
    """Changes of the one run."""
    return {GROUP: {"models": {RUN: changes}}}


@pytest.fixture
def stage(monkeypatch, capfd):
    """A function that runs a stage in a directory as its command would: (exit code, stderr)."""

    def run(folder, name, *words):
        module = importlib.import_module(f"replication.stages.{name}")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", [name, *words])
        capfd.readouterr()
        try:
            module.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        return code, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A directory in which the stages have run on the tiniest world."""
    folder = tmp_path_factory.mktemp("built")
    (folder / "params.yaml").write_text(yaml.safe_dump(tiny_params()))
    before, argv = os.getcwd(), sys.argv
    os.chdir(folder)
    try:
        for words in BUILT:
            sys.argv = words.split()
            importlib.import_module(f"replication.stages.{sys.argv[0]}").main()
    finally:
        os.chdir(before)
        sys.argv = argv
    return folder


@pytest.fixture
def spoilt(built, tmp_path):
    return shutil.copytree(built, tmp_path / "world")


def write(folder, params):
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def listing(folder):
    return {
        str(path.relative_to(folder)): path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() or not any(path.iterdir())
    }


def data(folder, *parts):
    return folder.joinpath("data", "smoke", *parts)


def models(folder, *parts):
    return folder.joinpath("models", "smoke", FAMILY, *parts)


def trained(folder, *parts):
    return folder.joinpath("models", "smoke", GROUP, RUN, *parts)


# ------------------------------------------------------------------------------- what they write


@pytest.mark.slow
def test_the_stages_write_what_the_layout_says(built):
    params = parse_params(tiny_params())
    layout = Layout(params)
    assert (built / layout.conversations).is_file()
    for path in (layout.processor, layout.vision, layout.features):
        assert (built / path(FAMILY)).exists(), path
    aligned = f"alignment/{FAMILY}"
    for folder, part in (
        *(("language", "text"), (aligned, "what"), (aligned, "where"), (FAMILY, "instruction")),
    ):
        for name in ("teacher", "baseline"):
            assert (built / layout.model(folder, name) / "model.safetensors").is_file()
            log = json.loads((built / layout.training_log(folder, name, part)).read_text())
            assert log["history"]
            assert log["cost"]["steps"] == 2
    assert (built / layout.trained(GROUP, RUN, 0) / CODES_FILE).is_file()
    assert not (built / layout.models / ".checkpoints" / GROUP).exists()
    assert not list(built.rglob("*.tmp"))
    meta = json.loads((built / layout.teacher_outputs(FAMILY) / "meta.json").read_text())
    assert meta["teacher"]["model_type"] == FAMILY


def test_each_model_is_evaluated_from_its_own_directory():
    """Teacher, baseline and every seed of a run: each name leads to its own weights."""
    params = parse_params(tiny_params(runs=run_changes(seeds=[3, 5])))
    folder = f"models/smoke/{FAMILY}"
    found = {job.name: {s: str(p) for s, p in job.paths.items()} for job in jobs_of(params, FAMILY)}
    assert found == {"teacher": {0: f"{folder}/teacher"}, "baseline": {0: f"{folder}/baseline"}}
    [job] = jobs_of(params, GROUP)
    assert (job.family, job.method, job.bits) == (FAMILY, "grace", 4)
    folder = f"models/smoke/{GROUP}/{RUN}"
    assert job.paths == {3: Path(f"{folder}/seed3"), 5: Path(f"{folder}/seed5")}


@pytest.mark.slow
def test_what_still_follows_is_not_trained_again(built, spoilt, stage):
    """A second run of the stage keeps the model; another seed is added, a dropped one removed."""
    weights = trained(spoilt, "seed0", "model.safetensors")
    before = weights.stat().st_mtime_ns
    write(spoilt, tiny_params(runs=run_changes(seeds=[0, 7])))
    assert stage(spoilt, "train", GROUP)[0] == 0
    assert weights.stat().st_mtime_ns == before
    other = trained(spoilt, "seed7", "model.safetensors")
    assert other.read_bytes() != weights.read_bytes()
    write(spoilt, tiny_params(runs=run_changes(seeds=[0], distillation={"tau": 0.9})))
    assert stage(spoilt, "train", GROUP)[0] == 0
    assert weights.stat().st_mtime_ns != before
    assert not other.exists()
    logs = spoilt / "results" / "smoke" / "training" / GROUP
    assert [str(p.relative_to(logs)) for p in logs.glob("*/*")] == [f"{RUN}/seed0.json"]


@pytest.mark.slow
def test_a_second_stage_starts_from_the_first_one_s_model(spoilt, stage):
    """The first in the file comes second: without steps of its own it ends as the other does."""
    still = {"method": "sft", "bits": 16, "seeds": [0], "start": "first", "learning_rate": 0.0}
    first = {"method": "sft", "bits": 16, "seeds": [0], "length": 2}
    runs = {GROUP: {"models": {RUN: None, "second": still, "first": first}}}
    write(spoilt, tiny_params(runs=runs))
    assert stage(spoilt, "train", GROUP)[0] == 0
    folder = spoilt / "models" / "smoke" / GROUP
    made = {name: folder / name / "seed0" / "model.safetensors" for name in ("first", "second")}
    assert made["second"].read_bytes() == made["first"].read_bytes()
    baseline = models(spoilt, "baseline", "model.safetensors")
    assert made["first"].read_bytes() != baseline.read_bytes()
    logs = spoilt / "results" / "smoke" / "training" / GROUP
    steps = {name: json.loads((logs / name / "seed0.json").read_text())["cost"] for name in made}
    assert {name: cost["steps"] for name, cost in steps.items()} == {"first": 4, "second": 2}
    before = made["second"].read_bytes()
    first["learning_rate"] = 0.1
    write(spoilt, tiny_params(runs=runs))
    assert stage(spoilt, "train", GROUP)[0] == 0
    assert made["second"].read_bytes() == made["first"].read_bytes() != before


def test_warm_ups_are_a_share_of_a_run_s_own_steps():
    """400 of the launcher's 1,299 steps; without that number they are what they say."""
    coefficients = {"own": {"distillation": {"rcka_warmup_steps": 3}}}
    params = parse_params(tiny_params(train={"steps": 300}, coefficients=coefficients))
    run = params.group(GROUP).models[RUN]
    found = {
        (name, length): method_config(
            params, dataclasses.replace(run, coefficients=name, length=length)
        ).distillation.rcka_warmup_steps
        for name in ("code", "launcher", "own")
        for length in (1.0, 2.0)
    }
    expected = {("code", 1.0): 0, ("launcher", 1.0): 300 * 400 / 1299, ("own", 1.0): 3}
    expected |= {("code", 2.0): 0, ("launcher", 2.0): 600 * 400 / 1299, ("own", 2.0): 3}
    assert found == {key: round(value) for key, value in expected.items()}


def test_self_distillation_has_no_component_and_no_temperature():
    own = {"baselines": [FAMILY]}
    params = parse_params(tiny_params(runs=run_changes(method="qad"), teacher_outputs=own))
    method = method_config(params, params.group(GROUP).models[RUN])
    chosen = method.distillation
    assert not method.cross_entropy
    assert (chosen.decoupled, chosen.adaptive, chosen.temperature) == (False, False, 1.0)
    assert (chosen.kappa, chosen.rcka_weight) == (0.0, 0.0)


@pytest.mark.slow
def test_what_still_follows_is_not_evaluated_again(spoilt, stage):
    results = spoilt / "results" / "smoke"
    scores = results / "scores" / GROUP / f"{RUN}.json"
    outcomes = results / "outcomes" / GROUP / f"{RUN}.parquet"
    assert stage(spoilt, "evaluate", GROUP)[0] == 0
    first = scores.read_bytes(), outcomes.read_bytes()
    times = scores.stat().st_mtime_ns
    (scores.parent / "gone.json").write_text("{}")
    assert stage(spoilt, "evaluate", GROUP)[0] == 0
    assert scores.stat().st_mtime_ns == times
    assert not (scores.parent / "gone.json").exists()
    outcomes.unlink()  # half a result is none
    assert stage(spoilt, "evaluate", GROUP)[0] == 0
    assert (scores.read_bytes(), outcomes.read_bytes()) == first
    questions = data(spoilt, "standins", "mmbench.parquet")
    pq.write_table(pq.read_table(questions).slice(0, 20), questions)
    assert stage(spoilt, "evaluate", GROUP)[0] == 0
    entry = json.loads(scores.read_text())["seeds"]["0"]["benchmarks"]["MMBench"]
    assert entry["n"] == 20


@pytest.mark.slow
def test_the_best_candidate_s_results_are_kept_under_the_tuned_name(spoilt, stage):
    other = {"method": "grace", "bits": 4, "seeds": [0], "learning_rate": 0.1}
    group = f"{FAMILY}_tuning"
    candidates = {"qat": None, "kd": None, "grace": [RUN, "other"]}
    changes = {
        "runs": {group: {"pair": FAMILY, "models": {"other": other}}},
        "evaluate": {"benchmarks": {group: ["mmbench"]}},
        "tuning": {"pairs": [FAMILY], "candidates": candidates},
    }
    write(spoilt, tiny_params(**changes))
    for words in (("train", group), ("evaluate", GROUP), ("evaluate", group), ("tuning", FAMILY)):
        assert stage(spoilt, *words)[0] == 0
    results = spoilt / "results" / "smoke"
    found = json.loads((results / "tuning" / f"{FAMILY}.json").read_text())["candidates"]
    assert [entry["run"] for entry in found] == [RUN, "other"]
    scores = [entry["score"] for entry in found]
    [best] = [entry["run"] for entry in found if entry["chosen"]]
    assert best == found[scores.index(max(scores))]["run"]
    folder = GROUP if best == RUN else group
    name = "grace_int4_tuned"
    kept, own = (
        json.loads((results / "scores" / place / f"{run}.json").read_text())
        for place, run in ((f"{FAMILY}_tuned", name), (folder, best))
    )
    assert kept == {**own, "run": name}
    answers = results / "outcomes" / folder / f"{best}.parquet"
    copy = results / "outcomes" / f"{FAMILY}_tuned" / f"{name}.parquet"
    assert copy.read_bytes() == answers.read_bytes()
    asked = data(spoilt, "validation", FAMILY, "mmbench.parquet")
    used = pq.read_table(data(spoilt, "standins", "mmbench.parquet"))["image"].to_pylist()
    seen = pq.read_table(asked)["image"].to_pylist()
    assert len(seen) == 10
    assert not {image["bytes"] for image in seen} & {image["bytes"] for image in used}


@pytest.mark.slow
def test_self_distillation_is_taught_by_the_baseline(spoilt, stage):
    """By its own logits: without quantization the loss would start at zero, and does nearly so."""
    runs = run_changes(method="qad", bits=8)
    write(spoilt, tiny_params(runs=runs, teacher_outputs={"baselines": [FAMILY]}))
    assert stage(spoilt, "teacher_outputs", FAMILY)[0] == 0
    layout = _layout(spoilt)
    path, family = layout.model(FAMILY, "baseline"), family_of(FAMILY)
    model, processor = load_model(path), load_processor(path)
    dataset = load_training_data(layout, FAMILY, PORTION, processor, model.config)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    batch = collate([dataset[index] for index in range(8)])
    inputs = {name: batch[name] for name in family.model_inputs if name in batch}
    with torch.no_grad(), family.take_vision_features(model):
        whole = model(**inputs).logits
    cached = CachedTeacher(layout.baseline_outputs(FAMILY), samples=len(dataset)).outputs(batch)
    expected = whole[batch["token_rows"], batch["token_columns"]]
    torch.testing.assert_close(cached.logits.float(), expected, rtol=2**-8, atol=1e-3)
    assert stage(spoilt, "train", GROUP)[0] == 0
    logs = spoilt / "results" / "smoke" / "training" / GROUP
    log = json.loads((logs / RUN / "seed0.json").read_text())
    assert log["history"][0]["loss"] < 0.01


@pytest.mark.slow
def test_what_is_in_trained_models_is_measured_and_measured_alike(spoilt, stage, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})  # one process: imports take long
    assert stage(spoilt, "internals", FAMILY)[0] == 0
    path = spoilt / "results" / "smoke" / "measurements" / f"internals-{FAMILY}.json"
    first = path.read_bytes()
    found = read_measurement(spoilt / "results", "smoke", f"internals-{FAMILY}")
    layers = {"teacher": 3, "baseline": 2, RUN: 2}
    shares = {f"visual_share.{name}.{k + 1}" for name, n in layers.items() for k in range(n)}
    alike = {"cka.baseline", f"cka.{RUN}", f"cka_gain.{RUN}"}
    assert set(found.values) == {*shares, *alike, *(n.replace("cka", "overlap") for n in alike)}
    assert found.n["questions"] == 3
    assert len(found.data["scenes"]) == 2
    for scene in found.data["scenes"]:
        for name, count in layers.items():
            attention = np.array(scene["models"][name]["attention"])
            assert attention.shape == (count, np.prod(scene["grid"]))
            assert ((attention > 0) & (attention < 1)).all()
    weights = found.data["distributions"]["weights"]
    assert sum(weights["before"]["counts"]) == sum(weights["after"]["counts"])
    assert len(first) < 250_000
    assert stage(spoilt, "internals", FAMILY)[0] == 0
    assert path.read_bytes() == first


@pytest.mark.slow
def test_a_cell_of_the_map_is_taught_by_its_teacher_on_its_data(built):
    params = parse_params(tiny_params())
    outputs = built / teacher_outputs_of(params, params.runs[CELL], params.runs[CELL].models["kd"])
    assert outputs.name == "regimes-little-0-16-noisy"
    assert [path.name for path in outputs.parent.iterdir()] == [outputs.name]
    layout = _layout(built)
    path = layout.model("regimes", "noisy")
    assert read_origin(path)["data"] != read_origin(layout.model(FAMILY, "baseline"))["data"]
    data = load_training_data(
        layout, FAMILY, Portion([0, 16], "noisy"), load_processor(path), load_model(path).config
    )
    assert np.diff(np.load(outputs / "offsets.npy")).tolist() == list(data.supervised)
    log = json.loads(layout.training_log(CELL, "kd", "seed0").read_text())
    assert log["pair"] == CELL
    logits = np.load(outputs / "logits.npy").astype(np.int32) << 16  # bfloat16
    logits = logits.view(np.float32).astype(np.float64)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    entropies = -(shares * np.log(shares)).sum(axis=1)
    assert log["teacher"]["entropy"] == pytest.approx(entropies.mean(), rel=1e-4)
    gates = np.exp(-entropies / np.log(logits.shape[1]))
    assert log["teacher"]["gate"] == pytest.approx(gates.mean(), rel=1e-4)


@pytest.mark.slow
def test_noisy_conversations_show_the_same_images(built):
    layout = _layout(built)
    processor = load_processor(layout.model(FAMILY, "baseline"))
    config = load_model(layout.model(FAMILY, "baseline")).config
    clean, noisy = (
        load_training_data(layout, FAMILY, Portion([4, 9], labels), processor, config)
        for labels in ("clean", "noisy")
    )
    assert clean.ids == noisy.ids
    np.testing.assert_array_equal(clean.vision_features, noisy.vision_features)
    features = np.load(layout.features(FAMILY))
    np.testing.assert_array_equal(clean.vision_features, features[4:9])
    table = pq.read_table(layout.conversations)
    for index in range(5):
        (words, _), (others, _) = clean.tokens(index), noisy.tokens(index)
        same = table["conversations"][4 + index] == table["noisy"][4 + index]
        assert (words.tolist() == others.tolist()) == same
    old = table.drop_columns(["noisy"])
    target = layout.conversations.with_name("old.parquet")
    pq.write_table(old, target)
    with pytest.raises(InputError, match=r"no column 'noisy'.*run the stage standins again"):
        conversations(target, "noisy")
    target.unlink()


@pytest.mark.slow
def test_a_tower_is_trained_with_one_thread(spoilt, stage, monkeypatch):
    """With several, the order of sums, and so the last bits, would change from run to run."""
    threads, pretrain = [], tower.pretrain

    def told(*arguments, **settings):
        threads.append(torch.get_num_threads())
        return pretrain(*arguments, **settings)

    monkeypatch.setattr(tower, "pretrain", told)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert stage(spoilt, "vision", FAMILY) == (0, ANY)
    finally:
        torch.set_num_threads(before)
    assert threads == [1]


@pytest.mark.slow
def test_the_cached_outputs_are_the_teacher_s(built):
    layout = _layout(built)
    path = layout.model(FAMILY, "teacher")
    model, processor = load_model(path), load_processor(path)
    data = load_training_data(layout, FAMILY, PORTION, processor, model.config)
    family = family_of(FAMILY)
    collate = Collator(family, model.config.image_token_id, processor.tokenizer.pad_token_id)
    batch = collate([data[index] for index in range(8)])
    inputs = {name: batch[name] for name in family.model_inputs if name in batch}
    with torch.no_grad(), family.take_vision_features(model):
        whole = model(**inputs).logits
    cached = CachedTeacher(layout.teacher_outputs(FAMILY), samples=len(data)).outputs(batch)
    expected = whole[batch["token_rows"], batch["token_columns"]]
    torch.testing.assert_close(cached.logits.float(), expected, rtol=2**-8, atol=1e-3)


@pytest.mark.slow
def test_a_shuffled_teacher_changes_the_run(spoilt, stage):
    before = trained(spoilt, "seed0", "model.safetensors").read_bytes()
    lengths = np.load(data(spoilt, FAMILY, "teacher_outputs", "offsets.npy"))
    write(spoilt, tiny_params(runs=run_changes(shuffled_teacher=True)))
    code, said = stage(spoilt, "train", GROUP)
    if code:  # so small a world may have samples without a partner
        assert "cannot be shuffled" in said
        assert len(lengths) == 33  # the methods' records
    else:
        assert trained(spoilt, "seed0", "model.safetensors").read_bytes() != before


def test_a_run_s_own_settings_come_before_the_shared_ones():
    own = run_changes(distillation={"tau": 0.77, "kappa": 0.0}, group_size=64)
    params = parse_params(tiny_params(runs=own))
    method = method_config(params, params.group(GROUP).models[RUN])
    chosen = method.distillation
    assert method.quantization.group_size == 64
    assert (chosen.tau, chosen.kappa) == (0.77, 0.0)
    assert chosen.eta == params.coefficients["code"].distillation["eta"]
    shared = parse_params(tiny_params(coefficients={"code": {"distillation": {"tau": 0.11}}}))
    method = method_config(shared, shared.group(GROUP).models[RUN])
    assert method.distillation.tau == 0.11
    assert method.quantization.group_size == shared.train.group_size


def test_naive_distillation_has_none_of_the_components():
    params = parse_params(tiny_params(runs=run_changes(method="kd")))
    method = method_config(params, params.group(GROUP).models[RUN])
    chosen = method.distillation
    assert (chosen.decoupled, chosen.adaptive, chosen.kappa, chosen.rcka_weight) == (
        False,
        False,
        0.0,
        0.0,
    )
    assert not method.relational


# ------------------------------------------------------------------------------------- bad input


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def set_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def set_teacher(folder, **changes):
    meta = data(folder, FAMILY, "teacher_outputs", "meta.json")
    set_json(meta, teacher={**json.loads(meta.read_text())["teacher"], **changes})


def prompt_never(folder):
    """A chat template that never asks for an answer."""
    template = models(folder, "baseline", "chat_template.jinja")
    asking = "{% if add_generation_prompt %}"
    assert asking in template.read_text()
    template.write_text(template.read_text().replace(asking, "{% if false %}"))


def train_set(folder):
    return data(folder, "standins", "train.parquet")


PER_FAMILY = [f"{name} {FAMILY}" for name in ("vision", "features", "pairs", "teacher_outputs")]
CASES = {
    "unknown group": ("train small_rums", lambda w: None, "did you mean 'small_runs'"),
    "unknown folder": ("evaluate small_rums", lambda w: None, "did you mean 'small_runs'"),
    "unknown family": ("pairs qwen2vl", lambda w: None, "did you mean 'qwen2_vl'"),
    **{
        f"no data set: {name}": (name, lambda w: remove(train_set(w)), "run the stage standins")
        for name in (*PER_FAMILY, f"train {GROUP}")
    },
    "corrupt data set": (f"features {FAMILY}", lambda w: truncate(train_set(w)), "train.parquet"),
    "no start": (
        f"pairs {FAMILY}",
        lambda w: remove(w / "models" / "smoke" / "alignment" / FAMILY / "teacher"),
        "does not exist",
    ),
    "no language model": (
        f"alignment {FAMILY}",
        lambda w: remove(w / "models" / "smoke" / "language" / "teacher"),
        "does not exist",
    ),
    "alignment of a pair without a tower of its own": (
        "alignment llava",
        lambda w: None,
        "alignment.pairs 'llava' is unknown",
    ),
    "no questions": (
        f"evaluate {GROUP}",
        lambda w: remove(data(w, "standins", "mmbench.parquet")),
        "mmbench.parquet",
    ),
    "no processor": (
        f"features {FAMILY}",
        lambda w: remove(models(w, "processor")),
        "run the stage vision",
    ),
    "no tower": (
        f"pairs {FAMILY}",
        lambda w: remove(models(w, "vision.safetensors")),
        "stage vision",
    ),
    "corrupt tower": (
        f"pairs {FAMILY}",
        lambda w: truncate(models(w, "vision.safetensors")),
        "run the stage vision",
    ),
    "no features": (
        f"train {GROUP}",
        lambda w: remove(data(w, FAMILY, "features.npy")),
        "run the stage features",
    ),
    "no baseline": (f"train {GROUP}", lambda w: remove(models(w, "baseline")), "does not exist"),
    "no teacher": (
        f"teacher_outputs {FAMILY}",
        lambda w: remove(models(w, "teacher")),
        "stage pairs",
    ),
    "no model": (f"evaluate {GROUP}", lambda w: remove(trained(w)), "does not exist"),
    "no text": (
        "language",
        lambda w: remove(data(w, "standins", "language.parquet")),
        "run the stage standins",
    ),
    "no teacher outputs": (
        f"train {GROUP}",
        lambda w: remove(data(w, FAMILY, "teacher_outputs")),
        "run the stage teacher_outputs",
    ),
    "a student of another family": (
        f"train {GROUP}",
        lambda w: set_json(models(w, "baseline", "config.json"), model_type="llava"),
        "'llava'",
    ),
    "a teacher of another vocabulary": (
        f"train {GROUP}",
        lambda w: set_teacher(w, vocabulary="0" * 64),
        "not the same ones",
    ),
    "template without a prompt": (f"train {GROUP}", prompt_never, "writes no generation prompt"),
    "no student to look into": (
        f"internals {FAMILY}",
        lambda w: remove(trained(w)),
        "does not exist",
    ),
    "no questions to ask": (
        f"internals {FAMILY}",
        lambda w: remove(data(w, "standins", "mmbench.parquet")),
        "run the stage standins",
    ),
    "too few questions to ask": (
        f"internals {FAMILY}",
        lambda w: write(w, tiny_params(internals={"samples": 31})),
        "has 30 questions",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_one_clear_line(case, spoilt, stage):
    words, spoil, told = CASES[case]
    spoil(spoilt)
    before = listing(spoilt)
    code, said = stage(spoilt, *words.split())
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert code == 2, said
    assert len(errors) == 1, said
    assert told in errors[0]
    assert "Traceback" not in said
    assert listing(spoilt) == before  # nothing written, not even in part


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "changes", "told"),
    [
        (["train", "nonsense"], {}, "folder 'nonsense' is unknown"),
        (["standins"], {"trian": {}}, "did you mean 'train'"),
    ],
)
def test_the_command_itself(tmp_path, words, changes, told):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tiny_params(**changes)))
    started = time.monotonic()
    done = python(
        "-c",
        f"import sys, runpy; sys.path.insert(0, {str(ROOT)!r}); name = sys.argv.pop(1); "
        "runpy.run_module(name, run_name='__main__', alter_sys=True)",
        f"replication.stages.{words[0]}",
        *words[1:],
        cwd=tmp_path,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    assert told in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
    assert time.monotonic() - started < 60


def test_a_missing_parameter_file(tmp_path, stage):
    code, said = stage(tmp_path, "claims")
    assert (code, said.count("\n")) == (2, 1)
    assert "params.yaml" in said


@pytest.mark.parametrize("name", sorted(stages.NOT_AT_FULL_SCALE))
def test_scale_paper_has_no_use_for(name):
    with pytest.raises(InputError, match=f"stage {name} is not run at scale paper"):
        stages.check_scale(name, parse_params(scale_params("paper")))
    stages.check_scale(name, parse_params(tiny_params()))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (f"evaluate {FAMILY}", "stage evaluate cannot finish here: benchmark ai2d"),
        ("train qwen2_vl_runs", "train.launch.config is 'replication/train/launch/fsdp2.yaml'"),
        ("conversations", "stage conversations cannot finish here: data Lin-Chen/ShareGPT4V"),
    ],
)
def test_scale_paper_begins_nothing_that_cannot_end(tmp_path, monkeypatch, stage, words, told):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(scale_params("paper")))
    code, said = stage(tmp_path, *words.split())
    assert (code, said.count("\n")) == (2, 1)
    assert told in said
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


@pytest.mark.slow
def test_a_published_checkpoint_can_be_a_local_directory(built, tmp_path, stage):
    params = scale_params("paper")
    params["teacher"][FAMILY]["source"] = str(models(built, "teacher"))
    params["baseline"][FAMILY]["source"] = str(models(built, "baseline"))
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    code, said = stage(tmp_path, "pairs", FAMILY)
    assert code == 0, said
    taken = tmp_path / "models" / "paper" / FAMILY / "teacher" / "model.safetensors"
    assert taken.read_bytes() == models(built, "teacher", "model.safetensors").read_bytes()
    log = tmp_path / "results" / "paper" / "training" / FAMILY / "teacher" / "source.json"
    assert json.loads(log.read_text())["source"] == params["teacher"][FAMILY]["source"]


# ------------------------------------------------------------------------- teachers and students


def test_a_teacher_may_pad_its_vocabulary():
    student = Identity("qwen2_vl", 151_936, 151_665, "a")
    check_teacher(student, Identity("qwen2_vl", 152_064, 151_665, "a"))
    check_teacher(student, Identity("qwen2_vl", 152_064))  # its tokenizer is not known


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model_type": "qwen3_vl"}, "'qwen3_vl'"),
        ({"tokens": 151_643}, "151643"),
        ({"vocabulary": "b"}, "not the same ones"),
        ({"rows": 100}, "100 rows"),
    ],
)
def test_another_vocabulary_is_refused(changes, told):
    common = {"model_type": "qwen2_vl", "rows": 152_064, "tokens": 151_665, "vocabulary": "a"}
    with pytest.raises(InputError, match=told):
        check_teacher(Identity(**common), Identity(**{**common, **changes}))


@pytest.mark.slow
def test_a_live_teacher_is_checked_by_the_trainer(make_model, processor, built, tmp_path):
    params = parse_params(tiny_params())
    student = load_model(models(built, "baseline"))
    own = load_processor(models(built, "baseline"))
    dataset = load_training_data(_layout(built), FAMILY, PORTION, own, student.config)
    other = copy.deepcopy(own.tokenizer)
    other.add_tokens(["<extra>"])
    family = family_of(FAMILY)
    method = method_config(params, params.group(GROUP).models[RUN])
    prepare_student(student, method)
    teacher = LiveTeacher(make_model(9), family, relational=True, tokenizer=other)
    with pytest.raises(InputError, match="tokenizer has"):
        fit(
            student,
            dataset,
            method,
            {
                **{"steps": 1, "batch_size": 4, "learning_rate": 1e-3},
                **{"seed": 0, "arithmetic": "float32"},
            },
            teacher=teacher,
            origin={},
            scratch=tmp_path / "scratch",
            log=tmp_path / "log.json",
        )
    assert not list(tmp_path.iterdir())


# --------------------------------------------------------------------- interruption and parallel


class _StopError(Exception):
    pass


class _Interrupting(CachedTeacher):
    """Stops a run the way a signal does, when it is asked for the given time."""

    left = 0

    def outputs(self, batch):
        self.left -= 1
        if self.left < 0:
            raise _StopError
        return super().outputs(batch)


def _layout(folder):
    layout = Layout(parse_params(tiny_params()))
    layout.data, layout.models = folder / layout.data, folder / layout.models
    layout.results = folder / layout.results
    return layout


def _fit(built, folder, stop_after=None, **changes):
    layout = _layout(built)
    params = parse_params(tiny_params())
    model = load_model(layout.model(FAMILY, "baseline"))
    method = method_config(params, params.group(GROUP).models[RUN])
    prepare_student(model, method)
    processor = load_processor(layout.model(FAMILY, "baseline"))
    dataset = load_training_data(layout, FAMILY, PORTION, processor, model.config)
    kind = CachedTeacher if stop_after is None else _Interrupting
    teacher = kind(layout.teacher_outputs(FAMILY), samples=len(dataset))
    teacher.left = stop_after
    settings = {"steps": 6, "batch_size": 8, "learning_rate": 1e-3, "seed": 4, "save_steps": 2}
    settings |= {"logging_steps": 1, "arithmetic": "bfloat16", **changes}
    with family_of(FAMILY).take_vision_features(model):
        trainer = fit(
            model,
            dataset,
            method,
            settings,
            teacher=teacher,
            origin=origin_of(model, dataset, method, settings, teacher, code="abc"),
            scratch=folder / "scratch",
            log=folder / "log.json",
        )
    weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
    return weights, trainer


def _same(first, second):
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.slow
def test_an_interrupted_run_goes_on_and_ends_the_same(built, tmp_path):
    whole, _ = _fit(built, tmp_path / "whole")
    with pytest.raises(_StopError):
        _fit(built, tmp_path / "cut", stop_after=5)
    scratch = tmp_path / "cut" / "scratch"
    assert (scratch / "checkpoint-4").is_dir()
    shutil.copytree(scratch / "checkpoint-4", scratch / "checkpoint-5")
    (scratch / "checkpoint-5" / "trainer_state.json").unlink()  # killed while it was written
    resumed, trainer = _fit(built, tmp_path / "cut", stop_after=2)  # it asks for two steps only
    assert trainer.state.global_step == 6
    assert _same(resumed, whole)
    cut, uncut = (json.loads((tmp_path / n / "log.json").read_text()) for n in ("cut", "whole"))
    assert cut["history"] == uncut["history"]
    assert cut["cost"] is None  # what the first part took is not known
    assert uncut["cost"]["steps"] == 6
    assert not scratch.exists()


@pytest.mark.slow
def test_work_that_was_done_is_not_done_again(built, tmp_path, monkeypatch):
    module, log = importlib.import_module("replication.train.fit"), tmp_path / "log.json"
    write_json = module.write_json_atomic

    def killed(path, content):
        if path == log:
            raise _StopError
        write_json(path, content)

    monkeypatch.setattr(module, "write_json_atomic", killed)
    with pytest.raises(_StopError):
        _fit(built, tmp_path)
    monkeypatch.undo()
    again, trainer = _fit(built, tmp_path, stop_after=0)  # the teacher is never asked
    assert trainer.state.global_step == 0
    found = json.loads(log.read_text())["history"]
    done, _ = _fit(built, tmp_path / "whole")
    assert _same(again, done)
    history = json.loads((tmp_path / "whole" / "log.json").read_text())["history"]
    assert [entry["ce"] for entry in found] == [entry["ce"] for entry in history]


@pytest.mark.slow
def test_what_training_took_is_measured(built, tmp_path):
    _, trainer = _fit(built, tmp_path, steps=4)
    cost = json.loads((tmp_path / "log.json").read_text())["cost"]
    data = trainer.train_dataset
    assert 0 < cost["seconds"] < 600
    assert cost["tokens"] == sum(len(data.tokens(i)[0]) for i in range(len(data)))  # one epoch
    trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    assert cost["trained_parameters"] == trained
    assert cost["peak_memory_bytes"] > 4 * trained


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_not_gone_on_from(built, tmp_path):
    with pytest.raises(_StopError):
        _fit(built, tmp_path / "cut", stop_after=5)
    changed, _ = _fit(built, tmp_path / "cut", learning_rate=2e-3)
    whole, _ = _fit(built, tmp_path / "whole", learning_rate=2e-3)
    assert _same(changed, whole)


def test_only_whole_checkpoints_count(tmp_path):
    origin = {"settings": "a"}
    assert last_checkpoint(tmp_path, origin) is None
    (tmp_path / "origin.json").write_text(json.dumps(origin))
    assert last_checkpoint(tmp_path, origin) is None
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "trainer_state.json").write_text('{"step": 1}')
    (tmp_path / "checkpoint-11" / "trainer_state.json").write_text('{"st')
    assert last_checkpoint(tmp_path, origin) == tmp_path / "checkpoint-10"
    assert last_checkpoint(tmp_path, {"settings": "b"}) is None


several_cores = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2 or torch.cuda.is_available(), reason="runs one after the other"
)


@pytest.mark.slow
def test_an_error_of_a_job_is_an_error_of_all(tmp_path):
    with pytest.raises(InputError, match="missing"):
        run_all(load_params, [(tmp_path / "missing",), (tmp_path / "missing",)])


@pytest.mark.slow
@several_cores
def test_the_first_error_stops_the_others():
    started = time.monotonic()
    with pytest.raises(TypeError):
        run_all(time.sleep, [(300,), ("long",)])
    assert time.monotonic() - started < 120
