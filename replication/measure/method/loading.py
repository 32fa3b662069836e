"""The loader: samples of a JSON Lines file with photos, made into a batch.

Beside the library alone: the chat template, the image opened, the processor's call, as in a
collator that is written by hand. Our own way also cuts, says what is supervised, and turns images
upright.
"""

import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPImageProcessor, Qwen2VLImageProcessor

from grace.data import Collator, ConversationDataset
from replication.data.world.models import build_model, build_processor
from replication.measure.method.compare import bound, compare, device_with

BATCH = 8
"""Samples in a batch."""
LIMIT = 1.1
_WORDS = "red blue green circle square triangle top left right what is the picture of and"
_TOWER = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "image_size": 64,
    "patch_size": 16,
}
_QWEN_TOWER = {
    "embed_dim": 64,
    "depth": 1,
    "num_heads": 1,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
_DECODER = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Case:
    """Photos of one size under one image processor.

    Attributes:
        name: What it is.
        family: "llava" (CLIP at 336 pixels) or "qwen2_vl" (up to 1,280 visual tokens).
        width: Of a photo.
        height: Of a photo.
        samples: In the file; every batch takes others, so that nothing is in a memory of its own.
        words: Of an answer.
    """

    name: str
    family: str
    width: int
    height: int
    samples: int = 256
    words: int = 120


DEFAULT = (
    Case("Qwen2-VL, 640×480", "qwen2_vl", 640, 480),
    Case("LLaVA-1.5, 640×480", "llava", 640, 480),
)
QUICK = (Case("Qwen2-VL, 64×48", "qwen2_vl", 64, 48, 16, 4),)


def measure_part(
    cases: Sequence[Mapping[str, Any]], repeats: int, seed: int, threads: int = 0
) -> dict[str, Any]:
    """Rows, one for each case, with samples a second of one process, and bounds on the time."""
    device_with(threads)
    rows = [_row(Case(**case), repeats, seed) for case in cases]
    bounds = [
        bound(f"loading, {row['case']}: time of the library alone", LIMIT, row["time"]["library"])
        for row in rows
    ]
    return {"rows": rows, "bounds": bounds}


def _row(case: Case, repeats: int, seed: int) -> dict[str, Any]:
    processor, config = _processor(case)
    with tempfile.TemporaryDirectory() as folder:
        records = _write(case, Path(folder), seed)
        data = ConversationDataset(Path(folder) / "records.jsonl", processor, config)
        collate = Collator(data.family, data.image_token_id, processor.tokenizer.pad_token_id)
        ours, theirs = _batches(len(data)), _batches(len(data))
        comparison = compare(
            {
                "grace": lambda: collate([data[index] for index in next(ours)]),
                "library": partial(_by_the_library, processor, records, Path(folder), theirs),
            },
            repeats,
            torch.device("cpu"),
        )
    seconds = comparison["ways"]["grace"]["seconds"]["median"]
    return {
        "case": f"{case.name}, {BATCH} samples",
        "sizes": {"width": case.width, "height": case.height, "samples": BATCH},
        **comparison,
        "samples_per_second": BATCH / seconds,
    }


def _batches(samples: int) -> Iterator[list[int]]:
    start = 0
    while True:
        yield [(start + offset) % samples for offset in range(BATCH)]
        start += BATCH


def _by_the_library(
    processor: Any, records: Sequence[Mapping[str, Any]], folder: Path, batches: Iterator[list[int]]
) -> Any:
    """The batch of a collator that is written by hand."""
    chosen = [records[index] for index in next(batches)]
    texts = []
    for record in chosen:
        question, answer = record["conversations"]
        content = [{"type": "image"}, {"type": "text", "text": question["value"]}]
        reply = [{"type": "text", "text": answer["value"]}]
        chat = [{"role": "user", "content": content}, {"role": "assistant", "content": reply}]
        texts.append(processor.apply_chat_template(chat, tokenize=False))
    images = [Image.open(folder / record["image"]).convert("RGB") for record in chosen]
    return processor(text=texts, images=images, padding=True, return_tensors="pt")


def _processor(case: Case) -> tuple[Any, Any]:
    """A family's processor with the published image processor, and a configuration for it."""
    vision = _TOWER if case.family == "llava" else _QWEN_TOWER
    processor = build_processor(case.family, [_WORDS], 400, vision)
    if case.family == "llava":
        processor.image_processor = CLIPImageProcessor(
            size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}
        )
        processor.patch_size = 14
    else:
        bounds = {"shortest_edge": 4 * 28**2, "longest_edge": 1280 * 28**2}
        processor.image_processor = Qwen2VLImageProcessor(size=bounds)
    return processor, build_model(case.family, processor, _DECODER, vision, 0).config


def _write(case: Case, folder: Path, seed: int) -> list[dict[str, Any]]:
    """Photos of smooth shapes and noise, some 100 kB each, and the records that show them."""
    generator = np.random.default_rng(seed)
    records = []
    for number in range(case.samples):
        coarse = (max(1, case.height // 16), max(1, case.width // 16), 3)
        shapes = Image.fromarray(generator.integers(0, 256, coarse, dtype=np.uint8))
        shapes = shapes.resize((case.width, case.height), Image.Resampling.BICUBIC)
        values = np.asarray(shapes) + generator.normal(0, 12, (case.height, case.width, 3))
        content = io.BytesIO()
        photo = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        photo.save(content, "JPEG", quality=85)
        (folder / f"{number}.jpg").write_bytes(content.getvalue())
        answer = " ".join(generator.choice(_WORDS.split(), case.words))
        turns = [{"from": "human", "value": "what is the picture of"}]
        turns.append({"from": "gpt", "value": answer})
        records.append({"id": str(number), "image": f"{number}.jpg", "conversations": turns})
    (folder / "records.jsonl").write_text("\n".join(map(json.dumps, records)))
    return records
