"""What was trained is what is deployed, and where it is not, the ledger says so."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from repository import ROOT
from safetensors.torch import load_file, save_file

from grace.errors import InputError
from grace.int4 import PackedLinear
from grace.quantization import CODES_FILE, QuantSpec, bake, fake_quant_layers, prepare, write_codes
from replication.data.world.benchmarks import write_benchmark
from replication.data.world.scenes import Drawing
from replication.judge.claims import verify
from replication.measure import exported
from replication.measure.exported import WAYS, mismatches, trained_integers
from replication.results.measurements import read_measurement
from replication.settings.checks import load_params
from replication.stages import export as stage
from replication.stats.verdict import Status

SPEC = QuantSpec(4, 64)
COLUMNS = ("benchmark", "question_id", "prediction")


@pytest.fixture
def trained(small, tmp_path):
    """A directory as training leaves it: values on the grid, the integers beside them."""
    model = small.model(seed=2)
    prepare(model, SPEC)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for _, layer in fake_quant_layers(model):
            layer.log_scale.add_(0.1 * torch.randn(layer.log_scale.shape, generator=generator))
    path = tmp_path / "grace_int4" / "seed0"
    exact = bake(model)
    model.save_pretrained(path)
    small.processor.save_pretrained(path)
    write_codes(path, exact, SPEC.to_dict())
    return path


@pytest.mark.parametrize("way", WAYS)
def test_every_way_runs_on_the_trained_integers(trained, tmp_path, way):
    exact = trained_integers(trained)
    model, integers = WAYS[way](trained, tmp_path, crossover=8)
    assert len(integers) == len(exact) == 14
    assert mismatches(exact, integers) == 0
    if way == "packed":
        assert sum(isinstance(module, PackedLinear) for module in model.modules()) == 14
        return
    for name in exact:
        layer = model.get_submodule(name)
        weight = layer.dequantized() if way == "awq" else layer.weight
        dense = exact[name][0].float().unflatten(1, (-1, 64)) * exact[name][1][..., None]
        assert torch.equal(weight, dense.flatten(1))


def test_a_code_or_scale_that_differs_is_counted(trained):
    exact = dict(trained_integers(trained))
    name = next(iter(exact))
    codes, scales = exact[name]
    other = codes.clone()
    other[3, 5:8] = torch.where(other[3, 5:8] == 7, -8, other[3, 5:8] + 1)
    nudged = scales.clone()
    nudged[0, 0] *= 1.0078125
    assert mismatches(exact, exact) == 0
    assert mismatches(exact, {**exact, name: (other, scales)}) == 3
    assert mismatches(exact, {**exact, name: (other, nudged)}) == 4
    whole = codes.numel() + scales.numel()
    assert mismatches(exact, {k: v for k, v in exact.items() if k != name}) == whole
    assert mismatches(exact, {**exact, name: (codes[:, :32], scales)}) == whole
    assert mismatches({k: v for k, v in exact.items() if k != name}, exact) == whole
    not_a_number = scales.clone()
    not_a_number[1, 0] = float("nan")
    assert mismatches(exact, {**exact, name: (codes, not_a_number)}) == 1


def tamper(directory, ending):
    """Flip the lowest bit of one packed code."""
    (file,) = directory.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name in sorted(tensors) if name.endswith(ending))
    tensors[name].view(-1)[0] ^= 1
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "save", "ending"),
    [
        ("compressed", "save_compressed_tensors", ".weight_packed"),
        ("awq", "save_awq", ".qweight"),
    ],
)
def test_a_tampered_export_is_caught(trained, tmp_path, monkeypatch, way, save, ending):
    honest = getattr(exported, save)

    def tampering(*args, **kwargs):
        directory = honest(*args, **kwargs)
        tamper(directory, ending)
        return directory

    def evaluate_model(model, benchmarks, data, **_):
        rows = [("mmbench", "1", "red")]
        return SimpleNamespace(outcomes=pd.DataFrame(rows, columns=list(COLUMNS)))

    monkeypatch.setattr(exported, "evaluate_model", evaluate_model)
    arguments = (way, trained, tmp_path, tmp_path / "honest", {"benchmarks": [], "batch_size": 8})
    assert exported.answers(*arguments) == (0, [("mmbench", "1", "red")])
    monkeypatch.setattr(exported, save, tampering)
    wrong, _ = exported.answers(*arguments[:3], tmp_path / "tampered", arguments[4])
    assert wrong == 1


def test_other_codes_than_the_weights_are_refused_by_every_way(trained, tmp_path):
    tensors = load_file(trained / CODES_FILE)
    name = next(name for name in sorted(tensors) if name.endswith(".codes"))
    codes = tensors[name]
    place = int(codes.view(-1).abs().argmax())
    codes.view(-1)[place] = -codes.view(-1)[place].sign() * 3
    save_file(tensors, trained / CODES_FILE, {"quantization": json.dumps(SPEC.to_dict())})
    for way in WAYS:
        with pytest.raises(InputError, match=name.removesuffix(".codes").replace(".", r"\.")):
            WAYS[way](trained, tmp_path / way, crossover=8)


def test_equal_answers():
    before = [("a", "1", "red"), ("a", "2", "red"), ("b", "1", "two")]
    after = [("a", "1", "red"), ("a", "2", "blue"), ("b", "1", "two")]
    equal = exported.equal_answers(before, after)
    assert {name: one.tolist() for name, one in equal.items()} == {"a": [True, False], "b": [True]}
    with pytest.raises(InputError, match="other questions"):
        exported.equal_answers(before, after[:2])


# ------------------------------------------------------------------------------------------- stage


def run_stage(monkeypatch, tmp_path, family, answers):
    """The stage over what `answers` says, in `tmp_path`; its measurement and the claim."""
    params = load_params(ROOT / "params.yaml")
    seed = params.find_run(family, exported.RUN)[1].seeds[0]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "small" / f"{family}_runs" / exported.RUN / f"seed{seed}").mkdir(
        parents=True
    )
    monkeypatch.setattr("replication.stages.load_params", lambda path: params)
    monkeypatch.setattr(exported, "run_all", lambda function, jobs: [answers(*job) for job in jobs])
    monkeypatch.setattr(sys, "argv", ["export", family])
    stage.main()
    (claim,) = verify("results", "small", only=["C15"])
    return read_measurement("results", "small", f"export-{family}"), claim


def saying(wrong=0, other=None, changed=0):
    """Answers to 400 questions of every benchmark; one way gives `changed` others."""

    def answers(way, path, data, folder, settings):
        rows = [
            (name, str(i), "blue" if way == other and i < changed else "red")
            for name in settings["benchmarks"]
            for i in range(400)
        ]
        return (wrong if way == other else 0), rows

    return answers


FAMILIES = ("llava", "qwen2_vl", "qwen3_vl")


def parts_of(claim, family):
    return {
        part.part.id.split(".")[1]: part.status
        for part in claim.parts
        if part.part.id.endswith(family)
    }


def test_the_claim_holds_when_every_family_is_deployed_as_trained(monkeypatch, tmp_path):
    for family in FAMILIES:
        measurement, claim = run_stage(monkeypatch, tmp_path, family, saying())
        last = family == FAMILIES[-1]
        assert claim.status is (Status.DIRECTION_HOLDS if last else Status.NOT_RUN)
        assert parts_of(claim, family) == {
            "codes": Status.REPRODUCED,
            "answers": Status.REPRODUCED,
            "packed": Status.DIRECTION_HOLDS,
        }
    assert measurement.n["questions"] == 400 * measurement.n["benchmarks"]
    assert measurement.values["agreement"].point == 100


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answers", "part"),
    [
        (saying(wrong=1, other="packed"), "codes"),
        (saying(wrong=1, other="awq"), "codes"),
        (saying(other="compressed", changed=1), "answers"),
        (saying(other="packed", changed=20), "packed"),
    ],
)
def test_what_is_deployed_otherwise_is_contradicted(monkeypatch, tmp_path, answers, part):
    _, claim = run_stage(monkeypatch, tmp_path, "qwen2_vl", answers)
    assert claim.status.fails
    assert claim.failed
    statuses = parts_of(claim, "qwen2_vl")
    assert [name for name, one in statuses.items() if one.fails] == [part]


@pytest.mark.slow
def test_a_trained_model_answers_as_before(trained, tmp_path):
    """The real evaluation on a few stand-in questions."""
    (tmp_path / "data").mkdir()
    drawing = Drawing(6.0, 2)
    path = tmp_path / "data" / "mmbench.parquet"
    write_benchmark("mmbench", path, split="evaluation", count=12, seed=3, drawing=drawing)
    settings = {
        "benchmarks": ["mmbench"], "batch_size": 8, "max_new_tokens": 3, "dtype": "float32",
        "limit": 8,
    }  # fmt: skip
    jobs = [(way, trained, tmp_path / "data", tmp_path, settings) for way in (None, *WAYS)]
    (_, before), *after = [exported.answers(*job) for job in jobs]
    assert len(before) == 8
    for way, (wrong, rows) in zip(WAYS, after, strict=True):
        assert wrong == 0
        equal = np.concatenate(list(exported.equal_answers(before, rows).values()))
        assert equal.all() if way != "packed" else equal.mean() > 0.5
