"""The toy world's own CLIP and SAM: classes of open_clip and segment-anything, small, with weights in the package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from open_clip import CLIP
from safetensors.torch import load_file, save_file
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional

WEIGHTS = Path(__file__).parent
IMAGE_PX = 128
PATCH_PX = 8
PIXEL_MEAN, PIXEL_STD = 127.5, 64.0
WIDTH, MASK_WIDTH = 64, 32  # channels of SAM's embedding, and of its masks at 64 x 64
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


class ToyEncoder(nn.Module):
    """SAM's image encoder for the toy world: convolutions, which learn edges from far fewer scenes than a transformer.

    What stands at half resolution is folded into the cells of the 16 x 16 embedding, for sharp masks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.img_size = IMAGE_PX
        self.at_half = nn.Sequential(_layer(3, 32, stride=2), _layer(32, 32))
        self.at_quarter = nn.Sequential(_layer(32, 64, stride=2), _layer(64, 64), _layer(64, 64))
        self.at_eighth = nn.Sequential(
            _layer(64, 128, stride=2), *(_layer(128, 128, dilation=dilation) for dilation in (1, 2, 4, 1))
        )
        self.detail = nn.Conv2d(32, 8, 1)
        self.neck = nn.Conv2d(128 + 8 * 16, WIDTH, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, 128, 128) normalised pixels -> (B, 64, 16, 16)."""
        half = self.at_half(pixels)
        deep = self.at_eighth(self.at_quarter(half))
        detail = functional.pixel_unshuffle(self.detail(half), 4)
        return self.neck(torch.cat([deep, detail], dim=1))


class _Layer(nn.Module):
    def __init__(self, width_in: int, width_out: int, stride: int, dilation: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            width_in, width_out, 3, stride=stride, padding=dilation, dilation=dilation, bias=False
        )
        self.norm = nn.GroupNorm(8, width_out)
        self.is_residual = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = functional.relu(self.norm(self.convolution(x)))
        return x + y if self.is_residual else y


def _layer(width_in: int, width_out: int, stride: int = 1, dilation: int = 1) -> nn.Module:
    return _Layer(width_in, width_out, stride, dilation)


def new_sam() -> Sam:
    """The toy SAM as it is before training: an embedding of 16 x 16 cells, masks of 64 x 64."""
    grid = IMAGE_PX // PATCH_PX
    encoder: Any = ToyEncoder()  # `Sam` names its ViT, and takes what has `img_size` and gives an embedding
    prompts = PromptEncoder(
        embed_dim=WIDTH, image_embedding_size=(grid, grid), input_image_size=(IMAGE_PX, IMAGE_PX), mask_in_chans=8
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3, transformer=TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=256, num_heads=4),
        transformer_dim=WIDTH, iou_head_depth=3, iou_head_hidden_dim=128,
    )  # fmt: skip
    # segment-anything gives a mask an eighth of the width in channels: 8 here, too few to tell pieces apart.
    decoder.output_upscaling = nn.Sequential(
        nn.ConvTranspose2d(WIDTH, 48, 2, stride=2), LayerNorm2d(48), nn.GELU(),
        nn.ConvTranspose2d(48, MASK_WIDTH, 2, stride=2), nn.GELU(),
    )  # fmt: skip
    decoder.output_hypernetworks_mlps = nn.ModuleList(MLP(WIDTH, WIDTH, MASK_WIDTH, 3) for _ in range(4))
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
    """Writes weights in half precision; of the token embedding only the given rows.

    Args:
        model: the toy CLIP or SAM.
        path: of the safetensors file.
        token_rows: of the token embedding that are kept; None for a model that has none.
    """
    state = {name: value.half().contiguous() for name, value in model.state_dict().items()}
    if token_rows is not None:
        state[_VALUES] = state.pop(_TOKENS)[token_rows].contiguous()
        state[_ROWS] = token_rows.int()
    save_file(state, path)
