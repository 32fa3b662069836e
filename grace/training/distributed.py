"""Training in several processes, sharded or not."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

from grace.errors import InputError
from grace.training.method import MethodConfig


def check_deepspeed(config: Mapping[str, Any], method: MethodConfig) -> None:
    """Check that a DeepSpeed configuration leaves the weights of a quantized model in float32.

    DeepSpeed's own mixed precision casts every parameter, the learned scales included: in bfloat16
    thousands of scales fall on a few dozen values and their updates are lost. Its
    ``torch_autocast`` casts in the products instead.

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
    """
    from torch.distributed.fsdp import fully_shard

    model.requires_grad_(False)
    for part in model.modules():
        if isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(model)
    return model
