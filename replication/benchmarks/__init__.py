"""The benchmarks as data, and the lmms-eval task files that point the official tasks at local data.

A benchmark here *is* an official lmms-eval task: its prompt, its reading of the answer and its
aggregation come from the installed lmms-eval unchanged. All that is replaced is where the
questions come from: a parquet file of stand-ins in the schema of the official dataset, or the files
of that dataset itself (:mod:`replication.benchmarks.published`). HallusionBench
alone also swaps its judge model for the official rule-based functions.

To add a benchmark, add a row to :data:`BENCHMARKS`. The defaults fit every task whose score is the
mean of what its questions get; a task whose aggregation is no such mean, or too slow to be asked
about one question at a time, gives its own ``recompute`` or ``credit``.
"""

import pathlib
from typing import Any

import yaml

from grace.errors import InputError
from replication.benchmarks.benchmark import Benchmark, official_root, official_version
from replication.benchmarks.published import Published
from replication.benchmarks.rows import BENCHMARKS
from replication.benchmarks.standins import Standins

__all__ = [
    "BENCHMARKS",
    "PRINTED",
    "Benchmark",
    "Published",
    "Questions",
    "Standins",
    "get",
    "official_root",
    "official_version",
    "write_task_file",
]

Questions = Standins | Published
"""The source of a benchmark's questions."""

PRINTED = {
    "vqav2": "VQAv2",
    "gqa": "GQA",
    "textvqa": "TextVQA",
    "vizwiz": "VizWiz",
    "pope": "POPE",
    "scienceqa": "ScienceQA",
    "mme": "MME",
    "mmbench": "MMBench",
    "seedbench": "SEED-Bench",
    "mmstar": "MMStar",
    "mmmu": "MMMU",
    "hallusionbench": "HallusionBench",
    "ai2d": "AI2D",
    "ocrbench": "OCRBench",
}
"""Names that the paper's tables print."""


def get(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}; known: {', '.join(sorted(BENCHMARKS))}")
    return BENCHMARKS[name]


def write_task_file(
    benchmark: Benchmark, source: Questions, folder: pathlib.Path, tables: pathlib.Path
) -> pathlib.Path:
    """Write the task file: the official one included, its data source replaced.

    Args:
        benchmark: The benchmark.
        source: Stand-ins, or the published data; these are asked under the task's own name.
        folder: Where the file is written, as ``<benchmark>.yaml``.
        tables: Where `datasets` keeps what it makes of the questions.

    Returns:
        The file.
    """
    kwargs: dict[str, Any] = {"cache_dir": str(tables)}
    if isinstance(source, Published):
        name, path, subset = benchmark.official_name, source.folder, source.subset or "default"
    else:
        name, path, subset = benchmark.name, "parquet", None
        kwargs = {"data_files": {benchmark.split: source.file}, **kwargs}
    config = {
        "include": str(benchmark.official_path),
        "task": name,
        "dataset_path": path,
        "dataset_name": subset,
        "dataset_kwargs": kwargs,
    }
    file = folder / f"{benchmark.name}.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False) + benchmark.replaced)
    return file
