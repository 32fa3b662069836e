"""The doctor on machines that are not there: injected probes, every scale's parameters."""

import dataclasses
import functools
import json
import socket
from pathlib import Path

import pytest

from grace.errors import InputError
from grace.files import read_yaml
from replication import doctor
from replication.base.files import ROOT
from replication.base.validation import validate
from replication.benchmarks import PRINTED
from replication.paper import load_tables
from replication.paper.bands import load_facts
from replication.plan import checks
from replication.plan.checks import (
    FAILED,
    OK,
    WARNING,
    check_checkpoint,
    check_device_memory,
    check_packages,
    require,
)
from replication.plan.machine import Gpu, Machine, hub_reachable, pins, probe
from replication.plan.needs import find_model, make_plan, needs, questions, shape_of
from replication.plan.resources import Resources, load_resources
from replication.plan.targets import stages_of
from replication.plan.text import duration, size
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params

BIG = Machine(
    gpus=(Gpu("NVIDIA A100-SXM4-80GB", 85.1e9, True),) * 16,
    ram=500e9,
    cores=96,
    instruction_set="AVX2",
    disk=20e12,
    hub=True,
    versions={name: version or "1.0" for name, version in pins().items()},
    cached=lambda repository, kind: False,
)
BARE = dataclasses.replace(BIG, gpus=(), ram=8e9, cores=2, disk=10e9, hub=False)


@functools.cache
def params(scale: str):
    return parse_params(scale_params(scale))


@pytest.fixture
def examine(capsys):
    """The checks of a machine by name, and what was printed."""

    def examine(machine: Machine, scale: str = "paper", **options):
        findings = doctor.report(scale, machine=machine, **options)
        return {finding.check: finding for finding in findings}, capsys.readouterr().out

    return examine


def test_a_machine_that_has_everything(examine):
    findings, text = examine(BIG)
    assert not [one for one in findings.values() if one.status == FAILED]
    assert findings["devices"].text.startswith("16 x NVIDIA A100")
    assert "16 x A100" in text and "table4" in text
    assert "qwen2_vl: teacher, baseline, qat_int8, kd_int8, grace_int8" in text
    assert findings["licence Qwen/Qwen2-VL-2B-Instruct"].text.startswith("Apache-2.0")
    # every failed or warned check says what to do
    assert all(one.mend for one in findings.values() if one.status != OK)


@pytest.mark.parametrize(
    ("changes", "check", "mend"),
    [
        ({"gpus": ()}, "devices", "GPUs"),
        ({"gpus": (Gpu("Tesla V100", 85e9, False),) * 16}, "devices", "8.0"),
        ({"gpus": (Gpu("NVIDIA A100", 24e9, True),) * 16}, "memory, llava", "train.batch_size"),
        ({"disk": 50e9}, "disk", "free some"),
        ({"ram": 20e9}, "main memory", "more memory"),
        ({"hub": False}, "checkpoint Qwen/Qwen3-VL-8B-Instruct", "HF_ENDPOINT"),
        ({"hub": False}, "benchmark pope", "HF_HOME"),
        ({"versions": {**BIG.versions, "torch": None}}, "packages", "make setup"),
    ],
)
def test_what_is_missing_fails_with_its_mend(examine, changes, check, mend):
    findings, text = examine(dataclasses.replace(BIG, **changes))
    assert findings[check].status == FAILED
    assert mend in findings[check].mend and findings[check].mend in text


def test_checks_of_one_outcome_are_told_together(examine):
    findings, text = examine(dataclasses.replace(BIG, hub=False))
    missing = [one for one in findings.values() if "can be reached" in one.text]
    assert len(missing) == 6 + 1 + 14
    assert text.count("neither the hub nor a cached copy can be reached") == 2
    assert text.count("HF_ENDPOINT") == 2  # a checkpoint's local directory, a data set's local copy
    words = " ".join(text.split())
    for one in missing:
        assert f"{one.check} ({one.size})" in words
    assert words.endswith("scale paper cannot be run here as a whole: mend what failed")


