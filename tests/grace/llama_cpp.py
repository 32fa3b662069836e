"""llama.cpp in a process of its own: a list of requests in, a list of answers out."""

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

MARK = "<__media__>"
"""Stands for an image in a prompt here; the engine's own mark is another one every time."""


def ask(folder: Path, requests: list) -> list:
    """Answers to [path, body] requests, of the files that an export wrote into a folder.

    Activations, attention and its cache are float32 there, but for the inputs of quantized linears.
    """
    given = folder.parent / "requests.json"
    given.write_text(json.dumps(requests))
    command = [sys.executable, __file__, str(folder), str(given)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    answers = folder.parent / "answers.json"
    assert answers.is_file(), ended.stderr[-3000:]
    return json.loads(answers.read_text())


def main(folder: Path, given: Path) -> None:
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(next(folder.glob("model-*.gguf")))
    parameters.mmproj.path = str(next(folder.glob("mmproj-*.gguf")))
    parameters.n_ctx, parameters.n_parallel = 512, 1
    parameters.warmup = False
    parameters.verbosity = 0
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    off = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.flash_attn_type = off
    server = xllamacpp.Server(parameters)
    place = server.listening_address
    with urllib.request.urlopen(f"{place}/props") as answer:
        mark = json.load(answer)["media_marker"]
    answers = []
    for path, body in json.loads(given.read_text().replace(MARK, mark)):
        content = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{place}{path}", json.dumps(body).encode(), content)
        with urllib.request.urlopen(request) as answer:
            answers.append(json.load(answer))
    whole = folder.parent / "answers.part"
    whole.write_text(json.dumps(answers))
    whole.rename(folder.parent / "answers.json")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
