"""grace train: a student in INT4 under a teacher."""

import argparse
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from grace.training.options import SECTIONS, default_of

DESCRIPTION = """\
Train a vision-language model with fake-quantized weights under a larger teacher (GRACE), under its
own unquantized weights (qad), by naive distillation (kd) or without a teacher (qat, sft). The
vision tower is frozen; the linears of the decoder layers are quantized.

A recipe is a YAML file of options by name; flags replace its values, with dashes or underscores.
Every field of transformers' TrainingArguments is an option: --help-all lists them.

Written to --out: the trained model (weights on the integer grid), its codes and scales
(quantized.safetensors), the processor, a model card, and training.json with settings and log.
Checkpoints are in OUT.checkpoints until training is complete; --resume goes on from the last one.
"""
EXAMPLES = """\
  grace train Qwen/Qwen2-VL-2B-Instruct --teacher Qwen/Qwen2-VL-7B-Instruct \\
      --data train.parquet --out student
  grace train recipe.yaml --learning_rate 2e-5 --report_to tensorboard
  grace train Qwen/Qwen2-VL-2B-Instruct --method qat --data train.parquet --out student-qat
  accelerate launch --num_processes 4 -m grace train recipe.yaml
  grace train ... --set tau=0.2 --set beta_dkd=1.0 --set rcka_weight=0
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the options for --help. What is given is parsed when the command runs, because
    transformers, which knows all options, takes seconds to import."""
    parser.usage = "grace train MODEL | RECIPE.yaml [--OPTION VALUE ...]"
    parser.add_argument(
        "first", nargs="?", metavar="MODEL | RECIPE.yaml", help="student, or a file of options"
    )
    for section in SECTIONS:
        group = parser.add_argument_group(section._argument_group_name)
        for entry in fields(section):
            _describe(group, entry)
        if section.__name__ == "MethodOptions":
            group.add_argument(
                "--set", metavar="NAME=VALUE", help="one field of distillation; may be repeated"
            )
    parser.add_argument("--help-all", action="store_true", help="list every option and exit")
    parser.parse_known_args = partial(_keep, parser)  # type: ignore[method-assign, assignment]


def _describe(group: Any, entry: Any) -> None:
    names = [f"--{entry.name}", *(n for n in entry.metadata["aliases"] if "-" not in n[2:])]
    default, text = default_of(entry), entry.metadata["help"].replace("%", "%%")
    if entry.type is bool:
        group.add_argument(*names, action="store_true", help=text)
        return
    shown = "" if default in (None, []) else f" (default: {_plain(default)})"
    metavar = entry.metadata.get("metavar", entry.name.rpartition("_")[2].upper())
    group.add_argument(*names, metavar=metavar, help=text + shown)


def _plain(default: Any) -> Any:
    return " ".join(default) if isinstance(default, list) else default


def _keep(
    parser: argparse.ArgumentParser, words: Sequence[str], namespace: Any = None
) -> tuple[argparse.Namespace, list[str]]:
    """The command's words as they are, in place of the parser's own method."""
    if "-h" in words or "--help" in words:
        parser.print_help()
        parser.exit()
    return argparse.Namespace(words=list(words)), []


def run(arguments: argparse.Namespace) -> None:
    """Train, write the model, and remove the checkpoints."""
    from grace.training.arguments import options_parser, read_options

    if "--help-all" in arguments.words:
        print(options_parser().format_help())
        return
    options = read_options(arguments.words)
    from grace.training.run import train

    train(options)
