"""A frozen open_clip model used as a localiser (method M2): last-block input, attention, text encoder on embeddings."""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.clip.last_block import (
    LastBlock,
    after_attention,
    attend_with_mean,
    join_heads,
    run_last_block,
    split_heads,
)
from fmwsss.core.clip.prefix_tree import TokenTree
from fmwsss.core.errors import InputError

# Of how many last blocks the attention is averaged (M2.2).
NUM_ATTENTION_BLOCKS = 8


@dataclass(frozen=True)
class ImageFeatures:
    """What the image tower gives for a batch of images of one size.

    Attributes:
        last_block_input: input of the last residual block; the class token is row 0, then h*w patches, row by row.
        attention: softmaxed attention between patches, averaged over heads and over the last blocks, the class
            token's row and column removed (M2.2); None when it was not asked for.
        grid: (h, w) patch tokens.
        block_outputs: tokens, class token first, after each of `blocks_kept`, in the order of the blocks.
        patches: the embedding of each patch alone, before its position is added and any block is run.
    """

    last_block_input: Float[Tensor, "batch all_tokens width"]
    attention: Float[Tensor, "batch tokens tokens"] | None
    grid: tuple[int, int]
    patches: Float[Tensor, "batch tokens width"]
    block_outputs: tuple[Float[Tensor, "batch all_tokens width"], ...] = ()


@functools.cache
def _tokenizer() -> SimpleTokenizer:
    return SimpleTokenizer()


