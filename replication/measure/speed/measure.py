"""One variant of one model, measured in the process that this runs in.

    record = measure(architecture("llava-1.5-7b"), variant("int4"), Settings())

Peak memory belongs to a process, so every variant is given a fresh one (`measure.harness`).
"""

import gc
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from grace.decoding import Decoder
from replication.measure.clock import Clock, copy_bandwidth, spread
from replication.measure.memory import peak_bytes, shortage
from replication.measure.speed.settings import Settings, read_settings
from replication.measure.speed.sizes import (
    bytes_per_step,
    cache_bytes,
    decoder_bits,
    expected_bytes,
)
from replication.measure.speed.variants import Variant, variant
from replication.measure.speed.weights import random_model, stored_bytes
from replication.plan.architectures import Architecture

_RESERVE = 1.5 * 2**30  # bytes beside weights and cache: libraries, activations, one layer


def measure_part(
    model: Mapping[str, Any], name: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """`measure` by what JSON holds: an architecture's fields, a variant's name, and settings."""
    return measure(Architecture(**model), variant(name), read_settings(**settings))


def measure(architecture: Architecture, variant: Variant, settings: Settings) -> dict[str, Any]:
    """All numbers of one variant.

    Returns:
        {"not_run": reason}, or weight_bytes; decoder_bits (stored bits of a decoder weight);
        build_seconds; time_to_first_token and decode (by batch), `spread`s in seconds; peak_bytes
        after each phase, the process's high-water mark of resident memory on a CPU, the
        allocator's on CUDA; copy_bandwidth in bytes/s, before and after.
    """
    device = settings.torch_device()
    if settings.layers is not None:
        architecture = architecture.first_layers(settings.layers)
    needed = expected_bytes(architecture, variant) + _RESERVE
    reason = variant.unavailable(device) or shortage(needed, device)
    if reason:
        return {"not_run": reason}
    if settings.threads:
        torch.set_num_threads(settings.threads)
    clock = Clock(device)
    bandwidth = [copy_bandwidth(device)]
    memory = {"start": peak_bytes(device)}
    prompt = architecture.prompt(
        settings.seed,
        dtype=variant.dtype,
        text_tokens=settings.text_tokens,
        image=settings.image,
    )
    length = prompt["input_ids"].shape[1]
    if not (variant.ours or variant.convert is None):
        reason = _too_slow(architecture, variant, settings, length, clock)
        if reason:
            return {"not_run": reason}
    start = clock.now()
    model = random_model(
        architecture.config(),
        settings.seed,
        device=device,
        dtype=variant.dtype,
        convert=variant.convert,
    )
    gc.collect()
    build_seconds = clock.now() - start
    memory["build"] = peak_bytes(device)
    speeds = _speeds(architecture, model, prompt, settings=settings, clock=clock, memory=memory)
    bandwidth.append(copy_bandwidth(device))
    record = {
        "weight_bytes": stored_bytes(model),
        "decoder_bits": decoder_bits(architecture, model),
        "build_seconds": build_seconds,
        "prompt_tokens": length,
        **speeds,
        "peak_bytes": memory,
        "copy_bandwidth": bandwidth,
        "how": _how(architecture, model),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "captured": device.type == "cuda",
    }
    _add_floors(record, architecture, model)
    return record


def _speeds(
    architecture: Architecture,
    model: Any,
    prompt: Mapping[str, torch.Tensor],
    *,
    settings: Settings,
    clock: Clock,
    memory: dict[str, int],
) -> dict[str, Any]:
    """Seconds of the prefill, and of decoding at every batch size; adds each one's peak memory."""
    device = settings.torch_device()
    prompt = {name: value.to(device) for name, value in prompt.items()}
    capacity = prompt["input_ids"].shape[1] + 1 + settings.tokens
    decode: dict[str, Any] = {}
    with torch.no_grad():
        _warm_up(model, prompt, device)
        reader = Decoder(model, 1, capacity)
        first = [clock.time(lambda: _first_token(reader, prompt)) for _ in range(settings.repeats)]
        memory["prefill"] = peak_bytes(device)
        for batch in settings.batches:
            # attention may copy what it reads of one layer; the rest is slack
            needed = 1.1 * cache_bytes(architecture, batch, capacity, model.dtype) + 2**28
            if reason := shortage(needed, device):
                decode[str(batch)] = {"not_run": f"its cache {reason}"}
                continue
            decode[str(batch)] = _decode(model, reader, batch, settings, clock)
            memory[f"batch {batch}"] = peak_bytes(device)
    return {"time_to_first_token": spread(first), "decode": decode}


def _first_token(reader: Decoder, prompt: dict) -> list:
    reader.prefill(prompt)
    return reader.tokens().tolist()  # the answer's first token is on the host


def _warm_up(model: nn.Module, prompt: dict, device: torch.device) -> None:
    """Let libraries choose kernels and packed layers measure their crossover: not timed. On a GPU
    with the prompt itself; on a CPU, where that takes long and changes nothing, with its words."""
    if device.type == "cuda":
        decoder = Decoder(model, 1, prompt["input_ids"].shape[1] + 1, capture=False)
        decoder.prefill(prompt)
        return
    words = prompt["input_ids"][:, -16:]
    decoder = Decoder(model, 1, words.shape[1] + 2)
    decoder.prefill({"input_ids": words})
    decoder.run(1)


def _decode(
    model: nn.Module, reader: Decoder, batch: int, settings: Settings, clock: Clock
) -> dict[str, Any]:
    """Runs of tokens at a batch size; every row goes on from the same prompt."""
    decoder = reader
    if batch > 1:
        decoder = Decoder(model, batch, reader.capacity)
        decoder.start_from(reader)
    decoder.run(1)  # warm-up, and the capture on CUDA
    decoder.rewind()
    once = clock.time(lambda: decoder.run(1))
    tokens = max(1, min(settings.tokens, math.floor(settings.repeat_seconds / once)))
    totals, single = [], []
    for _ in range(settings.decode_repeats):
        decoder.rewind()
        total, steps = clock.steps(lambda after: decoder.run(tokens, after))
        totals.append(total)
        single += steps
        if len(totals) > 1 and sum(totals) > settings.decode_repeats * settings.repeat_seconds / 2:
            break
    ordered = sorted(single)
    return {
        "tokens": tokens,
        "tokens_per_second": spread([batch * tokens / total for total in totals]),
        "seconds_per_step": {
            **spread([total / tokens for total in totals]),
            "p90": ordered[min(len(ordered) - 1, math.ceil(0.9 * len(ordered)) - 1)],
        },
        "cache_bytes": decoder.cache_bytes(),
    }


def _too_slow(
    architecture: Architecture, variant: Variant, settings: Settings, length: int, clock: Clock
) -> str | None:
    """Why reading the prompt would take too long, by one of the widest linears; else None."""
    name = max(
        architecture.decoder_linears,
        key=lambda name: architecture.meta_model.get_submodule(name).weight.numel(),
    )
    shape = architecture.meta_model.get_submodule(name).weight.shape
    device = settings.torch_device()
    linear = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.bfloat16, device=device)
    assert variant.convert is not None
    layer = variant.convert(linear.requires_grad_(False), name)
    x = torch.ones(length, shape[1], dtype=torch.bfloat16, device=device)
    with torch.no_grad():
        layer(x[:1])
        seconds = clock.time(lambda: layer(x))
    whole = seconds * architecture.decoder_weights / shape.numel()
    if whole <= settings.prompt_seconds:
        return None
    return (
        f"its linears would read the prompt for about {whole:.0f} s: one of {shape[0]} x "
        f"{shape[1]} takes {seconds:.2f} s for {length} tokens"
    )


def _how(architecture: Architecture, model: nn.Module) -> str:
    """What the decoder's linears run."""
    layer: Any = model.get_submodule(architecture.decoder_linears[0])
    name = type(layer).__name__
    back_end = getattr(layer, "backend", None)
    if back_end is None:
        return name
    return f"{name}, back end {back_end}: {layer.arithmetic}"


def _add_floors(record: dict[str, Any], architecture: Architecture, model: nn.Module) -> None:
    """The time that copying as many bytes would take, and the part of it that is reached."""
    bandwidth = max(record["copy_bandwidth"])
    for batch, decoded in record["decode"].items():
        if "not_run" in decoded:
            continue
        # half of a run's tokens stand between the prompt and a step, on average
        length = record["prompt_tokens"] + (decoded["tokens"] + 1) // 2
        moved = bytes_per_step(architecture, model, int(batch), length)
        floor = moved / bandwidth
        decoded["bytes_per_step"] = moved
        decoded["floor_seconds"] = floor
        decoded["fraction_of_floor"] = floor / decoded["seconds_per_step"]["median"]
