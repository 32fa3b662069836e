"""What the evaluations of many models of one family have in common, computed once."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch

from grace.data.index import processor_settings
from grace.files import atomic_path
from grace.models import family_of


class SharedInputs:
    """Inputs of batches of questions, written by the first model that is asked, read by the others.

    For models with the same processor and vision tower. The tower is frozen, so that its output
    takes the place of the images; every model has its own projectors. Answers stay the same::

        shared = SharedInputs("inputs", model, processor)
        chat = ChatModel(model, processor, shared=shared)

    Args:
        folder: Where they lie. It belongs to one set of questions; several processes may use it.
        model: One of the models, in the type that it runs in.
        processor: Its processor.

    Raises:
        InputError: The family's features cannot stand in for pixels.
    """

    def __init__(self, folder: str | os.PathLike, model: torch.nn.Module, processor: Any) -> None:
        self._model: Any = model
        self._folder = Path(folder)
        self._family = family_of(self._model.config)
        digest = hashlib.sha256(
            json.dumps(processor_settings(processor, self._model.config)).encode()
        )
        projectors = tuple(f"{name}." for name in self._family.projectors)
        for name, value in sorted(self._model.state_dict().items()):
            if name.startswith(f"{self._family.vision_tower}.") and not name.startswith(projectors):
                bits = value.detach().cpu().contiguous().view(-1).view(torch.uint8)
                digest.update(f"{name} {value.dtype}".encode() + bits.numpy().tobytes())
        self._identity = digest.hexdigest()

    def use(self) -> AbstractContextManager[None]:
        """Within this context the model reads them."""
        return self._family.take_vision_features(self._model)

    def __call__(
        self, questions: Sequence[Sequence[Any]], make: Callable[[], Any]
    ) -> dict[str, torch.Tensor]:
        """The inputs of a batch.

        Args:
            questions: Text, task and row of every question.
            make: Gives the inputs with images, where no model was asked before.
        """
        text = json.dumps([self._identity, questions])
        file = self._folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.pt"
        if not file.is_file():
            inputs = dict(make())
            pixels = self._family.image_inputs[0]
            if pixels in inputs:
                inputs[pixels] = self._family.vision_features(self._model, inputs)
            with atomic_path(file) as temporary:
                torch.save(inputs, temporary)
        return torch.load(file, map_location=self._model.device, weights_only=True)
