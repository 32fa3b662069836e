"""docs/extending.md: its examples are run as printed, and what they add is used."""

import contextlib
import io
import re
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from tiny_families import tiny_config, tiny_model
from transformers import TrainingArguments

from grace.data import ConversationDataset
from grace.distillation import DistillationConfig, kd
from grace.export import load_packed, save_packed
from grace.files import read_yaml
from grace.int4 import BACKENDS, PackedLinear, effective_bits, pack
from grace.models import FAMILIES, family_of
from grace.quantization import QuantSpec, fake_quant_layers, prepare
from grace.training import GraceTrainer, LiveTeacher, MethodConfig, prepare_student
from replication.benchmarks import BENCHMARKS, PRINTED
from replication.data.world.schemas import features_of
from replication.judge.claims import verify
from replication.paper import FOLDER, load_tables, parse_ledger
from replication.settings.checks import parse_params
from replication.settings.scales import scale_params
from replication.stats.verdict import Status
from replication.train.runs import method_config

ROOT = Path(__file__).resolve().parents[1]
DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")


def section(heading):
    return DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def example(heading):
    """The names that the Python under a heading defines."""
    (code,) = re.findall(r"```python\n(.*?)```", section(heading), flags=re.DOTALL)
    names: dict = {"__name__": "example"}
    exec(compile(code, "docs/extending.md", "exec"), names)
    return names


def yaml_example(heading):
    """The indented YAML under a heading."""
    return yaml.safe_load("\n".join(re.findall(r"(?m)^    (.*)$", section(heading))))


@pytest.fixture(autouse=True)
def registries():
    """As they were, afterwards."""
    with contextlib.ExitStack() as kept:
        for registry in (FAMILIES, BACKENDS, BENCHMARKS, PRINTED):
            kept.enter_context(mock.patch.dict(registry))
        yield


def fit(place, kind, model, data, collate, method, teacher=None, steps=1):
    arguments = TrainingArguments(
        str(place),
        max_steps=steps,
        learning_rate=0.01,
        per_device_train_batch_size=4,
        use_cpu=True,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        report_to=[],
    )
    trainer = kind(model, arguments, data, collate, method=method, teacher=teacher)
    trainer.train()
    return trainer


# ----------------------------------------------------------------------------------------- family


def test_a_family():
    config = tiny_config("qwen2_5_vl")
    found = family_of(config)
    example("A model family")
    mine = family_of(config)
    assert mine.projectors == () != found.projectors
    student = tiny_model("qwen2_5_vl")
    linears = found.decoder_linears(student)
    method = MethodConfig("grace", 4, QuantSpec(4, 32), DistillationConfig())
    assert prepare_student(student, method) == linears
    frozen = {name for name, value in student.named_parameters() if not value.requires_grad}
    assert frozen == {n for n, _ in student.named_parameters() if n.startswith("model.visual.")}
    assert mine.image_layout(config) == found.image_layout(config)


# --------------------------------------------------------------------------------------- back end


def test_a_back_end(tmp_path, make_model):
    example("A back end for packed weights")
    model, other = make_model(3), make_model(3)
    for one in (model, other):
        prepare(one, QuantSpec(4, 64))
    exact = {name: (layer.codes(), layer.scales()) for name, layer in fake_quant_layers(model)}
    names = pack(model, backend="bytes")
    pack(other, backend="reference")
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(0))
    for name in names:
        ours, theirs = model.get_submodule(name), other.get_submodule(name)
        assert ours.backend == "bytes"
        assert ours.mismatches(*exact[name]) == 0
        weight = exact[name][0].double() * exact[name][1].double().repeat_interleave(64, 1)
        bias = 0 if ours.bias is None else ours.bias.double()
        torch.testing.assert_close(
            ours(x).double(), x.double() @ weight.T + bias, rtol=1e-5, atol=1e-5
        )
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-6, atol=1e-6)
    scales = 32 / 64  # bits a weight: float32 for groups of 64
    assert effective_bits(model).packed_bits == pytest.approx(8 + scales)
    save_packed(model, tmp_path / "packed")
    loaded = load_packed(tmp_path / "packed", backend="reference")
    for name, layer in loaded.named_modules():
        if isinstance(layer, PackedLinear):
            assert torch.equal(layer.codes(), exact[name][0])


