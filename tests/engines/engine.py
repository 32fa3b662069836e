"""vLLM in this process: its model, its tensors and its answers."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from layout import read_codes
from questions import Question
from reference import NEW
from torch import Tensor
from transformers import AutoProcessor

CACHE_BYTES = 1 << 26
LENGTH = 512

# Published names of fused layers' parts, in vLLM's order.
FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


@contextmanager
def engine(path: Path) -> Iterator[Any]:
    """An `LLM` of an export; what it took is given back at the end."""
    from vllm import LLM
    from vllm.distributed.parallel_state import cleanup_dist_env_and_memory

    llm = LLM(
        model=str(path),
        enforce_eager=True,
        max_model_len=LENGTH,
        max_num_seqs=16,
        kv_cache_memory_bytes=CACHE_BYTES,
        limit_mm_per_prompt={"image": 2},
        skip_mm_profiling=True,
        disable_log_stats=True,
    )
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def model_of(llm: Any) -> Any:
    """The engine's module."""
    (model,) = llm.apply_model(lambda module: module)
    return model


def quantized_layers(model: Any) -> dict[str, Any]:
    """The engine's layers with integer codes, by its own names."""
    return {
        name: module
        for name, module in model.named_modules()
        if hasattr(module, "weight_packed") or hasattr(module, "qweight")
    }


def read_layer(layer: Any) -> tuple[Tensor, Tensor]:
    """Codes (out, in) int8 and scales (out, groups) of a layer after the engine's repacking."""
    if hasattr(layer, "weight_packed"):
        words, scales, zeros = layer.weight_packed, layer.weight_scale, None
    else:
        words, scales, zeros = layer.qweight, layer.scales, layer.qzeros
    zeros = None if zeros is None else zeros.data
    return read_codes(words.data, zeros, scales.shape[0]), scales.data.t()


def parts_of(name: str) -> list[str]:
    """The trained model's names of what the engine has in one layer, in its order."""
    stem, _, last = name.rpartition(".")
    stem = stem.replace("language_model.model.layers.", "model.language_model.layers.")
    return [f"{stem}.{part}" for part in FUSED.get(last, (last,))]


def ask(llm: Any, path: Path, questions: list[Question]) -> list[tuple[list[int], list[float]]]:
    """Tokens of greedy answers, and the engine's log-probability of each."""
    from vllm import SamplingParams

    processor = AutoProcessor.from_pretrained(path)
    prompts = []
    for question in questions:
        text = processor.apply_chat_template(question.messages(), add_generation_prompt=True)
        prompt: dict[str, Any] = {"prompt": text}
        if question.images:
            prompt["multi_modal_data"] = {"image": list(question.images)}
        prompts.append(prompt)
    greedy = SamplingParams(temperature=0, max_tokens=NEW, logprobs=0)
    answers = []
    for output in llm.generate(prompts, greedy, use_tqdm=False):
        (answer,) = output.outputs
        tokens = list(answer.token_ids)
        chances = [step[token].logprob for step, token in zip(answer.logprobs, tokens, strict=True)]
        answers.append((tokens, chances))
    return answers
