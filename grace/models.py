"""One adapter per model family: what the method needs to know of an architecture.

An adapter says which linears are the decoder's (the quantized ones), which decoder layer RCKA
reads, where each image's visual tokens are, and which part of the vision side is frozen. It is
found by the ``model_type`` of a model's configuration.
"""

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grace.errors import InputError

Span = tuple[int, int, int]
"""(row of the batch, first position, one past the last position) of one image's tokens."""


@dataclass(frozen=True)
class Family(ABC):
    """Where things are in one model family; paths are dotted module names.

    Attributes:
        model_type: the configuration's ``model_type``.
        decoder_layers: the list of decoder layers.
        vision_tower: the vision module; everything in it is frozen ...
        projector: ... but this part, which is trained and never quantized.
        output_head: the vocabulary projection.
    """

    model_type: str
    decoder_layers: str
    vision_tower: str
    projector: str
    output_head: str

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers, first to last."""
        layers = model.get_submodule(self.decoder_layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def decoder_linears(self, model: nn.Module) -> list[str]:
        """Dotted names of every linear in the decoder layers, in module order."""
        found = []
        for name, module in self.layers(model).named_modules():
            if isinstance(module, nn.Linear):
                found.append(f"{self.decoder_layers}.{name}")
        return found

    def relational_layer(self, model: nn.Module) -> nn.Module:
        """The layer whose INPUT is the penultimate decoder layer's output (Eq. 10)."""
        layers = self.layers(model)
        if len(layers) < 2:
            raise InputError(
                f"{self.model_type}: the decoder has {len(layers)} layer(s), and relational "
                "alignment reads the penultimate one; use a decoder of at least two layers"
            )
        return layers[-1]

    def freeze_vision(self, model: nn.Module) -> None:
        """Freeze the vision tower; the projector stays trainable."""
        model.get_submodule(self.vision_tower).requires_grad_(False)
        model.get_submodule(self.projector).requires_grad_(True)

    def image_spans(self, input_ids: torch.Tensor, image_token_id: int) -> list[Span]:
        """The visual tokens of every image of a batch, one span an image.

        Images are separated by at least one other token (their start and end markers).

        Args:
            input_ids: (B, S) token ids, on the host.
        """
        is_image = (input_ids == image_token_id).to(torch.int8)
        edges = torch.diff(nn.functional.pad(is_image, (1, 1)), dim=1)
        starts = (edges == 1).nonzero().tolist()
        stops = (edges == -1).nonzero().tolist()
        return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]

    @abstractmethod
    def tokens_per_image(self, config: Any, image_grid_thw: torch.Tensor) -> list[int]:
        """Visual tokens of each image; ``image_grid_thw`` is (images, 3) in patches."""

    @abstractmethod
    def vision_features(
        self, model: nn.Module, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor
    ) -> torch.Tensor:
        """Output of the frozen tower, before the projector: (patches, width)."""

    @abstractmethod
    def take_vision_features(self, model: nn.Module) -> None:
        """From now on ``pixel_values`` holds :meth:`vision_features` instead of pixels.

        A frozen tower gives the same features every epoch and to every model that shares it, so
        they can be computed once. Only the trained projector then runs.
        """


