"""One record, of any schema that is accepted, to turns and images.

Two schemas are read, which may mix in a file: LLaVA's, ``{"image": ..., "conversations": [{"from",
"value"}, ...]}`` with ``<image>`` where an image stands, and that of chats on the hub and in TRL,
``{"images": [...], "messages": [{"role", "content"}, ...]}``, where a content is a text or a list
of text and image parts.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from grace.errors import InputError

MARK = "<image>"
"""Stands in a text for an image."""
ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
"""The role of a turn by the name that a record gives it."""
COLUMNS = ("id", "image", "images", "conversations", "messages")
"""What is read of a record."""
OTHER_MEDIA = ("video", "videos", "audio", "audios")
"""Columns of what is neither text nor image."""

_MARKS = re.compile(r"<image>\n|\n<image>|<image>")  # a line break beside a mark belongs to it

ImageContent = Path | bytes
"""An image as a record has it: its file, or the content of one."""
ImageFolder = str | Path | Mapping[str, str | Path]
"""Where images lie: a folder, or folders by the first part of the path, "" for all others."""


class Turn(NamedTuple):
    """One turn of a conversation.

    Attributes:
        role: "system", "user" or "assistant".
        parts: Its texts in order; None where an image stands.
    """

    role: str
    parts: tuple[str | None, ...]


@dataclass(frozen=True)
class Record:
    """A valid record.

    Attributes:
        id: As given, or its position.
        turns: Perhaps one of "system", then "user" and "assistant" alternately.
        images: In the order in which they are shown.
    """

    id: str
    turns: list[Turn]
    images: list[ImageContent]


def identity_of(raw: Mapping[str, Any], position: int) -> str:
    """The id of a record, or its position in the data set."""
    identity = raw.get("id")
    return str(position) if identity is None else str(identity)


def read_record(raw: Mapping[str, Any], position: int, locate: Callable[[str], Path]) -> Record:
    """A record of any accepted schema.

    ::

        raw = {"image": "a.jpg", "conversations": [{"from": "human", "value": "What is it?"},
                                                   {"from": "gpt", "value": "A bridge."}]}
        read_record(raw, 0, lambda path: Path("photos") / path).turns[0].parts    # (None, "What ...

    Args:
        raw: The record as it was read.
        position: Its position in the data set, which is the id of one without.
        locate: Gives the file of an image by its path in the record.

    Raises:
        InputError: It is of no accepted schema. The message says why, and does not name the record.
    """
    for name in OTHER_MEDIA:
        if raw.get(name):
            raise InputError(f"it has {name!r}: only texts and images can be trained on")
    images = record_images(raw, locate)
    return Record(identity_of(raw, position), read_turns(_messages(raw), len(images)), images)


def record_images(raw: Mapping[str, Any], locate: Callable[[str], Path]) -> list[ImageContent]:
    """The images of a record alone, in order; see :func:`read_record`."""
    embedded = _embedded(_messages(raw)) if raw.keys() - {"image", "images"} else []
    beside = [*_listed(raw.get("image")), *_listed(raw.get("images"))]
    if beside and embedded:
        raise InputError(
            "it has images both beside its messages and inside them; keep one of the two"
        )
    return [_image(image, locate) for image in beside or embedded]


def read_turns(messages: Sequence[Mapping[str, Any]], images: int) -> list[Turn]:
    """The turns of a conversation, checked.

    Args:
        messages: With "from" and "value", or "role" and "content".
        images: How many images they show. One image that is marked nowhere stands before the text
            of the first user turn.

    Raises:
        InputError: An unknown role, turns that do not alternate, an empty answer, or marks that are
            not as many as the images.
    """
    said = [_role_and_content(index, message) for index, message in enumerate(messages)]
    parted = any(
        _is_image(part) for _, content in said if not isinstance(content, str) for part in content
    )
    turns = [Turn(role, tuple(_parts(role, content, parted))) for role, content in said]
    _check_order(turns)
    marks = sum(part is None for turn in turns for part in turn.parts)
    if marks == 0 and images == 1:
        first = next(place for place, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", (None, *turns[first].parts))
    elif marks != images:
        fewer = "more" if marks > images else "fewer"
        raise InputError(
            f"it has {fewer} {MARK} marks than images ({marks}, {images}); mark each image once"
        )
    return turns


def _messages(raw: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = raw.get("messages")
    if messages is None:
        messages = raw.get("conversations")
    if not isinstance(messages, list | tuple) or not messages:
        raise InputError("it has no 'messages' and no 'conversations', or no turn in them")
    return messages


def _embedded(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The images that stand inside messages."""
    embedded: list[Any] = []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        for part in content if isinstance(content, list | tuple) else ():
            if isinstance(part, Mapping) and _is_image(part):
                image = part.get("image", part.get("image_url"))
                if isinstance(image, Mapping) and "url" in image:
                    image = image["url"]
                embedded += _listed(image)
    return embedded


