"""Evaluation with lmms-eval: official tasks, prompts and scorers.

`evaluate` is what `grace eval` runs. `grace.evaluation.lmms` has the model class, which also serves
lmms-eval's own command (``lmms_eval --model grace``); it alone needs lmms-eval to be imported.
"""

from typing import Any

from grace.evaluation.scores import evaluate, table

__all__ = ["evaluate", "table"]


def lmms_eval_models() -> Any:
    """What lmms-eval reads from the entry point ``lmms_eval.models``: the model ``grace``."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("grace", simple_class_path="grace.evaluation.lmms.Grace")
