"""The trainer against references written out by hand: losses, normalisation, state, resume."""

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from grace.data import Collator, ConversationDataset
from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import family_of, load_model
from grace.quantization import FakeQuantLinear, QuantSpec, bake
from grace.training import (
    QAD,
    CachedTeacher,
    GraceTrainer,
    LiveTeacher,
    MethodConfig,
    Objective,
    prepare_student,
    write_teacher_outputs,
)

QWEN = family_of("qwen2_vl")
DISTILLATION = {"tau": 0.2, "eta": 0.5, "beta_init": 0.7, "beta_min": 0.1, "beta_max": 2.0}


def method_of(name, bits=16, **distillation):
    spec = None if bits == 16 else QuantSpec(bits=bits)
    chosen = None
    if name == "qad":
        chosen = DistillationConfig.from_dict({**QAD, **distillation})
    if name in ("kd", "grace"):
        chosen = DistillationConfig.from_dict({**DISTILLATION, **distillation})
    return MethodConfig(name, bits=bits, quantization=spec, distillation=chosen)


@pytest.fixture
def dataset(conversations, processor, make_model):
    return ConversationDataset(conversations, processor, make_model().config)


@pytest.fixture
def held(conversations, processor, make_model):
    """A few conversations to evaluate on."""
    return ConversationDataset(conversations, processor, make_model().config, limit=7)


@pytest.fixture
def teacher(make_model):
    return LiveTeacher(make_model(9, num_hidden_layers=3), QWEN, relational=True)


def collator_of(dataset):
    processor = dataset.processor
    return Collator(dataset.family, processor.image_token_id, processor.tokenizer.pad_token_id)


def build(tmp_path, model, dataset, method, teacher=None, callbacks=None, held=None, **options):
    prepare_student(model, method)
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_steps": 1000,
        "max_grad_norm": 0.0,
        "seed": 5,
        "optim": "adamw_torch",
    } | options
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        report_to=[],
        remove_unused_columns=False,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **settings,
    )
    return GraceTrainer(
        model,
        arguments,
        dataset,
        collator_of(dataset),
        eval_dataset=held,
        method=method,
        teacher=teacher if method.needs_teacher else None,
        callbacks=callbacks,
    )


def losses_by_hand(student, teacher_model, batches, config):
    """CE, GDKD, RCKA and mean gate of a global batch in float64, from the definitions."""
    ce = gdkd = gates = rcka = 0.0
    tokens = images = 0
    for batch in batches:
        names = family_of(student.config.model_type).model_inputs
        inputs = {name: batch[name] for name in names if name in batch}
        with torch.no_grad():
            s = student(**inputs, output_hidden_states=True)
            t = teacher_model(**inputs, output_hidden_states=True)
        labels = batch["labels"]
        for row in range(labels.shape[0]):
            for position in range(labels.shape[1] - 1):
                y = labels[row, position + 1].item()
                if y == -100:
                    continue
                zs, zt = s.logits[row, position].double(), t.logits[row, position].double()
                ce -= math.log(torch.softmax(zs, 0)[y].item())
                tokens += 1
                p1 = torch.softmax(zt, 0)
                entropy = -(p1 * p1.log()).sum().item()
                gate = math.exp(-config.kappa * entropy / math.log(len(p1)))
                pt = torch.softmax(zt / config.temperature, 0)
                ps = torch.softmax(zs / config.temperature, 0)
                keep = torch.arange(len(pt)) != y
                binary = (pt[y] * (pt[y] / ps[y]).log()).item()
                binary += ((1 - pt[y]) * ((1 - pt[y]) / (1 - ps[y])).log()).item()
                ht, hs = pt[keep] / (1 - pt[y]), ps[keep] / (1 - ps[y])
                rest = (ht * (ht / hs).log()).sum().item()
                term = config.alpha * binary + config.beta_dkd * rest
                if not config.decoupled:
                    term = (pt * (pt / ps).log()).sum().item()
                gdkd += gate * term * config.temperature**2
                gates += gate
        for row, start, stop in batch["image_spans"]:
            a = s.hidden_states[-2][row, start:stop].double()
            b = t.hidden_states[-2][row, start:stop].double()
            a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
            n = stop - start
            h = torch.eye(n, dtype=torch.float64) - 1.0 / n
            ka, kb = h @ a @ a.T @ h, h @ b @ b.T @ h
            rcka += 1 - ((ka * kb).sum() / (ka.norm() * kb.norm())).item()
            images += 1
    return ce / tokens, gdkd / gates, rcka / images, gates / tokens


