"""The published conversations, as training and calibration read them."""

from pathlib import Path
from typing import Any

from grace.data import ConversationDataset
from grace.files import read_json
from replication.data.conversations.convert import INDEX_FILE

MAX_BAD_SHARE = 0.01
"""Share of the conversations that a processor may refuse: no answer within ``max_length``, an
image of a shape that it does not take, its own token of an image in a text."""


def load_conversations(
    directory: Path, processor: Any, config: Any, *, max_length: int | None = None
) -> ConversationDataset:
    """The conversations that :func:`replication.data.conversations.convert.convert` wrote.

    Raises:
        InputError: The directory is missing or cannot be read, or too many cannot be used.
    """
    places = read_json(directory / INDEX_FILE)["images"]
    return ConversationDataset(
        directory,
        processor,
        config,
        image_folder={"": places["root"], **places["folders"]},
        max_length=max_length,
        on_bad_record="skip",
        max_bad_share=MAX_BAD_SHARE,
    )
