"""A tokenizer as a GGUF file holds it, where llama.cpp splits texts into the same tokens with it.

A file has tokens and merges, and only the name of a rule that splits a text into words; the rules
themselves are in llama.cpp. What it will do with the file is worked out here, with the library
tokenizers, and compared on a sample of texts: the tokens' own, many scripts, and conversations.
"""

import json
import unicodedata
from collections.abc import Sequence
from typing import Any

from grace.errors import InputError, one_line
from grace.export.gguf_file import Value

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's kinds of tokens."""

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Sequence",
        "pretokenizers": [
            {
                "type": "Split",
                "pattern": {"Regex": pattern},
                "behavior": "Isolated",
                "invert": False,
            },
            {**_GPT2, "use_regex": False},
        ],
    }


_RULES = {
    "qwen2": _split(rf"{_WORDS}|\p{{N}}|{_REST}"),
    "gpt-2": _GPT2,
    "llama-bpe": _split(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
}
"""Rules of llama.cpp by their names there, as the library tokenizers writes them."""

_TEXTS = (
    "What is in the picture? A red circle, and 2 blue squares (3.5 cm each).",
    "It's the DOG'S ball; they'll say I'VE 1234 of 56,789 — don't they?",
    "  two spaces,   three,\ta tab\n\nan empty line \r\n and a last one.  \n",
    "def f(x):\n    return {'a': x[0] ** 2, \"b\": x != -1}  # 100%\n\n\n",
    "Größe, naïve café, señor, Čeština, Ελληνικά, русский язык, українська",
    "日本語の文章です。中文句子，没有空格。한국어 문장입니다. ไทย हिन्दी عربى עברית",
    "1️⃣ 👍🏽 👩‍👩‍👧 ½ ² ① Ⅳ … “quoted” «so» ‹too› $5 €6 #7 @8 a_b-c/d\\e",
    "ANSWER:B. (a) Yes,no; [x]{y}<z> A) B) C)\nYes\nNo\n",
)


def tokenizer_values(
    processor: Any,
    vocab_size: int,
    around: tuple[str, str],
    stops: Sequence[int],
    start: int | None,
) -> dict[str, Value]:
    """The settings of a file that hold a tokenizer and its chat template.

    Args:
        processor: With a tokenizer of the library tokenizers.
        vocab_size: Rows of the model's embedding; rows without a token get names of their own.
        around: Tokens that llama.cpp writes before and after an image, or empty.
        stops: Tokens that end an answer beside the tokenizer's end token.
        start: The model's start token, where the tokenizer has none.

    Raises:
        InputError: llama.cpp has no such tokenizer, or would split a text differently.
    """
    tokenizer = processor.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"{type(tokenizer).__name__} is no tokenizer of the library tokenizers: save it as a "
            "fast one"
        )
    content = json.loads(backend.to_str())
    _check_added(content)
    adds_start = _adds_start(tokenizer)
    tokens, kinds = _tokens(content, vocab_size)
    mark = getattr(processor, "image_token", None)
    if content["model"].get("byte_fallback"):
        values = _pieces(content, tokens, kinds)
    else:
        values = _bytes(tokenizer, content, _sample(processor, content, mark), around, mark)
    end = tokenizer.eos_token_id
    if end is None:
        raise InputError("the tokenizer has no end token: llama.cpp would not know where to stop")
    for token in filter(None, around):
        if token not in tokens:
            raise InputError(f"the tokenizer lacks {token}, which llama.cpp writes around an image")
    others = [stop for stop in stops if stop != end]
    values |= {
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.eos_token_id": int(end),
        "tokenizer.ggml.add_bos_token": adds_start,
        "tokenizer.ggml.add_eos_token": False,
    }
    special = {
        "bos": start if tokenizer.bos_token_id is None else tokenizer.bos_token_id,
        "padding": tokenizer.pad_token_id,
        "unknown": tokenizer.unk_token_id,
        "eot": others[0] if others else None,
    }
    for name, token_id in special.items():
        if token_id is not None:
            values[f"tokenizer.ggml.{name}_token_id"] = int(token_id)
    template = getattr(processor, "chat_template", None) or tokenizer.chat_template
    if isinstance(template, str):
        space = " " if _space_before(content) == "first" else ""
        values["tokenizer.chat_template"] = space + template
    return values


def _tokens(content: dict[str, Any], vocab_size: int) -> tuple[list[str], list[int]]:
    """Every token's text and kind, by id."""
    texts: dict[int, tuple[str, int]] = {
        index: (token, NORMAL) for token, index in content["model"]["vocab"].items()
    }
    unknown = content["model"].get("unk_token")
    for token in content["added_tokens"]:
        kind = CONTROL if token["special"] else USER_DEFINED
        kind = UNKNOWN if token["content"] == unknown else kind
        texts[token["id"]] = (token["content"], kind)
    if max(texts) >= vocab_size:
        raise InputError(
            f"the tokenizer has a token {max(texts)}, the model only {vocab_size} embeddings: give "
            "the model's own processor"
        )
    rows = [texts.get(index, (f"[PAD{index}]", UNUSED)) for index in range(vocab_size)]
    return [text for text, _ in rows], [kind for _, kind in rows]


