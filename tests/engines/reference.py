"""What transformers answers on an export, and how far its logits may be off in that dtype."""

import copy
import functools
import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from questions import Question, image_questions, other_questions
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

NEW = 12
BATCH = 20
TIES = 0.05  # of the answers, at most


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        tokens: Its tokens, with the one that ends it.
        logits: (tokens, vocabulary), of every step.
        noise: By how much rounding moves a logit: the largest difference to the same weights'
            logits in float32, over the first questions with as many pictures.
    """

    tokens: list[int]
    logits: torch.Tensor
    noise: float

    def margin(self, tokens: list[int]) -> float | None:
        """None for the same answer; else by how much this one's token leads where they part.

        Raises:
            AssertionError: It leads by more than rounding moves two logits.
        """
        if tokens == self.tokens:
            return None
        steps = enumerate(zip(tokens, self.tokens, strict=False))
        step = next((index for index, (theirs, mine) in steps if theirs != mine), None)
        assert step is not None, f"{tokens} is another length than {self.tokens}"
        mine, theirs = (self.logits[step, answer[step]] for answer in (self.tokens, tokens))
        margin = (mine - theirs).item()
        assert margin <= 2 * self.noise, (
            f"{tokens} for {self.tokens}: at token {step} the margin is {margin:.4f}, "
            f"the noise of a logit {self.noise:.4f}"
        )
        return margin


def ties_of(answers: Sequence[Answer], tokens: Sequence[list[int]]) -> list[float]:
    """The margins of what was answered otherwise; there are few of them.

    Raises:
        AssertionError: An answer differs where no logits tie, or too many do.
    """
    margins = [answer.margin(other) for answer, other in zip(answers, tokens, strict=True)]
    ties = [margin for margin in margins if margin is not None]
    assert len(ties) <= TIES * len(answers), ties
    return ties


def read_export(path: Path) -> Any:
    """A model of transformers with an export's weights, in its dtype."""
    config = json.loads((path / "config.json").read_text())
    if config["quantization_config"]["quant_method"] == "awq":
        return _read_awq(path)
    model = AutoModelForImageTextToText.from_pretrained(path).eval()
    model.hf_quantizer.compressor.decompress_model(model)
    return model


def _read_awq(path: Path) -> Any:
    """AWQ as the tests' own reader of its layout has it: transformers' wants another package."""
    file = Path(__file__).resolve().parents[1] / "grace" / "awq_layout.py"
    spec = importlib.util.spec_from_file_location("awq_layout", file)
    assert spec is not None and spec.loader is not None
    awq = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(awq)
    tensors = load_file(path / "model.safetensors")
    dtype = next(value.dtype for key, value in tensors.items() if key.endswith("scales"))
    for key in [key for key in tensors if key.endswith(".qweight")]:
        layer = key.removesuffix(".qweight")
        parts = [tensors.pop(f"{layer}.{name}").numpy() for name in ("qweight", "qzeros", "scales")]
        tensors[f"{layer}.weight"] = torch.from_numpy(awq.weight(*parts)).to(dtype)
    config = AutoConfig.from_pretrained(path)
    del config.quantization_config
    kind = AutoModelForImageTextToText._model_mapping[type(config)]
    model, report = kind.from_pretrained(
        None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


QUESTIONS = tuple(image_questions(200, seed=7) + other_questions(8, seed=8))


@functools.cache
def expected(path: Path) -> list[Answer]:
    """What transformers answers to all questions; the answers differ between them."""
    answers = answer_all(path, QUESTIONS)
    assert len({tuple(answer.tokens) for answer in answers}) >= 20
    return answers


def answer_all(path: Path, questions: Sequence[Question]) -> list[Answer]:
    """Greedy answers to questions, asked together where they have equally many pictures."""
    model, processor = read_export(path), AutoProcessor.from_pretrained(path)
    exact = torch.nn.Module.float(copy.deepcopy(model))  # transformers refuses a quantized one
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    answers: dict[int, Answer] = {}
    by_count: dict[int, list[int]] = {}
    for index, question in enumerate(questions):
        by_count.setdefault(len(question.images), []).append(index)
    for rows in by_count.values():
        noise = None
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            asked = [questions[row] for row in part]
            tokens, logits = _generate(model, processor, asked)
            if noise is None:
                noise = _noise((tokens, logits), _generate(exact, processor, asked), ends)
            for row, index in enumerate(part):
                said = tokens[row].tolist()
                length = next((i + 1 for i, token in enumerate(said) if token in ends), len(said))
                answers[index] = Answer(said[:length], logits[row, :length], noise)
    return [answers[index] for index in range(len(questions))]


def _generate(model: Any, processor: Any, asked: list[Question]) -> tuple[torch.Tensor, ...]:
    """(rows, steps) tokens and (rows, steps, vocabulary) logits."""
    texts = [
        processor.apply_chat_template(question.messages(), add_generation_prompt=True)
        for question in asked
    ]
    images = [list(question.images) for question in asked]
    processor.tokenizer.padding_side = "left"
    inputs = processor(
        text=texts, images=images if images[0] else None, padding=True, return_tensors="pt"
    )
    inputs = {
        key: value.to(model.dtype) if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    out = model.generate(
        **inputs,
        max_new_tokens=NEW,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[:, inputs["input_ids"].shape[1] :], torch.stack(out.logits, 1).float()


def _noise(
    stored: tuple[torch.Tensor, torch.Tensor],
    exact: tuple[torch.Tensor, torch.Tensor],
    ends: list[int],
) -> float:
    """The largest difference of logits at steps before which both said the same, and no end."""
    steps = min(stored[0].shape[1], exact[0].shape[1])
    said = stored[0][:, :steps]
    goes_on = (said == exact[0][:, :steps]) & ~torch.isin(said, torch.tensor(ends))
    before = torch.cat([torch.ones_like(goes_on[:, :1]), goes_on[:, :-1]], 1).cumprod(1).bool()
    difference = (stored[1][:, :steps] - exact[1][:, :steps]).abs().amax(-1)
    return difference[before].max().item()
