"""From a deployment result to the ledger's verdict and the table."""

import json
import sys

import pytest

from grace.errors import InputError
from replication import paper as reported
from replication.judge.claims import verify
from replication.measure.clock import spread
from replication.measure.speed import benchmark
from replication.report.tables.deployments import deployment_reports
from replication.report.tables.files import build_table
from replication.results.deployment import deployment_record
from replication.results.measurements import write_measurement
from replication.settings.checks import load_params
from replication.settings.schema import Deploy
from replication.stages import deploy as stage
from replication.stats.verdict import Status

MODEL = "llava-1.5-7b"


def part(speed, gigabytes, weights, label="BF16"):
    """A variant's part with repeats within 2 % of these numbers."""
    return {
        "label": label,
        "weight_bytes": int(weights * 2**30),
        "time_to_first_token": spread([20.0, 20.5, 21.0]),
        "decode": {
            "1": {
                "tokens_per_second": spread([speed * f for f in (0.99, 1.0, 1.01)]),
                "seconds_per_step": spread([1 / speed]),
                "fraction_of_floor": 0.7,
                "bytes_per_step": int(weights * 2**30),
            },
            "4": {"not_run": "no room"},
        },
        "peak_bytes": {"batch 1": int(gigabytes * 2**30)},
        "copy_bandwidth": [20 * 2**30, weights * 2**31],
    }


def report_of(*, faster=3.2, memory=(15.0, 6.0), layers=None, evidence="measured", **more):
    variants = {
        "bf16": part(1.5, memory[0], 13.2),
        "int4": part(1.5 * faster, memory[1], 4.4, "INT4"),
        **more,
    }
    return {
        "name": "deploy",
        "evidence": evidence,
        "settings": {"repeats": 3, "layers": layers},
        "device": "a processor, 2 cores",
        "models": {MODEL: {"repository": "llava-hf/llava-1.5-7b-hf", "variants": variants}},
        "provenance": {
            "commit": "0" * 40,
            "device": "a processor, 2 cores",
            "instruction_set": "AVX2",
        },
    }


def verdicts(tmp_path, report, scale="small"):
    write_measurement(tmp_path, deployment_record(report, MODEL, scale))
    return {claim.claim.id: claim for claim in verify(tmp_path, scale, only=["C09", "C10"])}


def test_claims_hold_at_any_scale_when_measured(tmp_path):
    claims = verdicts(tmp_path, report_of())
    assert claims["C09"].status is Status.REPRODUCED
    assert claims["C10"].status is Status.REPRODUCED
    throughput, memory = claims["C09"].parts[0], claims["C10"].parts[0]
    assert throughput.interval.point == pytest.approx(3.2)
    assert throughput.interval.low == pytest.approx(3.2 * 0.99 / 1.01)
    assert memory.interval.point == pytest.approx(60)
    assert throughput.note == "measured on a processor, 2 cores, AVX2: batch 1 3.20 [3.14, 3.26] ×"


@pytest.mark.parametrize("faster", [1.9, 5.6])
def test_throughput_outside_of_the_band_is_contradicted(tmp_path, faster):
    assert verdicts(tmp_path, report_of(faster=faster))["C09"].status is Status.CONTRADICTED


@pytest.mark.parametrize("memory", [(15.0, 9.0), (15.0, 3.0)])
def test_memory_outside_of_the_band_is_contradicted(tmp_path, memory):
    assert verdicts(tmp_path, report_of(memory=memory))["C10"].status is Status.CONTRADICTED


def test_an_interval_across_the_end_of_the_band_decides_nothing(tmp_path):
    assert verdicts(tmp_path, report_of(faster=2.4))["C09"].status is Status.INCONCLUSIVE


def test_a_batch_at_which_int4_is_slower_is_not_hidden(tmp_path):
    report = report_of()
    for name, speed in (("bf16", 20.0), ("int4", 16.0)):
        decode = report["models"][MODEL]["variants"][name]["decode"]
        decode["16"] = {**decode["1"], "tokens_per_second": spread([speed])}
    (part,) = verdicts(tmp_path, report)["C09"].parts
    assert part.status is Status.INCONCLUSIVE
    assert part.interval.point == pytest.approx(3.2)  # batch 1 alone would hold
    assert "batch 16 0.80 ×; nothing is gained at batch 16" in part.note