def _check_added(content: dict[str, Any]) -> None:
    for token in content["added_tokens"]:
        for flag in ("lstrip", "rstrip", "single_word"):
            if token[flag]:
                raise InputError(
                    f"the tokenizer's token {token['content']!r} has {flag}, which a GGUF file "
                    "cannot say: export to another format"
                )


def _adds_start(tokenizer: Any) -> bool:
    """Whether the tokenizer writes its start token, and nothing else, around a text."""
    bare = tokenizer("a", add_special_tokens=False).input_ids
    ids = tokenizer("a").input_ids
    if ids == bare:
        return False
    if ids == [tokenizer.bos_token_id, *bare]:
        return True
    raise InputError(
        f"the tokenizer writes {tokenizer.convert_ids_to_tokens(ids)} for 'a': the export to "
        "llama.cpp has a start token at most"
    )


def _bytes(
    tokenizer: Any,
    content: dict[str, Any],
    sample: list[str],
    around: tuple[str, str],
    mark: str | None,
) -> dict[str, Value]:
    """Byte-level BPE, llama.cpp's "gpt2": the first of its rules that splits the sample alike."""
    model = content["model"]
    given = json.dumps(content["pre_tokenizer"])
    if model["type"] != "BPE" or "ByteLevel" not in given:
        raise InputError(
            f"the tokenizer is a {model['type']} model with the pre-tokenizer {given[:80]}: "
            "llama.cpp's are byte-level BPE and SentencePiece's BPE; export to another format"
        )
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(name):
            raise InputError(
                f"the tokenizer's {name} is {model[name]!r}, which a GGUF file cannot say: export "
                "to another format"
            )
    normalizer = (content["normalizer"] or {}).get("type")
    if normalizer not in (None, "NFC"):
        raise InputError(
            f"the tokenizer's normalizer is {normalizer}, which a GGUF file cannot say: export to "
            "another format"
        )
    same = [name for name, rule in _RULES.items() if _pattern(rule) == _pattern(given)]
    differences = []
    for name in dict.fromkeys([*same, *_RULES]):
        engine = _Engine(content, name, around, mark)
        different = _first_difference(tokenizer, engine, sample)
        if different is None:
            return {
                "tokenizer.ggml.model": "gpt2",
                "tokenizer.ggml.pre": name,
                "tokenizer.ggml.merges": [" ".join(pair) for pair in _merges(model)],
            }
        differences.append(f"{name}: {different}")
    raise InputError(
        "llama.cpp would split texts differently, whichever of its rules the file names: export to "
        "another format",
        differences,
    )


def _pattern(rule: Any) -> list[str]:
    """The regular expressions in a pre-tokenizer; that of ByteLevel is its own."""
    text = rule if isinstance(rule, str) else json.dumps(rule)
    found: list[str] = []

    def look(part: dict[str, Any]) -> dict[str, Any]:
        if "Regex" in part:
            found.append(part["Regex"])
        if part.get("type") == "ByteLevel" and part.get("use_regex"):
            found.append("ByteLevel")
        return part

    json.loads(text, object_hook=look)
    return found


def _merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    return [(left, right) for left, right in pairs]


class _Engine:
    """What llama.cpp makes of a text with a byte-level BPE tokenizer and one of its rules."""

    def __init__(
        self, content: dict[str, Any], rule: str, around: tuple[str, str], mark: str | None
    ) -> None:
        from tokenizers import Tokenizer

        bare = {
            **content,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": _RULES[rule],
            "post_processor": None,
            "truncation": None,
            "padding": None,
        }
        self._words = Tokenizer.from_str(json.dumps(bare))
        added = content["added_tokens"]
        self._ids = {token["content"]: token["id"] for token in added}
        # The longest is looked for in all of a text before the next one is.
        self._added = sorted(self._ids, key=len, reverse=True)
        self._around, self._mark = around, mark

    def __call__(self, text: str) -> list[int]:
        """Token ids. Texts before and after an image are split apart, as llama.cpp does."""
        if not self._mark or self._mark not in text:
            return self._encode(text)
        ids: list[int] = []
        before, after = self._around
        for index, part in enumerate(text.split(f"{before}{self._mark}{after}")):
            if index:
                ids += [*self._encode(before), self._ids[self._mark], *self._encode(after)]
            ids += self._encode(part)
        return ids

    def _encode(self, text: str) -> list[int]:
        for token in self._added:
            if token in text:
                before, _, after = text.partition(token)
                return [*self._encode(before), self._ids[token], *self._encode(after)]
        return self._words.encode(text, add_special_tokens=False).ids if text else []


