"""Stage ``train``: one named run, every seed of it, from the baseline."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from grace.distillation import DistillationConfig
from grace.errors import InputError
from grace.models import check_model_directory, family_of, load_model, load_processor
from grace.quantization import QuantSpec, bake
from replication.layout import Layout, needed
from replication.parallel import run_all
from replication.params import Params, Run, Train
from replication.stages import stage

if TYPE_CHECKING:
    from grace.training import MethodConfig

# The trainer takes seconds to import. It is needed by the processes that train, not by the one
# that starts them.

CODES_FILE = "quantized.safetensors"


def method_config(settings: Train, run: Run) -> "MethodConfig":
    """The method of a named run: the shared settings, with the run's own on top.

    Raises:
        InputError: for settings that do not go together.
    """
    from grace.training import MethodConfig

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
    from safetensors.torch import save_file

    from grace.teacher import CachedTeacher, Identity, check_teacher
    from grace.training import prepare_student
    from replication.fitting import fit, load_training_data, save_model

    layout, run = Layout(params), params.run(name)
    method = method_config(params.train, run)
    path = layout.model("baseline")
    processor = load_processor(path)
    torch.manual_seed(seed)
    model: Any = load_model(path)
    family = family_of(model.config.model_type)
    prepare_student(model, method)
    data = load_training_data(layout, processor, model.config)
    teacher = None
    if method.needs_teacher:
        teacher = CachedTeacher(layout.teacher_outputs, samples=len(data))
        check_teacher(Identity.of(model.config, processor.tokenizer), teacher.identity)
    with family.take_vision_features(model):
        fit(
            model,
            data,
            method,
            dataclasses.asdict(params.train) | {"seed": seed},
            teacher=teacher,
            scratch=layout.checkpoints(f"{name}-seed{seed}"),
            log=layout.training_log(name, f"seed{seed}"),
        )
    tensors: dict[str, torch.Tensor] = {}
    metadata: dict[str, str] = {}
    if method.quantization is not None:
        for linear, (codes, scales) in bake(model).items():
            tensors[f"{linear}.codes"], tensors[f"{linear}.scales"] = codes, scales
        metadata = {key: str(value) for key, value in method.quantization.to_dict().items()}

    def write_codes(directory: Path) -> None:
        if tensors:
            save_file(tensors, directory / CODES_FILE, metadata)

    save_model(model, processor, layout.trained(name, seed), also=write_codes)


@stage
def main(params: Params, run: str) -> None:
    layout, settings = Layout(params), params.run(run)
    config = check_model_directory(layout.model("baseline"))
    if config is not None and config.get("model_type") != params.family:
        raise InputError(
            f"{str(layout.model('baseline'))!r} is of family {config.get('model_type')!r}, the "
            f"parameters say {params.family!r}; run the stage baseline again"
        )
    needed(layout.conversations, "standins")
    needed(layout.features, "features")
    if settings.method in ("kd", "grace"):
        needed(layout.teacher_outputs, "teacher_outputs")
    run_all(train_one, [(params, run, seed) for seed in settings.seeds])


if __name__ == "__main__":
    main()