def test_every_device_has_a_status_of_its_own(tmp_path):
    write_measurement(tmp_path, deployment_record(report_of(), MODEL, "small"))
    other = {**report_of(faster=1.5, evidence="recorded"), "device": "another"}
    write(tmp_path / "recorded" / "another", f"deploy/{MODEL}/deploy.json", other)
    (claim,) = verify(tmp_path, "small", only=["C09"], recorded=tmp_path / "recorded")
    assert {part.part.id: part.status for part in claim.parts} == {
        "C09.throughput": Status.REPRODUCED,
        "C09.throughput@another": Status.CONTRADICTED,
    }
    assert claim.status is Status.CONTRADICTED
    assert "recorded on another, AVX2" in claim.parts[1].note


def test_smoke_does_not_judge(tmp_path):
    claims = verdicts(tmp_path, report_of(), "smoke")
    assert claims["C09"].status is Status.INCONCLUSIVE


def test_what_was_not_measured_is_not_run(tmp_path):
    for claim in verify(tmp_path, "small", only=["C09", "C10"]):
        assert claim.status is Status.NOT_RUN
    report = report_of(int4={"label": "INT4", "not_run": "needs about 5.0 GiB"})
    for claim in verdicts(tmp_path, report).values():
        assert claim.status is Status.NOT_RUN
        assert "needs about 5.0 GiB" in claim.parts[0].note


def test_a_part_of_a_model_decides_nothing(tmp_path):
    for claim in verdicts(tmp_path, report_of(layers=2)).values():
        assert claim.status is Status.NOT_RUN
        assert claim.parts[0].note == "only 2 layers were built"


def test_reported_numbers_and_ends_of_the_bands():
    """The band's ends follow from the authors' numbers and the architecture."""
    from replication.plan.architectures import architecture

    printed = reported.load_tables().deployment
    parts = {part.id: part for claim in reported.load_ledger().claims for part in claim.parts}
    throughput, memory = parts["C09.throughput"], parts["C10.memory"]
    assert throughput.reported == printed["throughput_ratio_int4_over_bf16"]
    assert memory.reported == printed["memory_reduction_percent"]
    weights = printed["llava_7b_lm_weight_footprint_gb"]
    assert memory.band.high == pytest.approx(
        100 * (1 - weights["int4"] / weights["bf16"]), abs=0.05
    )
    published = architecture(MODEL)
    head = 2 * 32064 * 4096
    cache = 2 * 32 * 4096 * 2 * 640
    before = 2 * published.decoder_weights + head + cache
    after = published.decoder_weights * (4 + 32 / 128) / 8 + head + cache
    assert (before / 1e9, after / 1e9) == pytest.approx((13.5, 4.0), abs=0.06)
    assert before / after == pytest.approx(3.35, abs=0.01)
    assert throughput.band.low == pytest.approx(0.8 * throughput.reported)
    assert throughput.band.high == pytest.approx(before / after / 0.7, abs=0.03)


# ------------------------------------------------------------------------------------------ tables


def write(tmp_path, name, report):
    path = tmp_path / "small" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report), encoding="utf-8")
    return path


RECORDED = report_of(evidence="recorded", faster=4.0)


def test_table(tmp_path):
    nf4 = {"label": "NF4, bitsandbytes", "not_run": "the package bitsandbytes is not installed"}
    own = report_of(nf4=nf4)
    for name, most in (("bf16", 20), ("int4", 8)):
        variant = own["models"][MODEL]["variants"][name]
        variant["decode"]["16"] = variant["decode"]["1"]
        variant["peak_bytes"]["batch 16"] = most * 2**30
    write(tmp_path, f"deploy/{MODEL}/deploy.json", own)
    recorded = tmp_path / "recorded"
    write(recorded / "a-processor-2-cores", f"deploy/{MODEL}/deploy.json", RECORDED)
    table = build_table("deploy", tmp_path, "small", recorded)
    labels = [row["labels"] for row in table.data["rows"]]
    assert labels == [
        [MODEL, "BF16", "measured"],
        [MODEL, "INT4", "measured"],
        [MODEL, "NF4, bitsandbytes", "measured"],
        [MODEL, "BF16", "recorded"],
        [MODEL, "INT4", "recorded"],
    ]
    cells = table.data["rows"][1]["cells"]
    assert cells["Weights"]["measured"] == pytest.approx(4.4)
    assert cells["Peak memory"]["measured"] == pytest.approx(6.0)
    rate = cells["Decoding, batch 1"]
    assert (rate["low"], rate["measured"]) == pytest.approx((4.752, 4.8))
    assert cells["Decoding, batch 4"]["measured"] is None
    # the best copy of all processes is BF16's: 26.4 GiB/s
    assert cells["Of the floor, batch 1"]["measured"] == pytest.approx(100 * 4.4 * 4.8 / 26.4)
    bf16 = table.data["rows"][0]["cells"]["Of the floor, batch 1"]["measured"]
    assert bf16 == pytest.approx(100 * 13.2 * 1.5 / 26.4)
    text = table.markdown()
    assert "Not run: llava-1.5-7b, NF4, bitsandbytes: the package bitsandbytes is" in text
    assert "INT4 against BF16: throughput at batch 1 3.20× [3.14, 3.26]" in text
    assert "memory reduction 60.0 %, memory reduction at batch 16 60.0 %, weight reduction" in text
    assert "Recorded on a processor, 2 cores." in text
    for form in (table.csv(), table.tex(), table.json()):
        assert MODEL in form