def _first_difference(tokenizer: Any, engine: _Engine, sample: list[str]) -> str | None:
    """The first text of a sample that gets other tokens; None where there is none."""
    for text in sample:
        own, theirs = tokenizer(text, add_special_tokens=False).input_ids, engine(text)
        if own != theirs:
            place = next(
                (i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b),
                min(len(own), len(theirs)),
            )
            parts = [
                tokenizer.convert_ids_to_tokens(ids[max(place - 1, 0) : place + 3])
                for ids in (own, theirs)
            ]
            return f"{parts[0]} here, {parts[1]} there, in {one_line(text, 60)!r}"
    return None


def _sample(processor: Any, content: dict[str, Any], mark: str | None) -> list[str]:
    """Texts to compare, as the tokenizer's normalizer leaves them."""
    tokenizer = processor.tokenizer
    special = {token["content"] for token in content["added_tokens"]}
    own = [
        tokenizer.convert_tokens_to_string([token])
        for token in content["model"]["vocab"]
        if token not in special
    ]
    own = [text for text in own if "\ufffd" not in text]  # part of a character
    texts = [*_TEXTS, *_conversations(processor, mark)]
    for joint in ("", " ", "\n", "1"):
        texts += [joint.join(own[start : start + 500]) for start in range(0, len(own), 500)]
    return [unicodedata.normalize("NFC", text) for text in texts]


def _conversations(processor: Any, mark: str | None) -> list[str]:
    """Chats as the template writes them, with images and without; none without a template."""

    def parts(text: str, images: int) -> list[dict[str, str]]:
        return [{"type": "image"}] * images + [{"type": "text", "text": text}]

    texts = []
    for images in (0, 1, 2) if mark else (0,):
        chat = [{"role": "user", "content": parts(_TEXTS[0], images)}]
        longer = [
            *chat,
            {"role": "assistant", "content": parts("Two.", 0)},
            {"role": "user", "content": parts(_TEXTS[1], 0)},
        ]
        for messages in (chat, longer):
            try:
                texts.append(
                    processor.apply_chat_template(
                        messages, tokenize=False, add_generation_prompt=True
                    )
                )
            except Exception:  # templates raise what they like, or there is none
                continue
    return texts


def _pieces(content: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Value]:
    """SentencePiece's BPE, llama.cpp's "llama".

    There a pair is joined that makes the piece of the highest score, and every piece can be made
    of any two others: the same as merges that come piece by piece and leave none out.
    """
    model = content["model"]
    if model["type"] != "BPE" or model.get("dropout") or model.get("ignore_merges"):
        raise InputError(
            "the tokenizer is no BPE model that llama.cpp has: export to another format"
        )
    merges = _merges(model)
    rank: dict[str, int] = {}
    for place, (left, right) in enumerate(merges):
        piece = left + right
        if rank.setdefault(piece, place) != place and "".join(merges[place - 1]) != piece:
            raise InputError(
                f"the tokenizer's merges to {piece!r} do not follow one another: llama.cpp has one "
                "score for them; export to another format"
            )
    known = set(merges)
    for index, token in enumerate(tokens):
        if kinds[index] != NORMAL:
            continue
        if len(token) == 6 and token.startswith("<0x"):
            kinds[index] = BYTE
            continue
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            both = left in model["vocab"] and right in model["vocab"]
            if both and (left, right) not in known:
                raise InputError(
                    f"the tokenizer never joins {left!r} and {right!r}, which llama.cpp would: "
                    "export to another format"
                )
    scores = [-float(rank[token]) - 1 if token in rank else 0.0 for token in tokens]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.add_space_prefix": _space_before(content) == "always",
    }


def _space_before(content: dict[str, Any]) -> str:
    """Where SentencePiece's space is put: before "always" every text, "first" or "never".

    llama.cpp has no "first", before a prompt but not after an image: there the chat template
    writes it.

    Raises:
        InputError: The tokenizer changes texts in a way that llama.cpp has not.
    """
    if not content["model"].get("byte_fallback"):
        return "never"
    before, normalizer = content["pre_tokenizer"], content["normalizer"]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    if before is None and replace in steps:
        rest = [step for step in steps if step != replace]
        if not rest:
            return "never"
        if rest == [{"type": "Prepend", "prepend": "▁"}]:
            return "always"
    if not steps and (before or {}).get("type") == "Metaspace" and not before["split"]:
        return str(before["prepend_scheme"])
    raise InputError(
        "the tokenizer's spaces are not those of SentencePiece's BPE: export to another format"
    )
