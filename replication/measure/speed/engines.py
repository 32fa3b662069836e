"""What measurements in other engines share: the decoder as a text model, and the record's form.

An engine reads a prompt of words and decodes, with weights that are not trained. So it is given the
decoder alone, as the language model that it is.
"""

import resource
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import psutil
import torch

from replication.measure.clock import Clock, copy_bandwidth, spread
from replication.measure.memory import peak_bytes
from replication.measure.speed.settings import Settings, read_settings
from replication.measure.speed.sizes import cache_bytes
from replication.plan.architectures import Architecture

CPU = torch.device("cpu")
Prefill = Callable[[], None]
"""Reads the prompt anew and gives the first token."""
Decode = Callable[[int, int], float]
"""(rows, tokens) -> seconds that so many steps after the prompt took."""


def read_arguments(
    model: Mapping[str, Any], settings: Mapping[str, Any]
) -> tuple[Architecture, Settings]:
    """What a part is given, from what JSON holds."""
    chosen = read_settings(**settings)
    architecture = Architecture(**model)
    if chosen.layers is not None:
        architecture = architecture.first_layers(chosen.layers)
    return architecture, chosen


def threads_of(settings: Settings) -> int:
    """Of the CPU: one a core where nothing else is said."""
    return settings.threads or psutil.cpu_count(logical=False) or torch.get_num_threads()


def text_config(architecture: Architecture) -> dict[str, Any]:
    """The decoder's configuration as that of a language model, as config.json has it."""
    config = architecture.config().get_text_config()
    kinds = {"llama": "llama", "qwen2_vl_text": "qwen2", "qwen3_vl_text": "qwen3"}
    kind = kinds[config.model_type]
    rope = {"rope_type": "default", "rope_theta": config.rope_parameters["rope_theta"]}
    names = (
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "hidden_act"),
        *("max_position_embeddings", "rms_norm_eps"),
    )
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tied = architecture.config().tie_word_embeddings
    return {
        **{name: getattr(config, name) for name in names},
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "head_dim": head,
        "rope_parameters": rope,
        "tie_word_embeddings": bool(tied),
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def prompt_words(architecture: Architecture, settings: Settings) -> list[int]:
    """The prompt of every engine: random words of the vocabulary, but its first few."""
    rng = np.random.default_rng(settings.seed)
    vocabulary = text_config(architecture)["vocab_size"]
    words: list[int] = rng.integers(10, vocabulary, settings.text_tokens).tolist()
    return words


def measured(
    architecture: Architecture,
    settings: Settings,
    prefill: Prefill,
    decode: Decode,
    *,
    refuse: Callable[[int], str | None] = lambda rows: None,
    bits: float,
    how: str,
    build_seconds: float,
    weight_bytes: int,
    memory: dict[str, int],
) -> dict[str, Any]:
    """The record of one engine, with the keys of `measure.measure`; not run where it would read
    the prompt for longer than the settings allow.

    Args:
        architecture: whose decoder it runs.
        settings: what is measured, and how often.
        prefill: reads the prompt.
        decode: takes steps after it.
        refuse: why a batch of so many rows is not decoded; None where it is.
        bits: stored bits of a decoder weight, scales included.
        how: engine, version and kernel.
        build_seconds: until it was ready.
        weight_bytes: of everything stored.
        memory: peak so far, by phase; phases are added.
    """
    clock = Clock(CPU)
    bandwidth = [copy_bandwidth(CPU)]
    once = clock.time(prefill)  # libraries choose their kernels
    if once > settings.prompt_seconds:
        return {"not_run": f"it reads the prompt of {settings.text_tokens} words for {once:.0f} s"}
    first = [clock.time(prefill) for _ in range(settings.repeats)]
    memory["prefill"] = peak()
    steps: dict[str, Any] = {}
    for batch in settings.batches:
        if reason := refuse(batch):
            steps[str(batch)] = {"not_run": reason}
            continue
        once = decode(batch, 1)
        tokens = max(2, min(settings.tokens, int(settings.repeat_seconds / max(once, 1e-6))))
        seconds = [decode(batch, tokens) for _ in range(settings.decode_repeats)]
        length = settings.text_tokens + (tokens + 1) // 2
        moved = step_bytes(architecture, bits, batch, length)
        steps[str(batch)] = {
            "tokens": tokens,
            "tokens_per_second": spread([batch * tokens / total for total in seconds]),
            "seconds_per_step": {
                **spread([total / tokens for total in seconds]),
                "p90": max(seconds) / tokens,
            },
            "bytes_per_step": moved,
        }
        memory[f"batch {batch}"] = peak()
    bandwidth.append(copy_bandwidth(CPU))
    for step in (step for step in steps.values() if "not_run" not in step):
        step["floor_seconds"] = step["bytes_per_step"] / max(bandwidth)
        step["fraction_of_floor"] = step["floor_seconds"] / step["seconds_per_step"]["median"]
    return {
        "weight_bytes": weight_bytes,
        "decoder_bits": bits,
        "build_seconds": build_seconds,
        "prompt_tokens": settings.text_tokens,
        "time_to_first_token": spread(first),
        "decode": steps,
        "peak_bytes": memory,
        "copy_bandwidth": bandwidth,
        "how": how,
        "threads": threads_of(settings),
        "captured": False,
    }


def step_bytes(architecture: Architecture, bits: float, batch: int, length: int) -> int:
    """Bytes that one step reads at least: the decoder's linears, the vocabulary projection in 16
    bits, and every row's keys and values."""
    text = architecture.config().get_text_config()
    head = 2 * text.vocab_size * text.hidden_size
    linears = int(bits * architecture.decoder_weights / 8)
    return head + linears + cache_bytes(architecture, batch, length)


def peak() -> int:
    """The most memory so far, of this process and of those that it started and waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    return max(peak_bytes(CPU), children)
