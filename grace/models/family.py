"""One adapter per model family: what the method needs to know of an architecture.

An adapter says which linears are the decoder's (the quantized ones), which decoder layer RCKA
reads, where each image's visual tokens are, and which part of the vision side is frozen. It is
found by the ``model_type`` of a model's configuration.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch
from packaging.version import Version
from torch import nn

from grace.errors import InputError

_DEEPSTACK_BY_IMAGE = Version(metadata.version("transformers")) >= Version("5.18")
"""Since then Qwen3-VL's deepstack features come split by image."""

Span = tuple[int, int, int]
"""(row of the batch, first position, one past the last position) of one image's tokens."""


@dataclass(frozen=True)
class Family(ABC):
    """Where things are in one model family; paths are dotted module names.

    Attributes:
        model_type: the configuration's ``model_type``.
        decoder_layers: the list of decoder layers.
        vision_tower: the vision module; everything in it is frozen ...
        projectors: ... but these parts, which take what the tower gives into the decoder's width.
            They are trained and never quantized.
        output_head: the vocabulary projection.
        image_inputs: what the image processor makes of images and the model takes.
    """

    model_type: str
    decoder_layers: str
    vision_tower: str
    projectors: tuple[str, ...]
    output_head: str
    image_inputs: tuple[str, ...]

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """Names of everything in a batch that the model takes."""
        return ("input_ids", "attention_mask", "position_ids", *self.image_inputs)

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
        """Freeze the vision tower; the projectors stay trainable."""
        model.get_submodule(self.vision_tower).requires_grad_(False)
        for projector in self.projectors:
            model.get_submodule(projector).requires_grad_(True)

    def tower_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """What :meth:`freeze_vision` freezes, by dotted name."""
        trained = tuple(f"{projector}." for projector in self.projectors)
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.startswith(f"{self.vision_tower}.") and not name.startswith(trained)
        }

    def image_spans(self, input_ids: torch.Tensor, image_token_id: int) -> list[Span]:
        """The visual tokens of every image of a batch, one span an image.

        Images are separated by at least one other token (a line break, or markers of start and
        end).

        Args:
            input_ids: (B, S) token ids, on the host.
        """
        is_image = (input_ids == image_token_id).to(torch.int8)
        edges = torch.diff(nn.functional.pad(is_image, (1, 1)), dim=1)
        starts = (edges == 1).nonzero().tolist()
        stops = (edges == -1).nonzero().tolist()
        return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]

    def token_inputs(self, input_ids: torch.Tensor, image_token_id: int) -> dict[str, torch.Tensor]:
        """Model inputs that follow from the token ids (B, S): none in most families."""
        return {}

    def positions(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Position ids of a prompt, (B, S), or (4, B, S) where images have positions of their own.

        inputs: what the model takes; without ``attention_mask`` every token counts. Padding has
        position 0. The token after the prompt has ``positions[..., -1:] + 1``.
        """
        input_ids = inputs["input_ids"]
        mask = inputs.get("attention_mask")
        mask = torch.ones_like(input_ids) if mask is None else mask
        return (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)

    @abstractmethod
    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        """Visual tokens of each image; ``images`` is what the image processor made of them."""

    def tower_output(self, model: nn.Module, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """All that the projectors read of the tower: (patches of all images, width).

        Patches that make one visual token stand together, and the tokens in reading order. With
        several projectors their inputs stand side by side along the width.
        """
        read: list[torch.Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, args: read.append(args[0]))
            for module in self._projector_modules(model)
        ]
        core: Any = model.get_submodule("model")
        try:
            core.get_image_features(**{name: images[name] for name in self.image_inputs})
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([features.flatten(0, -2) for features in read], dim=-1)

    @torch.no_grad()
    def vision_features(self, model: nn.Module, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """:meth:`tower_output` as data: what a frozen tower gives for these images, always."""
        return self.tower_output(model, images)

    @contextmanager
    def take_vision_features(self, model: nn.Module) -> Iterator[None]:
        """Within this context ``pixel_values`` holds :meth:`vision_features` instead of pixels.

        A frozen tower gives the same features every epoch and to every model that shares it, so
        they can be computed once. Only the trained projectors then run.
        """
        core: Any = model.get_submodule("model")
        tower: Any = model.get_submodule(self.vision_tower)

        def image_features(pixel_values: torch.Tensor, *_: Any, **__: Any) -> Any:
            return self._project(model, pixel_values.to(tower.dtype))

        before = vars(core).get("get_image_features")
        core.get_image_features = image_features
        try:
            yield
        finally:
            if before is None:
                del core.get_image_features
            else:
                core.get_image_features = before

    def _projector_modules(self, model: nn.Module) -> list[nn.Module]:
        found: list[nn.Module] = []
        for name in self.projectors:
            module = model.get_submodule(name)
            found.extend(module if isinstance(module, nn.ModuleList) else [module])
        return found

    def _project(self, model: nn.Module, features: torch.Tensor) -> Any:
        """What the library's ``get_image_features`` returns, from :meth:`tower_output`."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        (projector,) = self._projector_modules(model)
        images: Any = [projector(features)]  # the library's own lists one tensor an image
        return BaseModelOutputWithPooling(pooler_output=images)


@dataclass(frozen=True)
class LlavaFamily(Family):
    """LLaVA: a CLIP tower, of which one hidden layer is read, every patch a visual token."""

    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        count, _, height, width = images["pixel_values"].shape
        patch = config.vision_config.patch_size
        class_token = config.vision_feature_select_strategy == "full"
        return [(height // patch) * (width // patch) + class_token] * count


@dataclass(frozen=True)
class Qwen2VLFamily(Family):
    """Qwen2-VL: a merger joins ``spatial_merge_size``² patches into one visual token."""

    @property
    def model_inputs(self) -> tuple[str, ...]:
        return (*super().model_inputs, "mm_token_type_ids")

    def token_inputs(self, input_ids: torch.Tensor, image_token_id: int) -> dict[str, torch.Tensor]:
        return {"mm_token_type_ids": (input_ids == image_token_id).to(torch.int32)}

    def positions(self, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The text's positions, then those of time, height and width (M-RoPE, arXiv 2409.12191)."""
        text = super().positions(model, inputs)
        grid = inputs.get("image_grid_thw")
        if grid is None:
            return text.expand(4, *text.shape)
        core: Any = model.get_submodule("model")
        spatial, _ = core.get_rope_index(
            inputs["input_ids"],
            mm_token_type_ids=inputs["mm_token_type_ids"],
            image_grid_thw=grid,
            attention_mask=inputs.get("attention_mask"),
        )
        return torch.cat([text.unsqueeze(0), spatial])

    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        merge = config.vision_config.spatial_merge_size**2
        return [int(patches) // merge for patches in images["image_grid_thw"].prod(dim=1).tolist()]


@dataclass(frozen=True)
class Qwen3VLFamily(Qwen2VLFamily):
    """Qwen3-VL: beside the last block's, some earlier blocks' outputs are merged as well, and
    added to the visual tokens after the first decoder layers (DeepStack, arXiv 2406.04334).

    These mergers are projectors like the last one. Where so many decoder layers take such a
    feature that the penultimate one does, it is part of that layer's output here, as of the last
    layer's input; ``output_hidden_states`` of the library lists it without.
    """

    def _project(self, model: nn.Module, features: torch.Tensor) -> Any:
        from transformers.models.qwen3_vl.modeling_qwen3_vl import (
            BaseModelOutputWithDeepstackFeatures,
        )

        tower: Any = model.get_submodule(self.vision_tower)
        # in the order in which the tower reaches its mergers
        order = sorted(tower.deepstack_visual_indexes)
        parts = [part.contiguous() for part in features.chunk(len(order) + 1, dim=-1)]
        mergers = tower.deepstack_merger_list
        places = [tower.deepstack_visual_indexes.index(layer) for layer in order]
        images: Any = [tower.merger(parts[-1])]
        merged: Any = [mergers[place](part) for place, part in zip(places, parts[:-1], strict=True)]
        if _DEEPSTACK_BY_IMAGE:  # a tuple of tensors, which the model joins again
            merged = [(feature,) for feature in merged]
        return BaseModelOutputWithDeepstackFeatures(pooler_output=images, deepstack_features=merged)


_FAMILIES = (
    LlavaFamily(
        model_type="llava",
        decoder_layers="model.language_model.layers",
        vision_tower="model.vision_tower",
        projectors=("model.multi_modal_projector",),
        output_head="lm_head",
        image_inputs=("pixel_values",),
    ),
    Qwen2VLFamily(
        model_type="qwen2_vl",
        decoder_layers="model.language_model.layers",
        vision_tower="model.visual",
        projectors=("model.visual.merger",),
        output_head="lm_head",
        image_inputs=("pixel_values", "image_grid_thw"),
    ),
    Qwen3VLFamily(
        model_type="qwen3_vl",
        decoder_layers="model.language_model.layers",
        vision_tower="model.visual",
        projectors=("model.visual.merger", "model.visual.deepstack_merger_list"),
        output_head="lm_head",
        image_inputs=("pixel_values", "image_grid_thw"),
    ),
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}


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
