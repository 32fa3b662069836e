"""Conversations to supervised token sequences, and batches of them.

Records follow the LLaVA schema: ``{"image": ..., "conversations": [{"from", "value"}, ...]}``
with ``<image>`` in the human turn that shows the image; the image of a record that is text alone
is null. Only assistant turns are supervised: their content and the token that ends the turn.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import Dataset

from grace.errors import InputError
from grace.models import Family, Span, family_of

IGNORE_INDEX = -100
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("conversations", pa.list_(pa.struct([("from", pa.string()), ("value", pa.string())]))),
    ]
)
"""Columns of a parquet file of conversations."""
_ROLES = {"human": "user", "gpt": "assistant"}
_SLOT = "\ue000"  # private-use character: stands for a turn's text while the template is rendered


class _Frame(NamedTuple):
    """What a chat template writes around the turns of a conversation.

    Attributes:
        before: what stands before each turn's text, and after the last.
        gaps: white space between the generation prompt and an answer; empty for other turns.
        ends: what ends each answer, the end token included; empty for other turns.
    """

    before: list[str]
    gaps: list[str]
    ends: list[str]


@dataclass
class Encoder:
    """Turns a conversation into token ids and labels with a processor's chat template.

    Prompt and answer are tokenized apart, as in generation, where the prompt is tokenized
    alone and the answer follows token by token. So the prompt ends where the template's
    generation prompt ends, and white space between it and the answer is the answer's. A template
    that ends no answer (LLaVA's) is completed: the end token stands right after the answer, as in
    that family's own training (``USER: ... ASSISTANT: ...</s>USER: ...``).
    """

    processor: Any
    _frames: dict[tuple, _Frame] = field(default_factory=dict)
    _tokens: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    def __call__(
        self, conversations: Sequence[dict[str, str]], image_tokens: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Token ids and labels (IGNORE_INDEX where not supervised).

        Args:
            conversations: turns, human first, alternating.
            image_tokens: number of visual tokens of each image, in order of appearance.

        Raises:
            InputError: for an unknown speaker, a missing answer, images that do not match the
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
                            f"a conversation marks more images than the {len(image_tokens)} given; "
                            "make the number of <image> marks that of the images"
                        )
                    ids.extend([image_id] * count)
                    labels.extend([IGNORE_INDEX] * count)
                else:
                    ids.append(token)
                    labels.append(token if supervised else IGNORE_INDEX)
        if next(counts, None) is not None:
            raise InputError(
                f"{len(image_tokens)} images are given, but fewer <image> marks stand in the "
                "conversation; mark each image once"
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
        """What the template writes to ask for an answer, such as ``ASSISTANT:``."""
        asked = [{"role": "user", "content": [{"type": "text", "text": _SLOT}]}]
        plain = self._render(asked)
        prompted = self._render(asked, add_generation_prompt=True)
        if not prompted.startswith(plain) or prompted == plain:
            raise InputError(
                "the processor's chat template writes no generation prompt after a question; "
                "use one that obeys add_generation_prompt"
            )
        return prompted[len(plain) :]

    def _frame(self, turns: list[tuple[str, int, str]]) -> _Frame:
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
                    f"writes a given one after {before[index]!r}; use one that does both alike"
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


class ConversationDataset(Dataset):
    """Conversations with images from parquet files, tokenized once, pixels made on demand.

    Columns: ``id`` (string), ``image`` (struct of bytes and path), ``conversations`` (list of
    struct of from and value). ``limit`` takes the first so many records, ``records`` those at
    these places, in this order. With ``vision_features`` (records, patches, width) the frozen
    tower's output replaces the pixels; see ``Family.take_vision_features``. With
    ``supervise_prompts`` every token but the visual ones is supervised, as in language modelling.

    Raises:
        InputError: for a missing, unreadable or empty file, a missing column, a bad record.
    """

    def __init__(
        self,
        path: str | Path,
        processor: Any,
        config: Any,
        *,
        limit: int | None = None,
        records: Sequence[int] | None = None,
        vision_features: np.ndarray | None = None,
        supervise_prompts: bool = False,
    ) -> None:
        self.family = family_of(config.model_type)
        self.processor = processor
        self.config = config
        self.vision_features = vision_features
        table = _read_parquet(Path(path), ("id", "image", "conversations"))
        if limit is not None:
            table = table.slice(0, limit)
        if records is not None:
            table = table.take(records)
            if vision_features is not None:
                vision_features = vision_features[records]
        self.ids: list[str] = table["id"].to_pylist()
        self._images = table["image"].combine_chunks()
        self._has_image = self._images.is_valid().to_pylist()
        if vision_features is not None and len(vision_features) < len(self.ids):
            raise InputError(
                f"{path}: {len(self.ids)} records but vision features for {len(vision_features)}; "
                "rebuild the features"
            )
        encode = Encoder(processor)
        per_image: list[int] = []
        if True in self._has_image:
            first = self.pixels([self._has_image.index(True)])
            per_image = self.family.tokens_per_image(config, first)
            self._beside_pixels = {name: first[name] for name in first if name != "pixel_values"}
        self._input_ids: list[np.ndarray] = []
        self._labels: list[np.ndarray] = []
        for identity, turns, has_image in zip(
            self.ids, table["conversations"].to_pylist(), self._has_image, strict=True
        ):
            try:
                ids, labels = encode(turns, per_image if has_image else [])
            except InputError as error:
                raise InputError(f"{path}, record {identity!r}: {error}") from error
            if supervise_prompts:
                image = processor.image_token_id
                labels = [IGNORE_INDEX if token == image else token for token in ids]
            self._input_ids.append(np.asarray(ids, dtype=np.int64))
            self._labels.append(np.asarray(labels, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of every sample."""
        return [len(ids) for ids in self._input_ids]

    @property
    def supervised(self) -> list[int]:
        """Number of supervised tokens of every sample."""
        return [int((labels[1:] != IGNORE_INDEX).sum()) for labels in self._labels]

    def image(self, index: int) -> Image.Image:
        """The decoded image of a sample.

        Raises:
            InputError: for bytes that are not an image.
        """
        content = self._images[index]["bytes"].as_py()
        try:
            return Image.open(io.BytesIO(content)).convert("RGB")
        except Exception as error:  # every image format fails with types of its own
            raise InputError(
                f"record {self.ids[index]!r}: its image cannot be decoded ({error}); "
                "rebuild the data or remove the record"
            ) from error

    def pixels(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        """The family's ``image_inputs`` for some samples' images."""
        images = [self.image(index) for index in indices]
        made = self.processor.image_processor(images=images, return_tensors="pt")
        return {name: made[name] for name in self.family.image_inputs}

    def tokens(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and labels of a sample."""
        return self._input_ids[index], self._labels[index]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """``index``, ``input_ids``, ``labels`` and, where there is an image, what shows it."""
        input_ids, labels = self.tokens(index)
        sample: dict[str, Any] = {"index": index, "input_ids": input_ids, "labels": labels}
        if not self._has_image[index]:
            return sample
        if self.vision_features is not None:
            sample["pixel_values"] = torch.from_numpy(self.vision_features[index])
            sample.update(self._beside_pixels)
        else:
            sample.update(self.pixels([index]))
        return sample


def _read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise InputError(f"data file {str(path)!r} does not exist; build it or correct the path")
    try:
        table = pq.read_table(path, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{str(path)!r} is not a readable parquet file ({error}); rebuild it"
        ) from error
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise InputError(
            f"{str(path)!r} lacks column(s) {', '.join(missing)}; "
            f"it has {', '.join(table.column_names)}"
        )
    if table.num_rows == 0:
        raise InputError(f"{str(path)!r} has no records; rebuild it")
    try:
        table = table.select(list(columns)).cast(SCHEMA)
        table.validate(full=True)  # the texts are Unicode
    except (pa.ArrowException, KeyError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} holds no conversations in the LLaVA schema ({error}); rebuild it"
        ) from error
    return table


@dataclass
class Collator:
    """Pads samples on the right and says where things are.

    Beside the model's inputs a batch holds, all decided on the host: ``image_spans``;
    ``token_rows`` and ``token_columns`` (N), the positions whose NEXT token is supervised;
    ``targets`` (N), those tokens; ``indices``, the samples' places in the data set, a list.
    """

    family: Family
    image_token_id: int
    pad_token_id: int

    def __call__(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        length = max(len(sample["input_ids"]) for sample in samples)
        shape = (len(samples), length)
        input_ids = torch.full(shape, self.pad_token_id, dtype=torch.long)
        labels = torch.full(shape, IGNORE_INDEX, dtype=torch.long)
        attention_mask = torch.zeros(shape, dtype=torch.long)
        for row, sample in enumerate(samples):
            count = len(sample["input_ids"])
            input_ids[row, :count] = torch.from_numpy(sample["input_ids"])
            labels[row, :count] = torch.from_numpy(sample["labels"])
            attention_mask[row, :count] = 1
        rows, columns = (labels[:, 1:] != IGNORE_INDEX).nonzero(as_tuple=True)
        spans: list[Span] = self.family.image_spans(input_ids, self.image_token_id)
        shown = [sample for sample in samples if "pixel_values" in sample]
        images = {
            name: torch.cat([sample[name] for sample in shown])
            for name in self.family.image_inputs
            if shown
        }
        return {
            "input_ids": input_ids,
            "labels": labels,
            "attention_mask": attention_mask,
            **self.family.token_inputs(input_ids, self.image_token_id),
            **images,
            "image_spans": spans,
            "token_rows": rows,
            "token_columns": columns,
            "targets": labels[rows, columns + 1],
            "indices": [sample["index"] for sample in samples],
        }
