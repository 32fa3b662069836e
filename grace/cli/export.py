"""grace export: a checkpoint for other libraries."""

import argparse
from typing import Any

from grace.cli.models import DTYPES, add_overwrite, processor_of, trained_codes

DESCRIPTION = """\
Export a trained model with its integer codes, in a format that other libraries load.

  compressed-tensors   loaded by transformers (with the package compressed-tensors) and by vLLM
  awq                  AutoAWQ's GEMM layout: loaded by vLLM, and by transformers with GPTQModel
  gguf                 for llama.cpp: LLaVA-1.5, Qwen2-VL, Qwen2.5-VL, Qwen3-VL (package gguf)

The codes are exact, always. Scales are exact or refused, unless --round-scales is given. Written to
--out: a whole Hugging Face directory with quantization_config and processor, or for gguf the
model's and the vision part's files with a config.json; or nothing.
"""
EXAMPLES = """\
  grace export student --format compressed-tensors --out student-ct
  vllm serve student-ct
  grace export student --format awq --out student-awq
  grace export student --format gguf --out student-gguf
  llama-server -m student-gguf/model-Q4_0.gguf --mmproj student-gguf/mmproj-BF16.gguf
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `grace train` wrote")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument(
        "--format",
        choices=("compressed-tensors", "awq", "gguf"),
        required=True,
        help="format of the checkpoint, as above",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="format of everything that is not quantized (default: bfloat16; awq: float16)",
    )
    parser.add_argument(
        "--round-scales",
        action="store_true",
        help="round scales that the format cannot hold, instead of refusing them",
    )
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Export and write."""
    import torch

    from grace.export import save_awq, save_compressed_tensors, save_gguf
    from grace.files import check_free
    from grace.models import load_model

    exact = trained_codes(arguments.model)
    check_free(arguments.out, overwrite=arguments.overwrite)
    savers: dict[str, Any] = {
        "compressed-tensors": save_compressed_tensors,
        "awq": save_awq,
        "gguf": save_gguf,
    }
    usual = "float16" if arguments.format == "awq" else "bfloat16"
    processor = processor_of(arguments.model)
    # as it was trained: codes are compared with the weights before anything is rounded
    savers[arguments.format](
        load_model(arguments.model),
        arguments.out,
        codes=exact,
        bits=exact.bits,
        dtype=getattr(torch, arguments.dtype or usual),
        processor=processor,
        round_scales=arguments.round_scales,
        overwrite=arguments.overwrite,
    )
    print(
        f"exported {len(exact)} linears of {exact.bits} bits to {arguments.out} "
        f"({arguments.format})"
    )
