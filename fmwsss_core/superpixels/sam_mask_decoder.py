"""SAM's mask decoder for many points on one image: what depends on the image alone is computed once.

The arithmetic is that of `segment_anything`'s `MaskDecoder`, regrouped; in exact numbers nothing changes:

- In the first layer every point sees the same image tokens, so their projections are made once per image.
- With 7 tokens against thousands of image tokens, a projection of the image side is moved to the token side:
  q (W k)^T = (q W) k^T and a (k W) = (a k) W, per head. The positional part of a key is projected once per image.
- Transposed convolutions of stride 2 are linear maps of one token, so nothing is transposed between them.
- Masks are upscaled only for points of which one passed its predicted IoU.

In float32 logits differ from the original's by rounding, about as much as the original's own do when its number of
points in a batch changes (both up to 4e-4 at logits of 10 to 30 with MobileSAM).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional

NUM_LEVELS = 3


class DecodedMasks(NamedTuple):
    """Masks of some points that passed, ordered by point and then level."""

    logits: Float[Tensor, "masks low_height low_width"]
    level: Int[Tensor, " masks"]
    predicted_iou: Float[Tensor, " masks"]


class PointDecoder:
    """The mask decoder of a SAM on one encoded image.

    A decoder that is no plain `MaskDecoder` over a `TwoWayTransformer`, or one behind another `PromptEncoder`, is
    called as it is.

    Args:
        sam: the model; its decoder must give three masks for a prompt.
        features: the image embedding.
    """

    def __init__(self, sam: Sam, features: Float[Tensor, "1 channels height width"]) -> None:
        self._sam, self._features = sam, features
        self._position = sam.prompt_encoder.get_dense_pe()
        decoder: Any = sam.mask_decoder
        self._regroups = (
            type(decoder) is MaskDecoder
            and type(decoder.transformer) is TwoWayTransformer
            and type(sam.prompt_encoder) is PromptEncoder
        )
        if self._regroups:
            transformer: Any = decoder.transformer
            _, dense = sam.prompt_encoder(points=None, boxes=None, masks=None)
            self._image = _ImageSide(transformer, features + dense, self._position)

    def __call__(
        self,
        points: Float[Tensor, "points 2"],
        passes: Callable[[Float[Tensor, "points 3"]], Bool[Tensor, "points 3"]],
    ) -> DecodedMasks:
        """Decodes foreground points.

        Args:
            points: x and y in pixels of the encoder's input.
            passes: which masks to keep, from their predicted IoU (float32); the others are never upscaled.
        """
        if not self._regroups:
            labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
            sparse, dense = self._sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
            logits, predicted_iou = self._sam.mask_decoder(
                image_embeddings=self._features,
                image_pe=self._position,
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            predicted_iou = predicted_iou.float()
            kept = passes(predicted_iou)
            return DecodedMasks(logits[kept].float(), kept.nonzero()[:, 1], predicted_iou[kept])

        decoder = self._sam.mask_decoder
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(points), -1, -1), self._embedded(points)], dim=1)
        tokens, image_tokens = self._image.attend(tokens)
        predicted_iou = decoder.iou_prediction_head(tokens[:, 0])[:, 1:].float()
        kept = passes(predicted_iou)
        point, level = kept.nonzero(as_tuple=True)
        with_mask = kept.any(dim=1)
        row = with_mask.cumsum(0) - 1  # of each point that has a mask, among those
        with_mask = with_mask.nonzero()[:, 0]
        mask_tokens = tokens[with_mask, 2 : 2 + NUM_LEVELS]
        weights = [mlp(mask_tokens[:, i]) for i, mlp in enumerate(list(decoder.output_hypernetworks_mlps)[1:])]
        logits = _upscale(
            decoder.output_upscaling, image_tokens[with_mask], torch.stack(weights, dim=1), self._features.shape[-2:]
        )
        return DecodedMasks(logits[row[point], level].float(), level, predicted_iou[point, level])

    def _embedded(self, points: Float[Tensor, "points 2"]) -> Float[Tensor, "points 2 channels"]:
        """What the prompt encoder makes of foreground points: each, and the one that fills up its prompt.

        `PromptEncoder` adds its embeddings by masks of labels, for which a GPU is waited for three times.
        """
        encoder: Any = self._sam.prompt_encoder
        placed = encoder.pe_layer.forward_with_coords((points + 0.5)[:, None], encoder.input_image_size)
        filled = encoder.not_a_point_embed.weight.expand(len(points), 1, -1)
        return torch.cat([placed + encoder.point_embeddings[1].weight, filled], dim=1)


class _ImageSide:
    """`TwoWayTransformer.forward` with the image's part of it computed once.

    Shapes below: P points, T tokens of a point, N image tokens, C channels, H heads of D channels.
    """

    def __init__(
        self,
        transformer: TwoWayTransformer,
        features: Float[Tensor, "1 channels height width"],
        position: Float[Tensor, "1 channels height width"],
    ) -> None:
        self.transformer = transformer
        self.features = features.flatten(2).transpose(1, 2).contiguous()  # 1 N C
        self.position = position.flatten(2).transpose(1, 2)
        layers: list[Any] = list(transformer.layers)
        first = layers[0]
        placed = self.features + self.position
        to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
        self.first_key = _split_heads(to_image, to_image.k_proj(placed))[0]  # H N D
        self.first_value = _split_heads(to_image, to_image.v_proj(self.features))[0]
        self.first_query = _split_heads(to_token, to_token.q_proj(placed))[0]
        # W position + bias of the layers whose image tokens differ from point to point.
        self.position_keys = [self._placed(layer.cross_attn_token_to_image, "k_proj") for layer in layers[1:]]
        self.position_queries = [self._placed(layer.cross_attn_image_to_token, "q_proj") for layer in layers[1:]]
        self.final_position_key = self._placed(transformer.final_attn_token_to_image, "k_proj")

    def _placed(self, attention: Any, name: str) -> Float[Tensor, "heads width image_tokens"]:
        return _split_heads(attention, getattr(attention, name)(self.position))[0].transpose(1, 2)

    def attend(
        self, points: Float[Tensor, "points tokens channels"]
    ) -> tuple[Float[Tensor, "points tokens channels"], Float[Tensor, "points image_tokens channels"]]:
        tokens, image = points, self.features
        for i, layer in enumerate(self.transformer.layers):
            block: Any = layer
            placed = tokens if block.skip_first_layer_pe else tokens + points
            attended = block.self_attn(q=placed, k=placed, v=tokens)
            tokens = block.norm1(attended if block.skip_first_layer_pe else tokens + attended)

            attention = block.cross_attn_token_to_image
            if i == 0:
                attended = self._attend_shared(attention, tokens + points)
            else:
                attended = _attend_image(attention, tokens + points, image, self.position_keys[i - 1])
            tokens = block.norm2(tokens + attended)
            tokens = block.norm3(tokens + block.mlp(tokens))

            attention = block.cross_attn_image_to_token
            key = _split_heads(attention, attention.k_proj(tokens + points))  # P H T D
            if i == 0:
                scores = _with_shared(key, self.first_query.transpose(1, 2))
            else:
                scores = _scores(attention.q_proj, key, image, self.position_queries[i - 1])
            value = _split_heads(attention, attention.v_proj(tokens))
            image = block.norm4(image + _attended_image(attention, scores, value))
        final = self.transformer.final_attn_token_to_image
        attended = _attend_image(final, tokens + points, image, self.final_position_key)
        return self.transformer.norm_final_attn(tokens + attended), image

    def _attend_shared(
        self, attention: Any, placed: Float[Tensor, "points tokens channels"]
    ) -> Float[Tensor, "points tokens channels"]:
        query = _split_heads(attention, attention.q_proj(placed))
        weights = torch.softmax(_with_shared(query, self.first_key.transpose(1, 2)) * query.shape[3] ** -0.5, dim=3)
        return attention.out_proj(_join_heads(_with_shared(weights, self.first_value)))


def _split_heads(
    attention: Any, x: Float[Tensor, "batch tokens channels"]
) -> Float[Tensor, "batch heads tokens width"]:
    return x.unflatten(2, (attention.num_heads, -1)).transpose(1, 2)


def _join_heads(x: Float[Tensor, "batch heads tokens width"]) -> Float[Tensor, "batch tokens channels"]:
    return x.transpose(1, 2).flatten(2)


def _with_shared(
    x: Float[Tensor, "points heads tokens width"], shared: Float[Tensor, "heads width columns"]
) -> Float[Tensor, "points heads tokens columns"]:
    """x @ shared without a copy of `shared` for every point: all points are rows of one product per head."""
    rows = x.transpose(0, 1).flatten(1, 2) @ shared
    return rows.unflatten(1, (len(x), -1)).transpose(0, 1)


def _by_head(projection: nn.Linear, num_heads: int) -> Float[Tensor, "heads width channels"]:
    return projection.weight.unflatten(0, (num_heads, -1))


def _scores(
    projection: nn.Linear,
    tokens: Float[Tensor, "points heads tokens width"],
    image: Float[Tensor, "points image_tokens channels"],
    projected_position: Float[Tensor, "heads width image_tokens"],
) -> Float[Tensor, "points heads tokens image_tokens"]:
    """tokens @ (W (image + position) + bias)^T, W moved to the side of the few."""
    moved = tokens @ _by_head(projection, tokens.shape[1])  # P H T C
    products = (moved.flatten(1, 2) @ image.transpose(1, 2)).unflatten(1, tokens.shape[1:3])
    return products + _with_shared(tokens, projected_position)


def _attend_image(
    attention: Any,
    placed: Float[Tensor, "points tokens channels"],
    image: Float[Tensor, "points image_tokens channels"],
    position_key: Float[Tensor, "heads width image_tokens"],
) -> Float[Tensor, "points tokens channels"]:
    """Tokens attend to the image tokens, whose values carry no position."""
    query = _split_heads(attention, attention.q_proj(placed))
    scores = _scores(attention.k_proj, query, image, position_key)
    weights = torch.softmax(scores * query.shape[3] ** -0.5, dim=3)
    gathered = (weights.flatten(1, 2) @ image).unflatten(1, weights.shape[1:3])  # P H T C
    # The weights of a row sum to one, so the bias comes once.
    values = gathered @ _by_head(attention.v_proj, attention.num_heads).transpose(1, 2)
    return attention.out_proj(_join_heads(values) + attention.v_proj.bias)


def _attended_image(
    attention: Any,
    scores: Float[Tensor, "points heads tokens image_tokens"],
    value: Float[Tensor, "points heads tokens width"],
) -> Float[Tensor, "points image_tokens channels"]:
    """Image tokens attend to the few tokens: softmax over these, values already in the output's channels."""
    weights = torch.softmax(scores * value.shape[3] ** -0.5, dim=2).flatten(1, 2)
    projection = attention.out_proj.weight.unflatten(1, (attention.num_heads, -1)).permute(1, 2, 0)  # H D C
    return torch.baddbmm(attention.out_proj.bias, weights.transpose(1, 2), (value @ projection).flatten(1, 2))