# ------------------------------------------------------------------------------------------- loss


@pytest.mark.slow
def test_a_loss(tmp_path, make_model, family, conversations):
    trainer_class = example("A loss")["WithReverseKD"]
    small = family("qwen2_vl")
    model = make_model(1)
    data = ConversationDataset(conversations, small.processor, model.config, limit=4)  # one step's
    method = MethodConfig("grace", 4, QuantSpec(4, 64), DistillationConfig(adaptive=False))
    large = make_model(2, num_hidden_layers=3)

    def first_loss(trainer_class, **attributes):
        student = make_model(1)
        prepare_student(student, method)
        teacher = LiveTeacher(large, small.adapter, relational=True)
        trainer_class = type("Changed", (trainer_class,), attributes)
        trainer = fit(tmp_path, trainer_class, student, data, small.collator(), method, teacher)
        return trainer.state.log_history[0]["loss"]

    plain = first_loss(GraceTrainer)
    assert first_loss(trainer_class, reverse_weight=0.0) == plain
    prepare_student(model, method)
    batch = small.collator()([data[index] for index in range(4)])
    student, teacher = (
        LiveTeacher(one, small.adapter, relational=False).outputs(batch).logits
        for one in (model, large)
    )
    term = kd(teacher, student).mean().item()
    loss = first_loss(trainer_class, reverse_weight=0.5)
    assert loss - plain == pytest.approx(0.5 * term, rel=1e-3)


# -------------------------------------------------------------------------------------------- run


def test_a_run():
    added = yaml_example("A run")["runs"]["gates"]["models"]
    content = scale_params("small")
    content["runs"]["gates"]["models"] |= added
    params = parse_params(content)
    (name,) = added
    group, run = params.find_run("qwen2_vl", name)
    assert group == "gates"
    method = method_config(params, run)
    assert method.distillation is not None
    assert (method.method, method.bits, method.distillation.kappa) == ("grace", 4, 8.0)
    base = method_config(params, params.find_run("qwen2_vl", "grace_int4")[1])
    assert base.distillation is not None
    assert base.distillation.kappa == 1.0
    assert base.quantization == method.quantization


# -------------------------------------------------------------------------------------- benchmark


def test_a_benchmark(tmp_path, make_model, processor, monkeypatch):
    lmms_model = pytest.importorskip("grace.evaluation.lmms", reason="lmms-eval is not installed")
    from replication.evaluate.score import evaluate_model

    example("A benchmark")
    content = io.BytesIO()
    Image.new("RGB", (64, 64), (90, 20, 30)).save(content, "PNG")
    image = {"bytes": content.getvalue(), "path": None}
    answers = ["A", "C", "2", "no", "B", "D"]
    rows = [
        {"question": f"how many {place} ?", "answer": answer, "image": image}
        for place, answer in enumerate(answers)
    ]
    table = pa.Table.from_pylist(rows, schema=features_of(rows[0]).arrow_schema)
    pq.write_table(table, tmp_path / "realworldqa.parquet")
    given = list(answers)

    def said(self, requests):
        return [given[request.args[3]] for request in requests]

    monkeypatch.setattr(lmms_model.ChatModel, "generate_until", said)
    model = make_model(1).eval()
    for place, credits in ((None, [1.0] * 6), (2, [1.0, 1.0, 0.0, 1.0, 1.0, 1.0])):
        if place is not None:
            given[place] = "zebra"
        found = evaluate_model(model, ["realworldqa"], tmp_path, processor=processor)
        assert found.outcomes["credit"].tolist() == credits
        assert found.outcomes["target"].tolist() == answers
        assert found.scores["realworldqa"]["score"] == pytest.approx(100 * np.mean(credits))


# ------------------------------------------------------------------------------------------ claim


def test_a_claim():
    content, tables = read_yaml(FOLDER / "claims.yaml"), load_tables()
    content["claims"] += yaml_example("A claim")["claims"]
    (result,) = verify(
        ROOT / "results", "small", parse_ledger(content, tables), tables, only={"X01"}
    )
    (part,) = result.parts
    assert part.interval.low < part.interval.point < part.interval.high
    assert result.status in (Status.DIRECTION_HOLDS, Status.INCONCLUSIVE)