@pytest.mark.slow
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("decoupled", [True, False])
def test_logged_terms_equal_the_definitions(
    tmp_path, make_model, dataset, teacher, accumulation, decoupled
):
    # so sharp a gate that tokens of a random teacher differ by more than the tolerances below
    method = method_of("grace", bits=4, decoupled=decoupled, kappa=16.0)
    trainer = build(
        tmp_path,
        make_model(1),
        dataset,
        method,
        teacher,
        max_steps=1,
        gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=12 // accumulation,
    )
    untouched = copy.deepcopy(trainer.model)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda samples: seen.append(collate(samples)) or seen[-1]
    trainer.train()
    used = seen[:accumulation]
    log = trainer.state.log_history[0]
    ce, gdkd, rcka, gate = losses_by_hand(untouched, teacher.model, used, method.distillation)
    assert log["ce"] == pytest.approx(ce, rel=1e-4)
    assert log["gdkd"] == pytest.approx(gdkd, rel=1e-4)
    assert log["rcka"] == pytest.approx(rcka, rel=1e-3)
    total = ce + 0.7 * gdkd + rcka  # β starts at 0.7, ω at 1
    assert log["loss"] == pytest.approx(total, rel=1e-4)
    # β moves by η (EMA - τ), and the first observation is the EMA
    assert log["ema"] == pytest.approx(gdkd, rel=1e-4)
    assert log["beta"] == pytest.approx(min(2.0, 0.7 + 0.5 * (gdkd - 0.2)), rel=1e-4)
    assert log["gate"] == pytest.approx(gate, rel=1e-3)


@pytest.mark.slow
def test_every_family_trains_under_a_bigger_teacher(tmp_path, small, conversations):
    """Terms as defined, from pixels and from features alike; resumed as uninterrupted; the trained
    model survives its directory."""
    model = small.model(num_hidden_layers=3)
    dataset = ConversationDataset(conversations, small.processor, model.config)
    features = small.adapter.vision_features(model, dataset.pixels(range(len(dataset))))
    cached = ConversationDataset(
        conversations,
        small.processor,
        model.config,
        vision_features=features.unflatten(0, (len(dataset), -1)).numpy(),
    )
    bigger = small.model(
        9, hidden_size=192, num_attention_heads=3, intermediate_size=192, num_hidden_layers=4
    )
    bigger.get_submodule(small.adapter.vision_tower).load_state_dict(
        {
            name: value
            for name, value in model.get_submodule(small.adapter.vision_tower).state_dict().items()
            if "merger" not in name
        },
        strict=False,
    )
    tokenizer = small.processor.tokenizer
    live = LiveTeacher(bigger, small.adapter, relational=True, tokenizer=tokenizer)
    method = method_of("grace", bits=4)
    options = {"max_steps": 2, "save_steps": 1, "save_only_model": False}

    student = copy.deepcopy(model)
    trainer = build(tmp_path / "pixels", student, dataset, method, live, **options)
    untouched = copy.deepcopy(student)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda samples: seen.append(collate(samples)) or seen[-1]
    expected = weights_after(trainer)
    log = trainer.state.log_history[0]
    ce, gdkd, rcka, _ = losses_by_hand(untouched, bigger, seen[:1], method.distillation)
    assert log["ce"] == pytest.approx(ce, rel=1e-4)
    assert log["gdkd"] == pytest.approx(gdkd, rel=1e-4)
    assert log["rcka"] == pytest.approx(rcka, rel=1e-3)
    assert rcka > 1e-3
    start = dict(untouched.named_parameters())
    frozen = small.adapter.tower_parameters(untouched)
    for name, value in expected.items():
        assert torch.equal(value, start[name]) == (name in frozen), name

    with (
        small.adapter.take_vision_features(bigger),
        small.adapter.take_vision_features(again := copy.deepcopy(model)),
    ):
        found = weights_after(build(tmp_path / "features", again, cached, method, live, **options))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=name)

    resumed = build(tmp_path / "pixels", copy.deepcopy(model), dataset, method, live, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "pixels" / "checkpoint-1"))
    for name, value in resumed.model.named_parameters():
        assert torch.equal(value, expected[name]), name

    bake(student)
    student.save_pretrained(tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    assert type(loaded) is type(student)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


def weights_after(trainer):
    trainer.train()
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "grace"])
def test_accumulation_changes_nothing(tmp_path, make_model, dataset, teacher, name):
    """One optimizer step on 12 samples is the same in 1, 2 or 6 micro-batches."""
    found = []
    for accumulation in (1, 2, 6):
        trainer = build(
            tmp_path / str(accumulation),
            make_model(1),
            dataset,
            method_of(name, bits=16),
            teacher,
            max_steps=1,
            optim="sgd",
            gradient_accumulation_steps=accumulation,
            per_device_train_batch_size=12 // accumulation,
        )
        found.append(weights_after(trainer))
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "bits"), [("sft", 16), ("qat", 4), ("kd", 8), ("grace", 4), ("grace", 16)]
)
def test_frozen_parts_stay_and_the_others_move(tmp_path, make_model, dataset, teacher, name, bits):
    model = make_model(1)
    trainer = build(tmp_path, model, dataset, method_of(name, bits), teacher)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    theirs = {key: value.clone() for key, value in teacher.model.state_dict().items()}
    after = weights_after(trainer)
    for key, value in after.items():
        frozen = "visual" in key and "merger" not in key
        assert torch.equal(value, before[key]) == frozen, key
    assert all(torch.equal(value, theirs[key]) for key, value in teacher.model.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.model.parameters())
    scales = [key for key in after if key.endswith("log_scale")]
    assert bool(scales) == (bits != 16)
    assert all(after[key].dtype == torch.float32 for key in scales)


