"""Mask2Former for semantic segmentation: the network of `transformers`, with a loss that ignores what is to be ignored.

Weights that others published load, and what is trained here others load without us: the network inside is a plain
`Mask2FormerForUniversalSegmentation` (Cheng et al. 2022; method M7).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoConfig, Mask2FormerConfig, Mask2FormerForUniversalSegmentation

from fmwsss.core.clip.frozen_clip import FrozenClip
from fmwsss.core.errors import InputError
from fmwsss.core.segmenter.base import Segmenter
from fmwsss.core.segmenter.clip_backbone import ClipBackbone, map_strides
from fmwsss.core.segmenter.mask_criterion import (
    CriterionSettings,
    classes_in,
    count_targets,
    make_targets,
    mask2former_losses,
)

TIE_LOGIT = 4.0  # of a query for the class that it begins as
# It warns of every backbone but Swin; convolutional ones have the same four maps.
logging.getLogger("transformers.models.mask2former.configuration_mask2former").setLevel(logging.ERROR)


class Mask2Former(Segmenter):
    """See the module.

    Args:
        network: as `transformers` makes or loads it; its classes are background and the vocabulary's, in this order.
        merge_queries: what queries of one class are to its score: `sum`, the authors', or `max`, ours: the best counts.
            A class has one mask here, so that a second query with its name is a copy, and no further evidence. It takes
            queries x classes x pixels products outside of any matrix product: seconds an image on a CPU, for COCO.
    """

    def __init__(
        self, network: Mask2FormerForUniversalSegmentation, merge_queries: Literal["sum", "max"] = "sum"
    ) -> None:
        super().__init__(num_classes=len(network.config.id2label or {}), size_divisor=32)
        self.network, self.merge_queries = network, merge_queries
        config = network.config
        self.criterion = CriterionSettings(
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            no_object_weight=config.no_object_weight,
            num_points=config.train_num_points,
            oversample=config.oversample_ratio,
            importance=config.importance_sample_ratio,
        )

    @property
    def backbone(self) -> nn.Module:
        """The part that learns a tenth as fast."""
        return self.network.model.pixel_level_module.encoder

    def measure(
        self, labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
    ) -> Float[Tensor, "2"]:
        """See `Segmenter.measure`: masks, and images with any.

        Args:
            labels: class indices; 255 is ignored.
            weights: of each pixel, 0 to 1; None for 1.

        Returns:
            Sums over the batch.
        """
        return count_targets(classes_in(labels, weights))

    def losses(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        labels: UInt8[Tensor, "batch height width"],
        weights: Float[Tensor, "batch height width"] | None,
        totals: Float[Tensor, " sums"],
        random_seeds: Sequence[int],
    ) -> dict[str, Float[Tensor, ""]]:
        """See `Segmenter.losses`: `class`, `mask` and `dice`, over all layers of the decoder.

        Args:
            images: RGB, 0 to 255.
            labels: class indices; 255 is ignored.
            weights: of each pixel, 0 to 1; None for 1.
            totals: `measure` of the whole batch, summed over workers.
            random_seeds: of each image, for points that are drawn.

        Returns:
            Weighted losses by name; their sum is minimised.
        """
        output = self.network(pixel_values=self.normalise(images), output_auxiliary_logits=True)
        layers: list[Any] = [*output.auxiliary_logits, output]
        class_logits = torch.stack([layer["class_queries_logits"] for layer in layers])
        mask_logits = torch.stack([layer["masks_queries_logits"] for layer in layers])
        with torch.autocast(images.device.type, enabled=False):
            return mask2former_losses(
                class_logits.float(), mask_logits.float(), make_targets(labels, weights), totals, random_seeds,
                self.criterion,
            )  # fmt: skip

    def scores(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """See `Segmenter.scores`: the class's probability times the mask's, merged over queries, scaled to sum 1."""
        output = self.network(pixel_values=self.normalise(images))
        masks = functional.interpolate(output.masks_queries_logits.float(), images.shape[-2:], mode="bilinear")
        classes = output.class_queries_logits.float().softmax(-1)[..., :-1]
        masks = masks.sigmoid()
        if self.merge_queries == "sum":
            scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
        else:
            # One class at a time: all together would be as many times the memory.
            best = [(each[..., None, None] * masks).amax(dim=1) for each in classes.unbind(dim=2)]
            scores = torch.stack(best, dim=1)
        return scores / scores.sum(1, keepdim=True).clamp(min=1e-6)


def new_mask2former(
    class_names: Sequence[str], backbone: dict[str, Any], options: dict[str, Any], random_seed: int
) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former before training.

    Args:
        class_names: background first.
        backbone: `model_type` (`swin`, `resnet`, ...) and settings of its configuration in `transformers`.
        options: settings of `Mask2FormerConfig`.
        random_seed: of its weights.

    Raises:
        ValueError: a model type or a setting that `transformers` does not know.
    """
    kind = backbone.get("model_type", "swin")
    try:
        parts = AutoConfig.for_model(kind)
    except ValueError:
        raise InputError(f"transformers has no backbone of type {kind!r}; swin and resnet are two it has") from None
    known, known_options = parts.to_dict(), Mask2FormerConfig().to_dict()
    unknown = [key for key in backbone if key not in known] + [key for key in options if key not in known_options]
    if unknown:
        raise InputError(f"{unknown[0]!r} is no setting of a {kind} backbone or of a Mask2Former")
    given = {**backbone, "out_features": ["stage1", "stage2", "stage3", "stage4"]}
    own = AutoConfig.for_model(kind, **{key: value for key, value in given.items() if key != "model_type"})
    labels = dict(enumerate(class_names))
    config = Mask2FormerConfig(
        backbone_config=own, id2label=labels, label2id={name: index for index, name in labels.items()}, **options
    )
    with torch.random.fork_rng():
        torch.manual_seed(random_seed)
        network = Mask2FormerForUniversalSegmentation(config)
        _restore_norms(network.model.pixel_level_module.encoder)
    return network