def test_fewer_devices_are_a_warning(examine):
    findings, _ = examine(dataclasses.replace(BIG, gpus=BIG.gpus[:8]))
    assert findings["devices"].status == WARNING
    assert "512 samples" in findings["devices"].mend


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["smoke", "small"])
def test_reduced_scales_need_little(examine, scale):
    findings, text = examine(BARE, scale)
    assert {one.status for one in findings.values()} == {OK}
    assert set(findings) == {"packages", "devices", "arithmetic", "main memory", "disk"}
    assert "2 cores with AVX2" in findings["devices"].text
    assert "table4" in text
    assert f"make repro SCALE={scale}" in text
    assert "download" not in text
    # what earlier trainings took, where their logs are
    assert ("training" in text) is Path("results", scale, "training").is_dir()
    findings, _ = examine(dataclasses.replace(BARE, disk=1e9), scale)
    assert findings["disk"].status == FAILED


def test_exit_codes(monkeypatch, capsys):
    for machine, code in ((BIG, 0), (BARE, 1)):
        monkeypatch.setattr(doctor, "probe", lambda machine=machine: machine)
        assert doctor.main(["paper"]) == code
    assert doctor.main(["large"]) == 2
    assert "scale 'large' is unknown" in capsys.readouterr().err


def test_a_machine_without_a_known_device_gets_the_times_of_an_example(examine):
    _, known = examine(BIG)
    _, none = examine(dataclasses.replace(BIG, gpus=()))
    _, unknown = examine(dataclasses.replace(BIG, gpus=(Gpu("GTX 280", 85e9, True),) * 16))

    def costs(text: str) -> str:
        (line,) = [line for line in text.splitlines() if line.strip().startswith("all ")]
        return line

    assert costs(none) == costs(unknown) == costs(known)
    assert "the times are for A100" in unknown


@pytest.mark.parametrize("options", [{"rate": "GTX 280"}, {"devices": 0}])
def test_options_out_of_range_are_refused(examine, options):
    with pytest.raises(InputError, match=r"GTX 280|--devices is 0"):
        examine(BIG, **options)


def test_twice_the_devices_take_half_as_long_and_the_same_hours(examine):
    resources, reported = load_resources(), load_tables()
    plan = make_plan(params("paper"), reported, resources, resources.device("A100"))
    faster = make_plan(params("paper"), reported, resources, resources.device("H100"))
    assert plan.total.train_seconds > faster.total.train_seconds > 0
    _, once = examine(BIG, rate="A100", devices=16)
    _, twice = examine(BIG, rate="A100", devices=32)

    def days(text: str) -> float:
        (line,) = [line for line in text.splitlines() if line.strip().startswith("all ")]
        assert line.endswith(" d")
        return float(line.split()[-2])

    assert days(once) == pytest.approx(2 * days(twice), abs=0.11)


def test_every_table_has_its_models_and_the_whole_counts_them_once():
    resources, reported = load_resources(), load_tables()
    plan = make_plan(params("paper"), reported, resources, resources.device("A100"))
    assert set(plan.tables) == {name for name, _, _ in reported.named_runs()}
    parts = [model for table in plan.tables.values() for model in table.models]
    assert len(plan.total.models) == len(set(map(id_of, parts))) < len(parts)
    assert plan.total.train_seconds < sum(table.train_seconds for table in plan.tables.values())
    most = max(table.train_seconds for table in plan.tables.values())
    assert plan.total.train_seconds >= most
    # the printed table 4 needs the runs that params.yaml names for it
    names = {model.name for model in plan.tables["table4"].models}
    assert {"teacher", "baseline", "grace_int4", "kd_int8"} <= names


def id_of(model):
    return model.family, model.folder, model.name


def test_a_run_is_found_in_its_section():
    small = params("small")
    assert find_model(small, "llava", "awq_int4").folder == "llava_ptq"
    assert not find_model(small, "llava", "awq_int4").trained
    assert find_model(small, "qwen2_vl", "grace_int4").copies == 3
    with pytest.raises(InputError, match="no group of runs"):
        find_model(small, "llava", "grace_int5")
    assert set(needs(small, load_tables())) >= {"table1", "table3", "cost"}


