"""A GGUF file in llama.cpp, which runs as a server in the process that this runs in."""

import base64
import io
import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from grace.bench.settings import Settings, progress, spread
from grace.errors import InputError
from grace.machine import peak_resident

_ROOM = 4096  # positions of a row, beside the tokens that are decoded


def available() -> str | None:
    """Why llama.cpp cannot be run here, or None."""
    from importlib.util import find_spec

    if find_spec("xllamacpp") is None:
        return "llama.cpp is run by the package xllamacpp, which is missing: pip install xllamacpp"
    return None


def measure(model: Path, vision: Path, label: str, settings: Settings) -> dict[str, Any]:
    """The numbers of one model, with the keys of `directory.measure`.

    The first token's time is that of a request for it; the rate of decoding is llama.cpp's own of
    the tokens after the first, in as many slots as there are rows.

    Args:
        model: The file with the decoder.
        vision: The file with the vision part.
        label: Of the progress bar.
        settings: What is measured, and how often.

    Raises:
        InputError: llama.cpp does not load the files.
    """
    rows, tokens = settings.batch_size, settings.tokens
    with progress(label, 2 * settings.repeats + 3) as step:
        server = _Server(model, vision, settings)
        step()
        first, rates = [], []
        for _ in range(settings.repeats + 1):  # the first is to warm up
            start = time.perf_counter()
            answer = server.ask(0, 1, again=True)
            first.append(time.perf_counter() - start)
            step()
        for slot in range(rows):  # every slot keeps the prompt
            server.ask(slot, 1)
        with ThreadPoolExecutor(rows) as pool:
            for _ in range(settings.repeats + 1):
                answers = list(pool.map(lambda slot: server.ask(slot, tokens + 1), range(rows)))
                slowest = max(one["predicted_ms"] for one in answers)
                rates.append(1000 * rows * tokens / slowest)
                step()
    return {
        "runs": f"llama.cpp, {model.stem.partition('-')[2] or model.stem}",
        "first_token_seconds": spread(first[1:]),
        "tokens_per_second": spread(rates[1:]),
        "weight_bytes": sum(file.stat().st_size for file in (model, vision)),
        "peak_bytes": peak_resident(),
        "prompt_tokens": answer["prompt_n"],
    }


class _Server:
    """llama.cpp with one question about one picture."""

    def __init__(self, model: Path, vision: Path, settings: Settings) -> None:
        import xllamacpp

        parameters = xllamacpp.CommonParams()
        parameters.model.path, parameters.mmproj.path = str(model), str(vision)
        parameters.n_parallel = settings.batch_size
        parameters.n_ctx = settings.batch_size * (_ROOM + settings.tokens)
        parameters.verbosity = 0
        for pool in (parameters.cpuparams, parameters.cpuparams_batch):
            pool.n_threads = settings.threads
        try:
            self._server = xllamacpp.Server(parameters)
        except RuntimeError as error:
            raise InputError(f"{model}: llama.cpp does not load it ({error})") from error
        file = io.BytesIO()
        settings.picture().save(file, "PNG")
        picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        content = [
            {"type": "image_url", "image_url": {"url": picture}},
            {"type": "text", "text": settings.prompt},
        ]
        self._question = {"messages": [{"role": "user", "content": content}], "temperature": 0}

    def ask(self, slot: int, tokens: int, *, again: bool = False) -> dict[str, Any]:
        """llama.cpp's timings of an answer of so many tokens; `again` reads the prompt anew."""
        body = {**self._question, "max_tokens": tokens, "ignore_eos": True, "id_slot": slot,
                "cache_prompt": not again}  # fmt: skip
        request = urllib.request.Request(
            f"{self._server.listening_address}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["timings"]
