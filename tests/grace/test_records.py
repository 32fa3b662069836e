"""Records of every schema that people's data come in, and what is refused of them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grace.data.records import Turn, read_record, read_turns
from grace.errors import InputError


def located(path):
    return Path("photos") / path


def said(*turns, names=("human", "gpt"), keys=("from", "value")):
    return [{keys[0]: names[k % 2], keys[1]: text} for k, text in enumerate(turns)]


ANSWERED = [Turn("user", (None, "What is it?")), Turn("assistant", ("A bridge.",))]
PHOTO = located("a.jpg")
CHAT = {"names": ("user", "assistant"), "keys": ("role", "content")}
PARTS = [{"type": "image"}, {"type": "text", "text": "What is it?"}]
ANSWER = {"role": "assistant", "content": "A bridge."}

ACCEPTED = {
    "LLaVA": {"image": "a.jpg", "conversations": said("<image>\nWhat is it?", "A bridge.")},
    "LLaVA, a list": {"image": ["a.jpg"], "conversations": said("<image>What is it?", "A bridge.")},
    "mark left out": {"image": "a.jpg", "conversations": said("What is it?", "A bridge.")},
    "user and assistant": {
        "image": "a.jpg",
        "conversations": said("<image>\nWhat is it?", "A bridge.", names=CHAT["names"]),
    },
    "a chat with texts": {
        "images": ["a.jpg"],
        "messages": said("What is it?", "A bridge.", **CHAT),
    },
    "a chat with a mark": {
        "images": ["a.jpg"],
        "messages": said("<image>What is it?", "A bridge.", **CHAT),
    },
    "a chat with parts": {
        "images": ["a.jpg"],
        "messages": [{"role": "user", "content": PARTS}, ANSWER],
    },
    "image beside a chat": {
        "image": "a.jpg",
        "messages": [{"role": "user", "content": PARTS}, ANSWER],
    },
    "parts as Arrow gives them": {
        "images": [{"bytes": None, "path": "a.jpg"}],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "image", "text": None},
                    {"type": "text", "text": "What is it?"},
                ],
            },
            {"role": "assistant", "content": [{"type": "text", "text": "A bridge."}]},
        ],
    },
    "an image inside a part": {
        "messages": [
            {"role": "user", "content": [{"type": "image", "image": "a.jpg"}, PARTS[1]]},
            ANSWER,
        ]
    },
    "an image of OpenAI's kind": {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "image_url", "image_url": {"url": "a.jpg"}}, PARTS[1]],
            },
            ANSWER,
        ]
    },
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_one_conversation_in_every_schema(kind):
    record = read_record({"id": "7", **ACCEPTED[kind]}, 3, located)
    assert (record.id, record.turns, record.images) == ("7", ANSWERED, [PHOTO])


def test_images_are_paths_or_bytes():
    talk = said("<image>\nWhat is it?", "A bridge.")
    for image in (b"content", {"bytes": b"content", "path": "../x"}, [{"bytes": b"content"}]):
        assert read_record({"image": image, "conversations": talk}, 0, located).images == [
            b"content"
        ]
    record = read_record(
        {"image": {"bytes": None, "path": "a.jpg"}, "conversations": talk}, 5, located
    )
    assert (record.id, record.images) == ("5", [PHOTO])


def test_several_images_stand_where_they_are_marked():
    raw = {
        "image": ["a.jpg", "b.jpg"],
        "conversations": said("<image>\n<image>\nCompare.", "Same.", "And now?", "No."),
    }
    record = read_record(raw, 0, located)
    assert record.turns[0].parts == (None, None, "Compare.")
    assert record.images == [PHOTO, located("b.jpg")]
    raw["conversations"][0]["value"] = "Is <image> like\n<image>"
    assert read_record(raw, 0, located).turns[0].parts == ("Is ", None, " like", None)
    raw["conversations"][0]["value"] = "<image>\nLook."
    raw["conversations"][2]["value"] = "And <image>?"
    turns = read_record(raw, 0, located).turns
    assert [turn.parts for turn in turns[::2]] == [(None, "Look."), ("And ", None, "?")]


def test_a_system_turn_and_text_alone():
    talk = [{"from": "system", "value": "Be brief."}, *said("Why?", "Because.")]
    for image in ({}, {"image": None}, {"image": ""}, {"images": []}):
        record = read_record({**image, "conversations": talk}, 0, located)
        assert [turn.role for turn in record.turns] == ["system", "user", "assistant"]
        assert record.images == []
    raw = {"image": {"bytes": None, "path": None}, "conversations": said("Why?", "Because.")}
    assert read_record(raw, 0, located).images == []


def test_a_mark_is_text_where_images_are_parts():
    talk = [{"role": "user", "content": [PARTS[0], {"type": "text", "text": "Is <image> a tag?"}]}]
    record = read_record({"images": ["a.jpg"], "messages": [*talk, ANSWER]}, 0, located)
    assert record.turns[0].parts == (None, "Is <image> a tag?")


TALK = said("<image>\nWhat is it?", "A bridge.")
REFUSED = {
    "an empty answer": ({"conversations": said("Why?", "")}, "an answer is empty"),
    "a blank answer": ({"conversations": said("Why?", " \n\t")}, "an answer is empty"),
    "a blank answer in parts": (
        {
            "messages": [
                {"role": "user", "content": "Why?"},
                {"role": "assistant", "content": [{"type": "text", "text": " "}]},
            ]
        },
        "an answer is empty",
    ),
    "no answer": ({"conversations": said("Why?")}, "must end with an answer"),
    "an answer first": ({"conversations": said("Why?", "x")[::-1]}, "must alternate"),
    "two questions": ({"conversations": said("a", "b") + said("c")}, "must end with an answer"),
    "an unknown role": ({"conversations": said("a", "b", names=("human", "bot"))}, "'bot'"),
    "a system turn later": (
        {"conversations": [*said("a", "b"), {"from": "system", "value": "x"}, *said("a", "b")]},
        "must alternate",
    ),
    "a mark too many": ({"conversations": TALK}, r"more <image> marks than images \(1, 0\)"),
    "a mark too few": (
        {"image": ["a", "b"], "conversations": TALK},
        r"fewer <image> marks than images \(1, 2\)",
    ),
    "two images, no mark": (
        {"images": ["a", "b"], "conversations": said("Why?", "x")},
        r"fewer <image> marks than images \(0, 2\)",
    ),
    "no turns": ({"image": "a.jpg"}, "no 'messages' and no 'conversations'"),
    "turns of no schema": ({"conversations": ["hello"]}, "not an object of role and content"),
    "a content of no kind": ({"conversations": [{"from": "human", "value": 3}]}, "is 3"),
    "a video": ({"video": "a.mp4", "conversations": said("a", "b")}, "only texts and images"),
    "videos": ({"videos": ["a.mp4"], "messages": said("a", "b", **CHAT)}, "only texts and images"),
    "audio in a part": (
        {"messages": [{"role": "user", "content": [{"type": "audio", "audio": "a.wav"}]}, ANSWER]},
        "'audio': only texts and images",
    ),
    "an image in an answer": (
        {
            "images": ["a"],
            "messages": [
                {"role": "user", "content": "Draw."},
                {"role": "assistant", "content": [{"type": "image"}, PARTS[1]]},
            ],
        },
        "only a user's turn",
    ),
    "images twice": (
        {
            "images": ["a.jpg"],
            "messages": [
                {"role": "user", "content": [{"type": "image", "image": "b.jpg"}, PARTS[1]]},
                ANSWER,
            ],
        },
        "keep one of the two",
    ),
    "an image of no kind": ({"image": 5, "conversations": TALK}, "an image is 5"),
    "no Unicode": ({"conversations": said("a \ud800", "b")}, "no valid Unicode"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_trained_on_is_refused(kind):
    raw, message = REFUSED[kind]
    with pytest.raises(InputError, match=message):
        read_record(raw, 0, located)


@given(
    st.lists(st.lists(st.text(st.characters(codec="utf-8"), max_size=6), min_size=1, max_size=4))
)
def test_marks_are_taken_out_and_nothing_else(pieces):
    """Texts joined by marks come back as they were, but for the line breaks beside a mark."""
    pieces = [[text.replace("<", "").replace("\n", "") for text in one] for one in pieces]
    talk = []
    for one in pieces:
        talk += said("<image>".join(one), "x")
    images = sum(len(one) - 1 for one in pieces)
    if not talk:
        return
    turns = read_turns(talk, images)
    for one, turn in zip(pieces, turns[::2], strict=True):
        assert sum(part is None for part in turn.parts) == len(one) - 1
        assert "".join(part or "" for part in turn.parts) == "".join(one)