def training_log(trainer):
    return [
        {name: value for name, value in entry.items() if name != "grad_norm"}
        for entry in trainer.state.log_history
        if "loss" in entry
    ]


@pytest.mark.slow
def test_the_log_is_the_same_with_evaluation_and_checkpoints_in_between(
    tmp_path, make_model, dataset, held, teacher
):
    logs = []
    for name, more in (
        ("plain", {}),
        ("between", {"eval_strategy": "steps", "eval_steps": 1, "save_steps": 3}),
    ):
        options = {"max_steps": 4, "logging_steps": 2, **more}
        trainer = build(
            tmp_path / name, make_model(1), dataset, method_of("grace", 4), teacher,
            held=held if more else None, **options,
        )  # fmt: skip
        trainer.train()
        logs.append(training_log(trainer))
        evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert len(evaluations) == (4 if more else 0)
        assert all("ce" not in entry for entry in evaluations)
    assert logs[0] == logs[1]
    assert [entry["step"] for entry in logs[0]] == [2, 4]


def test_evaluation_is_the_cross_entropy_of_a_supervised_token(tmp_path, make_model, dataset, held):
    """Whatever the batches: 7 samples in batches of 2, and all in one by hand."""
    model = make_model(1)
    trainer = build(
        tmp_path, model, dataset, method_of("qat", 4), held=held, per_device_eval_batch_size=2
    )
    found = trainer.evaluate()["eval_loss"]
    batch = collator_of(held)([held[index] for index in range(7)])
    names = [name for name in QWEN.model_inputs if name in batch]
    with torch.no_grad():
        logits = model.eval()(**{name: batch[name] for name in names}).logits
    chosen = logits[batch["token_rows"], batch["token_columns"]].double()
    expected = torch.nn.functional.cross_entropy(chosen, batch["targets"])
    assert found == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
def test_the_best_checkpoint_is_kept_and_loaded(tmp_path, make_model, dataset, held):
    """A rate that only harms: the first evaluation is the best one."""
    trainer = build(
        tmp_path, make_model(1), dataset, method_of("sft"), held=held, learning_rate=0.3,
        eval_strategy="steps", eval_steps=1, save_steps=1, save_total_limit=1, max_steps=3,
        load_best_model_at_end=True,
    )  # fmt: skip
    trainer.train()
    losses = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    best = losses.index(min(losses)) + 1
    assert best < 3
    assert trainer.state.best_model_checkpoint == str(tmp_path / f"checkpoint-{best}")
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-5)


