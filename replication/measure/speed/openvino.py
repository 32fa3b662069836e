"""A decoder with random codes in OpenVINO GenAI, which reads the GGUF file of llama.cpp."""

import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from replication.measure.speed import engines
from replication.measure.speed.llama_cpp import BITS, write_decoder


def measure_part(
    model: Mapping[str, Any], name: str, settings: Mapping[str, Any], **_: Any
) -> dict[str, Any]:
    """Write the file, load it, measure, and remove it.

    Every row of a batch reads the prompt itself. So the time of one token is taken off, and a batch
    whose prompts would take too long is not run.
    """
    import openvino
    import openvino_genai

    architecture, chosen = engines.read_arguments(model, settings)
    words = np.array(engines.prompt_words(architecture, chosen), dtype=np.int64)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        file = Path(folder) / "model-Q4_0.gguf"
        write_decoder(architecture, file, chosen.seed)
        size = file.stat().st_size
        memory = {"start": engines.peak()}
        start = time.perf_counter()
        threads = {"INFERENCE_NUM_THREADS": engines.threads_of(chosen)}
        pipeline = openvino_genai.LLMPipeline(str(file), "CPU", **threads)
        seconds = time.perf_counter() - start
    memory["build"] = engines.peak()

    def ask(rows: int, tokens: int) -> float:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = tokens
        config.ignore_eos = True
        prompt = openvino.Tensor(np.tile(words, (rows, 1)))
        start = time.perf_counter()
        pipeline.generate(prompt, config)
        return time.perf_counter() - start

    alone: dict[int, float] = {}  # seconds of the prompts and the first token, by rows

    def prefill() -> None:
        alone[1] = ask(1, 1)

    def refuse(rows: int) -> str | None:
        seconds = rows * alone[1]
        if seconds <= chosen.prompt_seconds:
            return None
        return f"each of its {rows} rows reads the prompt, about {seconds:.0f} s in all"

    def decode(rows: int, tokens: int) -> float:
        if rows not in alone:
            alone[rows] = ask(rows, 1)
        return ask(rows, tokens + 1) - alone[rows]

    return engines.measured(
        architecture,
        chosen,
        prefill,
        decode,
        refuse=refuse,
        bits=BITS,
        how=f"OpenVINO GenAI {version('openvino-genai')}, INT4 of a Q4_0 file",
        build_seconds=seconds,
        weight_bytes=size,
        memory=memory,
    )
