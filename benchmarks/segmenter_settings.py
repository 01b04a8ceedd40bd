"""Mask2Formers that benchmarks measure: backbone and options of `SegmenterSpec`."""

from __future__ import annotations

from typing import Any

NUM_CLASSES = 21
BACKBONES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "swin-l": (
        {
            "model_type": "swin", "embed_dim": 192, "depths": [2, 2, 18, 2], "num_heads": [6, 12, 24, 48],
            "window_size": 12, "drop_path_rate": 0.3,
        },
        {"num_queries": 50},
    ),
    "swin-t": ({"model_type": "swin"}, {}),
    "tiny": (
        {"model_type": "swin", "embed_dim": 16, "depths": [1] * 4, "num_heads": [1] * 4, "window_size": 4},
        {"hidden_dim": 32, "feature_size": 32, "mask_feature_size": 32, "encoder_layers": 1, "decoder_layers": 3,
         "num_attention_heads": 2, "num_queries": 20, "train_num_points": 784},
    ),
}  # fmt: skip
