"""Small trained students of the families that the engines are asked about, and their exports.

    python tests/engines/students.py FOLDER [FAMILY ...]

trains one of every family, half a minute each on one core, and writes FOLDER/<family>/<export>,
where <export> is ct4 or awq4, and FOLDER/<family>/codes4.safetensors: the codes and scales that the
layers had in training, by their own functions. Of one family there are 8 bits as well: ct8.
"""

import argparse
import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from questions import Question, image_questions
from safetensors.torch import save_file
from tiny_families import CHATS, tiny_config, tiny_processor, tiny_tokenizer
from transformers import AutoModelForImageTextToText

from grace.export import save_awq, save_compressed_tensors
from grace.quantization import QuantSpec, fake_quant_layers, prepare

FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
GROUP = 64
EIGHT = "qwen2_vl"
STEPS, QUANTIZED_STEPS, BATCH = 240, 30, 16

# vLLM's attention on CPUs has heads of 32 and more; its kernel multiples of 32 features.
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "initializer_range": 0.06,
}
SECTIONS = {"qwen2_vl": [4, 6, 6], "qwen2_5_vl": [4, 6, 6], "qwen3_vl": [6, 5, 5]}


def new_model(family: str) -> Any:
    """An untrained model; its rotary sections are those of its heads."""
    config = tiny_config(family, **TEXT)
    if family in SECTIONS:
        config.text_config.rope_parameters["mrope_section"] = SECTIONS[family]
    torch.manual_seed(5)
    model = AutoModelForImageTextToText.from_config(config)
    tokenizer = tiny_tokenizer(family)
    stops = tokenizer.convert_tokens_to_ids(list(CHATS[family].stops))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, *stops]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model


def _batch(processor: Any, questions: list[Question]) -> dict[str, torch.Tensor]:
    """Model inputs of questions and answers, with labels on the answers."""
    tokenizer = processor.tokenizer
    texts, lengths = [], []
    for question in questions:
        prompt = processor.apply_chat_template(question.messages(), add_generation_prompt=True)
        answer = f"{question.answer}{tokenizer.eos_token}"
        texts.append(prompt + answer)
        lengths.append(len(tokenizer(answer, add_special_tokens=False)["input_ids"]))
    tokenizer.padding_side = "left"  # then an answer is what stands at the end
    images = [list(question.images) for question in questions]
    batch = dict(processor(text=texts, images=images, padding=True, return_tensors="pt"))
    labels = torch.full_like(batch["input_ids"], -100)
    for row, length in enumerate(lengths):
        labels[row, -length:] = batch["input_ids"][row, -length:]
    return {**batch, "labels": labels}


def _train(model: Any, processor: Any, steps: int, rate: float, seed: int) -> float:
    """Train every weight; returns the mean loss of the last steps."""
    questions = image_questions(BATCH * steps, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    losses = []
    model.train()
    for step in range(steps):
        batch = _batch(processor, questions[BATCH * step : BATCH * (step + 1)])
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(loss.item())
    model.eval()
    return sum(losses[-20:]) / 20


def _save_codes(model: Any, file: Path) -> None:
    tensors = {}
    for name, layer in fake_quant_layers(model):
        tensors[f"{name}.codes"] = layer.codes().contiguous()
        tensors[f"{name}.scales"] = layer.scales().detach().contiguous()
    save_file(tensors, file)


def make_student(family: str, folder: Path) -> None:
    """Train a family's student and write its exports."""
    processor = tiny_processor(family)
    plain = new_model(family)
    loss = _train(plain, processor, STEPS, 3e-3, seed=1)
    for bits in (8, 4) if family == EIGHT else (4,):
        model = copy.deepcopy(plain)
        prepare(model, QuantSpec(bits, GROUP))
        last = _train(model, processor, QUANTIZED_STEPS, 1e-3, seed=2)
        print(f"{family}: loss {loss:.3f}, with {bits} bits {last:.3f}", flush=True)
        target = folder / family / f"ct{bits}"
        save_compressed_tensors(model, target, processor=processor, dtype=torch.bfloat16)
        if bits == 4:
            save_awq(model, folder / family / "awq4", processor=processor)
        _save_codes(model, folder / family / f"codes{bits}.safetensors")


def make_students(folder: Path, families: Iterable[str] = FAMILIES) -> Path:
    """Make those students that are not in a folder yet."""
    for family in families:
        if not (folder / family / "codes4.safetensors").is_file():
            (folder / family).mkdir(parents=True, exist_ok=True)
            make_student(family, folder)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("families", nargs="*", default=FAMILIES)
    asked = parser.parse_args()
    make_students(asked.folder, asked.families)
