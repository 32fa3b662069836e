"""One variant of one model, measured in the process that this runs in.

    record = measure(architecture("llava-1.5-7b"), variant("int4"), Settings())

Peak memory belongs to a process, so every variant is given a fresh one
(`replication.measure.speed`).
"""

import gc
import itertools
import math
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from torch import nn

from grace.decoding import Decoder
from grace.errors import InputError
from replication.measure.speed.variants import Variant
from replication.measure.speed.weights import random_model, stored_bytes
from replication.plan.architectures import TEXT_TOKENS, Architecture

_COPY_BYTES = 1 << 28
_COPIES = 9
_RESERVE = 1.5 * 2**30  # bytes beside weights and cache: libraries, activations, one layer


@dataclass(frozen=True)
class Settings:
    """What is measured, and how often.

    batches: decoded at these batch sizes. repeats: of the prefill. decode_repeats: of a run of
    tokens, each from the end of the same prompt. tokens: in a run, at most; repeat_seconds: fewer
    where a run would take longer, and fewer runs where they took several times that long.
    prompt_seconds: a peer that would read the prompt for longer is not run. text_tokens: words in
    the prompt beside the image. layers: build only so many, to try things out: such numbers are of
    no published model. device: "auto" is CUDA where there is one. threads: of the CPU; 0: torch's
    choice.
    """

    batches: tuple[int, ...] = (1, 4, 16)
    repeats: int = 3
    decode_repeats: int = 5
    tokens: int = 16
    repeat_seconds: float = 12.0
    prompt_seconds: float = 120.0
    text_tokens: int = TEXT_TOKENS
    seed: int = 0
    layers: int | None = None
    device: str = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        counts: list[tuple[str, Any]] = [("batches", one) for one in self.batches or (None,)]
        counts += [(name, getattr(self, name)) for name in ("repeats", "decode_repeats", "tokens")]
        if self.layers is not None:
            counts.append(("layers", self.layers))
        for name, value in counts:
            if type(value) is not int or value < 1:
                raise InputError(f"{name}: {value!r} is no whole number from 1")
        if list(self.batches) != sorted(set(self.batches)):
            raise InputError(f"batches {self.batches}: give each once, in ascending order")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError(f"device {self.device!r}: choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device cuda: torch sees no CUDA device here; choose cpu")

    def torch_device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "batches": list(self.batches)}


def measure(architecture: Architecture, variant: Variant, settings: Settings) -> dict[str, Any]:
    """Everything about one variant, or ``{"not_run": why}``.

    Keys: weight_bytes; decoder_bits (stored bits of a decoder weight); build_seconds;
    time_to_first_token, decode (by batch): `spread`s in seconds; peak_bytes: the process's
    high-water mark of resident memory on a CPU, the allocator's on CUDA, after each phase;
    copy_bandwidth in bytes/s, before and after.
    """
    device = settings.torch_device()
    if settings.layers is not None:
        architecture = architecture.first_layers(settings.layers)
    reason = variant.unavailable(device) or _too_large(architecture, variant, device)
    if reason:
        return {"not_run": reason}
    if settings.threads:
        torch.set_num_threads(settings.threads)
    clock = Clock(device)
    bandwidth = [copy_bandwidth(device)]
    memory = {"start": peak_bytes(device)}
    prompt = architecture.prompt(
        settings.seed, dtype=torch.bfloat16, text_tokens=settings.text_tokens
    )
    length = prompt["input_ids"].shape[1]
    if not (variant.ours or variant.convert is None):
        reason = _too_slow(architecture, variant, settings, length, clock)
        if reason:
            return {"not_run": reason}
    start = time.perf_counter()
    model = random_model(
        architecture.config(), settings.seed, device=device, convert=variant.convert
    )
    gc.collect()
    clock.wait()
    seconds = time.perf_counter() - start
    memory["build"] = peak_bytes(device)
    prompt = {name: value.to(device) for name, value in prompt.items()}
    with torch.no_grad():
        _warm_up(model, prompt, device)
        reader = Decoder(model, 1, length + 1 + settings.tokens)
        first = [clock.time(lambda: _first_token(reader, prompt)) for _ in range(settings.repeats)]
        memory["prefill"] = peak_bytes(device)
        decode: dict[str, Any] = {}
        for batch in settings.batches:
            reason = _no_room(architecture, batch, length + settings.tokens + 1, device)
            if reason:
                decode[str(batch)] = {"not_run": reason}
                continue
            decode[str(batch)] = _decode(model, reader, batch, settings, clock)
            memory[f"batch {batch}"] = peak_bytes(device)
    bandwidth.append(copy_bandwidth(device))
    record = {
        "weight_bytes": stored_bytes(model),
        "decoder_bits": _decoder_bits(architecture, model),
        "build_seconds": seconds,
        "prompt_tokens": length,
        "time_to_first_token": spread(first),
        "decode": decode,
        "peak_bytes": memory,
        "copy_bandwidth": bandwidth,
        "how": _how(architecture, model),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "captured": device.type == "cuda",
    }
    _add_floors(record, architecture, model)
    return record


# ------------------------------------------------------------------------------------------- time


