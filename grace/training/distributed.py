"""Training in several processes, sharded or not."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from grace.errors import InputError
from grace.training.method import MethodConfig


def check_deepspeed(config: Mapping[str, Any], method: MethodConfig) -> None:
    """Check that a DeepSpeed configuration leaves the weights of a quantized model in float32.

    DeepSpeed's own mixed precision casts every parameter, the learned scales included: in bfloat16
    thousands of scales fall on a few dozen values and their updates are lost. Its
    ``torch_autocast`` casts in the products instead.

    Example::

        check_deepspeed(json.loads(Path("zero3.json").read_text()), method)

    Args:
        config: DeepSpeed's own settings.
        method: What is trained.

    Raises:
        InputError: It would cast the parameters of a quantized model.
    """
    if method.quantization is None:
        return
    for name in ("bf16", "fp16"):
        if str(config.get(name, {}).get("enabled", False)).lower() == "true":
            raise InputError(
                f"the DeepSpeed configuration enables {name}, which casts the learned scales too; "
                "remove that section and enable torch_autocast, with dtype bfloat16, instead"
            )


@cache
def let_torch_load_onto_first_cpu() -> None:
    """For several processes on CPUs, the library loads onto "cpu:0", a name torch.load lacks."""

    def restore(storage: Any, location: str) -> Any:
        return storage if location == "cpu:0" else None

    # 9: before torch's own places, of which no two may have one priority
    torch.serialization.register_package(9, lambda _: None, restore)


def shard_frozen(model: nn.Module) -> nn.Module:
    """Shard a frozen model over all processes (FSDP2), block by block, in place.

    Every process then has to ask for outputs the same number of times.

    Example::

        teacher = LiveTeacher(model, family, relational=True)
        shard_frozen(model)    # after the teacher's hooks
    """
    from torch.distributed.fsdp import fully_shard

    model.requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(model)
    return model


def load_weights(model: Any, checkpoint: Path) -> None:
    """Load a checkpoint's weights into an unsharded model, in this process alone.

    Raises:
        InputError: For a checkpoint that lacks weights of the model.
    """
    sharded = checkpoint / "pytorch_model_fsdp_0"
    if sharded.is_dir():
        from torch.distributed import checkpoint as storage

        weights = {"model": model.state_dict()}
        storage.load(weights, checkpoint_id=sharded, no_dist=True)
        model.load_state_dict(weights["model"])
        return
    missing = set(dict(model.named_parameters()))
    for path in sorted(checkpoint.glob("*.safetensors")):
        weights = load_file(path)
        model.load_state_dict(weights, strict=False)  # a tied head is stored once
        missing -= set(weights)
    if missing:
        raise InputError(f"{str(checkpoint)!r} lacks {sorted(missing)[0]!r}; remove it")


def whole_model(trainer: Any, rebuild: Callable[[], Any]) -> Any | None:
    """The trained model, unsharded, in the first process; None in the others.

    Args:
        trainer: A :class:`grace.training.GraceTrainer` that has trained.
        rebuild: Makes the model as it was before training, for shards to be put together in.
    """
    accelerator, model = trainer.accelerator, trainer.model
    if accelerator.is_fsdp2 or trainer.is_deepspeed_enabled:
        if trainer.state.global_step > 0:
            weights = accelerator.get_state_dict(trainer.model_wrapped)  # by all together
        else:  # nothing was trained: a finished run's weights were loaded, in one piece
            weights = model.state_dict()
        if not accelerator.is_main_process:
            return None
        model = rebuild()
        model.load_state_dict(weights)
        return model
    return accelerator.unwrap_model(trainer.model) if accelerator.is_main_process else None


def under_deepspeed(arguments: Any = None) -> bool:
    """Whether DeepSpeed trains, which does the autocast itself: by a launcher's word, or by that of
    ``TrainingArguments``."""
    launched = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return launched or bool(arguments is not None and arguments.deepspeed)


def under_fsdp(arguments: Any) -> bool:
    """Whether FSDP2 shards the student, by a launcher's word or by that of ``TrainingArguments``.

    Raises:
        InputError: FSDP1 does, which joins weights and scales into one flat parameter.
    """
    launched = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"
    if not launched and not arguments.fsdp:
        return False
    version = os.environ.get("FSDP_VERSION", "1") if launched else None
    if not launched:
        version = str((arguments.fsdp_config or {}).get("version", 2))
    if version != "2":
        raise InputError(
            f"FSDP has version {version}, which joins weights and scales into one parameter; set "
            "fsdp_version: 2"
        )
    return True
