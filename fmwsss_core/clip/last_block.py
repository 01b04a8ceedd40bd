"""The last block of an image encoder, and the analytic VJP of the embedding through it (method M2.1 e).

What Softmax-GradCAM asks for is linear in the cotangent of the image embedding. Written as an ordinary expression of
that cotangent, over quantities that depend on the image alone, it needs no backward pass; and autograd's backward pass
through the expression is the gradient that prompts learn from. Nothing is differentiated twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.clip.frozen_linear import frozen_linear

ATTENTION_AT_ONCE = 1 << 26  # weights of all heads: 256 MiB in float32; several tensors of this size are alive together


@dataclass(frozen=True)
class LastBlock:
    """Forward activations of the last block and the pooling head (ln_post, mean over patches, projection, L2 norm; M2),
    cached for the analytic vector-Jacobian product.

    Attributes:
        embedding: f_I of M2.
        activation: F of M2: output of ln_1 at the patch tokens.
    """

    embedding: Float[Tensor, "batch embed"]
    activation: Float[Tensor, "batch tokens width"]
    _visual: Any
    _query: Float[Tensor, "batch heads tokens head"]
    _key: Float[Tensor, "batch heads all_tokens head"]
    _value: Float[Tensor, "batch heads all_tokens head"]
    _weights: Float[Tensor, "batch heads tokens all_tokens"]
    _attended: Float[Tensor, "batch heads tokens head"]
    _middle: tuple[Tensor, Tensor]  # normalised input of ln_2 and 1 / its deviation
    _slope: Float[Tensor, "batch tokens hidden"]  # derivative of the activation function, times the scale of ln_post
    _lifted: Float[
        Tensor, "batch tokens hidden"
    ]  # the direction of each token, through c_proj and the activation function
    _out: tuple[Tensor, Tensor]  # normalised input of ln_post and 1 / its deviation
    _length: Float[Tensor, "batch 1"]  # of the embedding before its L2 norm

    def cam(self, cotangent: Float[Tensor, "rows embed"], image: Int[Tensor, "rows"]) -> Float[Tensor, "rows tokens"]:
        """F J u of M2.1: the raw class activation map of each row; see `gradient`. Without a graph some at a time.

        Args:
            cotangent: u of each row, the derivative with respect to the pooled embedding.
            image: which image of the batch a row is of.

        Returns:
            The raw map over the patches, row by row.
        """
        at_once = len(image)
        if not torch.is_grad_enabled():
            at_once = max(1, ATTENTION_AT_ONCE // self._weights[0].numel())
        parts = [
            torch.einsum("rnk,rk->rn", self.activation[own], self.gradient(some, own))
            for some, own in zip(cotangent.split(at_once), image.split(at_once), strict=True)
        ]
        return torch.cat(parts) if parts else cotangent.new_zeros(0, self.activation.shape[1])

    def gradient(
        self, cotangent: Float[Tensor, "rows embed"], image: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows width"]:
        """J u of M2.1: mean over patch tokens of the derivative of <u, f_I> with respect to F, a row for each u.

        The class token's row of F and the residual path are held fixed. Linear in `cotangent`, and differentiable.

        Args:
            cotangent: u of each row.
            image: image of each row.
        """
        visual, block = self._visual, self._visual.transformer.resblocks[-1]
        num_tokens, width = self.activation.shape[1:]
        out, out_scale = (tensor[image] for tensor in self._out)
        middle, middle_scale = (tensor[image] for tensor in self._middle)

        # The mean over tokens hands every token the same vector; only its part along that token's own direction is
        # taken out by ln_post. So the way back through c_proj is one product for the row and one for the image.
        embedding = self.embedding[image]
        before_norm = (cotangent - embedding * (embedding * cotangent).sum(1, keepdim=True)) / self._length[image]
        shared = before_norm @ visual.proj.T * visual.ln_post.weight / num_tokens
        shared = shared - shared.mean(dim=1, keepdim=True)
        along = out @ shared[:, :, None] / width
        to_output = out_scale * (shared[:, None] - out * along)
        hidden = (
            self._slope[image] * (shared @ _scale_of(block.ls_2, block.mlp[2].weight))[:, None]
            - self._lifted[image] * along
        )
        to_middle = hidden @ block.mlp[0].weight * block.ln_2.weight
        centred = to_middle - to_middle.mean(dim=2, keepdim=True)
        to_middle = to_output + middle_scale * (centred - middle * (to_middle * middle).mean(dim=2, keepdim=True))

        to_heads = to_middle @ _scale_of(block.ls_1, block.attn.out_proj.weight)
        to_heads = to_heads.unflatten(2, (block.attn.num_heads, -1)).transpose(1, 2)
        weights = self._weights[image]
        to_weights = to_heads @ self._value[image].transpose(2, 3)
        to_weights = to_weights - (to_heads * self._attended[image]).sum(dim=3, keepdim=True)
        to_scores = weights * to_weights * block.attn.head_dim**-0.5
        # All patches get the same change. A query's change meets every key; a change of all patch keys at once moves
        # a row of the softmax only against the class token (a row of `to_scores` sums to 0); a change of the values
        # comes through with the weight that is not the class token's.
        to_query = to_scores.sum(dim=2)[:, :, None] @ self._key[image]
        to_key = -to_scores[:, :, None, :, 0] @ self._query[image]
        to_value = (1 - weights[:, :, None, :, 0]) @ to_heads
        joined = torch.cat([part[:, :, 0].flatten(1) for part in (to_query, to_key, to_value)], dim=1)
        return joined @ block.attn.in_proj_weight / num_tokens


@dataclass(frozen=True)
class MapProduct:
    """F J of M2.1 d: with it the maps of an image need no image tower at all; exact, for it is all of their Jacobian.

    It costs as many products with the last block's Jacobian as the embedding is wide, and pays where an image (or a
    fixed view of it) is visited more often than about a quarter of that.

    Attributes:
        embedding: f_I of M2.
        product: F J.
    """

    embedding: Float[Tensor, "batch embed"]
    product: Float[Tensor, "batch tokens embed"]

    def cam(self, cotangent: Float[Tensor, "rows embed"], image: Int[Tensor, "rows"]) -> Float[Tensor, "rows tokens"]:
        """F J u: the raw class activation map of each row, as `LastBlock.cam`.

        Args:
            cotangent: u of each row.
            image: which image of the batch a row is of.

        Returns:
            The raw map over the patches, row by row.
        """
        return torch.einsum("rnd,rd->rn", self.product[image], cotangent)


@torch.no_grad()
def map_product(block: LastBlock, num_at_once: int = 16) -> MapProduct:
    """The product F J of every image of a batch.

    Args:
        block: what the last block made of the images.
        num_at_once: columns of J computed together; more need more memory.
    """
    basis = torch.eye(block.embedding.shape[1]).to(block.embedding)
    product = torch.empty(*block.activation.shape[:2], len(basis)).to(basis)
    for i in range(len(product)):
        for first in range(0, len(basis), num_at_once):
            columns = basis[first : first + num_at_once]
            image = torch.full((len(columns),), i, device=basis.device)
            product[i, :, first : first + num_at_once] = block.cam(columns, image).T
    return MapProduct(block.embedding, product)


@torch.no_grad()
def run_last_block(visual: Any, last_block_input: Float[Tensor, "batch all_tokens width"]) -> LastBlock:
    """Runs the last block of an open_clip `VisionTransformer` and what follows it, on the patch tokens (M2).

    Args:
        visual: the image tower.
        last_block_input: the class token is row 0.
    """
    block = visual.transformer.resblocks[-1]
    activated = block.ln_1(last_block_input)
    query, key, value = split_heads(block.attn, activated)
    query = query[:, :, 1:]  # the class token's query is never read
    weights = attention_weights(query, key)
    attended = weights @ value
    projection = block.attn.out_proj
    into, activation, out_of = block.mlp
    joined = frozen_linear(attended.transpose(1, 2).flatten(2), projection.weight, projection.bias)
    x = last_block_input[:, 1:] + block.ls_1(joined)
    middle = _normalised(x, block.ln_2)
    before = frozen_linear(block.ln_2(x), into.weight, into.bias)
    # Elementwise, so that its product with ones is its derivative; forward mode also works without a graph.
    hidden, slope, *_ = torch.func.jvp(activation, (before,), (torch.ones_like(before),))
    x = x + block.ls_2(frozen_linear(hidden, out_of.weight, out_of.bias))
    out = _normalised(x, visual.ln_post)
    slope = slope * out[1]
    pooled = visual.ln_post(x).mean(dim=1) @ visual.proj
    return LastBlock(
        embedding=functional.normalize(pooled, dim=-1),
        activation=activated[:, 1:],
        _visual=visual,
        _query=query,
        _key=key,
        _value=value,
        _weights=weights,
        _attended=attended,
        _middle=middle,
        _slope=slope,
        _lifted=out[0] @ _scale_of(block.ls_2, out_of.weight) * slope,
        _out=out,
        _length=pooled.norm(dim=1, keepdim=True),
    )


def split_heads(attn: nn.MultiheadAttention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (batch, heads, tokens, width of a head), of x (batch, tokens, width).

    Args:
        attn: whose projections are used.
        x: tokens after the norm, (batch, tokens, width).

    Returns:
        Queries, keys and values.
    """
    assert attn.in_proj_weight is not None
    projected = frozen_linear(x, attn.in_proj_weight, attn.in_proj_bias)
    query, key, value = projected.unflatten(2, (3, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)
    return query, key, value


def attention_weights(query: Tensor, key: Tensor) -> Tensor:
    """Softmax of the scaled products of queries and keys, (batch, heads, queries, keys).

    Args:
        query: (batch, heads, queries, width of a head).
        key: (batch, heads, keys, width of a head).

    Returns:
        Weights that sum to 1 over the keys.
    """
    return torch.softmax(query @ key.transpose(2, 3) * query.shape[3] ** -0.5, dim=3)


def attend_with_mean(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Attention, (batch, heads, tokens, width of a head), and its weights averaged over heads, (batch, tokens, tokens).

    The weights of all heads are there for some queries at a time.

    Args:
        query: (batch, heads, tokens, width of a head).
        key: of the same shape.
        value: of the same shape.

    Returns:
        Attention and mean weights.
    """
    num_images, num_heads, num_tokens, _ = query.shape
    at_once = max(1, ATTENTION_AT_ONCE // (num_images * num_heads * num_tokens))
    attended, means = [], []
    for some in query.split(at_once, dim=2):
        weights = attention_weights(some, key)
        means.append(weights.mean(dim=1))
        attended.append(weights @ value)
    return torch.cat(attended, dim=2), torch.cat(means, dim=1)


def join_heads(heads: Tensor) -> Tensor:
    """(batch, heads, tokens, width of a head) to (batch, tokens, width)."""
    return heads.transpose(1, 2).flatten(2)


def after_attention(block: Any, x: Tensor, attended: Tensor, residual: bool = True, mlp: bool = True) -> Tensor:
    """The rest of a residual block: heads, already joined, projected; residual path, MLP.

    Args:
        block: an open_clip `ResidualAttentionBlock`.
        x: its input.
        attended: the joined heads, of the same tokens.
        residual: whether the residual path around the attention is taken (M11 F1 a).
        mlp: whether the MLP, with its own residual path, comes after it.
    """
    projection = block.attn.out_proj
    projected = block.ls_1(frozen_linear(attended, projection.weight, projection.bias))
    x = x + projected if residual else projected
    if not mlp:
        return x
    into, activation, out_of = block.mlp
    hidden = frozen_linear(block.ln_2(x), into.weight, into.bias, activation)
    return x + block.ls_2(frozen_linear(hidden, out_of.weight, out_of.bias))


def _normalised(x: Tensor, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """What a layer norm multiplies its weight with, and the factor by which it scaled its centred input."""
    variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
    scale = (variance + norm.eps).rsqrt()
    return (x - mean) * scale, scale


def _scale_of(layer_scale: nn.Module, weight: Tensor) -> Tensor:
    """A projection's weight (out, in) with the layer scale after it, if the block has one, drawn in."""
    gamma = getattr(layer_scale, "gamma", None)
    return weight if gamma is None else gamma[:, None] * weight
