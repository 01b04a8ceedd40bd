"""The toy world's own CLIP and SAM: classes of open_clip and segment-anything, small, with weights in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import nn

WEIGHTS = Path(__file__).parent
IMAGE_PX = 128
PATCH_PX = 8
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0
_TOKENS = "token_embedding.weight"
# Only these rows of the tokenizer's 49,408 were ever trained; the others stay zero and are not stored.
_ROWS, _VALUES = "token_embedding.rows", "token_embedding.values"


def new_clip() -> CLIP:
    """The toy CLIP as it is before training: a ViT of 16 x 16 patches, and open_clip's ordinary tokenizer."""
    model = CLIP(
        embed_dim=64,
        vision_cfg={"image_size": IMAGE_PX, "layers": 4, "width": 128, "head_width": 32, "patch_size": PATCH_PX},  # type: ignore[arg-type]
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2},  # type: ignore[arg-type]
    )
    visual: Any = model.visual
    visual.image_mean, visual.image_std = (0.5,) * 3, (0.25,) * 3
    return model


def new_sam() -> Sam:
    """The toy SAM as it is before training: 16 x 16 patches, masks of 64 x 64."""
    grid = IMAGE_PX // PATCH_PX
    encoder = ImageEncoderViT(
        img_size=IMAGE_PX, patch_size=PATCH_PX, embed_dim=128, depth=4, num_heads=4, out_chans=64, window_size=0,
        use_rel_pos=False, qkv_bias=True,
    )  # fmt: skip
    prompts = PromptEncoder(
        embed_dim=64, image_embedding_size=(grid, grid), input_image_size=(IMAGE_PX, IMAGE_PX), mask_in_chans=8
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3, transformer=TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=256, num_heads=4),
        transformer_dim=64, iou_head_depth=3, iou_head_hidden_dim=128,
    )  # fmt: skip
    return Sam(encoder, prompts, decoder, pixel_mean=[PIXEL_MEAN] * 3, pixel_std=[PIXEL_STD] * 3)


def toy_clip() -> CLIP:
    """The trained toy CLIP, in evaluation mode."""
    model = new_clip()
    state = {name: value.float() for name, value in load_file(WEIGHTS / "clip.safetensors").items() if name != _ROWS}
    rows = load_file(WEIGHTS / "clip.safetensors")[_ROWS].long()
    table = torch.zeros(49408, 64)
    table[rows] = state.pop(_VALUES)
    model.load_state_dict({**state, _TOKENS: table})
    return model.eval()


def toy_sam() -> Sam:
    """The trained toy SAM, in evaluation mode."""
    model = new_sam()
    state = load_file(WEIGHTS / "sam.safetensors")
    model.load_state_dict({name: value.float() for name, value in state.items()})
    return model.eval()


def save_model(model: nn.Module, path: Path, token_rows: torch.Tensor | None = None) -> None:
    """Writes weights in half precision; of the token embedding only the given rows."""
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    if token_rows is not None:
        state[_VALUES] = state.pop(_TOKENS)[token_rows].contiguous()
        state[_ROWS] = token_rows.int()
    save_file(state, path)
