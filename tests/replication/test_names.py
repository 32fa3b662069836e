"""Small models are called by their classes and size, never by the published one's name."""

import pytest
from synthetic_results import write_results

from replication.base.files import write_json_atomic
from replication.report.names import (
    classes_text,
    parameters_text,
    read_models,
    standin_name,
)
from replication.report.tables.files import build_table
from replication.results.training_logs import logs_path


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (812_544, "0.8 M parameters"),
        (420_608, "0.4 M parameters"),
        (61_200, "61 k parameters"),
        (134_515_008, "134.5 M parameters"),
        (7_615_616_512, "7.6 B parameters"),
        (None, "size not logged"),
    ],
)
def test_a_size_is_that_of_the_counted_parameters(count, text):
    assert parameters_text(count) == text


def test_a_small_model_has_the_classes_of_the_published_one_not_its_name():
    assert standin_name("teacher", 812_544, "qwen2_vl") == (
        "teacher, 0.8 M parameters, Qwen2-VL classes"
    )
    assert classes_text("llava_pair2") == "LLaVA-1.5 classes, second pair"
    assert classes_text("qwen2_vl_world2") == "Qwen2-VL classes, second world"


def test_sizes_are_read_from_training_logs(tmp_path):
    for role, count in (("teacher", 900_000), ("baseline", 500_000)):
        path = logs_path(tmp_path, "small", "llava", role) / "instruction.json"
        write_json_atomic(path, {"family": "llava", "parameters": count})
    models = read_models(tmp_path, "small", "llava")
    assert models.both == "Stand-ins: teacher 0.9 M, baseline 0.5 M parameters, LLaVA-1.5 classes"
    assert models.size == "0.5 M parameters"
    assert models.record()["baseline"] == {
        "name": "baseline, 0.5 M parameters, LLaVA-1.5 classes",
        "parameters": 500_000,
        "size": "0.5 M parameters",
    }
    other = read_models(tmp_path, "small", "qwen3_vl")
    assert other.name("teacher") == "teacher, size not logged, Qwen3-VL classes"


def test_at_full_scale_models_are_the_published_ones(tmp_path):
    models = read_models(tmp_path, "paper", "qwen2_vl")
    assert (models.record(), models.group) == ({}, "Qwen2-VL")


@pytest.mark.slow
def test_size_and_standin_stand_in_rows_columns_and_caption_of_a_table(tmp_path):
    runs = {"teacher": 0.8, "baseline": 0.6, "grace_bf16": 0.7}
    write_results(tmp_path, runs, seed=1, n=20)
    for role, count in (("teacher", 900_000), ("baseline", 500_000)):
        path = logs_path(tmp_path, "small", "qwen2_vl", role) / "instruction.json"
        write_json_atomic(path, {"family": "qwen2_vl", "parameters": count})
    table = build_table("table4", tmp_path, "small")
    caption = "Measured models (stand-ins): teacher, 0.9 M parameters, Qwen2-VL classes; baseline"
    for text in (table.markdown(), table.tex()):
        assert caption in text
        assert "measured (stand-in, 0.5 M parameters)" in text
        assert "teacher, 0.9 M parameters, Qwen2-VL classes, stand-in (measured)" in text
    assert "teacher, 0.9 M parameters, Qwen2-VL classes" in table.csv()
