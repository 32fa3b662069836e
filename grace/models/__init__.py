"""One adapter per model family, and the loading of models and processors.

family = family_of("qwen2_vl")
model, processor = load_model(path), load_processor(path)
"""

from grace.models.discovery import decoder_linears, family_of, without_weights
from grace.models.family import (
    FAMILIES,
    Family,
    LlavaFamily,
    Qwen2VLFamily,
    Qwen3VLFamily,
)
from grace.models.hub import model_directory
from grace.models.loading import (
    check_model_directory,
    load_model,
    load_processor,
    mend_generation_config,
    read_generation_config,
    save_model,
)
from grace.models.prompts import read_prompts, render_question

__all__ = [
    "FAMILIES",
    "Family",
    "LlavaFamily",
    "Qwen2VLFamily",
    "Qwen3VLFamily",
    "check_model_directory",
    "decoder_linears",
    "family_of",
    "load_model",
    "load_processor",
    "mend_generation_config",
    "model_directory",
    "read_generation_config",
    "read_prompts",
    "render_question",
    "save_model",
    "without_weights",
]
