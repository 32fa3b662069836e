"""The adapter of a model, from its configuration alone.

The model is built without weights (on the meta device), and its own accessors and structure say
where its parts are: ``get_decoder``, ``get_output_embeddings`` and ``get_encoder``, what stands
between the vision encoder and the decoder, and which inputs ``forward`` takes. What the method
cannot train is refused here, in one line, before any weight is read.
"""

import copy
import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from grace.errors import InputError, one_line
from grace.models.family import CLASSES, FAMILIES, Family

_IMAGE_INPUTS = (
    "pixel_values",
    "pixel_values_images",
    "pixel_values_local",
    "high_res_pixel_values",
    "num_local_patches",
    "pixel_attention_mask",
    "pixel_mask",
    "image_sizes",
    "image_grid_thw",
    "image_merge_sizes",
    "image_position_ids",
    "spatial_shapes",
    "target_sizes",
    "batch_num_images",
)
"""What image processors give and a ``forward`` may take."""
_TYPES = ("mm_token_type_ids", "token_type_ids")
_MERGERS = ("merger", "deepstack_merger_list", "merger_list", "downsample")
"""Parts inside a vision tower that map its output to the decoder's width."""
_LEFT_ALONE = ("audio", "video", "speech", "generation", "vqmodel", "high_res_vision_model")
"""In the names of parts that are no projector of images, but encoders or heads of another kind."""


def family_of(model: Any) -> Family:
    """The adapter of a model.

    ::

        family = family_of(AutoConfig.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct"))
        family.decoder_linears(model)    # the layers that are quantized

    Args:
        model: Its configuration; or a ``model_type``, for the adapter of a default configuration.

    Returns:
        That of ``grace.models.FAMILIES``, or else what the model itself tells.

    Raises:
        InputError: The method cannot train such a model; the line says why.
    """
    model_type = model if isinstance(model, str) else getattr(model, "model_type", "")
    if model_type in FAMILIES and (isinstance(model, str) or FAMILIES[model_type].fits(model)):
        return FAMILIES[model_type]
    config = _default_config(model_type) if isinstance(model, str) else model
    return _discover(_Key(config))


def decoder_linears(model: nn.Module) -> list[str]:
    """Dotted names of the linears that the method quantizes: those of the decoder layers.

    Example::

        decoder_linears(model)[0]    # "model.language_model.layers.0.self_attn.q_proj"

    Raises:
        InputError: The model is none of transformers', or of a family without an adapter.
    """
    config = getattr(model, "config", None)
    if config is None:
        raise InputError(f"{type(model).__name__} has no configuration; pass a transformers model")
    return family_of(config).decoder_linears(model)


class _Key:
    """A configuration that compares by its content, so that a family is found once."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._content = config.to_json_string(use_diff=False)

    def __hash__(self) -> int:
        return hash(self._content)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self._content == other._content


def _default_config(model_type: str) -> Any:
    from transformers import CONFIG_MAPPING

    if model_type not in CONFIG_MAPPING:
        raise _unknown(model_type)
    try:
        return CONFIG_MAPPING[model_type]()
    except Exception as error:  # some have no default: each fails with a type of its own
        raise InputError(
            f"{model_type!r} has no default configuration ({one_line(error, 200)}); "
            "give the model's"
        ) from error


def _unknown(model_type: str) -> InputError:
    return InputError(
        f"model type {model_type!r} is no image-text model that this transformers loads "
        "(AutoModelForImageTextToText); use a vision-language model, a newer transformers, or an "
        "adapter of your own in grace.models.FAMILIES"
    )


@lru_cache(maxsize=64)
def _discover(key: _Key) -> Family:
    config = key.config
    _refuse_by_config(config)
    model = without_weights(config)
    return _Parts(config, model).family()


def _refuse_by_config(config: Any) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise _unknown(getattr(config, "model_type", type(config).__name__))
    if getattr(config, "is_encoder_decoder", False):
        raise _refusal(config, "it is an encoder-decoder; the method needs a decoder alone")


def _refusal(config: Any, reason: str) -> InputError:
    return InputError(f"{config.model_type!r} cannot be trained: {reason}")


def without_weights(config: Any) -> Any:
    """The model of a configuration without weights (on the meta device).

    Its parts are not sharded either where ZeRO-3 shards models::

        without_weights(config).get_decoder()

    Raises:
        InputError: No model can be built from the configuration.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.modeling_utils import set_zero3_state

    own = copy.deepcopy(config)  # the library writes into it
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"), set_zero3_state():
            return AutoModelForImageTextToText.from_config(own)
    except Exception as error:  # every architecture fails with types of its own
        raise _refusal(
            config, f"no model can be built from its configuration ({one_line(error, 200)})"
        ) from error


