"""One adapter per model family: what the method needs to know of an architecture.

An adapter says which linears are the decoder's (the quantized ones), which decoder layer RCKA
reads, where each image's visual tokens are, and which part of the vision side is frozen.
``grace.models.family_of`` finds a model's adapter. Shapes: B sequences, S positions.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from typing import Any, ClassVar

import torch
from packaging.version import Version
from PIL import Image
from torch import nn

from grace.errors import InputError
from grace.types import ImageSpan

_LAYOUT = (
    "patch_size",
    "image_size",
    "spatial_merge_size",
    "temporal_patch_size",
    "vision_feature_select_strategy",
    "vision_aspect_ratio",
    "image_grid_pinpoints",
    "downsample_ratio",
    "downsample_factor",
    "scale_factor",
    "mm_tokens_per_image",
)
"""Settings from which the number of an image's visual tokens follows."""
_DEEPSTACK_BY_IMAGE = Version(metadata.version("transformers")) >= Version("5.18")
"""Since then Qwen3-VL's deepstack features come split by image."""


@dataclass(frozen=True)
class Family:
    """Where the parts of one model family are; paths are dotted module names.

    :func:`grace.models.family_of` makes one from a configuration. An adapter of one's own is an
    instance, or a subclass where the images work differently::

        FAMILIES["my_vl"] = dataclasses.replace(FAMILIES["qwen2_vl"], model_type="my_vl")
        family_of("my_vl").decoder_linears(model)    # the layers that are quantized

    Attributes:
        model_type: The configuration's ``model_type``.
        decoder_layers: The list of decoder layers.
        vision_tower: The vision module; everything in it is frozen but the projectors.
        projectors: The parts that map the tower's output to the decoder's width. They are trained
            and never quantized.
        output_head: The vocabulary projection.
        image_inputs: The image processor's outputs that the model takes.
        type_inputs: The inputs that say of each token what it is: ``mm_token_type_ids``,
            ``token_type_ids`` or none.
        frozen: Further parts that are left as they are, such as a tower for sounds.
    """

    model_type: str
    decoder_layers: str
    vision_tower: str
    projectors: tuple[str, ...]
    output_head: str
    image_inputs: tuple[str, ...]
    type_inputs: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()

    caches_features: ClassVar[bool] = False
    """Whether a frozen tower's features can stand in for pixels (`take_vision_features`)."""
    joins_images: ClassVar[bool] = False
    """Whether an image has other tokens in a sample of several than alone."""

    @property
    def model_inputs(self) -> tuple[str, ...]:
        """Names of everything in a batch that the model takes."""
        always = ("input_ids", "attention_mask", "position_ids")
        return (*always, *self.image_inputs, *self.type_inputs)

    def fits(self, config: Any) -> bool:
        """Whether a model of this ``model_type`` has the parts that are named here."""
        return True

    def layers(self, model: nn.Module) -> nn.ModuleList:
        """The decoder layers, first to last."""
        layers = model.get_submodule(self.decoder_layers)
        assert isinstance(layers, nn.ModuleList)
        return layers

    def decoder_linears(self, model: nn.Module) -> list[str]:
        """Dotted names of every linear in the decoder layers, in module order."""
        return [
            f"{self.decoder_layers}.{name}"
            for name, module in self.layers(model).named_modules()
            if isinstance(module, nn.Linear)
        ]

    def relational_layer(self, model: nn.Module) -> nn.Module:
        """The layer whose INPUT is the penultimate decoder layer's output (Eq. 10).

        Raises:
            InputError: The decoder has a single layer.
        """
        layers = self.layers(model)
        if len(layers) < 2:
            raise InputError(
                f"{self.model_type}: the decoder has {len(layers)} layer(s), and relational "
                "alignment reads the penultimate one; use a decoder of at least two layers"
            )
        return layers[-1]

    def freeze_vision(self, model: nn.Module) -> None:
        """Freeze the vision tower; the projectors stay trainable."""
        for name in (self.vision_tower, *self.frozen):
            model.get_submodule(name).requires_grad_(False)
        for projector in self.projectors:
            model.get_submodule(projector).requires_grad_(True)

    def tower_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that :meth:`freeze_vision` freezes, by dotted name."""
        trained = tuple(f"{projector}." for projector in self.projectors)
        frozen = tuple(f"{name}." for name in (self.vision_tower, *self.frozen))
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.startswith(frozen) and not name.startswith(trained)
        }

    def image_spans(self, input_ids: torch.Tensor, image_token_id: int) -> list[ImageSpan]:
        """The visual tokens of every image of a batch, one span an image, in reading order.

        Images are separated by at least one other token (a line break, or markers of start and
        end).

        Args:
            input_ids: (B, S) token ids, on the host.
            image_token_id: The token that stands for a patch of an image.
        """
        is_image = (input_ids == image_token_id).to(torch.int8)
        edges = torch.diff(nn.functional.pad(is_image, (1, 1)), dim=1)
        starts = (edges == 1).nonzero().tolist()
        stops = (edges == -1).nonzero().tolist()
        return [(row, start, stop) for (row, start), (_, stop) in zip(starts, stops, strict=True)]

    def image_token_id(self, config: Any) -> int:
        """The token that stands for a patch of an image, by a model's configuration.

        Raises:
            InputError: The configuration names none.
        """
        for name in ("image_token_id", "image_token_index"):
            token = getattr(config, name, None)
            if token is not None:
                return int(token)
        raise InputError(
            f"{self.model_type!r} cannot be trained: its configuration names no token that stands "
            "for images (image_token_id)"
        )

    def image_layout(self, config: Any) -> dict[str, Any]:
        """What two models must have in common to read the same images as the same tokens.

        Args:
            config: A model's configuration.

        Returns:
            By its name: the image token's id, the inputs, and each setting of the configuration
            or its vision part from which the number of an image's tokens follows.
        """
        vision = getattr(config, "vision_config", None)
        layout: dict[str, Any] = {"image_token_id": self.image_token_id(config)}
        layout |= {"image inputs": [*self.image_inputs, *self.type_inputs]}
        for name in _LAYOUT:
            for part in (config, vision):
                value = getattr(part, name, None)
                if value is not None:
                    layout[name] = _plain(value)
        return layout

    def read_images(self, processor: Any, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        """The image processor's outputs that the model takes.

        Args:
            processor: The model's processor.
            images: The images of one sample, in order of appearance; RGB.
        """
        if self.caches_features:  # their processors hand the images over as they are
            inputs = processor.image_processor(images=list(images), return_tensors="pt")
        else:
            marks = processor.image_token * len(images)
            inputs = processor(images=[list(images)], text=[marks], return_tensors="pt")
        return {name: inputs[name] for name in self.image_inputs if name in inputs}

    def join_images(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """The image inputs of several samples as one batch.

        Args:
            samples: Each with the outputs of :meth:`read_images`, or without if it has no image.

        Returns:
            Empty where no sample has an image. Tensors are joined along the first dimension; the
            others are padded with zeros to the largest, as processors do.
        """
        joined = {}
        for name in self.image_inputs:
            parts = [sample[name] for sample in samples if name in sample]
            if parts:
                joined[name] = _cat_padded(parts)
        return joined

    def token_inputs(
        self, input_ids: torch.Tensor, image_token_id: int, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """The model's ``type_inputs``, which follow from the tokens: 1 for a visual one.

        Args:
            input_ids: (B, S) token ids.
            image_token_id: The token that stands for a patch of an image.
            labels: (B, S), IGNORE_INDEX where nothing is supervised; None for a prompt.
        """
        visual = (input_ids == image_token_id).to(torch.int32)
        return {name: visual for name in self.type_inputs}

    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        """Number of visual tokens of each image, where cached features are supported.

        Args:
            config: The model's configuration.
            images: The image processor's output.

        Raises:
            InputError: They are not.
        """
        raise self._no_features()

    def _no_features(self) -> InputError:
        known = ", ".join(name for name, family in FAMILIES.items() if family.caches_features)
        return InputError(
            f"{self.model_type}: a vision tower's features cannot be computed ahead here, only "
            f"with {known}; read pixels instead"
        )

    def tower_output(self, model: nn.Module, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The tower's features that the projectors read.

        Args:
            model: A model of the family.
            images: The image processor's output.

        Returns:
            (patches of all images, width). Patches that make one visual token stand together, and
            the tokens in reading order. With several projectors their inputs stand side by side
            along the width.

        Raises:
            InputError: The family's features cannot stand in for pixels.
        """
        if not self.caches_features:
            raise self._no_features()
        inputs: list[torch.Tensor] = []
        hooks = [
            module.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
            for module in self._projector_modules(model)
        ]
        core: Any = model.get_submodule("model")
        given = {name: images[name] for name in self.image_inputs if name in images}
        try:
            core.get_image_features(**given)
        finally:
            for hook in hooks:
                hook.remove()
        return torch.cat([features.flatten(0, -2) for features in inputs], dim=-1)

    @torch.no_grad()
    def vision_features(self, model: nn.Module, images: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """:meth:`tower_output` without gradients: a frozen tower's output, the same every epoch."""
        return self.tower_output(model, images)

    @contextmanager
    def take_vision_features(self, model: nn.Module) -> Iterator[None]:
        """Within this context ``pixel_values`` holds :meth:`vision_features` instead of pixels.

        A frozen tower's features are the same every epoch and for every model that shares it, so
        they can be computed once. Only the trained projectors then run::

            with family.take_vision_features(model):
                trainer.train()    # on a ConversationDataset with vision_features

        Raises:
            InputError: The family's features cannot stand in for pixels.
        """
        if not self.caches_features:
            raise self._no_features()
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
        modules: list[nn.Module] = []
        for name in self.projectors:
            module = model.get_submodule(name)
            modules.extend(module if isinstance(module, nn.ModuleList) else [module])
        return modules

    def _project(self, model: nn.Module, features: torch.Tensor) -> Any:
        """The library's ``get_image_features``, from :meth:`tower_output` instead of pixels."""
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        (projector,) = self._projector_modules(model)
        images: Any = [projector(features)]  # the library's own lists one tensor an image
        return BaseModelOutputWithPooling(pooler_output=images)


@dataclass(frozen=True)
class LlavaFamily(Family):
    """LLaVA: a CLIP tower, of which one hidden layer is read, every patch a visual token.

    Examples:
        >>> from grace.models import family_of
        >>> family_of("llava").projectors
        ('model.multi_modal_projector',)
    """

    caches_features: ClassVar[bool] = True

    def fits(self, config: Any) -> bool:
        """Not for Pixtral, a LLaVA whose tower reads images of any size."""
        return config.vision_config.model_type != "pixtral"

    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        """Number of visual tokens of each image."""
        count, _, height, width = images["pixel_values"].shape
        patch = config.vision_config.patch_size
        class_token = config.vision_feature_select_strategy == "full"
        return [(height // patch) * (width // patch) + class_token] * count


@dataclass(frozen=True)
class Qwen2VLFamily(Family):
    """Qwen2-VL: a merger joins ``spatial_merge_size``² patches into one visual token.

    Examples:
        >>> from grace.models import family_of
        >>> family_of("qwen2_vl").projectors
        ('model.visual.merger',)
    """

    caches_features: ClassVar[bool] = True

    def tokens_per_image(self, config: Any, images: Mapping[str, torch.Tensor]) -> list[int]:
        """Number of visual tokens of each image."""
        merge = config.vision_config.spatial_merge_size**2
        return [int(patches) // merge for patches in images["image_grid_thw"].prod(dim=1).tolist()]


@dataclass(frozen=True)
class Qwen3VLFamily(Qwen2VLFamily):
    """Qwen3-VL: beside the last block's, some earlier blocks' outputs are merged as well, and
    added to the visual tokens after the first decoder layers (DeepStack, arXiv 2406.04334).

    These mergers are projectors like the last one. Where so many decoder layers take such a
    feature that the penultimate one does, it is part of that layer's output here, as of the last
    layer's input; ``output_hidden_states`` of the library lists it without.

    Examples:
        >>> from grace.models import family_of
        >>> family_of("qwen3_vl").projectors
        ('model.visual.merger', 'model.visual.deepstack_merger_list')
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


@dataclass(frozen=True)
class LlavaOnevisionFamily(Family):
    """LLaVA-OneVision: the only image of a sample is cut into crops, several are not."""

    joins_images: ClassVar[bool] = True


@dataclass(frozen=True)
class PaliGemmaFamily(Family):
    """PaliGemma: images and question attend to each other in both directions, the answer looks
    back (prefix attention)."""

    def token_inputs(
        self, input_ids: torch.Tensor, image_token_id: int, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """0 for the prefix, 1 from the first supervised token (B, S) on."""
        if labels is None:
            return {"token_type_ids": torch.zeros_like(input_ids)}
        return {"token_type_ids": ((labels >= 0).cumsum(-1) > 0).to(input_ids.dtype)}


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
        type_inputs=("mm_token_type_ids",),
    ),
    Qwen3VLFamily(
        model_type="qwen3_vl",
        decoder_layers="model.language_model.layers",
        vision_tower="model.visual",
        projectors=("model.visual.merger", "model.visual.deepstack_merger_list"),
        output_head="lm_head",
        image_inputs=("pixel_values", "image_grid_thw"),
        type_inputs=("mm_token_type_ids",),
    ),
)
FAMILIES: dict[str, Family] = {family.model_type: family for family in _FAMILIES}


def _plain(value: Any) -> Any:
    """A setting that compares: a size that is given for each side is one number."""
    if not isinstance(value, list | tuple):
        return value
    values = [_plain(each) for each in value]
    sides = all(isinstance(each, int) for each in values) and len(set(values)) == 1
    return values[0] if sides else values


def _cat_padded(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Tensors joined along their first dimension, zeros after the ends of the others."""
    shapes = {tensor.shape[1:] for tensor in tensors}
    if len(shapes) == 1:
        return torch.cat(list(tensors))
    largest = [max(sizes) for sizes in zip(*shapes, strict=True)]
    padded = []
    for tensor in tensors:
        missing = [most - own for most, own in zip(largest, tensor.shape[1:], strict=True)]
        ends = [end for size in reversed(missing) for end in (0, size)]
        padded.append(nn.functional.pad(tensor, ends))
    return torch.cat(padded)


"""Adapters that are written down; a model of another ``model_type`` tells where its parts are."""

CLASSES: dict[str, type[Family]] = {
    "llava_onevision": LlavaOnevisionFamily,
    "paligemma": PaliGemmaFamily,
}
"""Classes of adapters, by ``model_type``, where more than the parts' places differs."""