@dataclass(frozen=True)
class Qwen2VLFamily(Family):
    """Qwen2-VL: a merger joins ``spatial_merge_size``² patches into one visual token."""

    def tokens_per_image(self, config: Any, image_grid_thw: torch.Tensor) -> list[int]:
        merge = config.vision_config.spatial_merge_size**2
        return [int(patches) // merge for patches in image_grid_thw.prod(dim=1).tolist()]

    @torch.no_grad()
    def vision_features(
        self, model: nn.Module, pixel_values: torch.Tensor, image_grid_thw: torch.Tensor
    ) -> torch.Tensor:
        tower: Any = model.get_submodule(self.vision_tower)
        return tower(pixel_values.to(tower.dtype), grid_thw=image_grid_thw).last_hidden_state

    def take_vision_features(self, model: nn.Module) -> None:
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        tower = model.get_submodule(self.vision_tower)
        projector = model.get_submodule(self.projector)

        def project(hidden_states: Any, grid_thw: torch.Tensor, **_: Any):
            return BaseModelOutputWithPooling(
                last_hidden_state=hidden_states, pooler_output=projector(hidden_states)
            )

        tower.forward = project


FAMILIES: dict[str, Family] = {
    "qwen2_vl": Qwen2VLFamily(
        model_type="qwen2_vl",
        decoder_layers="model.language_model.layers",
        vision_tower="model.visual",
        projector="model.visual.merger",
        output_head="lm_head",
    ),
}


def family_of(model_type: str) -> Family:
    """The adapter of a ``model_type``.

    Raises:
        InputError: for a family without an adapter.
    """
    if model_type not in FAMILIES:
        raise InputError(
            f"no adapter for model type {model_type!r}; known families: {', '.join(FAMILIES)} "
            "(add one to grace.models.FAMILIES)"
        )
    return FAMILIES[model_type]


def decoder_linears(model: nn.Module) -> list[str]:
    """Dotted names of the linears that the method quantizes: the decoder layers' linears."""
    return family_of(_config(model).model_type).decoder_linears(model)


def _config(model: nn.Module) -> Any:
    config = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no configuration; pass a transformers model")
    return config


def load_model(path: str | Path, *, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a vision-language model from a local directory or by hub name.

    Raises:
        InputError: when a local directory is missing or is not a readable model directory.
    """
    from transformers import AutoModelForImageTextToText

    check_model_directory(path)
    try:
        model = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise InputError(
            f"cannot load a model from {str(path)!r}: {str(error).splitlines()[0]}; "
            "rebuild the directory or name another"
        ) from error
    except Exception as error:  # safetensors raises its own type for a truncated file
        if type(error).__name__ != "SafetensorError":
            raise
        raise InputError(
            f"the weights in {str(path)!r} are corrupt ({error}); rebuild the directory"
        ) from error
    return model


def load_processor(path: str | Path) -> Any:
    """Load a processor (tokenizer, image processor, chat template) from a directory or the hub.

    Raises:
        InputError: when it is missing or cannot be read.
    """
    from transformers import AutoProcessor

    if isinstance(path, Path) and not path.is_dir():
        raise InputError(
            f"processor directory {str(path)!r} does not exist; build it or correct the path"
        )
    try:
        processor = AutoProcessor.from_pretrained(path)
    except Exception as error:  # each part of the directory fails with a type of its own
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"cannot load a processor from {str(path)!r}: {reason}; rebuild the directory"
        ) from error
    if not hasattr(processor, "tokenizer") or not hasattr(processor, "image_processor"):
        raise InputError(
            f"{str(path)!r} holds a {type(processor).__name__}, not a processor of images and "
            "text; rebuild the directory"
        )
    return processor


def check_model_directory(path: str | Path) -> dict[str, Any] | None:
    """Check a local model directory without loading weights; return its configuration.

    A path that does not look local (``org/name`` without such a directory) is taken as a hub
    name and returns None.

    Raises:
        InputError: naming the directory and what is missing in it.
    """
    directory = Path(path)
    if not directory.exists():
        looks_like_hub = isinstance(path, str) and path.count("/") == 1 and not path.startswith(".")
        if looks_like_hub and not directory.parent.exists():
            return None
        raise InputError(
            f"model directory {str(path)!r} does not exist; build it or correct the path"
        )
    config = directory / "config.json"
    if not config.is_file():
        raise InputError(f"{str(path)!r} is not a model directory: it has no config.json")
    try:
        content = json.loads(config.read_text())
    except ValueError as error:
        raise InputError(
            f"{str(config)!r} is not valid JSON ({error}); rebuild the directory"
        ) from error
    if not any(directory.glob("*.safetensors")):
        raise InputError(f"{str(path)!r} has no *.safetensors weights; rebuild the directory")
    return content