class FrozenClip(nn.Module):
    """An open_clip `CLIP` or `CustomTextCLIP` with a `VisionTransformer`, frozen and always in evaluation mode.

    The patch embedding `visual.conv1` may be any module that maps (B, 3, h*patch, w*patch) to (B, width, h, w).

    Args:
        model: the CLIP; its parameters are frozen in place.
        identity: what names these weights (a sha256 or a tag); stands in saved prompts.
        name: the same for people.

    Raises:
        ValueError: the model's towers are of a kind on which the method is not defined.
    """

    def __init__(self, model: CLIP | CustomTextCLIP, identity: str, name: str = "") -> None:
        super().__init__()
        _check_supported(model)
        self.model = model.requires_grad_(False).eval()
        self.identity, self.name = identity, name
        self._colours_sent: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def train(self, mode: bool = True) -> FrozenClip:
        """Stays in evaluation mode, whatever module it is a part of."""
        return super().train(False)

    @property
    def _visual(self) -> Any:
        return self.model.visual

    @property
    def _text(self) -> Any:
        return _text_tower(self.model)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return int(self._visual.patch_size[0])

    @property
    def embed_dim(self) -> int:
        """Width D of the space that images and texts share."""
        return int(self._visual.proj.shape[1])

    @property
    def image_width(self) -> int:
        """Width K of a token of the image tower."""
        return int(self._visual.proj.shape[0])

    @property
    def num_heads(self) -> int:
        """Of each block of the image tower."""
        return int(self._visual.transformer.resblocks[-1].attn.num_heads)

    @property
    def text_width(self) -> int:
        """Width of a token embedding of the text tower."""
        return int(self._text.token_embedding.weight.shape[1])

    @functools.cached_property
    def logit_scale(self) -> float:
        """Factor of the cosine: exp of the stored value."""
        return float(self.model.logit_scale.exp())

    @property
    def image_mean(self) -> tuple[float, ...]:
        """Mean of the training images, per channel in 0..1; OpenAI's where the model does not say."""
        return tuple(getattr(self._visual, "image_mean", None) or OPENAI_DATASET_MEAN)

    @property
    def image_std(self) -> tuple[float, ...]:
        """Standard deviation of the training images, per channel in 0..1; OpenAI's where the model does not say."""
        return tuple(getattr(self._visual, "image_std", None) or OPENAI_DATASET_STD)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._visual.class_embedding.device

    def preprocess(
        self, images: UInt8[Tensor, "batch 3 height width"], scale: float = 1.0
    ) -> Float[Tensor, "batch 3 padded_height padded_width"]:
        """Bicubic resize of each side to the next multiple of the patch size, then the CLIP's mean and deviation (M2).

        Images of different sizes are the caller's to group: one call takes one size. With a `scale` there are about
        so many times as many patches on each side.

        Args:
            images: RGB, 0 to 255, all of one size.
            scale: of the patch grid on each side; 1 is the image's own.

        Returns:
            Normalised pixels in the precision of the network; each side is a multiple of the patch size.
        """
        patch = self.patch_size
        height, width = (max(1, round(-(-side // patch) * scale)) * patch for side in images.shape[-2:])
        pixels = images.to(self.device, self._visual.class_embedding.dtype) / 255
        if (height, width) != tuple(images.shape[-2:]):
            # Of an enlargement antialias only chooses PIL's kernel (a = -0.5), which CLIP was trained with.
            pixels = functional.interpolate(pixels, size=(height, width), mode="bicubic", antialias=True).clamp_(0, 1)
        mean, std = self._colours(pixels.device, pixels.dtype)
        return (pixels - mean) / std

    def _colours(self, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "2 3 1 1"]:
        """Mean and deviation, sent to a device once: sent for every batch, they would make the host wait for it."""
        if (device, dtype) not in self._colours_sent:
            both = torch.tensor([self.image_mean, self.image_std], dtype=dtype)
            self._colours_sent[device, dtype] = both.to(device)[:, :, None, None]
        return self._colours_sent[device, dtype]

    @torch.no_grad()
    def encode_image(
        self,
        pixels: Float[Tensor, "batch 3 padded_height padded_width"],
        num_attention_blocks: int = 0,
        blocks_kept: Collection[int] = (),
    ) -> ImageFeatures:
        """Run the image tower up to the input of its last block (M2); the position embedding follows the grid.

        Args:
            pixels: as `preprocess` gives them.
            num_attention_blocks: also average the attention of so many last blocks (M2.2), of all if there are fewer;
                costs batch x tokens x tokens values. 0: none.
            blocks_kept: which blocks' outputs are given back too, from 0; the last one is not run here.

        Raises:
            ValueError: the sides of `pixels` are not multiples of the patch size, or there is no such block to keep.
        """
        visual = self._visual
        if any(side % self.patch_size for side in pixels.shape[-2:]):
            raise InputError(f"image sides {tuple(pixels.shape[-2:])} are not multiples of the patch {self.patch_size}")
        patches = visual.conv1(pixels)
        grid = (int(patches.shape[2]), int(patches.shape[3]))
        patches = patches.flatten(2).transpose(1, 2)
        class_token = visual.class_embedding.expand(len(patches), 1, -1)
        x = torch.cat([class_token, patches], dim=1)
        x = visual.ln_pre(x + self.position_embedding(grid))

        blocks = visual.transformer.resblocks
        if any(not 0 <= index < len(blocks) - 1 for index in blocks_kept):
            raise InputError(
                f"blocks {sorted(blocks_kept)} are to be kept of {len(blocks)}, of which the last is not run"
            )
        first_averaged = max(0, len(blocks) - num_attention_blocks)
        attention, kept = None, []
        for i, block in enumerate(blocks):
            if i == len(blocks) - 1 and num_attention_blocks == 0:
                break
            query, key, value = split_heads(block.attn, block.ln_1(x))
            if i < first_averaged:
                x = after_attention(block, x, join_heads(functional.scaled_dot_product_attention(query, key, value)))
            else:
                attended, mean = attend_with_mean(query, key, value)
                mean = mean[:, 1:, 1:]
                attention = mean if attention is None else attention.add_(mean)
                if i < len(blocks) - 1:
                    x = after_attention(block, x, join_heads(attended))
            if i in blocks_kept:
                kept.append(x)
        if attention is not None:
            attention /= len(blocks) - first_averaged
        return ImageFeatures(x, attention, grid, patches, tuple(kept))

    def position_embedding(self, grid: tuple[int, int]) -> Float[Tensor, "all_tokens width"]:
        """Position embedding for a grid: class entry kept, the rest bilinear, align_corners False (M2)."""
        visual = self._visual
        table = visual.positional_embedding
        if grid == tuple(visual.grid_size):
            return table
        square = table[1:].T.unflatten(1, tuple(visual.grid_size))[None]
        resized = functional.interpolate(square, size=grid, mode="bilinear", align_corners=False)
        return torch.cat([table[:1], resized[0].flatten(1).T])

    def last_block(self, last_block_input: Float[Tensor, "batch all_tokens width"]) -> LastBlock:
        """The image embedding (M2) with the derivative that Softmax-GradCAM needs (M2.1)."""
        return run_last_block(self._visual, last_block_input)

    @torch.no_grad()
    def local_embedding(
        self, last_block_input: Float[Tensor, "batch all_tokens width"]
    ) -> Float[Tensor, "batch tokens embed"]:
        """Each patch in the space that images and texts share, with less of what its surroundings show.

        In the last block keys attend to keys, so that a patch gathers from patches like it; with its own query it
        gathers what the whole image is about. NACLIP (arXiv 2404.08181; method M11, F1) without its neighbourhood term;
        the residual path and the MLP stay.
        """
        visual = self._visual
        block = visual.transformer.resblocks[-1]
        _, key, value = split_heads(block.attn, block.ln_1(last_block_input))
        attended = join_heads(functional.scaled_dot_product_attention(key, key, value))
        return visual.ln_post(after_attention(block, last_block_input, attended)[:, 1:]) @ visual.proj

    def token_ids(self, texts: Sequence[str]) -> Int[Tensor, "prompts length"]:
        """Token ids of texts, [SOS] first, [EOS] last, zeros after it, up to the context length of this CLIP.

        Raises:
            ValueError: a text is longer than the text tower reads (open_clip would cut it in silence), or the text
                tower lacks one of its tokens.
        """
        length, num_words = int(self._text.context_length), int(self._text.vocab_size)
        tokenizer = _tokenizer()
        ids = torch.zeros(len(texts), length, dtype=torch.long)
        for row, text in enumerate(texts):
            tokens = [tokenizer.sot_token_id, *tokenizer.encode(text), tokenizer.eot_token_id]
            if len(tokens) > length:
                raise InputError(f"the prompt {text!r} has {len(tokens)} tokens; this CLIP reads at most {length}")
            if max(tokens) >= num_words:
                raise InputError(f"this CLIP knows {num_words} tokens, too few for CLIP's tokenizer")
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids.to(self.device)

    def end_positions(self, ids: Int[Tensor, "prompts length"]) -> Int[Tensor, "prompts"]:
        """Position of [EOS] in each row of `token_ids`."""
        return (ids == _tokenizer().eot_token_id).int().argmax(dim=1)

    def token_embeddings(self, ids: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape text_width"]:
        """Rows of the text tower's embedding table, without position."""
        return self._text.token_embedding(ids)

    def words(self) -> tuple[list[str], Int[Tensor, "words"]]:
        """The whole words among the tokens of the text tower, and their token ids."""
        decoder, length = _tokenizer().decoder, int(self._text.vocab_size)
        whole = {i: text.removesuffix("</w>") for i, text in decoder.items() if text.endswith("</w>") and i < length}
        kept = {i: text for i, text in sorted(whole.items()) if text.isascii() and text.isalpha()}
        return list(kept.values()), torch.tensor(list(kept), device=self.device)

    def encode_text(
        self, token_embeddings: Float[Tensor, "nodes text_width"], tree: TokenTree
    ) -> Float[Tensor, "prompts embed"]:
        """Text embeddings, L2-normalised, of the prompts of a tree; differentiable to its token embeddings.

        The tower is causal, so a prompt ends at its [EOS], and what prompts have in common from their start is
        computed once (M2.1). Both are exact.

        Args:
            token_embeddings: of each node, without position, which is added here.
            tree: its prompts end with [EOS].
        """
        text = self._text
        *blocks, last = text.transformer.resblocks
        x = token_embeddings + text.positional_embedding[tree.position]
        for block in blocks:
            x = after_attention(block, x, _attend_in_tree(block, x, tree))
        ends = tree.path[:, -1]
        x = after_attention(last, x[ends], _attend_in_tree(last, x, tree)[ends])
        # Logits are cosines times a hundred: their last step keeps its digits, under autocast too.
        with torch.autocast(x.device.type, enabled=False):
            x, projection = text.ln_final(x), text.text_projection
            x = projection(x) if isinstance(projection, nn.Linear) else x @ projection
            return functional.normalize(x, dim=-1)


def _text_tower(model: CLIP | CustomTextCLIP) -> Any:
    """What holds the text tower's parts: a module of its own, or the CLIP itself."""
    return model.text if isinstance(model, CustomTextCLIP) else model


def _check_supported(model: CLIP | CustomTextCLIP) -> None:
    visual: Any = model.visual
    text = _text_tower(model)
    blocks = getattr(getattr(visual, "transformer", None), "resblocks", None)
    if not blocks or not hasattr(visual, "class_embedding"):
        raise InputError(f"CLIP's image tower is a {type(visual).__name__}; a VisionTransformer of open_clip is needed")
    if any(not isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        raise InputError("CLIP's image tower has attention of its own kind; plain multi-head attention is needed")
    text_blocks = getattr(getattr(text, "transformer", None), "resblocks", None)
    if not text_blocks:
        raise InputError(f"CLIP's text tower is a {type(text).__name__}; a TextTransformer of open_clip is needed")
    if any(not isinstance(getattr(block, "attn", None), nn.MultiheadAttention) for block in text_blocks):
        raise InputError("CLIP's text tower has attention of its own kind; plain multi-head attention is needed")
    if visual.attn_pool is not None or visual.proj is None:
        raise InputError(
            "CLIP's image tower pools by attention or has no projection; mean pooling is not defined on it"
        )
    if visual.patch_size[0] != visual.patch_size[1]:
        raise InputError(
            f"CLIP's patches are {visual.patch_size[0]} x {visual.patch_size[1]} pixels; squares are needed"
        )
    pool_type = text.pool_type if isinstance(model, CustomTextCLIP) else model.text_pool_type
    if text.attn_mask is None or pool_type not in ("argmax", "eos"):
        raise InputError("CLIP's text tower is not causal with its embedding at the end-of-text token")
    if text.text_projection is None or getattr(text, "cls_emb", None) is not None:
        raise InputError("CLIP's text tower has a class token or no projection; an embedding at its end is needed")


def _attend_in_tree(block: Any, x: Tensor, tree: TokenTree) -> Tensor:
    """Causal attention of every node of a tree to those above it: (nodes, width)."""
    query, key, value = split_heads(block.attn, block.ln_1(x)[None])
    num_prompts, length = tree.path.shape
    # One product of all nodes has no copies to add up on the way back; of many that share little it is mostly masked.
    if len(x) ** 2 <= 4 * num_prompts * length**2:
        return join_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=tree.above))[0]
    query, key, value = (heads[0][:, tree.path].transpose(0, 1) for heads in (query, key, value))
    along = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
    return join_heads(along)[tree.owner, tree.position]