def _role_and_content(index: int, message: Any) -> tuple[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"turn {index} is {_short(message)}, not an object of role and content")
    named = message.get("role")
    named = message.get("from") if named is None else named
    content = message.get("content")
    content = message.get("value") if content is None else content
    if not isinstance(named, str) or named not in ROLES:
        raise InputError(
            f"turn {index} is from {_short(named)}; 'from' or 'role' is one of {', '.join(ROLES)}"
        )
    if not isinstance(content, str | list | tuple):
        raise InputError(
            f"turn {index} is {_short(content)}; 'value' or 'content' is a text, or a list of text "
            "and image parts"
        )
    return ROLES[named], content


def _is_image(part: Any) -> bool:
    """Whether a part of a content is an image; its type may be left out."""
    if not isinstance(part, Mapping):
        return False
    kind = part.get("type")
    if kind is None:
        return part.get("text") is None and part.get("image") is not None
    return kind in ("image", "image_url")


def _parts(role: str, content: Any, parted: bool) -> list[str | None]:
    """A content's texts in order, None where an image stands.

    Args:
        role: Of the turn; only a user shows images.
        content: A text, or a list of parts.
        parted: Whether images stand as parts in the conversation. A mark in a text is text then.
    """
    parts: list[str | None] = []
    for part in [content] if isinstance(content, str) else content:
        if _is_image(part):
            parts.append(None)
            continue
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            raise InputError(
                f"a part of a turn is {_short(kind or part)}: only texts and images can be trained "
                "on"
            )
        _check_unicode(text)
        if parted or role != "user":
            parts.append(text)
            continue
        pieces = _MARKS.split(text)
        parts.append(pieces[0])
        for piece in pieces[1:]:
            parts += [None, piece]
    if None in parts and role != "user":
        raise InputError(f"a turn of {role!r} shows an image; only a user's turn can")
    texts = [part for part in parts if part]
    if role == "assistant" and not "".join(texts).strip():
        raise InputError("an answer is empty")
    if role == "assistant":
        return ["".join(texts)]
    kept = [part for part in parts if part != ""]
    return kept if texts else [*kept, ""]


def _check_order(turns: Sequence[Turn]) -> None:
    spoken = turns[1:] if turns and turns[0].role == "system" else turns
    for index, turn in enumerate(spoken):
        if turn.role != ("user", "assistant")[index % 2]:
            raise InputError(
                f"turn {index} is from {turn.role!r}; turns of user and assistant must alternate, "
                "the user's first, after at most one of system"
            )
    if not spoken or spoken[-1].role != "assistant":
        raise InputError("it must end with an answer from 'assistant' or 'gpt'")


def _check_unicode(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("it holds text that is no valid Unicode") from error


def _listed(images: Any) -> list[Any]:
    """The images of a column, of which one without bytes and path is none."""
    if images is None or images == "":
        return []
    images = images if isinstance(images, list | tuple) else [images]
    empty = {"bytes": None, "path": None}
    return [image for image in images if image is not None and image != empty]


def _image(image: Any, locate: Callable[[str], Path]) -> ImageContent:
    if isinstance(image, bytes):
        return image
    if isinstance(image, Mapping):
        content = image.get("bytes")
        image = image.get("path") if content is None else content
        if isinstance(image, bytes):
            return image
    if isinstance(image, str) and image:
        _check_unicode(image)
        return locate(image)
    raise InputError(f"an image is {_short(image)}, not a path and not the bytes of a file")


def _short(value: Any) -> str:
    return repr(value)[:80]


def locate_image(path: str, folder: ImageFolder | None) -> Path:
    """The file of an image.

    Args:
        path: In a record.
        folder: The folder, or folders, that it may not lead out of; None for data that the user
            made in Python, where a path is what it says.

    Raises:
        InputError: The path leads out of the folder, or is none of a file.
    """
    if "://" in path or path.startswith("data:"):
        raise InputError(f"its image {path[:80]!r} is no file; download it and give its path")
    rest = path
    if isinstance(folder, Mapping):
        first, _, below = path.partition("/")
        known = bool(first and below) and first in folder
        folder, rest = (folder[first], below) if known else (folder.get("", "."), path)
    unsafe = not path or path.endswith("/") or "\\" in path or "\0" in path
    if not unsafe and folder is None:
        return Path(path)
    if not unsafe and folder is not None and ".." not in Path(rest).parts:
        root = Path(folder).absolute()
        place = root / rest  # an absolute path stays what it is
        if place.is_relative_to(root) and place != root:
            return place
    raise InputError(
        f"its image path {path!r} leads out of the image folder {str(folder)!r}; correct the path "
        "or image_folder"
    )
