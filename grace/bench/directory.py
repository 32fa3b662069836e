"""A directory, measured in the process that this runs in."""

import time
from typing import Any

from grace.bench.settings import Settings, progress, spread
from grace.machine import peak_resident


def measure(path: str, settings: Settings) -> dict[str, Any]:
    """The numbers of one model.

    Args:
        path: A directory or hub name of any kind that `grace` reads.
        settings: What is measured, and how often.

    Returns:
        weight_bytes, peak_bytes, and as {"median", "low", "high"} first_token_seconds and
        tokens_per_second; runs (the engine and its arithmetic) and prompt_tokens.
    """
    import torch

    from grace.decoding import Decoder
    from grace.export import load_student
    from grace.int4 import PackedLinear
    from grace.models import load_processor
    from grace.models.questions import question

    device = settings.device

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    with progress(path, 2 * settings.repeats + 3) as step:
        model: Any = load_student(path, device=device)
        processor = load_processor(path)
        inputs = question(processor, [settings.picture()], settings.prompt)
        inputs = dict(inputs.to(device, model.dtype))
        rows, tokens = settings.batch_size, settings.tokens
        reader = Decoder(model, 1, inputs["input_ids"].shape[1] + tokens + 1)
        step()
        first, rates = [], []
        for _ in range(settings.repeats + 1):  # the first is to warm up
            start = now()
            reader.prefill(inputs)
            reader.tokens().tolist()
            first.append(now() - start)
            step()
        decoder = reader
        if rows > 1:
            decoder = Decoder(model, rows, reader.capacity)
            decoder.start_from(reader)
        for _ in range(settings.repeats + 1):
            decoder.rewind()
            start = now()
            decoder.run(tokens)
            rates.append(rows * tokens / (now() - start))
            step()
    bits = sorted({layer.bits for layer in model.modules() if isinstance(layer, PackedLinear)})
    dtype = str(model.dtype).removeprefix("torch.")
    return {
        "runs": " and ".join([*(f"INT{number}" for number in bits), dtype]),
        "first_token_seconds": spread(first[1:]),
        "tokens_per_second": spread(rates[1:]),
        "weight_bytes": weight_bytes(model),
        "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident(),
        "prompt_tokens": inputs["input_ids"].shape[1],
    }


def weight_bytes(model: Any) -> int:
    """Bytes of all tensors of a model, packed codes and scales too, shared ones once."""
    stored: dict[int, int] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        stored[storage.data_ptr()] = storage.nbytes()
    return sum(stored.values())