def _upscale(
    upscaling: nn.Sequential,
    image: Float[Tensor, "points image_tokens channels"],
    weights: Float[Tensor, "points levels narrow"],
    grid: torch.Size,
) -> Float[Tensor, "points levels low_height low_width"]:
    """The mask head: two transposed convolutions and the product with the weights that the mask tokens give."""
    first, norm, activation, second, last_activation = upscaling
    assert isinstance(first, nn.ConvTranspose2d), first
    assert isinstance(second, nn.ConvTranspose2d), second
    assert isinstance(norm, LayerNorm2d), norm
    x = functional.layer_norm(_spread(first, image), norm.weight.shape, norm.weight, norm.bias, norm.eps)
    x = last_activation(_spread(second, activation(x)))  # P N dy dx dy' dx' narrow
    logits = x.flatten(1, 5) @ weights.transpose(1, 2)
    (height, width), num_points, num_levels = grid, len(image), weights.shape[1]
    logits = logits.reshape(num_points, height, width, 2, 2, 2, 2, num_levels)
    # Level first; then row, its halves and quarters; then column.
    return logits.permute(0, 7, 1, 3, 5, 2, 4, 6).reshape(num_points, num_levels, 4 * height, 4 * width)


def _spread(
    convolution: nn.ConvTranspose2d, x: Float[Tensor, "*batch channels"]
) -> Float[Tensor, "*batch 2 2 out_channels"]:
    """A transposed convolution of kernel and stride 2 on tokens: each becomes a square of four."""
    assert convolution.bias is not None
    channels, out_channels = convolution.weight.shape[:2]
    weight = convolution.weight.permute(0, 2, 3, 1).reshape(channels, 4 * out_channels)
    return (x @ weight).unflatten(-1, (2, 2, out_channels)) + convolution.bias