def test_table_without_any_result(tmp_path):
    table = build_table("deploy", tmp_path, "small")
    assert table.data["rows"] == []
    assert "not run." in table.markdown()
    table.tex()


def test_table_says_that_a_model_is_not_whole(tmp_path):
    write(tmp_path, f"deploy/{MODEL}/deploy.json", report_of(layers=2))
    rows = build_table("deploy", tmp_path, "small").data["rows"]
    assert rows[0]["labels"][0] == f"{MODEL}, 2 layers"


def test_a_file_that_is_no_result_is_refused(tmp_path):
    write(tmp_path, f"deploy/{MODEL}/deploy.json", {"name": "deploy"})
    with pytest.raises(InputError, match=r"deploy\.json is no deployment result"):
        deployment_reports(tmp_path, "small")


def test_what_was_measured_here_is_not_passed_off_as_recorded(tmp_path):
    write(tmp_path / "recorded" / "gpu", f"deploy/{MODEL}/deploy.json", report_of())
    with pytest.raises(InputError, match="has to be 'recorded'"):
        deployment_reports(tmp_path, "small", tmp_path / "recorded")


def test_a_recording_lies_in_its_device_s_folder(tmp_path):
    write(tmp_path / "recorded" / "gpu", f"deploy/{MODEL}/deploy.json", RECORDED)
    with pytest.raises(InputError, match="its folder is a-processor-2-cores"):
        deployment_reports(tmp_path, "small", tmp_path / "recorded")


# ------------------------------------------------------------------------------------------- stage


def test_stage(tmp_path, monkeypatch, capsys):
    """The stage asks for what the parameters say, and writes what the ledger reads."""
    asked = {}

    def run(models, variants, settings, out, **_):
        asked.update(models=models, variants=variants, settings=settings, out=out)
        return report_of()

    section = Deploy({MODEL: ["bf16", "int4"]}, [1], 2, 3, 4, 5)
    params = load_params("params.yaml")
    object.__setattr__(params, "deploy", section)
    monkeypatch.setattr("replication.stages.load_params", lambda path: params)
    monkeypatch.setattr(benchmark, "run", run)
    monkeypatch.setattr(sys, "argv", ["deploy", MODEL])
    monkeypatch.chdir(tmp_path)
    stage.main()
    assert [one.name for one in asked["models"]] == [MODEL]
    assert [one.name for one in asked["variants"]] == ["bf16", "int4"]
    settings = asked["settings"]
    assert (settings.batches, settings.repeats, settings.decode_repeats) == ((1,), 2, 3)
    assert (settings.tokens, settings.seed, settings.layers) == (4, 5, None)
    assert str(asked["out"]) == f"results/{params.scale}/deploy/{MODEL}"
    (claim,) = verify("results", params.scale, only=["C09"])
    assert claim.status is Status.REPRODUCED
    assert "INT4 against BF16" in capsys.readouterr().out


def test_stage_refuses_a_model_that_the_parameters_do_not_name(monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "run", lambda *_, **__: pytest.fail("it was measured"))
    monkeypatch.setattr(sys, "argv", ["deploy", "llava-1.5-70b"])
    with pytest.raises(SystemExit) as left:
        stage.main()
    assert left.value.code == 2
    assert f"did you mean {MODEL!r}?" in capsys.readouterr().err