def test_seconds_at_a_reduced_scale_are_steps_at_the_rate_of_their_method(tmp_path):
    def log(place, seconds, steps):
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"cost": {"seconds": seconds, "steps": steps}}))

    log("qwen2_vl_runs/grace_int4/seed0.json", 90.0, 300)
    log("qwen2_vl_runs/grace_int4/seed1.json", 150.0, 300)
    log("bit_widths/qat_int2/seed0.json", 20.0, 100)
    log("qwen2_vl/teacher/instruction.json", 1000.0, 8000)
    small = params("small")
    small = dataclasses.replace(small, train=dataclasses.replace(small.train, steps=100))
    plan = make_plan(small, load_tables(), load_resources(), None, logs=tmp_path)
    found = {}
    for model in plan.tables["stages"].models:
        if model.run is not None and model.folder == "qwen2_vl_runs":
            found[model.name] = model.copies * 100 * 0.4  # the mean of 0.3 and 0.5
    assert set(found) >= {"grace_bf16", "grace_int4_long", "grace_int4_two_stages"}
    found["grace_int4_long"] *= 2
    found["grace_int8_long"] *= 2
    others = [m for m in plan.tables["stages"].models if m.run and m.folder != "qwen2_vl_runs"]
    expected = 1000 + sum(found.values()) + sum(40 * model.copies for model in others)
    assert plan.tables["stages"].train_seconds == pytest.approx(expected)
    models = plan.tables["tuned"].models
    assert {model.name for model in models if model.folder.startswith("llava")} == {
        *("baseline", "qat_int4", "qat_int4_rate0_3", "qat_int4_rate3", "grace_launcher_int4"),
        *("kd_int4", "kd_int4_weight3", "kd_int4_weight10", "grace_int4", "grace_int4_nckd1"),
    }
    assert {model.folder for model in models if model.name == "baseline"} == set(small.families)
    stages = stages_of(small, "tuned")
    assert {"tuning@llava", "tuning@qwen2_vl", "tuning@qwen3_vl"} <= set(stages)
    assert "evaluate@components" not in stages
    assert "evaluate@self_distillation" in stages_of(small, "qad")


def test_small_scale_takes_its_seconds_from_the_logs(tmp_path):
    resources, reported = load_resources(), load_tables()
    logs = ROOT / "results" / "small" / "training"
    plan = make_plan(params("small"), reported, resources, None, logs=logs)
    assert plan.tables["table4"].train_seconds > 60
    empty = make_plan(params("small"), reported, resources, None, logs=tmp_path)
    assert empty.tables["table4"].train_seconds is None


def test_every_resource_that_the_parameters_name_is_known():
    paper, resources = params("paper"), load_resources()
    for kind in (paper.teacher, paper.baseline):
        for settings in kind.values():
            assert settings.source in resources.checkpoints
            assert shape_of(settings.source).parameters > 1e9
    assert paper.data.training.repository in resources.corpus
    assert set(resources.benchmarks) == set(paper.data.benchmarks)
    assert resources.device("NVIDIA A100-PCIE-40GB").memory < resources.device("A100").memory


def test_questions_are_those_of_the_bands_unless_more_rows_are_asked():
    resources, facts = load_resources(), load_facts()
    more = set()
    for name, entry in resources.benchmarks.items():
        scored = facts.benchmark(PRINTED[name]).measured.questions
        asked = questions(name, resources)
        assert (asked > scored) is (entry.questions is not None), name
        more |= {name} if asked > scored else set()
    assert more == {"mme", "mmbench", "seedbench"}
    assert questions("pope", resources) == 9000


# ---------------------------------------------------------------------------------------- require


def test_a_stage_that_cannot_finish_is_refused_before_it_starts():
    paper = params("paper")
    require(paper, "pairs", "llava", machine=BIG)
    require(paper, "train", "llava", machine=BIG)
    require(paper, "evaluate", "llava", machine=BIG)
    require(params("small"), "train", "llava", machine=BARE)
    with pytest.raises(InputError, match="stage pairs cannot finish here: checkpoint"):
        require(paper, "pairs", "llava", machine=dataclasses.replace(BIG, hub=False))
    with pytest.raises(InputError, match="no accelerator"):
        require(paper, "train", "llava", machine=BARE)
    with pytest.raises(InputError, match="cannot finish here: disk"):
        require(paper, "conversations", machine=dataclasses.replace(BIG, disk=1e9))
    with pytest.raises(InputError, match="benchmark gqa"):
        require(paper, "evaluate", "llava", machine=dataclasses.replace(BIG, hub=False))


