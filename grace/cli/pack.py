"""grace pack: the trained codes into kernel layouts."""

import argparse

from grace.cli.models import DTYPES, add_overwrite, processor_of, trained_codes

DESCRIPTION = """\
Pack a trained model: its decoder's linears become packed INT4 (or INT8) layers that run on kernels.

The codes and scales are those that training ended with; nothing is quantized again. Every layer is
unpacked again and compared: a code that differs ends the command. Vision tower, projector,
embeddings and output head keep 16 bits.

Written to --out: packed.safetensors (in no kernel's layout: the directory can be used on another
device), configuration and processor. Printed: a line with kernel and bits for all linears that run
alike.
"""
EXAMPLES = """\
  grace pack student --out student-int4
  grace pack student --out student-int4 --backend reference   # exact, slow, any device
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory that `grace train` wrote")
    parser.add_argument("--out", required=True, help="directory to write")
    parser.add_argument(
        "--backend",
        choices=("auto", "cpu", "cuda", "reference"),
        default="auto",
        help="kernel that checks the packing (default: auto, that of this device)",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        default="bfloat16",
        help="format of everything that is not packed (default: %(default)s)",
    )
    add_overwrite(parser)


def run(arguments: argparse.Namespace) -> None:
    """Pack, check and write."""
    import torch

    from grace.arithmetic import chosen_device
    from grace.export import save_packed
    from grace.files import check_free
    from grace.int4 import effective_bits, pack
    from grace.models import load_model

    exact = trained_codes(arguments.model)
    check_free(arguments.out, overwrite=arguments.overwrite)
    device = chosen_device("cuda" if arguments.backend == "cuda" else "cpu")
    processor = processor_of(arguments.model)
    model = load_model(arguments.model, dtype=getattr(torch, arguments.dtype)).to(device)
    names = pack(model, exact, backend=arguments.backend)
    save_packed(model, arguments.out, processor=processor, overwrite=arguments.overwrite)
    print(effective_bits(model).of(names).summary())
    print(f"packed into {arguments.out}: {len(names)} linears, no code differs")
