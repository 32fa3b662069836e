"""The model card of a trained student."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

_METHODS = {
    "grace": "quantization-aware training under gated, decoupled and relational distillation",
    "kd": "training under naive distillation",
    "qad": "quantization-aware self-distillation (arXiv 2601.20088)",
    "qat": "quantization-aware training",
    "sft": "fine-tuning",
}


def model_card(report: Mapping[str, Any]) -> str:
    """README.md of a trained student.

    Args:
        report: The content of its training.json.

    Returns:
        Front matter that the hub reads, what the model is, and the commands that serve it.
    """
    method, training = report["method"], report["training"]
    bits = method["bits"]
    data = ModelCardData(
        base_model=_on_hub(_base(report["model"])),
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["grace", f"int{bits}" if bits != 16 else "bf16", method["method"]],
        datasets=[name for name in report["data"]["data"] if _on_hub(name)] or None,
    )
    data_names = ", ".join(map(_shown, report["data"]["data"]))
    rows = {
        "base": _shown(report["model"]["name"]),
        "teacher": _teacher(report),
        "data": f"{data_names} ({report['data']['samples']} samples)",
        "method": f"{method['method']}: {_METHODS[method['method']]}",
        "weights": _weights(method),
        "distillation": _pairs(method["distillation"]),
        "learning rate": training["learning_rate"],
        "samples of a step": report["samples_per_step"],
        "steps": max((entry.get("step", 0) for entry in report["history"]), default=0),
        "versions": _pairs(report["versions"]),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    return (
        f"---\n{data.to_yaml()}\n---\n\n# {Path(report['name']).name}\n\n"
        f"{_summary(report)}\n\n| | |\n|---|---|\n{table}\n\n"
        "Settings, log and hashes are in `training.json`.\n\n## Use\n\n"
        f"{_use(Path(report['name']).name, bits)}"
    )


def _summary(report: Mapping[str, Any]) -> str:
    method = report["method"]
    bits = method["bits"]
    kept = f", its decoder's weights on a {bits}-bit grid" if bits != 16 else ""
    return (
        f"A vision-language model of the family `{report['family']}`{kept}, trained by "
        "[grace](https://arxiv.org/abs/2601.22709)."
    )


def _base(model: Mapping[str, Any]) -> str:
    """The first model of a chain of trainings."""
    before = model.get("trained_from")
    return model["name"] if not before else _base(before["model"])


def _on_hub(name: str) -> str | None:
    return name if name.count("/") == 1 and not Path(name).exists() else None


def _shown(name: str) -> str:
    """A hub name, or the last part of a path: the others are the machine's."""
    return name if _on_hub(name) else Path(name).name


def _teacher(report: Mapping[str, Any]) -> str | None:
    teacher = report["teacher"]
    return None if teacher is None else f"{_shown(teacher['name'])} in {teacher['bits']} bits"


def _weights(method: Mapping[str, Any]) -> str:
    spec = method["quantization"]
    if spec is None:
        return "16 bits"
    return f"{spec['bits']} bits, symmetric, one scale for {spec['group_size']} weights"


def _pairs(values: Mapping[str, Any] | None) -> str | None:
    if not values:
        return None
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _use(name: str, bits: int) -> str:
    own = f'    grace generate {name} --image photo.jpg --prompt "What is this?"\n'
    plain = (
        "The directory loads with transformers 5 as it is "
        "(`AutoModelForImageTextToText.from_pretrained`).\n"
    )
    if bits == 16:
        return own + "\n" + plain
    packed = (
        f"    grace pack {name} --out {name}-packed\n"
        f'    grace generate {name}-packed --image photo.jpg --prompt "What is this?"\n'
    )
    if bits not in (4, 8):
        return packed + "\n" + plain
    return (
        packed + "\nFor vLLM and transformers, with `pip install compressed-tensors`:\n\n"
        f"    grace export {name} --format compressed-tensors --out {name}-ct\n"
        f"    vllm serve {name}-ct\n\n" + plain
    )
