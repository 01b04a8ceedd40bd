"""Each patch in the space that images and texts share, by a last block with repaired attention (method M11, F1 a-e).

The last block's own attention gathers in every patch what the whole image is about; attention between like tokens
keeps what is where. Sources: MaskCLIP (identity), SCLIP, ClearCLIP, NACLIP, SC-CLIP, written from their formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from fmwsss.core.class_maps.outliers import local_outliers, mend
from fmwsss.core.clip.frozen_clip import FrozenClip, ImageFeatures
from fmwsss.core.clip.last_block import after_attention, join_heads, split_heads

Attention = Literal[
    "query-key", "key-key", "query-query", "value-value", "identity", "query-query+key-key", "mean-of-three"
]
# What attends to what (places in (query, key, value)), and the weight of that softmax in the sum.
_TERMS: dict[str, list[tuple[int, int, float]]] = {
    "query-key": [(0, 1, 1.0)],
    "key-key": [(1, 1, 1.0)],
    "query-query": [(0, 0, 1.0)],
    "value-value": [(2, 2, 1.0)],
    "query-query+key-key": [(0, 0, 1.0), (1, 1, 1.0)],
    "mean-of-three": [(0, 0, 1 / 3), (1, 1, 1 / 3), (2, 2, 1 / 3)],
}
SIMILARITY_THRESHOLD = 0.4
SIMILARITY_SHARPNESS = 3.0
CLASS_TOKEN_SHARE = 0.3


@dataclass(frozen=True)
class PatchEmbedding:
    """How the last block is run. Depths are shares of the tower: .75 of 12 blocks is after block 9 (M11, F1).

    The default is `FrozenClip.local_embedding`.

    Attributes:
        attention: which tokens of the last block attend to which; `query-query+key-key` is a sum (SCLIP),
            `mean-of-three` the mean of query-query, key-key and value-value (ExCEL).
        residual: whether the residual path around the attention is kept.
        mlp: whether the MLP is kept.
        class_token: whether patches attend to the class token too.
        neighbourhood_patches: deviation of the Gaussian that is added to the scaled products (NACLIP: 5); None: none.
        mend_outliers: whether outliers among the last block's input are replaced by their surroundings.
        similarity_depth: where the similarity S is taken that the input is averaged by, and that is half of the
            attention (SC-CLIP: .75); None: neither.
        smoothing_depth: where the similarity is taken that the block's output is averaged by (SC-CLIP: .33).
        summed_depths: first and last of the blocks whose summed outputs go through the last block too and are added
            (SC-CLIP: .33 and .83).
    """

    attention: Attention = "key-key"
    residual: bool = True
    mlp: bool = True
    class_token: bool = True
    neighbourhood_patches: float | None = None
    mend_outliers: bool = False
    similarity_depth: float | None = None
    smoothing_depth: float | None = None
    summed_depths: tuple[float, float] | None = None

    def blocks_kept(self, num_blocks: int) -> set[int]:
        """The blocks, from 0, whose outputs `embed` reads beside the last one's input."""
        depths = [depth for depth in (self.similarity_depth, self.smoothing_depth) if depth is not None]
        found = {_block_at(depth, num_blocks) for depth in depths}
        if self.summed_depths is not None:
            found |= set(_summed_blocks(self.summed_depths, num_blocks))
        return {block for block in found if block < num_blocks - 2}

    @torch.no_grad()
    def embed(
        self, clip: FrozenClip, features: ImageFeatures, kept: dict[int, Float[Tensor, "batch all_tokens width"]]
    ) -> Float[Tensor, "batch tokens embed"]:
        """Unit vectors of the patches.

        Args:
            clip: the frozen CLIP.
            features: of images of one grid.
            kept: outputs of `blocks_kept`, by block.
        """
        visual: Any = clip.model.visual
        last_input, grid = features.last_block_input, features.grid
        num_blocks = len(visual.transformer.resblocks)
        is_outlier = local_outliers(last_input[:, 1:]) if self.mend_outliers else None

        def mended(tokens: Tensor) -> Tensor:
            if is_outlier is None:
                return tokens
            return torch.cat([tokens[:, :1], mend(tokens[:, 1:], is_outlier, grid)], dim=1)

        def after(block: int) -> Tensor:
            return mended(last_input if block >= num_blocks - 2 else kept[block])

        def similarity(depth: float | None) -> Tensor | None:
            return None if depth is None else _cosines(after(_block_at(depth, num_blocks))[:, 1:])

        like, smoothing = similarity(self.similarity_depth), similarity(self.smoothing_depth)
        averaged = None if smoothing is None else _averaging(smoothing)
        inputs = [mended(last_input)]
        if self.summed_depths is not None:
            inputs.append(
                torch.stack([after(block) for block in _summed_blocks(self.summed_depths, num_blocks)]).sum(0)
            )
        block = visual.transformer.resblocks[-1]
        total = 0
        for tokens in inputs:
            out = self._run(block, tokens, like, grid)
            if like is not None:
                out = out + CLASS_TOKEN_SHARE * last_input[:, :1]
            total = total + (out if averaged is None else averaged @ out)
        return functional.normalize(visual.ln_post(total) @ visual.proj, dim=-1)

    def _run(
        self, block: Any, tokens: Tensor, like: Tensor | None, grid: tuple[int, int]
    ) -> Float[Tensor, "batch tokens width"]:
        if like is not None:
            tokens = torch.cat([tokens[:, :1], _averaging(like) @ tokens[:, 1:]], dim=1)
        heads = split_heads(block.attn, block.ln_1(tokens))
        attended = self._attend(heads, grid)
        if like is not None:
            attended = (attended + _attention_of(like)[:, None] @ heads[2][:, :, 1:]) / 2
        return after_attention(block, tokens[:, 1:], join_heads(attended), self.residual, self.mlp)

    def _attend(
        self, heads: tuple[Tensor, Tensor, Tensor], grid: tuple[int, int]
    ) -> Float[Tensor, "batch heads tokens head"]:
        if self.attention == "identity":
            return heads[2][:, :, 1:]
        first_key = 0 if self.class_token else 1
        bias = None
        if self.neighbourhood_patches is not None:
            # The class token has no place, so nothing is added to its column.
            bias = functional.pad(neighbourhood(grid, self.neighbourhood_patches), (1 - first_key, 0))
            bias = bias.to(heads[0])
        value = heads[2][:, :, first_key:]
        attended = [
            weight
            * functional.scaled_dot_product_attention(
                heads[of][:, :, 1:], heads[to][:, :, first_key:], value, attn_mask=bias
            )
            for of, to, weight in _TERMS[self.attention]
        ]
        return sum(attended[1:], attended[0])