def on_clip(
    class_names: Sequence[str], clip: FrozenClip, options: dict[str, Any], random_seed: int
) -> Mask2FormerForUniversalSegmentation:
    """A Mask2Former before training whose backbone is a frozen CLIP (see `ClipBackbone`); arguments as above.

    Its weights load in `transformers` only with this package's backbone in place.

    Args:
        class_names: background first.
        clip: whose image tower is the backbone; it stays frozen.
        options: settings of a Mask2Former.
        random_seed: of the weights.

    Returns:
        The network of `transformers`.
    """
    width = options.get("feature_size", Mask2FormerConfig().feature_size)
    stand_in = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [width] * 4, "depths": [1] * 4}
    options = {"feature_strides": map_strides(clip.patch_size), **options}
    network = new_mask2former(class_names, {**stand_in, "layer_type": "basic"}, options, random_seed)
    with torch.random.fork_rng():
        torch.manual_seed(random_seed)
        network.model.pixel_level_module.encoder = ClipBackbone(clip, width)
    _tie_queries_to_classes(network)
    return network


@torch.no_grad()
def _tie_queries_to_classes(network: Mask2FormerForUniversalSegmentation) -> None:
    """Lets query k begin as that of class k, as far as there are queries.

    Which query is matched to which class is then settled from the first step on, and not only after some epochs, which
    a short training does not have.
    """
    queries = network.model.transformer_module.queries_features.weight
    states = functional.layer_norm(queries, queries.shape[-1:])
    num_tied = min(len(states), len(network.config.id2label or {}))
    network.class_predictor.weight[:num_tied] = TIE_LOGIT * states[:num_tied] / states.shape[-1]


def _restore_norms(backbone: nn.Module) -> None:
    """Batch norms start at 1: `transformers` draws their scales around 0, which silences a backbone without weights."""
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
