"""Names that a reader knows things by."""

FAMILIES = {"llava": "LLaVA-1.5", "qwen2_vl": "Qwen2-VL", "qwen3_vl": "Qwen3-VL"}
"""A family's printed name."""