def test_several_devices_without_a_launcher_train_on_one(tmp_path, make_model, dataset, caplog):
    """The library would wrap the student in DataParallel, which cannot split a batch's lists."""
    arguments = TrainingArguments(
        str(tmp_path), report_to=[], use_cpu=True, per_device_train_batch_size=3
    )
    arguments._n_gpu = 4
    trainer = GraceTrainer(
        make_model(1), arguments, dataset, collator_of(dataset), method=method_of("sft")
    )
    assert "4 devices and one process: one of them trains" in caplog.text
    assert "accelerate launch" in caplog.text
    assert (arguments.n_gpu, arguments.train_batch_size) == (1, 3)
    assert trainer._wrap_model(trainer.model) is trainer.model


@pytest.mark.slow
def test_self_distillation_is_the_divergence_alone(tmp_path, make_model, dataset):
    """arXiv 2601.20088: KL(teacher || student) over the whole vocabulary, a mean over supervised
    tokens, with no term of the labels; the teacher is the student before quantization."""
    own = LiveTeacher(make_model(1), QWEN, relational=False)
    method = method_of("qad", bits=2)
    trainer = build(tmp_path, make_model(1), dataset, method, own, max_steps=1)
    untouched = copy.deepcopy(trainer.model).eval()
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda samples: seen.append(collate(samples)) or seen[-1]
    trainer.train()
    batch = seen[0]
    inputs = {name: batch[name] for name in QWEN.model_inputs if name in batch}
    with torch.no_grad():
        chosen = [
            model(**inputs).logits[batch["token_rows"], batch["token_columns"]].double()
            for model in (own.model, untouched)
        ]
    theirs, mine = (logits.log_softmax(dim=1) for logits in chosen)
    divergence = (theirs.exp() * (theirs - mine)).sum(dim=1).mean()
    log = trainer.state.log_history[0]
    assert float(divergence) > 1e-4
    assert log["loss"] == pytest.approx(float(divergence), rel=1e-4)
    assert log["gdkd"] == pytest.approx(log["loss"], rel=1e-6)
    assert log["ce"] > 1 and log["beta"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["adamw_8bit", "adafactor", "schedule"])
def test_the_librarys_optimizers_take_our_groups(tmp_path, make_model, dataset, optim):
    more = {"optim": optim} if optim != "schedule" else {"lr_scheduler_type": "linear"}
    if optim == "adamw_8bit":
        pytest.importorskip("bitsandbytes")
    model = make_model(1)
    trainer = build(tmp_path, model, dataset, method_of("qat", 4), max_steps=2, **more)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    after = weights_after(trainer)
    for key, parameter in model.named_parameters():
        assert torch.equal(after[key], before[key]) != parameter.requires_grad, key
    assert len(trainer.optimizer.param_groups) == 3


def test_scales_have_their_own_group(tmp_path, make_model, dataset):
    trainer = build(
        tmp_path, make_model(1), dataset, method_of("qat", 4), weight_decay=0.1, learning_rate=1e-3
    )
    groups = trainer.create_optimizer().param_groups
    scales = {
        id(module.log_scale)
        for module in trainer.model.modules()
        if isinstance(module, FakeQuantLinear)
    }
    mine = [g for g in groups if {id(p) for p in g["params"]} & scales]
    assert len(mine) == 1
    assert {id(p) for p in mine[0]["params"]} == scales
    assert mine[0]["weight_decay"] == 0.0
    assert mine[0]["lr"] == pytest.approx(1e-2)
    total = sum(len(g["params"]) for g in groups)
    assert total == sum(p.requires_grad for p in trainer.model.parameters())


def test_warm_ups_scale_the_weights():
    config = DistillationConfig.from_dict(
        {**DISTILLATION, "distill_warmup_steps": 4, "rcka_warmup_steps": 10, "rcka_weight": 3.0}
    )
    objective = Objective(config)
    beta, omega = objective.weights(2)
    assert float(beta) == pytest.approx(0.35)
    assert omega == pytest.approx(0.6)
    beta, omega = objective.weights(50)
    assert (float(beta), omega) == (pytest.approx(0.7), pytest.approx(3.0))


class _StopError(Exception):
    pass