class Clock:
    """Seconds of work on a device; waits for it only at both ends."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device if device.type == "cuda" else None

    def wait(self) -> None:
        if self.cuda is not None:
            torch.cuda.synchronize(self.cuda)

    def time(self, call: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def steps(self, run: Callable[[Callable[[], None]], None]) -> tuple[float, list[float]]:
        """(seconds of all, of each step) of a call that is given what to call after a step."""
        if self.cuda is None:
            stamps = [time.perf_counter()]
            run(lambda: stamps.append(time.perf_counter()))
        else:  # events are recorded on the device: the host does not wait for a step
            events: list[Any] = [torch.cuda.Event(enable_timing=True)]
            self.wait()
            events[0].record()

            def after() -> None:
                events.append(torch.cuda.Event(enable_timing=True))
                events[-1].record()

            run(after)
            self.wait()
            stamps = [events[0].elapsed_time(event) / 1000 for event in events]
        single = [after - before for before, after in itertools.pairwise(stamps)]
        return stamps[-1] - stamps[0], single


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Repeats with their median and ends."""
    return {
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "values": list(values),
    }


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a large copy reads and writes here: the best of a few, twice its size."""
    source = torch.ones(_COPY_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source).copy_(source)
    clock = Clock(device)
    return 2 * _COPY_BYTES / min(clock.time(lambda: target.copy_(source)) for _ in range(_COPIES))


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


# ----------------------------------------------------------------------------------------- memory


def peak_bytes(device: torch.device) -> int:
    """The most memory so far: resident in this process, or of the allocator on CUDA."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def free_bytes(device: torch.device) -> int:
    """What can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(psutil.virtual_memory().available)


def expected_bytes(architecture: Architecture, variant: Variant) -> float:
    """What a variant's weights should take: 16 bits each, but a decoder's linear that is converted
    its codes and half a bit for scales."""
    total, linears = architecture.counted_parameters, architecture.decoder_weights
    bits = 16.0 if variant.convert is None else variant.bits + 0.5
    return (16 * (total - linears) + bits * linears) / 8


def _too_large(architecture: Architecture, variant: Variant, device: torch.device) -> str | None:
    needed = expected_bytes(architecture, variant) + _RESERVE
    free = free_bytes(device)
    if needed <= free:
        return None
    return f"needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def _too_slow(
    architecture: Architecture, variant: Variant, settings: Settings, length: int, clock: Clock
) -> str | None:
    """Whether reading the prompt would take too long, from one of the widest linears."""
    name = max(
        architecture.decoder_linears,
        key=lambda one: architecture.meta_model.get_submodule(one).weight.numel(),
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


def _cache_bytes(architecture: Architecture, batch: int, length: int) -> int:
    text = architecture.config().get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = text.num_key_value_heads
    return 2 * text.num_hidden_layers * heads * width * 2 * batch * length


def _no_room(
    architecture: Architecture, batch: int, length: int, device: torch.device
) -> str | None:
    # attention may copy what it reads of one layer; the rest is slack
    needed = 1.1 * _cache_bytes(architecture, batch, length) + 2**28
    free = free_bytes(device)
    if needed <= free:
        return None
    return f"its cache needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


# ------------------------------------------------------------------------------------ what is read


def _linears(architecture: Architecture, model: nn.Module) -> list[nn.Module]:
    """What stands in the places of the decoder's linears."""
    return [model.get_submodule(name) for name in architecture.decoder_linears]


def _decoder_bits(architecture: Architecture, model: nn.Module) -> float:
    biases = sum(
        bias.numel() * bias.element_size()
        for layer in _linears(architecture, model)
        if (bias := getattr(layer, "bias", None)) is not None
    )
    stored = sum(stored_bytes(layer) for layer in _linears(architecture, model))
    return 8 * (stored - biases) / architecture.decoder_weights


def _how(architecture: Architecture, model: nn.Module) -> str:
    """What the decoder's linears run."""
    layer: Any = _linears(architecture, model)[0]
    name = type(layer).__name__
    back_end = getattr(layer, "backend", None)
    if back_end is None:
        return name
    return f"{name}, back end {back_end}: {layer.arithmetic}"


def bytes_per_step(architecture: Architecture, model: nn.Module, batch: int, length: int) -> int:
    """Bytes that one decode step reads at least: the decoder's layers, its last norm and the
    vocabulary projection once, and every row's keys and values of `length` tokens."""
    family = architecture.family
    inside: Any = model
    head = stored_bytes(inside.get_submodule(family.output_head))
    decoder = family.decoder_layers.rpartition(".")[0]
    norm = stored_bytes(inside.get_submodule(f"{decoder}.norm"))
    layers = stored_bytes(family.layers(model))
    return head + norm + layers + _cache_bytes(architecture, batch, length)


def _add_floors(record: dict[str, Any], architecture: Architecture, model: nn.Module) -> None:
    """The time that copying as many bytes would take, and the part of it that is reached."""
    bandwidth = max(record["copy_bandwidth"])
    for batch, found in record["decode"].items():
        if "not_run" in found:
            continue
        # half of a run's tokens stand between the prompt and a step, on average
        length = record["prompt_tokens"] + (found["tokens"] + 1) // 2
        moved = bytes_per_step(architecture, model, int(batch), length)
        floor = moved / bandwidth
        found["bytes_per_step"] = moved
        found["floor_seconds"] = floor
        found["fraction_of_floor"] = floor / found["seconds_per_step"]["median"]
