"""Released checkpoints, as small models in the authors' formats: found, scored, judged, resumed."""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from repository import ROOT

from replication.data.mirror import COMMIT, add_benchmark, add_repository

sys.path.append(str(ROOT / "tests" / "grace"))  # the formats are written there

from exported import trained
from test_export_released import write_original, write_packed, write_sidecar

from grace.errors import InputError
from grace.quantization import QuantSpec
from replication import released as command
from replication.benchmarks import get
from replication.benchmarks.published import prepare
from replication.evaluate import parts
from replication.evaluate.released import Attempt, Places
from replication.evaluate.score import evaluate_model
from replication.judge import released as judging
from replication.paper import load_tables
from replication.paper import released as checkpoints
from replication.results.scores import ResultSet
from replication.settings.checks import parse_params
from replication.settings.scales import merge, scale_params
from replication.stats.verdict import Band, Status

pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

KNOWN = checkpoints.load_checkpoints()
QWEN = [name for name, one in KNOWN.items() if one.family == "qwen3_vl"]
LLAVA = [name for name, one in KNOWN.items() if one.family == "llava"]
NAMES = ["mmbench", "scienceqa"]
TINY = {"evaluate": {"dtype": "float32", "max_new_tokens": 3, "batch_size": 8}}
SPREAD = 0.3  # of the random weights: wide enough that answers differ between questions
WIDE, FAR = Band(0.0, 100.0, "any score"), Band(200.0, 300.0, "no score")


def student(small, bits, seed=0):
    return trained(small, QuantSpec(bits, 128), seed=seed, initializer_range=SPREAD)