@pytest.mark.slow
def test_resume_equals_an_uninterrupted_run(tmp_path, make_model, dataset, teacher):
    """Killed after the checkpoint at step 7 of 14 (in the second epoch), then resumed."""
    from transformers import TrainerCallback

    class StopAt(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            if state.global_step == 9:
                raise _StopError

    options = {"max_steps": 14, "per_device_train_batch_size": 8, "save_steps": 7}
    method = method_of("grace", bits=4)
    whole = build(tmp_path / "whole", make_model(1), dataset, method, teacher, **options)
    expected = weights_after(whole)

    first = build(
        tmp_path / "cut", make_model(1), dataset, method, teacher, callbacks=[StopAt()], **options
    )
    with pytest.raises(_StopError):
        first.train()
    second = build(tmp_path / "cut", make_model(1), dataset, method, teacher, **options)
    second.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-7"))
    for name, value in second.model.named_parameters():
        assert torch.equal(value, expected[name]), name
    assert second.objective.controller.state_dict() == whole.objective.controller.state_dict()
    keys = ("ce", "gdkd", "beta", "ema")
    for mine, theirs in zip(
        second.state.log_history[7:14], whole.state.log_history[7:14], strict=True
    ):
        assert [mine[k] for k in keys] == [theirs[k] for k in keys]


@pytest.mark.slow
def test_the_controller_is_in_the_checkpoint(tmp_path, make_model, dataset, teacher):
    trainer = build(
        tmp_path, make_model(1), dataset, method_of("grace"), teacher, save_steps=3, max_steps=3
    )
    trainer.train()
    state = json.loads((tmp_path / "checkpoint-3" / "trainer_state.json").read_text())
    saved = state["stateful_callbacks"]["Objective"]["attributes"]["saved_controller"]
    assert saved == trainer.objective.controller.state_dict()
    weights = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert set(weights) <= set(trainer.model.state_dict())


def cache(teacher, dataset, path, batch_size):
    collate = collator_of(dataset)
    batches = (
        collate([dataset[i] for i in range(start, min(start + batch_size, len(dataset)))])
        for start in range(0, len(dataset), batch_size)
    )
    write_teacher_outputs(teacher, batches, path, lengths=dataset.supervised)
    return CachedTeacher(path, samples=len(dataset))


@pytest.mark.slow
def test_cached_outputs_train_like_the_live_teacher(tmp_path, make_model, dataset, teacher):
    """Up to the rounding of what is stored (bfloat16 logits, float16 Gram matrices)."""
    cached = cache(teacher, dataset, tmp_path / "outputs", 20)
    logs = []
    for index, source in enumerate((teacher, cached)):
        trainer = build(
            tmp_path / str(index),
            make_model(1),
            dataset,
            method_of("grace", 4),
            source,
            max_steps=2,
        )
        trainer.train()
        logs.append(trainer.state.log_history[:2])
    for live, read in zip(*logs, strict=True):
        assert read["ce"] == pytest.approx(live["ce"], rel=2e-3)
        assert read["gdkd"] == pytest.approx(live["gdkd"], rel=2e-2)
        assert read["rcka"] == pytest.approx(live["rcka"], rel=1e-2)


def test_cached_outputs_of_other_data_are_refused(tmp_path, make_model, dataset, teacher):
    cached = cache(teacher, dataset, tmp_path / "outputs", 20)
    with pytest.raises(InputError, match="cover 48 samples"):
        CachedTeacher(tmp_path / "outputs", samples=49)
    with pytest.raises(InputError, match="cannot be read"):
        CachedTeacher(tmp_path / "nowhere", samples=1)
    batch = {"indices": [0, 1], "targets": torch.zeros(1, dtype=torch.long)}
    with pytest.raises(InputError, match="other data"):
        cached.outputs(batch)


@pytest.mark.slow
def test_a_broken_teacher_is_dropped_and_counted(tmp_path, make_model, dataset, teacher):
    """A non-finite distillation term trains like cross-entropy alone, and β stays."""

    class Broken:
        def outputs(self, batch):
            found = teacher.outputs(batch)
            found.logits[0, 0] = math.nan
            return found

    broken = build(
        tmp_path / "a", make_model(1), dataset, method_of("grace"), Broken(), optim="sgd"
    )
    plain = build(tmp_path / "b", make_model(1), dataset, method_of("sft"), optim="sgd")
    a, b = weights_after(broken), weights_after(plain)
    for key, value in b.items():
        torch.testing.assert_close(a[key], value, msg=key)
    log = broken.state.log_history[2]
    assert log["skipped_steps"] == 3
    assert log["beta"] == pytest.approx(0.7)
    assert all(math.isfinite(value) for value in log.values())


@pytest.mark.slow
def test_a_broken_student_stops_the_run(tmp_path, make_model, dataset):
    model = make_model(1)
    with torch.no_grad():
        model.model.language_model.norm.weight[0] = math.nan
    with pytest.raises(FloatingPointError, match="cross-entropy is not finite"):
        build(tmp_path, model, dataset, method_of("sft")).train()


@pytest.mark.slow
def test_gradient_checkpointing_changes_nothing(tmp_path, make_model, dataset, teacher):
    found = []
    for flag in (False, True):
        trainer = build(
            tmp_path / str(flag),
            make_model(1),
            dataset,
            method_of("grace", 4),
            teacher,
            optim="sgd",
            gradient_checkpointing=flag,
        )
        found.append(weights_after(trainer))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=1e-5, atol=1e-7, msg=key)