def neighbourhood(grid: tuple[int, int], deviation_patches: float) -> Float[Tensor, "tokens tokens"]:
    """exp(-|i - j|^2 / (2 s^2)) between the places of patches: 1 with itself (M11, F1 a; NACLIP).

    Args:
        grid: rows and columns of patches.
        deviation_patches: s, in patches.

    Returns:
        A symmetric matrix, float64, 1 on its diagonal.
    """
    rows, columns = torch.meshgrid(*(torch.arange(side, dtype=torch.float64) for side in grid), indexing="ij")
    places = torch.stack([rows.flatten(), columns.flatten()], dim=1)
    squares = (places[:, None] - places[None]).square().sum(dim=2)
    return torch.exp(-squares / (2 * deviation_patches**2))


def _block_at(depth: float, num_blocks: int) -> int:
    """The block, from 0, after which a share of the tower has been run: one before the last."""
    return min(max(round(depth * num_blocks), 1), max(num_blocks - 1, 1)) - 1


def _summed_blocks(depths: tuple[float, float], num_blocks: int) -> range:
    first, last = (_block_at(depth, num_blocks) for depth in depths)
    return range(first, last + 1)


def _cosines(tokens: Float[Tensor, "batch tokens width"]) -> Float[Tensor, "batch tokens tokens"]:
    unit = functional.normalize(tokens, dim=-1)
    return unit @ unit.transpose(1, 2)


def _averaging(similarity: Float[Tensor, "batch tokens tokens"]) -> Float[Tensor, "batch tokens tokens"]:
    """Each row's similarities of at least .4, divided by their sum."""
    kept = similarity * (similarity >= SIMILARITY_THRESHOLD)
    return kept / kept.sum(dim=2, keepdim=True)


def _attention_of(similarity: Float[Tensor, "batch tokens tokens"]) -> Float[Tensor, "batch tokens tokens"]:
    """softmax(3 (S - mean S)) over what is more alike than the mean."""
    above = similarity - similarity.mean(dim=(1, 2), keepdim=True)
    return torch.softmax((SIMILARITY_SHARPNESS * above).masked_fill(above < 0, -torch.inf), dim=2)