def plain_with(expected, directory):
    """The directory's plain model with weights codes · scales: what a release has to compute."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(directory, dtype=torch.float32)
    for name, (codes, scales) in expected.items():
        weight = model.get_submodule(name).weight
        width = weight.shape[1] // scales.shape[1]
        weight.data.copy_(codes.float() * scales.repeat_interleave(width, dim=1))
    return model.eval()


@pytest.fixture(scope="module")
def made(family, tmp_path_factory):
    """Small checkpoints in their directories by name, and the plain models they stand for."""
    folder = tmp_path_factory.mktemp("released")
    directories, models = {}, {}

    def directory(name):
        directories[name] = folder / name
        directories[name].mkdir()
        return directories[name]

    qwen, llava = family("qwen3_vl"), family("llava")
    path = directory("qwen3-vl-2b-bf16")
    qwen.model(seed=2, initializer_range=SPREAD).bfloat16().save_pretrained(path)
    models["qwen3-vl-2b-bf16"] = plain_with({}, path)  # .float() would keep rounded frequencies
    for name, bits in (("qwen3-vl-2b-w8g128", 8), ("qwen3-vl-2b-w4g128", 4)):
        path = directory(name)
        expected = write_sidecar(
            qwen, trained(qwen, QuantSpec(bits, 128), initializer_range=SPREAD), path
        )
        models[name] = plain_with(expected, path)
        qwen.processor.save_pretrained(path)
    path = directory("qwen3-vl-2b-w4g128-awq")
    other = student(qwen, 4, seed=4)
    expected = write_packed(qwen, other, path, 128)
    half = qwen.model().half()
    state = {k: v.half() for k, v in other.state_dict().items() if "log_scale" not in k}
    half.load_state_dict(state)
    half.save_pretrained(folder / "half")
    models["qwen3-vl-2b-w4g128-awq"] = plain_with(expected, folder / "half")
    base = llava.model(seed=5)
    base.save_pretrained(directory("base-llava"))
    llava.processor.save_pretrained(directories["base-llava"])
    qwen.processor.save_pretrained(directory("base-qwen"))
    write_sidecar(llava, student(llava, 4), directory(LLAVA[0]))
    write_original(directories[LLAVA[0]], tower=False)
    write_packed(llava, student(llava, 4), directory(LLAVA[1]), 128)
    write_original(directories[LLAVA[1]], tower=True)
    return directories, models


@pytest.fixture(scope="module")
def mirror(made, tmp_path_factory):
    """A mirror with all checkpoints, their base models, and the data of two benchmarks."""
    directories, _ = made
    folder = tmp_path_factory.mktemp("mirror")
    places = {one.repository: directories[name] for name, one in KNOWN.items()}
    places[KNOWN[LLAVA[0]].processor] = directories["base-llava"]
    places[KNOWN[QWEN[0]].processor] = directories["base-qwen"]
    for repository, directory in places.items():
        files = {file.name: file for file in directory.iterdir() if file.is_file()}
        add_repository(folder, repository, "model", files)
    for name in NAMES:
        add_benchmark(folder, name, tmp_path_factory.mktemp("scratch"), 12, 1)
    return folder


@pytest.fixture(scope="module")
def params():
    return parse_params(merge(scale_params("paper"), TINY))


@pytest.fixture
def places(tmp_path, mirror):
    return Places(
        tmp_path / "results", None, mirror, tmp_path / "benchmarks", tmp_path / "evaluations"
    )


@pytest.fixture
def verify(params, places):
    def run(models, benchmarks=NAMES, places=places, **options):
        return command.verify(
            models, benchmarks, places, params, **{"processes": 1, "device": "cpu", **options}
        )

    return run


def verdicts(places):
    content = json.loads((places.results / command.VERDICTS).read_text())
    return {
        name: {cell["column"]: cell for cell in entry["cells"]} for name, entry in content.items()
    }


# --------------------------------------------------------------------------------------- the list


def test_the_list_names_a_row_and_benchmarks_for_every_checkpoint():
    assert len(KNOWN) == 6
    for checkpoint in KNOWN.values():
        row = checkpoint.reported.row(checkpoint.run)
        assert row.role == "ours"
        assert checkpoint.repository.startswith("ForeverBlue/")
        assert checkpoint.seen
        shown = checkpoint.reported.benchmark_columns
        assert len(checkpoint.benchmarks()) == len(shown)
    assert {KNOWN[name].run for name in QWEN} == {"grace_bf16", "grace_int8", "grace_int4"}
    released = load_tables().table("qwen3vl")
    assert {row.run for row in released.rows if row.role == "ours"} == {
        KNOWN[name].run for name in QWEN
    }


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"format": "gguf"}, "gguf"),
        ({"bits": 8}, "at 8 bits is not what row grace_int4 of qwen3vl is of"),
        ({"run": "grace_int5"}, "run 'grace_int5' of qwen3vl is unknown"),
        ({"table": "table9"}, "table 'table9' is unknown"),
        ({"verified": "perhaps"}, "true or false"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_a_wrong_entry_is_named(changes, told):
    content = yaml.safe_load(checkpoints.LIST.read_text())
    name = "qwen3-vl-2b-w4g128"
    with pytest.raises(InputError, match=told):
        checkpoints.parse_checkpoints({name: {**content[name], **changes}})


# ---------------------------------------------------------------------------- from files to a score


@pytest.mark.slow
def test_every_released_checkpoint_scores_as_the_plain_model_it_stands_for(
    verify, places, made, mirror, family, params, tmp_path
):
    """From a mirror: the outcomes of codes · scales in an ordinary model, question by question."""
    _, models = made
    verify(None)
    found = ResultSet(places.results, "paper")
    assert found.runs("qwen3_vl") == sorted(QWEN)
    assert found.runs("llava") == sorted(LLAVA)
    data = {
        name: prepare(get(name), params.data.benchmarks[name], tmp_path / "views", mirror)
        for name in NAMES
    }
    for name in QWEN:
        reference = evaluate_model(
            models[name],
            NAMES,
            data,
            processor=family("qwen3_vl").processor,
            batch_size=8,
            max_new_tokens=3,
        )
        outcomes = pd.read_parquet(found.outcomes_file("qwen3_vl", name))
        mine = outcomes.sort_values(["benchmark", "question_id"])["prediction"].tolist()
        theirs = reference.outcomes.sort_values(["benchmark", "question_id"])["prediction"]
        assert mine == theirs.tolist(), name
        assert len(set(mine)) > 3
    answers = {
        name: tuple(pd.read_parquet(found.outcomes_file(KNOWN[name].family, name))["prediction"])
        for name in KNOWN
    }
    assert len(set(answers.values())) >= 5, "different checkpoints answer differently"
    scores = found.scores("llava", LLAVA[1])
    assert not scores.standin
    assert scores.provenance["checkpoint"]["commit"] == COMMIT
    assert scores.provenance["checkpoint"]["repository"] == KNOWN[LLAVA[1]].repository
    assert scores.provenance["data"]["MMBench"]["commit"] == COMMIT
    # ScienceQA is in both tables, MMBench under two names; the rest was not asked for
    cells = verdicts(places)
    for name, own in cells.items():
        run = {column for column, cell in own.items() if cell["status"] != "NOT RUN"}
        assert run == ({"SQA", "MMB"} if name in LLAVA else {"ScienceQA", "MMBench"})
        assert own["Avg"]["reason"] == "not every benchmark was run"


@pytest.mark.slow
def test_plain_copies_under_a_path_give_the_same(verify, places, made, mirror, tmp_path):
    directories, _ = made
    name = "qwen3-vl-2b-w4g128"
    copies = tmp_path / "copies"
    shutil.copytree(directories[name], copies / KNOWN[name].repository.partition("/")[2])
    verify([name])
    first = ResultSet(places.results, "paper").scores("qwen3_vl", name)
    other = Places(tmp_path / "other", copies, mirror, places.data, tmp_path / "parts")
    verify([name], places=other)
    second = ResultSet(other.results, "paper").scores("qwen3_vl", name)
    assert second.seeds == first.seeds
    assert second.provenance["checkpoint"]["commit"] is None
    assert second.provenance["checkpoint"]["sha256"] == first.provenance["checkpoint"]["sha256"]
    one = Places(tmp_path / "one", directories[name], mirror, places.data, tmp_path / "parts1")
    verify([name], places=one)
    assert ResultSet(one.results, "paper").scores("qwen3_vl", name).seeds == first.seeds


@pytest.mark.slow
def test_finished_benchmarks_are_kept_and_others_added(verify, places, monkeypatch):
    name = QWEN[0]
    verify([name], ["mmbench"])
    first = ResultSet(places.results, "paper").scores("qwen3_vl", name)
    assert first.benchmarks == ["MMBench"]
    verify([name], ["scienceqa"])
    both = ResultSet(places.results, "paper").scores("qwen3_vl", name)
    assert set(both.benchmarks) == {"MMBench", "ScienceQA"}
    assert both.seeds[0]["MMBench"] == first.seeds[0]["MMBench"]
    assert both.provenance["data"].keys() == both.seeds[0].keys()
    monkeypatch.setattr(parts, "load", lambda _: pytest.fail("loaded again"))
    before = {p: p.stat().st_mtime_ns for p in (places.results / "paper").rglob("*.*")}
    verify([name], NAMES)
    assert before == {p: p.stat().st_mtime_ns for p in (places.results / "paper").rglob("*.*")}


@pytest.mark.slow
def test_what_cannot_be_had_is_not_run_with_the_reason(verify, places, mirror, tmp_path, capsys):
    """A repository that is not there, one that is damaged, and data that are not there."""
    partial = tmp_path / "partial"
    shutil.copytree(mirror, partial, symlinks=True)
    gone, broken, fine = QWEN[1], QWEN[2], QWEN[0]
    shutil.rmtree(partial / f"models--{KNOWN[gone].repository.replace('/', '--')}")
    folder = partial / f"models--{KNOWN[broken].repository.replace('/', '--')}"
    sidecar = next(folder.rglob("qat_quantized_weights.bin"))
    target = tmp_path / "sidecar"
    target.write_bytes(sidecar.read_bytes()[:2000])
    sidecar.unlink()
    sidecar.symlink_to(target)
    shutil.rmtree(next(partial.glob("datasets--*ScienceQA")))
    status = verify(
        [gone, broken, fine],
        places=Places(places.results, None, partial, places.data, places.parts),
    )
    cells = verdicts(places)
    assert status is not Status.NOT_RUN
    assert {cell["status"] for cell in cells[gone].values()} == {"NOT RUN"}
    assert f"'{KNOWN[gone].repository}' is not in mirror" in cells[gone]["MMBench"]["reason"]
    assert "corrupt or truncated" in cells[broken]["Avg"]["reason"]
    assert cells[fine]["MMBench"]["status"] != "NOT RUN"
    assert "ScienceQA' is not in mirror" in cells[fine]["ScienceQA"]["reason"]
    assert cells[fine]["AI2D"]["reason"] == "not asked for"
    text = " ".join(capsys.readouterr().out.split())
    assert text.count("not run: all cells: ") == 2
    assert text.count(f"'{KNOWN[gone].repository}' is not in mirror") == 1
    assert text.count("corrupt or truncated") == 1
    assert text.count("ScienceQA' is not in mirror") == 1
    assert "not run: HallusionBench, AI2D, MMMU, SEED, MMStar: not asked for" in text
    assert "not run: Avg: not every benchmark was run" in text
    assert "24 cells of 3 checkpoints: " in text and "23 NOT RUN" in text
    measured = ResultSet(places.results, "paper")
    cells = judging.judge(Attempt(KNOWN[fine], missing={"": "it is gone"}), measured)
    text = judging.verdicts_text([Attempt(KNOWN[fine], missing={"": "it is gone"})], {fine: cells})
    assert "measured before, not this time: it is gone" in text


# ---------------------------------------------------------------------------------------- verdicts


@pytest.mark.slow
@pytest.mark.parametrize(
    ("band", "status", "code"),
    [(WIDE, "REPRODUCED", 0), (FAR, "CONTRADICTED", 1)],
)
def test_the_command_judges_and_exits(tmp_path, mirror, monkeypatch, capsys, band, status, code):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judging, "band", lambda *_: band)
    monkeypatch.setattr(command, "scale_params", lambda scale: merge(scale_params(scale), TINY))
    words = ["--mirror", str(mirror), "--models", QWEN[0], "--benchmarks", "mmbench"]
    assert command.main([*words, "--processes", "1", "--device", "cpu"]) == code
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("  MMBench"))
    assert line.endswith(status)
    assert "86.4" in line
    content = json.loads(Path("results/released/verdicts.json").read_text())
    cell = next(c for c in content[QWEN[0]]["cells"] if c["column"] == "MMBench")
    assert cell["status"] == status
    assert cell["measured"][1] <= cell["measured"][0] <= cell["measured"][2]
    scores = ResultSet("results/released", "paper").scores("qwen3_vl", QWEN[0])
    assert cell["measured"][0] == pytest.approx(scores.score("MMBench"))


def test_an_interval_is_that_of_the_official_score(tmp_path):
    """MMStar's score is no mean over questions: the interval moves to it with its width."""
    from replication.results.scores import benchmark_score, write_outcomes, write_scores

    credits = [1.0] * 30 + [0.0] * 10
    name = QWEN[0]
    entry = benchmark_score(70.0, credits, 25.0, accuracy=75.0)
    write_scores(
        tmp_path,
        {
            **{"family": "qwen3_vl", "run": name, "method": "grace", "bits": 16, "scale": "paper"},
            **{"standin": False, "seeds": {"0": {"benchmarks": {"MMStar": entry}}}},
            "provenance": {},
        },
    )
    columns = {
        "seed": [0] * 40,
        "benchmark": ["MMStar"] * 40,
        "question_id": [str(i) for i in range(40)],
        **{key: ["x"] * 40 for key in ("skill", "prediction", "target")},
        "credit": credits,
    }
    write_outcomes(tmp_path, "paper", "qwen3_vl", name, columns)
    cells = judging.judge(Attempt(KNOWN[name]), ResultSet(tmp_path, "paper"))
    interval = next(cell.interval for cell in cells if cell.column == "MMStar")
    assert interval.point == pytest.approx(70.0)
    half = 1.96 * 100 * (0.75 * 0.25 / 40) ** 0.5  # of a mean of 40 answers
    assert interval.high - interval.low == pytest.approx(2 * half, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models", "qwen3-vl-2b-w4"], "checkpoint 'qwen3-vl-2b-w4' is unknown"),
        (["--benchmarks", "mmbenhc"], "unknown benchmark 'mmbenhc'"),
        (["--mirror", "/nowhere/hub"], "--mirror: '/nowhere/hub' is no directory"),
        (["--path", "/nowhere/models"], "--path: '/nowhere/models' is no directory"),
        (["--processes", "none"], "--processes is 'none'"),
        (["--processes", "0"], "--processes is '0'"),
    ],
)
def test_bad_words_are_one_line_and_exit_code_2(words, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert command.main(words) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert told in text
    assert text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("option", "told"), [("--mirror", "no repo"), ("--path", "holds none of")])
def test_an_empty_directory_is_refused_before_anything_is_looked_for(
    tmp_path, capsys, option, told
):
    assert command.main([option, str(tmp_path), "--results", str(tmp_path / "results")]) == 2
    text = capsys.readouterr().err
    assert told in text and text.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_nothing_that_could_be_run_is_no_success(tmp_path, mirror, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    part = tmp_path / "hub"
    part.mkdir()
    source = next(mirror.glob("datasets--*MMBench"))
    shutil.copytree(source, part / source.name, symlinks=True)
    words = ["--mirror", str(part), "--benchmarks", "mmbench"]
    assert command.main([*words, "--processes", "1", "--device", "cpu"]) == 2
    said = capsys.readouterr()
    assert "nothing could be run" in said.err
    assert said.out.count("not run: all cells: ") == len(KNOWN)


@pytest.mark.slow
def test_one_checkpoint_as_path_needs_its_name(made, capsys):
    directories, _ = made
    assert command.main(["--path", str(directories[QWEN[0]])]) == 2
    assert "name it with --models" in capsys.readouterr().err
