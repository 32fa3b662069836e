"""Models and processors: read from directories or the hub, and written as directories."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace.errors import InputError, one_line
from grace.files import atomic_directory, read_json
from grace.models.hub import model_directory

_TEMPLATES = {
    # one question about the images; the processor adds the start token and a line break
    "PaliGemmaProcessor": (
        "{% for message in messages %}"
        "{% for part in message['content'] if part['type'] == 'image' %}<image>{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}"
        "{% endfor %}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Chat templates of processors that are published without one, by their class."""


def load_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a vision-language model.

    Example::

        model = load_model("Qwen/Qwen2-VL-2B-Instruct", dtype=torch.bfloat16)

    Args:
        path: A local directory or a hub name.
        dtype: Of the weights.

    Raises:
        InputError: The directory is missing, no readable model directory, or lacks weights.
    """
    from transformers import AutoModelForImageTextToText

    check_model_directory(path)
    directory = model_directory(path)
    generation = read_generation_config(directory)
    loader: Any = AutoModelForImageTextToText
    try:
        model, loading = loader.from_pretrained(
            directory, dtype=dtype, output_loading_info=True, generation_config=generation
        )
    except Exception as error:  # the library fails with many types, its parts with their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"cannot load a model from {str(path)!r}: {reason}; rebuild the directory or name "
            "another"
        ) from error
    for fault in ("missing_keys", "mismatched_keys"):  # transformers draws these at random
        if loading[fault]:
            raise InputError(
                f"{str(path)!r}: the weights do not match config.json "
                f"({fault.replace('_', ' ')}: {sorted(map(str, loading[fault]))[:3]} ...); save "
                "it again with save_pretrained"
            )
    mend_generation_config(model, str(path))  # where it is in config.json
    return model


def mend_generation_config(model: Any, where: str = "the model") -> None:
    """Leave out, with a warning, what makes a model's generation configuration invalid.

    Published checkpoints have such (``do_sample`` false beside a ``temperature``), and transformers
    refuses to save them. What the configuration asks for otherwise stays::

        mend_generation_config(model)
        model.save_pretrained(folder)    # would have raised ValueError

    Args:
        model: A transformers model; its ``generation_config`` is changed in place.
        where: What the warning calls it.
    """
    config = getattr(model, "generation_config", None)
    if config is not None and not _is_valid(config):
        settings = {name: getattr(config, name) for name in config.to_diff_dict()}
        model.generation_config = _mended(settings, where)


def read_generation_config(directory: Path) -> Any | None:
    """The generation configuration of a directory, mended with a warning where it is invalid.

    Example::

        model.generation_config = read_generation_config(Path("student"))

    Returns:
        None where the directory has none.

    Raises:
        InputError: The file holds no JSON object.
    """
    from transformers import GenerationConfig

    file = directory / "generation_config.json"
    if not file.is_file():
        return None
    settings = read_json(file)
    try:
        config = GenerationConfig.from_pretrained(directory)
        if _is_valid(config):
            return config
    except Exception:  # settings of impossible values or types
        pass
    return _mended(settings, str(directory))


def _mended(settings: Mapping[str, Any], where: str) -> Any:
    """A generation configuration of all settings with which it is valid."""
    from transformers import GenerationConfig

    config, dropped = GenerationConfig(), []
    first = ("do_sample", "num_beams", "use_cache", "return_dict_in_generate")  # others need these
    for name in sorted(settings, key=lambda name: name not in first):
        before = getattr(config, name, None)
        setattr(config, name, settings[name])
        if not _is_valid(config):
            setattr(config, name, before)
            dropped.append(f"{name} = {settings[name]!r}")
    warnings.warn(
        f"{where}: its generation configuration is invalid: {', '.join(dropped)} left out",
        stacklevel=3,
    )
    return config


def _is_valid(config: Any) -> bool:
    try:
        config.validate(strict=True)
    except Exception:  # of the wrong type, a setting fails in any way
        return False
    return True


def load_processor(path: str | Path) -> Any:
    """Load a processor (tokenizer, image processor, chat template).

    Example::

        processor = load_processor("Qwen/Qwen2-VL-2B-Instruct")

    Args:
        path: A local directory or a hub name.

    Raises:
        InputError: It is missing, cannot be read, or is no processor of images and text.
    """
    from transformers import AutoProcessor

    directory = model_directory(path, weights=False)
    try:
        processor = AutoProcessor.from_pretrained(directory)
    except Exception as error:  # each part of the directory fails with a type of its own
        reason = one_line(error, 300)
        raise InputError(
            f"cannot load a processor from {str(path)!r}: {reason}; rebuild the directory"
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InputError(
            f"{str(path)!r} holds a {type(processor).__name__}, not a processor of images and "
            "text; rebuild the directory"
        )
    if not getattr(processor, "chat_template", None):
        processor.chat_template = _TEMPLATES.get(type(processor).__name__)
    return processor


def save_model(
    model: Any,
    processor: Any,
    path: str | Path,
    *,
    overwrite: bool = False,
    also: Callable[[Path], object] | None = None,
) -> None:
    """Write a model and its processor as one Hugging Face directory, whole or not at all.

    Example::

        save_model(model, processor, "student")

    Args:
        model: A transformers model.
        processor: Its tokenizer, image processor and chat template.
        path: The directory to write.
        overwrite: Replace a model directory at ``path``, once the new one is complete.
        also: Called with the directory before it gets its name, to write further files into it.

    Raises:
        InputError: Something else is at ``path``.
    """
    mend_generation_config(model)
    with atomic_directory(path, overwrite=overwrite) as directory:
        model.save_pretrained(directory)
        processor.save_pretrained(directory)
        if also is not None:
            also(directory)


def check_model_directory(path: str | Path) -> dict[str, Any]:
    """Check a model directory, or what the hub has under a name, without its weights.

    Example::

        check_model_directory("student")["model_type"]    # "qwen2_vl"

    Returns:
        Its configuration.

    Raises:
        InputError: The directory is missing or incomplete; the message says what it lacks.
    """
    directory = model_directory(path, weights=False)
    config = directory / "config.json"
    if not config.is_file():
        raise InputError(f"{str(path)!r} is not a model directory: it has no config.json")
    content = read_json(config)
    if Path(path).exists() and not any(directory.glob("*.safetensors")):
        raise InputError(f"{str(path)!r} has no *.safetensors weights; rebuild the directory")
    return content
