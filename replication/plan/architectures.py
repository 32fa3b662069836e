"""The published architectures by name, and the prompt that each is measured with."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grace.errors import InputError
from grace.files import read_yaml
from grace.models import Family, family_of
from replication.base.messages import unknown

PATH = Path(__file__).with_name("architectures.yaml")
TEXT_TOKENS = 64


@dataclass(frozen=True)
class Architecture:
    """One published model without its weights.

    Attributes:
        name: by which it is asked for.
        repository: of its weights on the hub.
        parameters: number of weights, tied ones once.
        image: height and width of its image, or the `grid` of patches.
        values: its configuration.
    """

    name: str
    repository: str
    parameters: int
    image: Mapping[str, int]
    values: Mapping[str, Any]

    @property
    def family(self) -> Family:
        return family_of(self.values["model_type"])

    def config(self) -> Any:
        """The transformers configuration."""
        from transformers import AutoConfig

        values = copy.deepcopy(dict(self.values))
        return AutoConfig.for_model(values.pop("model_type"), **values)

    @functools.cached_property
    def meta_model(self) -> Any:
        """The model without any values: names, shapes and nothing else."""
        from transformers import AutoModelForImageTextToText

        with torch.device("meta"):
            return AutoModelForImageTextToText.from_config(self.config())

    @functools.cached_property
    def decoder_linears(self) -> list[str]:
        """Dotted names of the linears in the decoder's layers."""
        return self.family.decoder_linears(self.meta_model)

    @functools.cached_property
    def decoder_weights(self) -> int:
        """Number of weights of those linears."""
        return sum(self.meta_model.get_submodule(n).weight.numel() for n in self.decoder_linears)

    @functools.cached_property
    def counted_parameters(self) -> int:
        """Number of weights, tied ones once: counted."""
        return sum(parameter.numel() for parameter in self.meta_model.parameters())

    def first_layers(self, count: int) -> "Architecture":
        """The same with `count` layers in the decoder and in the tower, to try things out on."""
        values = copy.deepcopy(dict(self.values))
        values["text_config"]["num_hidden_layers"] = count
        tower = values["vision_config"]
        tower["num_hidden_layers" if "num_hidden_layers" in tower else "depth"] = count
        if "deepstack_visual_indexes" in tower:
            tower["deepstack_visual_indexes"] = [count - 1]
        return Architecture(f"{self.name}-{count}-layers", self.repository, 0, self.image, values)

    def prompt(
        self,
        seed: int,
        *,
        dtype: torch.dtype,
        text_tokens: int = TEXT_TOKENS,
        image: bool = True,
    ) -> dict:
        """Model inputs of one image of noise with random words around it, batch 1.

        Args:
            seed: of noise and words.
            dtype: of the image.
            text_tokens: number of words; the markers of an image's start and end count.
            image: without it there are the words alone.

        Raises:
            InputError: for fewer than 4 words.
        """
        generator = torch.Generator().manual_seed(seed)
        config, family = self.config(), self.family
        if text_tokens < 4:
            raise InputError(f"a prompt of {text_tokens} words is too short: give 4 or more")
        if not image:
            return {"input_ids": torch.tensor([_words(text_tokens, config, generator)])}
        tower = self.values["vision_config"]
        if "grid" in self.image:
            side = self.image["grid"]
            width = tower["in_channels"] * tower["temporal_patch_size"] * tower["patch_size"] ** 2
            images = {
                "pixel_values": torch.randn(side * side, width, generator=generator),
                "image_grid_thw": torch.tensor([[1, side, side]]),
            }
            around = [[config.vision_start_token_id], [config.vision_end_token_id]]
        else:
            size = (1, 3, self.image["height"], self.image["width"])
            images = {"pixel_values": torch.randn(size, generator=generator)}
            around = [[], []]
        (count,) = family.tokens_per_image(config, images)
        words = _words(text_tokens - sum(map(len, around)), config, generator)
        ids = [*words[:1], *around[0], *[config.image_token_id] * count, *around[1], *words[1:]]
        input_ids = torch.tensor([ids])
        images["pixel_values"] = images["pixel_values"].to(dtype)
        return {
            "input_ids": input_ids,
            **images,
            **family.token_inputs(input_ids, config.image_token_id),
        }


def _words(count: int, config: Any, generator: torch.Generator) -> list[int]:
    """Random tokens, none of them special."""
    special = [
        value for name in vars(config) if name.endswith(("token_id", "token_index"))
        if isinstance(value := getattr(config, name), int)
    ]  # fmt: skip
    highest = min([*special, config.get_text_config().vocab_size])
    words: Tensor = torch.randint(min(1000, highest // 2), highest, (count,), generator=generator)
    return words.tolist()


@functools.cache
def architectures() -> Mapping[str, Architecture]:
    """All of architectures.yaml by name."""
    return {
        name: Architecture(
            name, entry["repository"], entry["parameters"], entry["image"], entry["config"]
        )
        for name, entry in read_yaml(PATH).items()
    }


def architecture(name: str) -> Architecture:
    """An architecture by name.

    Raises:
        InputError: listing the known names, for another.
    """
    if name not in architectures():
        raise InputError(unknown(f"model {name!r}", name, architectures()))
    return architectures()[name]