@pytest.mark.slow
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_leaves_the_tower_alone(tmp_path, make_model, dataset, reentrant):
    """Nothing of the frozen tower is part of the backward pass, though the library asks for it;
    re-entrant checkpoints need what it asks for."""
    model = make_model(1)
    seen = []
    model.model.visual.blocks[0].register_forward_hook(
        lambda module, given, found: seen.append(found.requires_grad)
    )
    trainer = build(
        tmp_path,
        model,
        dataset,
        method_of("sft"),
        max_steps=1,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    trainer.train()
    assert seen and any(seen) == reentrant


@pytest.mark.slow
def test_swapping_teacher_and_student_is_noticed(tmp_path, make_model, dataset):
    """Zero distillation loss exactly when the teacher is the student; not when it is another."""
    logs = {}
    for seed in (1, 2):
        teacher = LiveTeacher(make_model(seed), QWEN, relational=True)
        trainer = build(
            tmp_path / str(seed), make_model(1), dataset, method_of("grace"), teacher, max_steps=1
        )
        trainer.train()
        logs[seed] = trainer.state.log_history[0]
    assert logs[1]["gdkd"] == pytest.approx(0.0, abs=1e-6)
    assert logs[1]["rcka"] == pytest.approx(0.0, abs=1e-5)
    assert logs[2]["gdkd"] > 1e-3
    assert logs[2]["rcka"] > 1e-3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "magic"}, "'magic'"),
        ({"method": "sft", "bits": 4}, "sft does not quantize"),
        ({"method": "qat", "bits": 16}, "qat quantizes"),
        ({"method": "qat", "bits": 4}, "give a QuantSpec"),
        ({"method": "qat", "bits": 8, "quantization": QuantSpec(bits=4)}, "both the same number"),
        ({"method": "grace"}, "needs distillation"),
        ({"method": "sft", "distillation": DistillationConfig()}, "takes no"),
        ({"method": "sft", "scale_lr_multiplier": 0.0}, "scale_lr_multiplier"),
    ],
)
def test_illegal_methods_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        MethodConfig(**settings)


def test_a_teacher_is_there_when_needed_and_only_then(tmp_path, make_model, dataset, teacher):
    with pytest.raises(InputError, match="needs a teacher"):
        build(tmp_path, make_model(), dataset, method_of("grace"))
    arguments = TrainingArguments(output_dir=str(tmp_path), report_to=[], use_cpu=True)
    collator, method = collator_of(dataset), method_of("sft")
    with pytest.raises(InputError, match="takes no teacher"):
        GraceTrainer(make_model(), arguments, dataset, collator, method=method, teacher=teacher)


@pytest.mark.parametrize(
    ("name", "known", "told"),
    [
        ("llava", "processor", "image_token_id is"),
        ("llava", None, "student's family"),
        ("qwen3_vl", "processor", "image_mean is"),
        ("qwen3_vl", None, "student's family"),
    ],
)
def test_a_teacher_of_another_family_has_to_read_the_same_tokens(
    tmp_path, make_model, dataset, family, name, known, told
):
    small = family(name)
    own = small.processor if known else None
    other = LiveTeacher(small.model(), small.adapter, relational=True, tokenizer=own)
    with pytest.raises(InputError, match=f"qwen2_vl.*{name}.*{told}"):
        build(tmp_path, make_model(), dataset, method_of("grace"), other)
