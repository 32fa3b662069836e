"""Stage ``train``: one named run, every seed of it, from the baseline."""

import dataclasses
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoProcessor

from grace.distillation import DistillationConfig
from grace.models import check_model_directory, family_of, load_model
from grace.quantization import QuantSpec, bake
from grace.teacher import CachedTeacher
from grace.training import MethodConfig, prepare_student
from replication.fitting import fit, save_model
from replication.layout import Layout
from replication.parallel import run_all
from replication.params import Params, Run, Train
from replication.pretraining import load_training_data
from replication.stages import stage

CODES_FILE = "quantized.safetensors"


def method_config(settings: Train, run: Run) -> MethodConfig:
    """The method of a named run: the shared settings, with the run's own on top.

    Raises:
        InputError: for settings that do not go together.
    """
    quantization = None
    if run.bits != 16:
        quantization = QuantSpec(
            bits=run.bits,
            group_size=settings.group_size,
            init=settings.init,
            gradient_factor=settings.gradient_factor,
        )
    distillation = None
    if run.method in ("kd", "grace"):
        chosen = settings.distillation | (_PLAIN_KD if run.method == "kd" else {})
        distillation = DistillationConfig.from_dict({**chosen, **run.distillation})
    return MethodConfig(
        run.method,
        bits=run.bits,
        quantization=quantization,
        distillation=distillation,
        scale_lr_multiplier=settings.scale_lr_multiplier,
    )


# Naive KD: the full softened distribution with a fixed weight, no gate, no relational term.
_PLAIN_KD: dict[str, Any] = {
    "decoupled": False,
    "kappa": 0.0,
    "adaptive": False,
    "rcka_weight": 0.0,
}


def train_one(params: Params, name: str, seed: int) -> None:
    """Train one seed of a named run and write its model directory, values on the grid, with the
    integer codes and scales beside them."""
    layout, run = Layout(params), params.run(name)
    method = method_config(params.train, run)
    family = family_of(params.family)
    path = layout.model("baseline")
    processor = AutoProcessor.from_pretrained(path)
    torch.manual_seed(seed)
    model: Any = load_model(path)
    prepare_student(model, method)
    tower = model.get_submodule(family.vision_tower)
    forward = tower.forward
    family.take_vision_features(model)
    data = load_training_data(layout, processor, model.config)
    teacher = None
    if method.needs_teacher:
        teacher = CachedTeacher(layout.teacher_outputs, samples=len(data))
    settings = dataclasses.asdict(params.train) | {"seed": seed, "bf16": True}
    fit(
        model,
        data,
        method,
        settings,
        teacher=teacher,
        scratch=layout.checkpoints(f"{name}-seed{seed}"),
        log=layout.training_log(f"{name}/seed{seed}"),
    )
    tower.forward = forward
    tensors = {}
    if method.quantization is not None:
        for linear, (codes, scales) in bake(model).items():
            tensors[f"{linear}.codes"], tensors[f"{linear}.scales"] = codes, scales
    target = layout.trained(name, seed)
    save_model(model, processor, target)
    if method.quantization is not None:
        metadata = {key: str(value) for key, value in method.quantization.to_dict().items()}
        save_file(tensors, target / CODES_FILE, metadata)


@stage
def main(params: Params, run: str) -> None:
    layout, settings = Layout(params), params.run(run)
    method_config(params.train, settings)
    check_model_directory(layout.model("baseline"))
    layout.model(run).mkdir(parents=True, exist_ok=True)
    run_all(train_one, [(params, run, seed) for seed in settings.seeds])


if __name__ == "__main__":
    main()