class _Parts:
    """Finds the parts of one model that has no weights."""

    def __init__(self, config: Any, model: Any) -> None:
        self.config = config
        self.model = model
        self.names = {module: name for name, module in model.named_modules()}

    def family(self) -> Family:
        head = self.model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            raise self._refusal("it has no linear output head over a vocabulary")
        layers = self._decoder_layers()
        tower = self._vision_tower()
        self._check_layers(layers, tower)
        projectors, frozen = self._beside(tower, layers)
        inside = (name for name, _ in tower.named_children() if name in _MERGERS)
        forward = inspect.signature(self.model.forward).parameters
        model_type = self.config.model_type
        family = CLASSES.get(model_type, Family)(
            model_type=model_type,
            decoder_layers=self.names[layers],
            vision_tower=self.names[tower],
            projectors=projectors or tuple(f"{self.names[tower]}.{name}" for name in inside),
            output_head=self.names[head],
            image_inputs=tuple(name for name in _IMAGE_INPUTS if name in forward),
            type_inputs=tuple(name for name in _TYPES if name in forward),
            frozen=frozen,
        )
        family.image_token_id(self.config)
        return family

    def _refusal(self, reason: str) -> InputError:
        return _refusal(self.config, reason)

    def _decoder_layers(self) -> nn.ModuleList:
        """The list of decoder layers: the longest one directly in the decoder."""
        decoder = self.model.get_decoder()
        count = getattr(self.config.get_text_config(decoder=True), "num_hidden_layers", None)
        lists = [
            module
            for module in decoder.modules()
            if isinstance(module, nn.ModuleList) and len(module) == count
        ]
        if not lists:
            raise self._refusal("its decoder has no list of layers")
        return lists[0]

    def _vision_tower(self) -> nn.Module:
        if any("qformer" in name.lower() for name in self.names.values()):
            raise self._refusal("a Q-Former stands between its vision tower and its decoder")
        tower = self.model.get_encoder(modality="image")
        if tower is None or tower is self.model or tower not in self.names:
            raise self._refusal("it has no vision tower whose tokens enter the decoder")
        return tower

    def _beside(
        self, tower: nn.Module, layers: nn.ModuleList
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The parts outside tower and decoder: the projectors, and what is left as it is."""
        place = self.names[tower].rpartition(".")[0]
        taken = (self.names[layers], self.names[self.model.get_output_embeddings()])
        projectors: list[str] = []
        frozen: list[str] = []
        for child, part in self.model.get_submodule(place).named_children():
            name = f"{place}.{child}".lstrip(".")
            within = any(f"{other}.".startswith(f"{name}.") for other in taken)
            if part is tower or within or next(part.parameters(), None) is None:
                continue
            left = any(word in child for word in _LEFT_ALONE)
            (frozen if left else projectors).append(name)
        return tuple(projectors), tuple(frozen)

    def _check_layers(self, layers: nn.ModuleList, tower: nn.Module) -> None:
        """Refuse decoders whose layers are not made of linears over one sequence."""
        within_tower = set(tower.modules())
        for module in self.model.get_decoder().modules():
            kind = type(module).__name__.lower()
            if "crossatt" in kind and module not in within_tower:
                raise self._refusal("its decoder sees images by cross-attention")
        if not any(isinstance(module, nn.Linear) for module in layers.modules()):
            raise self._refusal("its decoder layers hold no nn.Linear")
        for module in layers.modules():
            own = module.parameters(recurse=False)
            stacked = any(parameter.dim() > 2 for parameter in own)
            if stacked and not isinstance(module, nn.modules.conv._ConvNd):
                raise self._refusal("it is a mixture of experts whose experts are no nn.Linear")
