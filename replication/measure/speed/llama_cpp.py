"""A decoder with random codes in llama.cpp, by way of a GGUF file that is written for it."""

import json
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from replication.measure.speed import engines
from replication.measure.speed.settings import Settings
from replication.plan.architectures import Architecture

BITS = 4.5  # of Q4_0: 32 codes of 4 bits, and a scale of 16
_BLOCK_BYTES = 18
_POOL = 1 << 24  # random bytes that tensors are filled from
_PLACES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}


def measure_part(
    model: Mapping[str, Any], name: str, settings: Mapping[str, Any], **_: Any
) -> dict[str, Any]:
    """Write the file, load it, measure, and remove it."""
    architecture, chosen = engines.read_arguments(model, settings)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        file = Path(folder) / "model-Q4_0.gguf"
        write_decoder(architecture, file, chosen.seed)
        memory = {"start": engines.peak()}
        start = time.perf_counter()
        server = _Server(architecture, file, chosen)
        seconds = time.perf_counter() - start
        memory["build"] = engines.peak()
        return engines.measured(
            architecture,
            chosen,
            server.prefill,
            server.decode,
            bits=BITS,
            how=f"llama.cpp, xllamacpp {version('xllamacpp')}, Q4_0, inputs of 8 bits",
            build_seconds=seconds,
            weight_bytes=file.stat().st_size,
            memory=memory,
        )


def write_decoder(architecture: Architecture, path: Path, seed: int) -> None:
    """Write the decoder as a language model: linears in Q4_0, embeddings and head in BF16."""
    import gguf

    config = engines.text_config(architecture)
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, kind, use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    words = [f"<{number}>" for number in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.NORMAL] * len(words))
    writer.add_token_merges([f"{words[3]} {words[4]}"])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    for name, data, form in _tensors(config, np.random.default_rng(seed)):
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[form])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(
    config: Mapping[str, Any], rng: np.random.Generator
) -> Iterator[tuple[str, np.ndarray, str]]:
    width, deep = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    sizes = {
        **{"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)},
        **{"o_proj": (width, queries), "gate_proj": (deep, width), "up_proj": (deep, width)},
        "down_proj": (width, deep),
    }
    pool = rng.integers(0, 256, _POOL, dtype=np.uint8)
    half = (rng.standard_normal(_POOL // 2) * 0.02).astype("<f4").view("<u4") >> 16
    plain = half.astype("<u2").view(np.uint8)
    scale = np.frombuffer(np.float16(0.004).tobytes(), np.uint8)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return np.resize(plain, (rows, 2 * columns))

    yield "token_embd.weight", matrix(config["vocab_size"], width), "BF16"
    yield "output_norm.weight", np.ones(width, np.float32), "F32"
    if not config["tie_word_embeddings"]:
        yield "output.weight", matrix(config["vocab_size"], width), "BF16"
    for layer in range(config["num_hidden_layers"]):
        stem = f"blk.{layer}"
        for norm in ("attn_norm", "ffn_norm"):
            yield f"{stem}.{norm}.weight", np.ones(width, np.float32), "F32"
        if config["model_type"] == "qwen3":
            for norm in ("attn_q_norm", "attn_k_norm"):
                ones = np.ones(config["head_dim"], np.float32)
                yield f"{stem}.{norm}.weight", ones, "F32"
        for part, (rows, columns) in sizes.items():
            blocks = np.resize(pool, (rows, columns // 32, _BLOCK_BYTES))
            blocks[..., :2] = scale
            yield f"{stem}.{_PLACES[part]}.weight", blocks.reshape(rows, -1), "Q4_0"
            if config["model_type"] == "qwen2" and part in ("q_proj", "k_proj", "v_proj"):
                yield f"{stem}.{_PLACES[part]}.bias", np.zeros(rows, np.float32), "F32"


class _Server:
    """llama.cpp with as many slots as the largest batch, each with the same prompt."""

    def __init__(self, architecture: Architecture, file: Path, settings: Settings) -> None:
        import xllamacpp

        self._rows = max(settings.batches)
        parameters = xllamacpp.CommonParams()
        parameters.model.path = str(file)
        parameters.n_parallel = self._rows
        parameters.n_ctx = self._rows * (settings.text_tokens + settings.tokens + 32)
        parameters.n_batch = parameters.n_ubatch = max(512, self._rows)
        parameters.slot_save_path = f"{file.parent}/"
        parameters.warmup = False
        parameters.verbosity = 0
        for pool in (parameters.cpuparams, parameters.cpuparams_batch):
            pool.n_threads = engines.threads_of(settings)
        self._server = xllamacpp.Server(parameters)
        self._prompt = engines.prompt_words(architecture, settings)
        self._ready = 0  # slots that hold the prompt

    def prefill(self) -> None:
        self._ask(0, 1, again=True)
        self._ready = min(self._ready, 1) or 1

    def decode(self, rows: int, tokens: int) -> float:
        """Seconds of the slowest row for so many tokens after the first."""
        self._fill(rows)
        with ThreadPoolExecutor(rows) as pool:
            answers = list(pool.map(lambda slot: self._ask(slot, tokens + 1), range(rows)))
        return max(answer["predicted_ms"] for answer in answers) / 1000

    def _fill(self, rows: int) -> None:
        """Copies the first slot's prompt into the others, instead of reading it again."""
        if rows > self._ready:
            self._post("/slots/0?action=save", {"filename": "prompt.bin"})
            for slot in range(self._ready, rows):
                self._post(f"/slots/{slot}?action=restore", {"filename": "prompt.bin"})
            self._ready = rows

    def _ask(self, slot: int, tokens: int, *, again: bool = False) -> dict[str, Any]:
        body = {"prompt": self._prompt, "n_predict": tokens, "ignore_eos": True, "temperature": 0,
                "id_slot": slot, "cache_prompt": not again}  # fmt: skip
        return self._post("/completion", body)["timings"]

    def _post(self, route: str, body: Mapping[str, Any]) -> dict[str, Any]:
        address = f"{self._server.listening_address}{route}"
        content = {"Content-Type": "application/json"}
        request = urllib.request.Request(address, json.dumps(body).encode(), content)
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)
