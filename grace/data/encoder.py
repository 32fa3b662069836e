"""Conversations to supervised token sequences.

Only answers are supervised: their content and the token that ends the turn. A conversation is of
any schema that `grace.data.records` reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from PIL import Image

from grace.data.image_tokens import ImageText, special_tokens
from grace.data.records import Turn, read_turns
from grace.errors import InputError

IGNORE_INDEX = -100
"""The label of a token that is not supervised."""
_SLOT = "\ue000"  # private-use character: stands for a text while the template is rendered
_REMEMBERED = 4_000_000  # characters of texts whose tokens an encoder keeps
_FRAMES = 4096  # shapes of conversations that an encoder keeps


class Encoded(NamedTuple):
    """A conversation as tokens.

    Attributes:
        ids: Token ids.
        labels: The same; IGNORE_INDEX where nothing is supervised.
        image_spans: (start, stop) of each image, from its first visual token to one past its last.
    """

    ids: list[int]
    labels: list[int]
    image_spans: list[tuple[int, int]]


class _Frame(NamedTuple):
    """What a chat template writes around the texts of a conversation.

    Attributes:
        before: The text before each text, in order, and after the last.
        openings: What begins each answer after the generation prompt, such as a space; empty for
            other texts.
        ends: The end of each answer, the end token included; empty for other texts.
    """

    before: list[str]
    openings: list[str]
    ends: list[str]


@dataclass
class Encoder:
    """Turns a conversation into token ids and labels with a processor's chat template.

    ::

        encode = Encoder(processor)
        ids, labels, spans = encode(record["conversations"], [576])    # an image of 576 tokens

    Prompt and answer are tokenized apart, as in generation, where the prompt is tokenized
    alone and the answer follows token by token. So the prompt ends where the template's
    generation prompt ends, and white space between it and the answer is the answer's. A template
    that ends no answer (LLaVA's) is completed: the end token stands right after the answer, as in
    that family's own training (``USER: ... ASSISTANT: ...</s>USER: ...``).

    Attributes:
        processor: The model's processor.
        image_token_id: The placeholder of a visual token; the processor's own by default.
    """

    processor: Any
    image_token_id: int | None = None
    _frames: dict[tuple, _Frame] = field(default_factory=dict, repr=False)
    _tokens: dict[tuple[str, str], list[int]] = field(default_factory=dict, repr=False)
    _characters: int = field(default=0, repr=False)

    def __post_init__(self) -> None:
        if self.image_token_id is None:
            self.image_token_id = self.processor.image_token_id

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_frames": {}, "_tokens": {}, "_characters": 0}

    def __call__(
        self,
        conversation: Sequence[Turn] | Sequence[Mapping[str, Any]],
        images: Sequence[ImageText | int],
    ) -> Encoded:
        """The tokens of a conversation.

        Args:
            conversation: Turns, as ``grace.data.records.read_turns`` gives or takes them.
            images: What stands for each image, in order of appearance: see
                ``grace.data.image_tokens``; or its number of placeholders.

        Raises:
            InputError: A bad conversation, images that do not match its marks, a text with the
                model's own token of an image, or a chat template that cannot be used for training.
        """
        turns = [turn for turn in conversation if isinstance(turn, Turn)]
        if not turns:
            messages: Any = conversation
            turns = read_turns(messages, len(images))
        shown = iter([self._image_text(image) for image in images])
        ids: list[int] = []
        labels: list[int] = []
        spans: list[tuple[int, int]] = []
        for text, part in self._pieces(turns):
            if part == "answer":
                tokens = self._encode(text, part)
                ids += tokens
                labels += tokens
                continue
            self._extend(ids, spans, text, part, shown)
            labels += [IGNORE_INDEX] * (len(ids) - len(labels))
        if len(spans) != len(images):
            raise InputError(
                f"the processor's chat template writes {len(spans)} of {len(images)} images; use "
                "one that writes every image once"
            )
        return Encoded(ids, labels, spans)

    def check(self) -> None:
        """Check the chat template, before any conversation is encoded.

        Raises:
            InputError: There is none, or it cannot be used for training.
        """
        turns = [Turn("user", (_SLOT,)), Turn("assistant", (_SLOT,))]
        self._frame(turns)

    # -- tokens ----------------------------------------------------------------------------------

    def _image_text(self, image: ImageText | int) -> ImageText:
        if isinstance(image, ImageText):
            return image
        assert self.image_token_id is not None
        return ImageText("", (self.image_token_id,) * image, "")

    def _extend(
        self,
        ids: list[int],
        spans: list[tuple[int, int]],
        text: str,
        part: str,
        shown: Iterator[ImageText],
    ) -> None:
        """Append the tokens of a prompt, with the images that it shows."""
        pieces = text.split(self.processor.image_token)
        images = [image for _, image in zip(pieces[1:], shown, strict=False)]
        if len(images) < len(pieces) - 1:
            raise InputError(
                "the processor's chat template writes an image more than once; use another"
            )
        text = pieces[0]
        for image, piece in zip(images, pieces[1:], strict=True):
            text += image.before + self._placeholder + image.after + piece
        coming = iter(images)
        for token in self._encode(text, part):
            if token != self.image_token_id:
                ids.append(token)
                continue
            image = next(coming)
            length = len(image.ids)
            start = len(ids) + image.ids.index(token)
            stop = len(ids) + length - image.ids[::-1].index(token)
            ids.extend(image.ids)
            spans.append((start, stop))

    def _encode(self, text: str, part: str) -> list[int]:
        """Tokens of a text: the start of a conversation, a later prompt, or an answer."""
        tokens = self._tokens.get((text, part))
        if tokens is not None:
            return tokens
        tokenizer = self.processor.tokenizer
        encode = tokenizer.encode
        if part == "answer":
            # a tokenizer may put a space before a text, but none stands before an answer
            opening = encode(self._asks, add_special_tokens=False)
            tokens = encode(self._asks + text, add_special_tokens=False)
            if tokens[: len(opening)] == opening:
                tokens = tokens[len(opening) :]
            else:
                tokens = encode(text, add_special_tokens=False)
        else:
            # only at the start, and only where the template writes none: a beginning-of-sequence
            # token, in families that have one
            begun = bool(tokenizer.bos_token) and tokenizer.bos_token in text
            tokens = encode(text, add_special_tokens=part == "start" and not begun)
        self._characters += len(text)
        if self._characters > _REMEMBERED:
            self._tokens.clear()
            self._characters = len(text)
        self._tokens[text, part] = tokens
        return tokens

    def _pieces(self, turns: Sequence[Turn]) -> Iterator[tuple[str, str]]:
        """The texts of prompts and answers in turn, and which part of the conversation each is."""
        key = tuple((role, tuple(part is None for part in parts)) for role, parts in turns)
        if key not in self._frames:
            if len(self._frames) >= _FRAMES:
                self._frames.clear()
            self._frames[key] = self._frame(turns)
        frame = self._frames[key]
        prompt, part = "", "start"
        for place, (role, text) in enumerate(_texts(turns)):
            self._check_text(text)
            said = text.strip() if role in self._stripped else text
            prompt += frame.before[place]
            if role == "assistant":
                yield prompt, part
                yield frame.openings[place] + said + frame.ends[place], "answer"
                prompt, part = "", "prompt"
            else:
                prompt += said
        if frame.before[-1]:
            yield frame.before[-1], "prompt"

    def _check_text(self, text: str) -> None:
        for token in self._reserved:
            if token in text:
                raise InputError(
                    f"a text holds {token!r}, the model's own token of an image; remove it"
                )

    @cached_property
    def _placeholder(self) -> str:
        return self.processor.tokenizer.convert_ids_to_tokens(self.image_token_id)

    @cached_property
    def _reserved(self) -> list[str]:
        video = getattr(self.processor, "video_token", None)
        tokens = (self.processor.image_token, self._placeholder, video)
        return [token for token in dict.fromkeys(tokens) if token]

    # -- template --------------------------------------------------------------------------------

    def _frame(self, turns: Sequence[Turn]) -> _Frame:
        """The template's text around turns of these roles, texts and images.

        What stands before an answer is what generation sees: the generation prompt after the turns
        so far. How an answer begins and ends is taken from the conversation that ends with it.
        """
        before: list[str] = []
        openings: list[str] = []
        ends: list[str] = []
        following = ""
        for index, turn in enumerate(turns):
            if turn.role != "assistant":
                continue
            texts = len(before)
            prompted = self._prompted(turns[:index])
            written = self._render(turns[: index + 1])
            new = len(prompted) - 1 - texts
            opening = _opening(prompted[-1], written[-2])
            if opening.strip() and not self._generation_prompt:
                raise InputError(
                    "the processor's chat template writes no generation prompt after a question; "
                    "use one that obeys add_generation_prompt"
                )
            if texts:
                ends[-1], prompted[texts] = self._split_end(prompted[texts], last=False)
            before += prompted[texts:]
            openings += [""] * new + [opening]
            if not new:
                raise InputError("an answer stands before a question")
            following = written[-1]
            ends += [""] * (new + 1)
        ends[-1], rest = self._split_end(following, last=True)
        return _Frame([*before, rest], openings, ends)

    def _split_end(self, following: str, *, last: bool) -> tuple[str, str]:
        """The end of an answer, end token included, and what remains of the text after it."""
        rest = following.lstrip()
        space = following[: len(following) - len(rest)]
        if self._end and rest.startswith(self._end):
            return space + self._end, rest[len(self._end) :]
        if not self._end and not last:
            match = special_tokens(self.processor.tokenizer).match(rest)
            if match is not None:  # the mark of the next question ends the answer (GLM)
                return space + match.group(), rest[match.end() :]
        return self.processor.tokenizer.eos_token, rest

    @cached_property
    def _end(self) -> str:
        """The special tokens with which the template ends an answer; empty for none."""
        eos = self.processor.tokenizer.eos_token
        if not eos:
            raise InputError("the tokenizer has no end token; set its eos_token")
        question = [Turn("user", (_SLOT,)), Turn("assistant", (_SLOT,))]
        tail, end = self._render(question)[-1].lstrip(), ""
        special = special_tokens(self.processor.tokenizer)
        while eos not in end and (match := special.match(tail, len(end))):
            end += match.group()
        return end

    @cached_property
    def _generation_prompt(self) -> str:
        """What the template adds for an answer, such as ``ASSISTANT:``; empty in some (Mistral)."""
        question = [Turn("user", (_SLOT,))]
        plain = self._render(question)[-1]
        return self._render(question, add_generation_prompt=True)[-1].removeprefix(plain)

    @cached_property
    def _asks(self) -> str:
        """What stands before an answer: the generation prompt, or what follows a question."""
        return self._generation_prompt or self._render([Turn("user", (_SLOT,))])[-1]

    @cached_property
    def _stripped(self) -> set[str]:
        """The roles whose texts the template strips of white space."""
        stripped = set()
        for role in ("user", "assistant"):
            padded = [
                Turn(one, (f" {_SLOT} " if one == role else _SLOT,))
                for one in ("user", "assistant")
            ]
            plain = [Turn(one, (_SLOT,)) for one in ("user", "assistant")]
            if self._render(padded) == self._render(plain):
                stripped.add(role)
        return stripped

    @cached_property
    def _forms(self) -> dict[str, bool]:
        """By role: whether the template takes a list of parts, or else a text alone."""
        talk = [("user", _SLOT), ("assistant", _SLOT), ("user", _SLOT)]
        for user, assistant in ((True, True), (True, False), (False, False), (False, True)):
            forms = {"user": user, "assistant": assistant}
            rendered = self._try([Turn(role, (text,)) for role, text in talk], forms)
            if isinstance(rendered, str) and rendered.count(_SLOT) == len(talk):
                break
        else:
            reason = f" ({rendered})" if isinstance(rendered, Exception) else ""
            raise InputError(
                "the processor's chat template drops or repeats turns; use one that writes every "
                f"turn once{reason}"
            )
        told = [Turn("system", (_SLOT,)), Turn("user", (_SLOT,))]
        for system in (True, False):
            rendered = self._try(told, {**forms, "system": system})
            if isinstance(rendered, str) and rendered.count(_SLOT) == len(told):
                return {**forms, "system": system}
        return forms

    def _prompted(self, turns: Sequence[Turn]) -> list[str]:
        """The text around the texts of a prompt, as the processor lays it out: PaliGemma's adds a
        start token behind the images and a line break."""
        prompted = self._render(turns, add_generation_prompt=True)
        images = sum(part is None for turn in turns for part in turn.parts)
        lay_out = getattr(self.processor, "prepare_inputs_layout", None)
        if lay_out is None or not images:
            return prompted
        blank = Image.new("RGB", (28, 28))
        text = [_SLOT.join(prompted)]
        return lay_out(images=[blank] * images, text=text)[1][0].split(_SLOT)

    def _render(self, turns: Sequence[Turn], **options: Any) -> list[str]:
        """The template's text before each text of the turns, and after the last."""
        if any(turn.role not in self._forms for turn in turns):
            raise InputError("the processor's chat template writes no system turn; remove it")
        rendered = self._try(turns, self._forms, **options)
        if isinstance(rendered, Exception):
            raise InputError(f"the processor's chat template fails ({rendered}); use another")
        between = rendered.split(_SLOT)
        if len(between) != len(_texts(turns)) + 1:
            raise InputError(
                "the processor's chat template drops or repeats texts; use one that writes every "
                "text once"
            )
        return between

    def _try(
        self, turns: Sequence[Turn], forms: Mapping[str, bool], **options: Any
    ) -> str | Exception:
        """What the template writes, with the texts of the turns as slots; or why it cannot."""
        if not self.processor.chat_template:
            raise InputError(
                f"the processor ({type(self.processor).__name__}) has no chat template; set its "
                "chat_template and save it with the model"
            )
        messages = [
            {"role": turn.role, "content": self._content(turn, forms[turn.role])} for turn in turns
        ]
        try:
            return self.processor.apply_chat_template(messages, tokenize=False, **options)
        except Exception as error:  # whatever a template does
            return error

    def _content(self, turn: Turn, parted: bool) -> str | list[dict[str, Any]]:
        slots = [part if part is None or _SLOT in part else _SLOT for part in turn.parts]
        if not parted:
            mark = self.processor.image_token + "\n"
            return "".join(mark if slot is None else slot for slot in slots)
        return [
            {"type": "image"} if slot is None else {"type": "text", "text": slot} for slot in slots
        ]


def _opening(prompted: str, written: str) -> str:
    """What begins an answer that stands after the text ``written``, where generation begins after
    ``prompted``: a space, or an empty block of thought. White space before it may differ.

    Raises:
        InputError: The answer does not stand where generation begins.
    """
    if written.startswith(prompted):
        return written[len(prompted) :]
    if written.split() == prompted.split():
        return ""
    raise InputError(
        f"the processor's chat template asks for an answer with {prompted!r}, but writes an answer "
        f"after {written!r}; use one that does both alike"
    )


def _texts(turns: Sequence[Turn]) -> list[tuple[str, str]]:
    """The role and the content of every text."""
    return [(role, part) for role, parts in turns for part in parts if part is not None]
