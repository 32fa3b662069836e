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


@dataclass(frozen=True)
class Answer:
    """A greedy answer.

    Attributes:
        tokens: Its tokens, with the one that ends it.
        logits: (tokens, vocabulary), of every step.
        noise: By how much rounding moves a logit: the largest difference between these logits and
            those of the same weights computed in float32.
    """

    tokens: list[int]
    logits: torch.Tensor
    noise: float

    def agrees(self, tokens: list[int]) -> bool:
        """Whether other tokens are the same answer, or part from it where two logits tie.

        Raises:
            AssertionError: They differ where the logits do not tie.
        """
        if tokens == self.tokens:
            return True
        step = next(
            (i for i, (a, b) in enumerate(zip(tokens, self.tokens, strict=False)) if a != b), None
        )
        assert step is not None, f"{tokens} is another length than {self.tokens}"
        mine, theirs = (self.logits[step, answer[step]] for answer in (self.tokens, tokens))
        margin = (mine - theirs).item()
        assert margin <= 2 * self.noise, (
            f"{tokens} for {self.tokens}: at token {step} the margin is {margin:.4f}, "
            f"the noise of a logit {self.noise:.4f}"
        )
        return False


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
TIES = 0.05  # of the questions, at most


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
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            asked = [questions[row] for row in part]
            both = [_generate(one, processor, asked) for one in (model, exact)]
            for row, index in enumerate(part):
                answers[index] = _answer(*[(t[row], s[row]) for t, s in both], ends)
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


def _answer(
    stored: tuple[torch.Tensor, torch.Tensor],
    exact: tuple[torch.Tensor, torch.Tensor],
    ends: list[int],
) -> Answer:
    (tokens, logits), (exact_tokens, exact_logits) = stored, exact
    end = next((i for i, token in enumerate(tokens.tolist()) if token in ends), len(tokens) - 1)
    same = 1  # steps before which both have read the same
    while same <= end and same < len(exact_tokens) and tokens[same - 1] == exact_tokens[same - 1]:
        same += 1
    noise = (logits[:same] - exact_logits[:same]).abs().max().item()
    return Answer(tokens[: end + 1].tolist(), logits[: end + 1], noise)
