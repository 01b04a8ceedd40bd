"""The regrouped mask decoder against segment-anything's own, in double precision."""

from __future__ import annotations

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from fmwsss.core.superpixels.sam_mask_decoder import PointDecoder

CHANNELS, SIDE = 32, 4


@pytest.fixture(scope="module", params=[1, 2, 3])
def sam(request) -> Sam:
    torch.manual_seed(request.param)
    encoder = ImageEncoderViT(img_size=64, patch_size=16, embed_dim=4, depth=0, num_heads=1, out_chans=CHANNELS)
    prompts = PromptEncoder(CHANNELS, (SIDE, SIDE), (64, 64), mask_in_chans=4)
    transformer = TwoWayTransformer(depth=request.param, embedding_dim=CHANNELS, mlp_dim=64, num_heads=4)
    decoder = MaskDecoder(transformer_dim=CHANNELS, transformer=transformer, iou_head_hidden_dim=16)
    sam = Sam(encoder, prompts, decoder).double().eval()
    # segment-anything casts coordinates to float32; everything after it can be double.
    code = sam.prompt_encoder.pe_layer
    encode = code._pe_encoding
    code._pe_encoding = lambda coords: encode(coords.double())
    for parameter in sam.parameters():  # norms and biases that do something
        parameter.data += 0.3 * torch.randn_like(parameter)
    return sam


def decoded(sam: Sam, features: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    labels = torch.ones(len(points), 1, dtype=torch.int)
    sparse, dense = sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)
    return sam.mask_decoder(features, sam.prompt_encoder.get_dense_pe(), sparse.double(), dense, True)


@torch.no_grad()
@pytest.mark.parametrize("num_points", [1, 5])
def test_regrouping_changes_nothing_but_rounding(sam: Sam, num_points: int):
    features, points = torch.randn(1, CHANNELS, SIDE, SIDE).double(), 64 * torch.rand(num_points, 2).double()
    logits, predicted_iou = decoded(sam, features, points)
    ours = PointDecoder(sam, features)(points, lambda ious: torch.ones_like(ious, dtype=torch.bool))
    assert logits.std() > 0.1
    # Logits come out in float32, whatever the networks work in.
    torch.testing.assert_close(ours.logits, logits.flatten(0, 1).float(), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.predicted_iou, predicted_iou.flatten().float(), rtol=1e-6, atol=1e-6)
    assert ours.level.tolist() == [0, 1, 2] * num_points


@torch.no_grad()
def test_only_what_passes_comes_back_by_point_and_level(sam: Sam):
    features, points = torch.randn(1, CHANNELS, SIDE, SIDE).double(), 64 * torch.rand(6, 2).double()
    logits, predicted_iou = decoded(sam, features, points)
    threshold = float(predicted_iou.median())
    kept = predicted_iou > threshold
    ours = PointDecoder(sam, features)(points, lambda ious: ious > threshold)
    torch.testing.assert_close(ours.logits, logits[kept].float(), rtol=1e-6, atol=1e-6)
    assert ours.level.tolist() == kept.nonzero()[:, 1].tolist()
    nothing = PointDecoder(sam, features)(points, lambda ious: ious > 1e9)
    assert len(nothing.logits) == len(nothing.level) == 0


@torch.no_grad()
def test_a_decoder_of_another_kind_is_called_as_it_is(sam: Sam):
    class Subclass(MaskDecoder):
        pass

    other = Subclass(transformer_dim=CHANNELS, transformer=sam.mask_decoder.transformer, iou_head_hidden_dim=16)
    other.double().load_state_dict(sam.mask_decoder.state_dict())
    features, points = torch.randn(1, CHANNELS, SIDE, SIDE).double(), 64 * torch.rand(3, 2).double()
    logits, _ = decoded(sam, features, points)
    like = Sam(sam.image_encoder, sam.prompt_encoder, other.eval())
    ours = PointDecoder(like, features)(points, lambda ious: torch.ones_like(ious, dtype=torch.bool))
    torch.testing.assert_close(ours.logits, logits.flatten(0, 1).float(), rtol=1e-6, atol=1e-6)