def test_a_cached_repository_or_a_local_directory_needs_no_hub(tmp_path):
    offline = dataclasses.replace(BIG, hub=False, cached=lambda repository, kind: kind == "model")
    require(params("paper"), "pairs", "llava", machine=offline)
    resources = load_resources()
    (finding,) = check_checkpoint(str(tmp_path), offline, resources)
    assert finding.status == FAILED
    (tmp_path / "model.safetensors").touch()
    (finding,) = check_checkpoint(str(tmp_path), offline, resources)
    assert (finding.status, finding.text) == (OK, "local directory")
    (finding,) = check_checkpoint("someone/else", offline, resources)
    assert finding.status == FAILED and "no architecture is known" in finding.text


# ----------------------------------------------------------------------------------------- probes


def test_the_hub_is_reachable_where_something_listens(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert hub_reachable(address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        assert not hub_reachable(address)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert not hub_reachable(address, seconds=0.2)


def test_versions_against_pins():
    machine = dataclasses.replace(BIG, versions={"torch": "2.13.0+cpu"})
    assert check_packages(machine, {"torch": "2.13.0"}).status == OK
    assert check_packages(machine, {"torch": "2.12.0"}).status == WARNING
    assert {"torch", "lmms-eval", "bitsandbytes"} <= set(pins())
    assert pins()["lmms-eval"] == "0.7.3"


@pytest.mark.parametrize("native", ["bfloat16", "float32"])
def test_arithmetic_is_the_machine_s_own_unless_it_is_chosen(monkeypatch, native):
    monkeypatch.setattr(checks.provenance, "native_arithmetic", lambda: native)
    small = params("small")
    finding = checks.check_arithmetic(small)
    assert finding.status == OK and finding.text.startswith(f"{native} ")
    chosen = checks.check_arithmetic(dataclasses.replace(small, arithmetic="bfloat16"))
    assert chosen.status == (OK if native == "bfloat16" else WARNING)


def test_this_machine_is_probed():
    machine = probe()
    assert machine.ram > 0 and machine.disk > 0 and machine.cores > 0
    assert machine.versions["torch"] and machine.versions["lmms-eval"]
    assert not machine.cached("nobody/nothing", "model")


def test_memory_is_judged_with_a_margin():
    parts = {"weights": 40e9, "teacher": 20e9, "peak": 60e9}
    assert check_device_memory("llava", parts, Gpu("x", 66e9, True)).status == OK
    refused = check_device_memory("llava", parts, Gpu("x", 64e9, True))
    assert refused.status == FAILED and "weights 40.0 GB" in refused.text


def test_numbers_as_text():
    assert [size(1.5e12), size(2e9), size(3.4e6), size(500)] == [
        "1.5 TB",
        "2.0 GB",
        "3.4 MB",
        "0 kB",
    ]
    assert [duration(None), duration(5), duration(90), duration(7200), duration(172800)] == [
        "-", "5 s", "1.5 min", "2.0 h", "2.0 d",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("devices", "A100", "flops"), "312e12", "devices.A100.flops"),
        (("devices", "A100", "memory"), -1.0, "greater than 0"),
        (("corpus", "Lin-Chen/ShareGPT4V", "bytez"), 1.0, "did you mean 'bytes'"),
        (("checkpoint_copies",), 1.5, "a whole number"),
    ],
)
def test_a_wrong_entry_of_the_resources_is_named(path, value, words):
    content = read_yaml(ROOT / "replication" / "plan" / "resources.yaml")
    *parents, last = path
    functools.reduce(dict.__getitem__, parents, content)[last] = value
    with pytest.raises(InputError) as caught:
        validate(Resources, content, "resources.yaml")
    assert words in str(caught.value) and "\n" not in str(caught.value)
