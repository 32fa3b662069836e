"""grace eval: scores on benchmarks, with lmms-eval."""

import argparse
import json

from grace.cli.models import add_loading, positive

DESCRIPTION = """\
Score a model on benchmarks with lmms-eval: official tasks, prompts and scorers, greedy decoding.
The answers do not depend on the batch size. Needs `pip install 'grace-vlm[eval]'`.

MODEL is a directory that `grace` wrote (trained, packed, exported), a released one, or any
checkpoint of a known family. The scores are printed, and written as JSON if --out says where: with
versions, the tasks' versions, and the hash of the model.
"""
EXAMPLES = """\
  grace eval student-int4 --tasks mmbench_en_dev,pope --batch_size 8 --out scores.json
  grace eval student --tasks my_task --include_path tasks   # tasks/my_task.yaml
  lmms_eval --model grace --model_args pretrained=student-int4 --tasks pope   # the same model
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="directory, or hub name, of a model")
    parser.add_argument(
        "--tasks", required=True, help="names of lmms-eval's tasks or groups, with commas between"
    )
    parser.add_argument("--limit", type=positive, help="only the first so many questions of a task")
    parser.add_argument(
        "--batch_size",
        "--batch-size",
        type=positive,
        default=1,
        help="questions that are answered at once (default: %(default)s)",
    )
    parser.add_argument(
        "--max_new_tokens",
        "--max-new-tokens",
        type=positive,
        help="most tokens of an answer (default: the task's own)",
    )
    parser.add_argument("--out", help="JSON file to write")
    parser.add_argument("--include_path", "--include-path", help="folder of further task files")
    add_loading(parser)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate, print the table, and write the report if --out says where."""
    from grace.evaluation import evaluate, table
    from grace.files import atomic_path, check_free

    if arguments.out is not None:
        check_free(arguments.out, overwrite=False)
    report = evaluate(
        arguments.model,
        [name.strip() for name in arguments.tasks.split(",") if name.strip()],
        limit=arguments.limit,
        batch_size=arguments.batch_size,
        device=arguments.device,
        dtype=arguments.dtype,
        backend=arguments.backend,
        max_new_tokens=arguments.max_new_tokens,
        include_path=arguments.include_path,
    )
    if report is None:  # the first process has it
        return
    print(table(report))
    if arguments.out is not None:
        with atomic_path(arguments.out) as temporary:
            temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
