"""Conversations to supervised token sequences.

Records follow the LLaVA schema: ``{"image": ..., "conversations": [{"from", "value"}, ...]}``
with ``<image>`` in the human turn that shows the image; the image of a record that is text alone
is null. Only assistant turns are supervised: their content and the token that ends the turn.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from grace.errors import InputError

IGNORE_INDEX = -100
"""The label of a token that is not supervised."""
_ROLES = {"human": "user", "gpt": "assistant"}
_REMEMBERED = 1024  # texts whose tokens an encoder keeps
_SLOT = "\ue000"  # private-use character: stands for a turn's text while the template is rendered


class _Frame(NamedTuple):
    """The text that a chat template writes around the turns of a conversation.

    Attributes:
        before: The text before each turn, and after the last.
        gaps: White space between the generation prompt and an answer; empty for other turns.
        ends: The end of each answer, the end token included; empty for other turns.
    """

    before: list[str]
    gaps: list[str]
    ends: list[str]


@dataclass
class Encoder:
    """Turns a conversation into token ids and labels with a processor's chat template.

    ::

        encode = Encoder(processor)
        ids, labels = encode(record["conversations"], [576])    # one image of 576 visual tokens

    Prompt and answer are tokenized apart, as in generation, where the prompt is tokenized
    alone and the answer follows token by token. So the prompt ends where the template's
    generation prompt ends, and white space between it and the answer is the answer's. A template
    that ends no answer (LLaVA's) is completed: the end token stands right after the answer, as in
    that family's own training (``USER: ... ASSISTANT: ...</s>USER: ...``).

    Attributes:
        processor: The model's processor.
    """

    processor: Any
    _frames: dict[tuple, _Frame] = field(default_factory=dict)
    _tokens: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def __call__(
        self, conversations: Sequence[dict[str, str]], image_tokens: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels (IGNORE_INDEX where not supervised).

        Args:
            conversations: Turns, human first, alternating.
            image_tokens: Number of visual tokens of each image, in order of appearance.

        Raises:
            InputError: An unknown speaker, a missing answer, images that do not match the
                ``<image>`` marks, or a chat template that cannot be used for training.
        """
        image_id = self.processor.image_token_id
        counts = iter(image_tokens)
        ids: list[int] = []
        labels: list[int] = []
        for tokens, supervised in self._pieces(conversations):
            for token in tokens:
                if token == image_id:
                    count = next(counts, None)
                    if count is None:
                        raise InputError(
                            "a conversation has more <image> marks than images "
                            f"({len(image_tokens)}); mark each image once"
                        )
                    ids.extend([image_id] * count)
                    labels.extend([IGNORE_INDEX] * count)
                else:
                    ids.append(token)
                    labels.append(token if supervised else IGNORE_INDEX)
        if next(counts, None) is not None:
            raise InputError(
                f"a conversation has fewer <image> marks than images ({len(image_tokens)}); mark "
                "each image once"
            )
        return ids, labels

    def _pieces(self, conversations: Sequence[dict[str, str]]) -> Iterator[tuple[list[int], bool]]:
        """Tokens of prompts and answers in turn, and whether they are supervised."""
        turns = [_parse_turn(index, turn) for index, turn in enumerate(conversations or [])]
        if not turns or turns[-1][0] != "assistant":
            raise InputError("a conversation must end with an answer from 'gpt'")
        key = tuple((role, images) for role, images, _ in turns)
        if key not in self._frames:
            self._frames[key] = self._frame(turns)
        frame = self._frames[key]
        prompt, part = "", "start"
        for index, (role, _, text) in enumerate(turns):
            prompt += frame.before[index]
            if role == "assistant":
                yield self._encode(prompt, part), False
                yield self._encode(frame.gaps[index] + text + frame.ends[index], "answer"), True
                prompt, part = "", "prompt"
            else:
                prompt += text
        if frame.before[-1]:
            yield self._encode(frame.before[-1], "prompt"), False

    def _encode(self, text: str, part: str) -> list[int]:
        """Tokens of a text: the start of a conversation, a later prompt, or an answer."""
        if (text, part) not in self._tokens:
            encode = self.processor.tokenizer.encode
            if part == "answer":
                # a tokenizer may put a space before a text, but none stands before an answer
                opening = encode(self._opening, add_special_tokens=False)
                tokens = encode(self._opening + text, add_special_tokens=False)
                if tokens[: len(opening)] == opening:
                    tokens = tokens[len(opening) :]
                else:
                    tokens = encode(text, add_special_tokens=False)
            else:
                # only at the start: a beginning-of-sequence token, in families that have one
                tokens = encode(text, add_special_tokens=part == "start")
            self._tokens[text, part] = tokens
        return self._tokens[text, part]

    @cached_property
    def _opening(self) -> str:
        """The template's generation prompt, such as ``ASSISTANT:``."""
        question = [{"role": "user", "content": [{"type": "text", "text": _SLOT}]}]
        plain = self._render(question)
        prompted = self._render(question, add_generation_prompt=True)
        if not prompted.startswith(plain) or prompted == plain:
            raise InputError(
                "the processor's chat template writes no generation prompt after a question; "
                "use one that obeys add_generation_prompt"
            )
        return prompted[len(plain) :]

    def _frame(self, turns: list[tuple[str, int, str]]) -> _Frame:
        """The template's text around turns of these speakers and numbers of images."""
        messages = []
        for role, images, _ in turns:
            content = [{"type": "image"}] * images + [{"type": "text", "text": _SLOT}]
            messages.append({"role": role, "content": content})
        before = self._render(messages).split(_SLOT)
        if len(before) != len(turns) + 1:
            raise InputError(
                "the processor's chat template drops or repeats turns; "
                "use one that writes every turn once"
            )
        gaps, ends = [""] * len(turns), [""] * len(turns)
        end = self.processor.tokenizer.eos_token
        if not end:
            raise InputError("the tokenizer has no end token; set its eos_token")
        for index, (role, *_) in enumerate(turns):
            if role != "assistant":
                continue
            head, opening, gaps[index] = before[index].rpartition(self._opening)
            if not opening or gaps[index].strip():
                raise InputError(
                    f"the processor's chat template asks for an answer with {self._opening!r}, but "
                    f"writes an answer after {before[index]!r}; use one that does both alike"
                )
            before[index] = head + opening
            following = before[index + 1]
            rest = following.lstrip()
            ended = rest.startswith(end)
            before[index + 1] = rest.removeprefix(end)
            ends[index] = following[: len(following) - len(rest)] + end if ended else end
        return _Frame(before, gaps, ends)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self.processor.apply_chat_template(messages, tokenize=False, **options)


def _parse_turn(index: int, turn: dict[str, str]) -> tuple[str, int, str]:
    speaker = turn.get("from") if isinstance(turn, dict) else None
    if speaker not in _ROLES or not isinstance(turn.get("value"), str):
        raise InputError(
            f"turn {index} of a conversation is {turn!r}; it needs 'from' (one of "
            f"{', '.join(_ROLES)}) and 'value'"
        )
    role = _ROLES[speaker]
    if role != ("user", "assistant")[index % 2]:
        raise InputError(
            f"turn {index} of a conversation is from {speaker!r}; turns must alternate"
        )
    text = turn["value"]
    images = text.count("<image>") if role == "user" else 0
    if images:
        text = text.replace("<image>\n", "").replace("\n<image>", "").replace("<image>", "")
    return role, images, text


@dataclass
class SystemEncoder(Encoder):
    """An encoder that takes a first turn of ``system`` into the prompt, unsupervised, by the same
    chat template; and that remembers few texts."""

    _system: str | None = field(default=None, init=False)

    def __call__(
        self, conversations: Sequence[dict[str, str]], image_tokens: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        system = None
        if conversations and conversations[0].get("from") == "system":
            system, conversations = conversations[0]["value"], conversations[1:]
        if system != self._system:
            self._system = system
            self._frames.clear()
        if len(self._tokens) > _REMEMBERED:
            self._tokens.clear()
        return super().__call__(conversations, image_tokens)

    def _render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        if self._system is not None:
            content = [{"type": "text", "text": self._system}]
            messages = [{"role": "system", "content": content}, *messages]
        return super()._render(messages, **options)
