"""How the three families write a conversation: special tokens, fixed phrases, chat template.

The templates write what the published ones write: ChatML with vision marks for the Qwen families,
Vicuna's ``USER: ... ASSISTANT: ...`` for LLaVA, which writes images first, leaves a space after
every turn, and ends no answer (``grace.data.Encoder`` adds the end token that training needs).
"""

from dataclasses import dataclass, field

from grace.errors import InputError


@dataclass(frozen=True)
class Chat:
    """The conversation format of a family.

    Attributes:
        special_tokens: in the order of their ids.
        phrases: fixed parts of conversations that are one token each.
        template: Jinja source.
        image, pad, end: the tokens for a visual token, for padding, and for the end of an answer.
        start: the token put before every text, if there is one.
        names: further special tokens by the name under which processors look for them.
        roles: the token that opens a conversation with an image, a later question, an answer:
            what stands at the same place in every family.
        spaced_answers: whether a space stands between the generation prompt and an answer.
    """

    special_tokens: tuple[str, ...]
    phrases: tuple[str, ...]
    template: str
    image: str
    pad: str
    end: str
    start: str | None = None
    names: dict[str, str] = field(default_factory=dict)
    roles: dict[str, str] = field(default_factory=dict)
    spaced_answers: bool = False


_QWEN = Chat(
    special_tokens=(
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|image_pad|>",
        "<|video_pad|>",
    ),
    phrases=(
        "<|im_start|>user\n",
        "<|im_start|>user\n<|vision_start|>",
        "<|im_end|>\n<|im_start|>assistant\n",
        "\n<|im_start|>user\n",
    ),
    template=(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
        "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    image="<|image_pad|>",
    pad="<|endoftext|>",
    end="<|im_end|>",
    names={
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_start_token": "<|vision_start|>",
        "vision_end_token": "<|vision_end|>",
    },
    roles={
        "start": "<|im_start|>user\n<|vision_start|>",
        "question": "\n<|im_start|>user\n",
        "answer": "<|im_end|>\n<|im_start|>assistant\n",
    },
)

_LLAVA = Chat(
    special_tokens=("<s>", "</s>", "<image>", "<pad>"),
    phrases=("USER: ", " ASSISTANT:"),
    template=(
        "{% for message in messages %}{{ message['role'] | upper }}: "
        "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
        "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} "
        "{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    ),
    image="<image>",
    pad="<pad>",
    end="</s>",
    start="<s>",
    names={"image_token": "<image>"},
    roles={"start": "<s>", "question": "USER: ", "answer": " ASSISTANT:"},
    spaced_answers=True,
)

CHATS: dict[str, Chat] = {"llava": _LLAVA, "qwen2_vl": _QWEN, "qwen3_vl": _QWEN}


def chat_of(family: str) -> Chat:
    """The conversation format of a family.

    Raises:
        InputError: for a family that has no small instance.
    """
    if family not in CHATS:
        raise InputError(f"family {family!r} has no small instance; known: {', '.join(CHATS)}")
    return CHATS[family]
