"""Shapes of models of a few thousand weights, by family."""

VISION = {
    "depth": 1,
    "embed_dim": 16,
    "num_heads": 2,
    "mlp_ratio": 2,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "in_channels": 3,
}
TEXT = {
    "hidden_size": 128,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.06,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [8, 12, 12],
    },
}

VISIONS = {
    "llava": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 64,
        "patch_size": 16,
    },
    "qwen2_vl": VISION,
    "qwen3_vl": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 8,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "in_channels": 3,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
TEXTS = {
    "llava": {**TEXT, "rope_parameters": _ROPE},
    "qwen2_vl": TEXT,
    "qwen3_vl": {
        **TEXT,
        "rope_parameters": {**_ROPE, "mrope_section": [12, 10, 10], "mrope_interleaved": True},
    },
}
