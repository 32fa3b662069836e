"""A decoder with random weights in vLLM's build for CPUs."""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from replication.measure.memory import shortage
from replication.measure.speed import engines
from replication.measure.speed.sizes import cache_bytes
from replication.plan.architectures import Architecture

GROUP_SIZE = 128
_RESERVE = 2 * 2**30  # bytes beside weights and cache: libraries, activations
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # memory is that of one process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


def measure_part(
    model: Mapping[str, Any], name: str, settings: Mapping[str, Any], **_: Any
) -> dict[str, Any]:
    """Measure "vllm_bf16" or "vllm_int4"."""
    os.environ.update(_ENVIRONMENT)
    from vllm import LLM, SamplingParams

    architecture, chosen = engines.read_arguments(model, settings)
    config = engines.text_config(architecture)
    bits = 16.0
    if name == "vllm_int4":
        bits = 4 + 16 / GROUP_SIZE
        config["quantization_config"] = _quantization()
    memory = {"start": engines.peak()}
    length = chosen.text_tokens + chosen.tokens + 8
    text = architecture.config().get_text_config()
    tables = 1 if config["tie_word_embeddings"] else 2
    embeddings = 2 * tables * text.vocab_size * text.hidden_size
    weights = int(bits * architecture.decoder_weights / 8) + embeddings

    def refuse(rows: int) -> str | None:
        """The cache is allocated before the first step, for the largest batch that fits."""
        needed = weights + _cache(architecture, rows, length) + _RESERVE
        reason = shortage(needed, engines.CPU)
        return reason and f"model and cache {reason}"

    reasons = {rows: refuse(rows) for rows in chosen.batches}
    rows = max((one for one, reason in reasons.items() if reason is None), default=0)
    if not rows:
        return {"not_run": reasons[min(reasons)]}
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        engine = LLM(
            model=folder,
            load_format="dummy",
            skip_tokenizer_init=True,
            enforce_eager=True,
            enable_prefix_caching=True,
            max_model_len=length,
            max_num_seqs=rows,
            kv_cache_memory_bytes=_cache(architecture, rows, length),
            disable_log_stats=True,
        )
    seconds = time.perf_counter() - start
    memory["build"] = engines.peak()
    words = engines.prompt_words(architecture, chosen)

    def ask(prompt: list[int], rows: int, tokens: int) -> float:
        sampling = SamplingParams(
            temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        prompts: Any = [{"prompt_token_ids": prompt}] * rows
        start = time.perf_counter()
        engine.generate(prompts, sampling, use_tqdm=False)
        return time.perf_counter() - start

    def prefill() -> None:
        engine.reset_prefix_cache()
        ask(words, 1, 1)

    # where blocks fill a prompt exactly, the cache gives all but the last one: with one more word
    # it gives them all
    longer = [*words, words[0]]

    def decode(rows: int, tokens: int) -> float:
        """What more tokens take: both times the prompt is in the cache but for its last words."""
        ask(longer, rows, 1)
        return ask(longer, rows, tokens + 1) - ask(longer, rows, 1)

    return engines.measured(
        architecture,
        chosen,
        prefill,
        decode,
        bits=bits,
        how=f"vLLM, vllm-cpu {version('vllm-cpu')}, eager",
        build_seconds=seconds,
        refuse=reasons.__getitem__,
        weight_bytes=weights,
        memory=memory,
    )


def _cache(architecture: Architecture, rows: int, length: int) -> int:
    """Bytes for so many rows, blocks that are not full included."""
    return int(1.2 * cache_bytes(architecture, rows + 1, length) + 2**26)


def _quantization() -> dict[str, Any]:
    """As `grace export --format compressed-tensors` writes it."""
    weights = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group",
               "group_size": GROUP_SIZE, "dynamic": False}  # fmt: skip
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["re:.*lm_head$"],
    }
