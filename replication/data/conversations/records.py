"""One record of an annotation file: what is accepted, and for what reason it is not."""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

MARK = "<image>"
ROLES = ("human", "gpt")

REASONS = {
    "object": "the record is not a JSON object",
    "id": "its id is neither text nor a number",
    "image": "its image is neither a path nor a list of paths",
    "path": "an image path is empty, absolute, or leads out of the image folder",
    "conversations": "its conversations are no list of turns with 'from' and 'value'",
    "role": "a turn is from none of human, gpt and (first of all) system",
    "order": "human and gpt do not take turns, the human first",
    "unanswered": "it does not end with an answer",
    "empty_answer": "an answer is empty",
    "empty_prompt": "a prompt is empty",
    "marks": "the number of <image> marks in the human turns is not that of its images",
    "text": "it holds text that is no valid Unicode",
}
"""Why a record is invalid."""


@dataclass(frozen=True)
class Record:
    """A valid record.

    Attributes:
        id: its id, or ``<file>:<position>`` where it has none. Published ids are not unique.
        images: paths below the image folder, in the order in which they are shown.
        turns: (from, value): perhaps one of system, then human and gpt in turn.
    """

    id: str
    images: tuple[str, ...]
    turns: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Problem:
    """An invalid record: one of REASONS, and the offending value in short."""

    reason: str
    value: str


def check_record(record: Any, position: str) -> Record | Problem:
    """A record as it was decoded from JSON, checked.

    position: ``<file>:<position>``, the id of a record without one.
    """
    if not isinstance(record, dict):
        return _problem("object", record)
    identity = record.get("id", position)
    if not isinstance(identity, str | int) or isinstance(identity, bool):
        return _problem("id", identity)
    image = record.get("image")
    paths = [] if image is None or image == "" else [image] if isinstance(image, str) else image
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return _problem("image", image)
    turns = record.get("conversations")
    if not isinstance(turns, list) or not turns or not all(map(_is_turn, turns)):
        return _problem("conversations", turns)
    said = tuple((turn["from"], turn["value"]) for turn in turns)
    try:
        for text in (str(identity), *paths, *(text for turn in said for text in turn)):
            text.encode()
    except UnicodeEncodeError:
        return _problem("text", identity)
    if not all(map(is_inside, paths)):
        return _problem("path", image)
    return _check_turns(said, len(paths)) or Record(
        str(identity), tuple(str(PurePosixPath(path)) for path in paths), said
    )


def is_inside(path: str) -> bool:
    """Whether a path is relative, names a file and cannot lead out of the folder it is put in."""
    parts = PurePosixPath(path).parts
    unsafe = path.startswith("/") or path.endswith("/") or "\\" in path or "\0" in path
    return bool(parts) and not unsafe and ".." not in parts


def folder_of(path: str) -> str:
    """The first folder of an image path, by which images are counted; ``.`` if it has none."""
    first, _, rest = path.partition("/")
    return first if rest else "."


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(k), str) for k in ("from", "value"))


def _check_turns(said: tuple[tuple[str, str], ...], images: int) -> Problem | None:
    spoken = said[1:] if said[0][0] == "system" else said
    for speaker, _ in spoken:
        if speaker not in ROLES:
            return _problem("role", speaker)
    for index, (speaker, _) in enumerate(spoken):
        if speaker != ROLES[index % 2]:
            return _problem("order", [turn[0] for turn in spoken[: index + 1]])
    if not spoken or spoken[-1][0] != "gpt":
        return _problem("unanswered", [turn[0] for turn in said])
    for speaker, text in said:
        if not text.strip():
            return _problem("empty_answer" if speaker == "gpt" else "empty_prompt", text)
    marks = sum(text.count(MARK) for speaker, text in said if speaker == "human")
    elsewhere = any(MARK in text for speaker, text in said if speaker != "human")
    if marks != images or elsewhere:
        return _problem("marks", f"{marks} marks, {images} images")
    return None


def _problem(reason: str, value: Any) -> Problem:
    return Problem(reason, ascii(value)[:120])
