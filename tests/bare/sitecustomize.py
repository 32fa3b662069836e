"""A Python with torch and transformers alone: a folder to put first on PYTHONPATH.

What a machine for GPUs seldom has cannot be found, in the process and in all that it starts.
"""

import sys
from importlib.machinery import PathFinder

MISSING = (
    *(
        "pydantic",
        "pydantic_core",
        "pyarrow",
        "pandas",
        "datasets",
        "scipy",
        "sklearn",
        "matplotlib",
    ),
    *("lmms_eval", "bitsandbytes", "llmcompressor", "compressed_tensors", "torchao", "peft"),
    *("dvc", "gguf", "xllamacpp", "hypothesis", "xdist"),
)


class _Finder:
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            return None
        return PathFinder.find_spec(name, path, target)


sys.meta_path[:] = [_Finder if finder is PathFinder else finder for finder in sys.meta_path]
