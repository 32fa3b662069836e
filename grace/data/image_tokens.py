"""What stands for an image in a sequence of tokens, from the image's size alone."""

import re
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from grace.errors import InputError, one_line
from grace.models import Family

_PROBES = ((96, 48), (40, 120), (700, 2000), (2000, 700))
"""Sizes of blank images that show whether a processor writes a run of one token for any image."""
_REMEMBERED = 4096  # layouts, of which an image of many tiles has thousands of tokens


class ImageText(NamedTuple):
    """What a processor writes in the place of one image.

    Attributes:
        before: Text before the image's first special token; it is tokenized with the prompt.
        ids: Token ids, from the first special token to the last. Those of the placeholder are the
            visual tokens; others may open, close or separate them.
        after: Text after the last special token.
    """

    before: str
    ids: tuple[int, ...]
    after: str


class ImageTokens:
    """Gives the tokens that stand for an image of a size, as the processor writes them.

    ::

        tokens = ImageTokens(family, processor, config)
        tokens(640, 480).ids    # of an image of 640×480 pixels

    Most processors write a run of one token, and say how long it is. For the others (tiles, rows),
    a blank image goes through the processor, once for every layout.

    Args:
        family: The model's adapter.
        processor: Its processor.
        config: Its configuration.

    Raises:
        InputError: The processor writes no placeholder for an image.
    """

    def __init__(self, family: Family, processor: Any, config: Any) -> None:
        self._processor = processor
        self._joined = family.joins_images
        self.placeholder = family.image_token_id(config)
        self._known: dict[Any, ImageText] = {}

    def __call__(self, width: int, height: int, of: int = 1) -> ImageText:
        """The tokens of an image of so many pixels.

        Args:
            width: Pixels.
            height: Pixels.
            of: Number of images in the sample.

        Raises:
            InputError: The processor refuses the shape, such as one side 200 times the other.
        """
        several = self._joined and of > 1
        layout = (width, height, of) if several else self._layout(width, height)
        if layout not in self._known:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[layout] = self._run(layout) or self._written(
                width, height, of if several else 1
            )
        return self._known[layout]

    def _reported(self, width: int, height: int) -> tuple[int, int] | None:
        """Numbers of tokens and of patches or tiles that the library says an image has."""
        count = getattr(self._processor, "_get_num_multimodal_tokens", None)
        if count is None:
            return None
        try:
            found = count(image_sizes=[(height, width)])
            return int(found.num_image_tokens[0]), int(found.num_image_patches[0])
        except (AttributeError, NotImplementedError, TypeError):
            return None

    def _layout(self, width: int, height: int) -> Any:
        """What the tokens follow from: numbers that the library gives, or the size itself."""
        try:
            reported = self._reported(width, height)
            if reported is None:
                return width, height
            if self._edges is not None:
                return reported[0]
            tiles = getattr(self._processor.image_processor, "get_number_of_image_patches", None)
            if tiles is None:
                return width, height
            return *reported, str(tiles(height, width, {}))
        except ValueError as error:
            raise _refused(width, height, error) from error

    @cached_property
    def _edges(self) -> tuple[ImageText, int] | None:
        """For a run of placeholders: its edges, around a single one, and the number of reported
        tokens that are none of the run. None for a processor that writes anything else."""
        shapes = set()
        for width, height in _PROBES:
            text, reported = self._written(width, height), self._reported(width, height)
            run = [place for place, token in enumerate(text.ids) if token == self.placeholder]
            if reported is None or run != list(range(run[0], run[0] + len(run))):
                return None
            edges = (*text.ids[: run[0] + 1], *text.ids[run[-1] + 1 :])
            shapes.add((ImageText(text.before, edges, text.after), reported[0] - len(run)))
        return shapes.pop() if len(shapes) == 1 else None

    def _run(self, layout: Any) -> ImageText | None:
        if not isinstance(layout, int) or self._edges is None:
            return None
        edges, beside = self._edges
        first = edges.ids.index(self.placeholder)
        run = (self.placeholder,) * (layout - beside)
        return edges._replace(ids=(*edges.ids[:first], *run, *edges.ids[first + 1 :]))

    def _written(self, width: int, height: int, of: int = 1) -> ImageText:
        """What the processor writes for the first of some blank images."""
        mark = self._processor.image_token
        blank = Image.fromarray(np.zeros((height, width, 3), np.uint8))
        try:
            offsets = self._processor(
                text=[mark * of], images=[[blank] * of], return_text_replacement_offsets=True
            )["text_replacement_offsets"]
        except ValueError as error:
            raise _refused(width, height, error) from error
        text = offsets[0][0]["replacement"]
        special = list(self._special.finditer(text))
        encode = self._processor.tokenizer.encode
        if special:
            start, stop = special[0].start(), special[-1].end()
            ids = tuple(encode(text[start:stop], add_special_tokens=False))
            if self.placeholder in ids:
                return ImageText(text[:start], ids, text[stop:])
        raise InputError(
            f"the processor writes {text[:80]!r} for an image, without the configuration's image "
            f"token {self.placeholder}; use the processor that was saved with the model"
        )

    @cached_property
    def _special(self) -> re.Pattern[str]:
        return special_tokens(self._processor.tokenizer)


def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Matches the special tokens, which are never split nor joined with the text beside them."""
    added = tokenizer.added_tokens_decoder.values()
    texts = sorted((token.content for token in added if token.special), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, texts)) or r"(?!)")


def _refused(width: int, height: int, error: Exception) -> InputError:
    reason = one_line(error)
    return InputError(
        f"the processor refuses an image of {width}×{height} pixels ({reason}); crop or remove it"
    )
